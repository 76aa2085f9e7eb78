"""Spans as a collector receives them, over HTTP, and servers that cannot send any."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import Server, engine_info

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.errors import ConfigError
from ridgeline.server import tracing
from ridgeline.server.app import check
from ridgeline.server.front import Front

HERE = Path(__file__).parent
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENGINE = EngineConfig("fake", backend="reference")


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The URL of a collector that takes everything, and the paths and bodies that it was sent."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


def spans_of(got: list[tuple[str, bytes]]):
    """All spans in what a collector got, with the attributes of the service that sent them."""
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="no opentelemetry")
    requests = [proto.ExportTraceServiceRequest.FromString(body) for _, body in got]
    return [
        ({a.key: a.value.string_value for a in part.resource.attributes}, span)
        for request in requests
        for part in request.resource_spans
        for scope in part.scope_spans
        for span in scope.spans
    ]


SERVE = """
import asyncio, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from serving import Server, engine_info
server = Server.new(otlp_endpoint=sys.argv[2], otlp_service_name="ridge")
async def ask():
    async with server.running():
        for trace in sys.argv[3:]:
            await server.ask("POST", "/generate", {"inputs": "a secret"}, headers=[(b"traceparent", trace.encode())])
        await server.ask("POST", "/generate", {"inputs": ""})
        await server.ask("GET", "/health")
asyncio.run(ask())
"""


def serve(url: str, *traces: str) -> None:
    command = [sys.executable, "-c", SERVE, str(HERE), url, *traces]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_collector_has_all_spans_when_the_server_has_ended():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="opentelemetry is not installed")
    with collector() as (url, got):
        serve(url, f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", "nonsense")
        spans = spans_of(got)
    assert {path for path, _ in got} == {"/v1/traces"}
    assert not any(b"secret" in body for _, body in got)
    (service, child), (_, root) = spans  # the second asked not to be recorded
    assert service["service.name"] == "ridge" and service["service.version"]
    assert child.trace_id.hex() == TRACE and child.parent_span_id.hex() == PARENT
    assert root.trace_id.hex() != TRACE and not root.parent_span_id
    told = {a.key: a.value for a in child.attributes}
    assert child.name == "POST /generate" and told["http.response.status_code"].int_value == 200
    assert told["gen_ai.usage.input_tokens"].int_value == len("a secret")
    assert child.start_time_unix_nano < child.events[0].time_unix_nano < child.end_time_unix_nano


@pytest.mark.parametrize(
    "given", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces", "http://c:4318/v1/traces/"]
)
def test_a_collector_may_take_some_seconds_at_most(given, monkeypatch):
    """Also at the end of the server, which waits for the last spans to go out."""
    made = {}

    def exporter(endpoint: str, timeout: float) -> None:
        made.update(endpoint=endpoint, timeout=timeout)

    provider = SimpleNamespace(add_span_processor=lambda processor: None)
    fakes = exporter, lambda resource: provider, dict, lambda exporter: None
    monkeypatch.setattr(tracing, "packages", lambda: fakes)
    monkeypatch.setattr(tracing, "spans", lambda provider, info: None)
    tracing.tracer(given, "ridge", engine_info())
    assert made == {"endpoint": "http://c:4318/v1/traces", "timeout": tracing.SEND_S} and tracing.SEND_S <= 5


def test_what_was_refused_did_not_reach_the_engine():
    seen = []
    server = Server.new()
    next(m for m in server.app.user_middleware if m.cls is Front).args[1].append(seen.append)
    server.client.gate.clear()

    async def too_many():
        async with server.running():
            asking = [asyncio.ensure_future(server.ask("POST", "/generate", {"inputs": "a"})) for _ in range(17)]
            answers = [await next(asyncio.as_completed(asking))]
            server.client.gate.set()
            return answers + [await a for a in asking]

    answers = asyncio.run(too_many())
    assert answers[0].status == 429
    refused = [r for r in seen if r.status == 429]
    assert len(refused) == 1 and not refused[0].submitted and len(seen) == 17


def test_endpoints_and_packages_are_checked_before_a_model_is_loaded(monkeypatch):
    for endpoint in ("localhost:4318", "grpc://localhost:4317", "http://"):
        with pytest.raises(ConfigError, match="otlp_endpoint"):
            ServerConfig(ENGINE, otlp_endpoint=endpoint)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"ridgeline-llm\[otel\]"):
        check(ServerConfig(ENGINE, otlp_endpoint="http://localhost:4318"))
    with pytest.raises(ConfigError, match=r"ridgeline-llm\[otel\]"):
        tracing.packages()
