"""OpenTelemetry: a span for each request that reached the model, below the client's own where it sent `traceparent`.

The packages are an extra, `ridgeline-llm[otel]`. A span is made when its request has ended, with the times that it
had; sending is the packages' own thread's work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ridgeline import __version__
from ridgeline.engine.records import EngineInfo
from ridgeline.errors import ConfigError
from ridgeline.server.record import TRACEPARENT, Record

SEND_S = 5  # that a collector may take, also when it is not there and the server ends


def tracer(endpoint: str, service: str, info: EngineInfo) -> Callable[[Record], None]:
    """An observer that sends spans to a collector (OTLP over HTTP); the last ones when the process ends."""
    exporter, provider_of, resource_of, processor_of = packages()
    about = {"service.name": service, "service.version": __version__}
    provider = provider_of(resource=resource_of(about))
    path = "" if endpoint.rstrip("/").endswith("/v1/traces") else "/v1/traces"
    provider.add_span_processor(processor_of(exporter(endpoint.rstrip("/") + path, timeout=SEND_S)))
    return spans(provider, info)


def packages() -> tuple[Any, Any, Any, Any]:
    """What makes an exporter, a provider, a resource and a processor of spans. ConfigError where it is missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("an otlp_endpoint needs packages: pip install 'ridgeline-llm[otel]'") from None
    return OTLPSpanExporter, TracerProvider, Resource.create, BatchSpanProcessor


def spans(provider: Any, info: EngineInfo) -> Callable[[Record], None]:
    """An observer that makes spans with `provider`, a TracerProvider."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    maker, propagator = provider.get_tracer("ridgeline", __version__), TraceContextTextMapPropagator()

    def end(record: Record) -> None:
        if not record.submitted:
            return

        def at(moment: float) -> int:
            return record.wall + int((moment - record.begin) * 1e9)

        parent = propagator.extract({TRACEPARENT: record.traceparent})
        span = maker.start_span(
            f"{record.method} {record.path}", parent, SpanKind.SERVER, _attributes(record, info), start_time=record.wall
        )
        for name, moment in (("submitted", record.submitted), ("first token", record.first)):
            if moment:
                span.add_event(name, timestamp=at(moment))
        if record.error:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(at(record.end))

    return end


def _attributes(record: Record, info: EngineInfo) -> dict[str, Any]:
    """OpenTelemetry's names for generative models, and ours for what they have no name for."""
    return {
        "http.request.method": record.method, "url.path": record.path, "http.response.status_code": record.outcome,
        "gen_ai.provider.name": "ridgeline", "gen_ai.request.model": info.model,
        "gen_ai.usage.input_tokens": record.prompt, "gen_ai.usage.output_tokens": record.generated,
        "gen_ai.response.finish_reasons": (record.finish,) if record.finish else (),
        "ridgeline.request.id": record.id, "ridgeline.key": record.name, "ridgeline.cached_tokens": record.cached,
    }  # fmt: skip
