"""What is told of a request: its id on every route, a line of log, a span, and comments while a stream has no news."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
from serving import Server, engine_info, until

from ridgeline.config import LOG_LEVELS, EngineConfig, ServerConfig
from ridgeline.errors import ConfigError
from ridgeline.server import tracing
from ridgeline.server.front import Front
from ridgeline.server.log import Log, keep_quiet
from ridgeline.server.record import Record

CHAT = "/v1/chat/completions"
SECRET = "the prompt nobody may read"
USER = {"messages": [{"role": "user", "content": SECRET}]}
ROUTES = [
    ("GET", "/health", None), ("GET", "/info", None), ("GET", "/metrics", None), ("GET", "/v1/models", None),
    ("GET", "/nothing", None), ("GET", "/debug/engine", None), ("POST", CHAT, USER), ("POST", CHAT, {}),
    ("POST", "/generate", {"inputs": SECRET}), ("POST", "/generate_stream", {"inputs": SECRET}),
]  # fmt: skip


def ask(server: Server, method: str, path: str, body, **headers: str):
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return asyncio.run(server._alone(method, path, body if body is not None else b"", headers=named))


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_a_request_keeps_the_name_it_comes_with(method, path, body):
    name = "9f0c8b5e-aaaa-4bbb-8ccc-000000000001"
    assert ask(Server.new(), method, path, body, x_request_id=name).headers["x-request-id"] == name
    for bad in ("", "a b", "x" * 129, "é", 'a"b'):
        given = ask(Server.new(), method, path, body, x_request_id=bad).headers["x-request-id"]
        assert given != bad and len(given) == 32


def test_the_name_leads_to_the_object_and_to_what_was_decided():
    server, name = Server.new(), "9f0c8b5e-aaaa-4bbb-8ccc-000000000001"

    async def follow():
        async with server.running():
            answer = await server.ask("POST", CHAT, USER, headers=[(b"x-request-id", name.encode())])
            told = [await server.ask("GET", f"/debug/requests/{id}") for id in (name, answer.json["id"])]
            return answer, told

    answer, told = asyncio.run(follow())
    assert answer.json["id"] == f"chatcmpl-{name}" and [t.status for t in told] == [200, 200]


def logged(format: str, monkeypatch, *asked) -> list[str]:
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    server = Server.new(log_format=format)

    async def all_of_them():
        async with server.running():
            for method, path, body in asked:
                await server.ask(method, path, body if body is not None else b"")

    asyncio.run(all_of_them())
    return file.getvalue().splitlines()


def test_one_line_of_json_for_each_request_and_no_text(monkeypatch):
    lines = logged("json", monkeypatch, *ROUTES)
    assert len(lines) == len(ROUTES) and SECRET not in "".join(lines) and "wörld" not in "".join(lines)
    chat = json.loads(lines[6])
    assert chat.items() >= {
        "event": "request", "method": "POST", "path": CHAT, "status": 200, "key": "", "finish": "eos_token",
        "generated_tokens": 16, "cached_tokens": 0, "choices": 1,
    }.items()  # fmt: skip
    assert chat["prompt_tokens"] > len(SECRET) and 0 < chat["first_token"] <= chat["seconds"]
    assert json.loads(lines[7])["error"] == "validation" and json.loads(lines[7])["status"] == 400
    assert json.loads(lines[4])["status"] == 404 and "prompt_tokens" not in json.loads(lines[4])


def test_a_line_says_who_left():
    file = io.StringIO()
    for status in (0, 200):
        Log("json", file)(Record(status=status, error="dropped"))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["status"], line["error"]) for line in lines] == [(499, "dropped")] * 2


def test_lines_for_people_and_none_by_default(monkeypatch):
    (line,) = logged("text", monkeypatch, ("GET", "/a b\n\x1b[31m", None))
    assert "GET /a?b??[31m 404" in line and "id=" in line
    assert logged("none", monkeypatch, *ROUTES) == []
    with pytest.raises(ConfigError, match="log_format"):
        ServerConfig(EngineConfig("fake", backend="reference"), log_format="xml")


def test_the_log_says_no_less_than_its_level():
    ends = ((200, ""), (0, "dropped"), (422, "validation"), (500, "incomplete_generation"), (200, "generation"),
            (200, "deadline"), (200, "undelivered"))  # fmt: skip
    said = {}
    for level in LOG_LEVELS:
        file = io.StringIO()
        log = Log("text", file, level)
        for status, error in ends:
            log(Record(status=status, error=error))
        said[level] = len(file.getvalue().splitlines())
    assert said == {"debug": 7, "info": 7, "warn": 5, "error": 2}


def test_the_rest_of_the_log_keeps_to_the_level(caplog):
    ours = logging.getLogger("ridgeline")
    before = ours.level
    try:
        for level, kept in (("warn", 1), ("error", 0)):
            keep_quiet(level)
            caplog.clear()
            logging.getLogger("ridgeline.server.keys").warning("the keys cannot be read")
            assert len(caplog.records) == kept
    finally:
        ours.setLevel(before)
    with pytest.raises(ConfigError, match="log_level"):
        ServerConfig(EngineConfig("fake", backend="reference"), log_level="loud")


def test_a_log_that_nobody_reads_stops_nothing():
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    for file in (Broken(), closed):
        Log("json", file)(Record())


def test_a_span_below_the_clients_own():
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observe = tracing.spans(provider, engine_info())
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for method, path, body in (("GET", "/health", None), ("POST", CHAT, USER)):
        server = Server.new()
        next(m for m in server.app.user_middleware if m.cls is Front).args[1].append(observe)
        assert ask(server, method, path, body, traceparent=parent).status == 200
    (span,) = exporter.get_finished_spans()
    assert f"00-{span.context.trace_id:032x}-{span.parent.span_id:016x}-01" == parent
    assert span.attributes["gen_ai.usage.output_tokens"] == 16 and span.name == f"POST {CHAT}"
    assert [e.name for e in span.events] == ["submitted", "first token"]
    assert span.start_time <= span.events[0].timestamp <= span.events[1].timestamp <= span.end_time
    assert SECRET not in span.to_json()


def test_traces_without_the_packages_are_refused_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"ridgeline-llm\[otel\]"):
        tracing.tracer("http://localhost:4318", "x", engine_info())


def test_a_prompt_that_is_read_shows_how_far(monkeypatch):
    monkeypatch.setattr("ridgeline.server.hub.PROGRESS_S", 0.01)
    server = Server.new()
    server.client.gate.clear()

    async def wait():
        async with server.running():
            asking = asyncio.ensure_future(server.ask("POST", CHAT, USER | {"stream": True}))
            await until(lambda: bool(server.client.submitted))
            for read in (512, 1024):
                server.client.read = (read, 2048)
                await asyncio.sleep(0.1)
            server.client.gate.set()
            return await asking

    answer = asyncio.run(wait())
    comments = [line for line in answer.body.split(b"\n\n") if line.startswith(b":")]
    assert comments == [b": prefill 512/2048", b": prefill 1024/2048"]
    assert answer.events[-1] == "[DONE]"
