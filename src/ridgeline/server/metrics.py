"""What /metrics tells: ours (`ridgeline_*`), and TGI's under their own names (server/tgi_metrics.py).

Requests are counted once, from their record, at their end; engines are asked when somebody looks; only the gap
between tokens and the size of steps are noted as they come. Must not know HTTP.
"""

from __future__ import annotations

from ridgeline import __version__
from ridgeline.engine.client import EngineClient
from ridgeline.engine.records import EngineInfo, StepDelta
from ridgeline.server.exposition import Histogram, Number, exposition
from ridgeline.server.record import Record
from ridgeline.server.tgi_metrics import TGIMetrics

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_GAPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def _counter(name: str, about: str, *labels: str) -> Number:
    return Number(f"ridgeline_{name}_total", about, "counter", *labels)


def _gauge(name: str, about: str, *labels: str) -> Number:
    return Number(f"ridgeline_{name}", about, "gauge", *labels)


class Metrics:
    """All numbers of one server. In the event loop only."""

    def __init__(self, info: EngineInfo) -> None:
        self._info, self._tgi = info, TGIMetrics(info)
        self._first = Histogram("ridgeline_time_to_first_token_seconds", "From a request's arrival.", _SECONDS)
        self._gap = Histogram("ridgeline_inter_token_seconds", "Between the tokens of an answer.", _GAPS)
        self._request = Histogram("ridgeline_request_seconds", "Of requests with an answer, to its end.", _SECONDS)
        self._requests = _counter("requests", "Requests that ended, of every route.", "key", "status")
        self._prompt = _counter("prompt_tokens", "Tokens of prompts, cached ones too.", "key")
        self._generated = _counter("generated_tokens", "Tokens that were delivered.", "key")
        self._cached = _counter("cached_tokens", "Tokens of prompts that the prefix cache had.", "key")
        self._hits = _counter("prefix_hits", "Requests of whose prompts the prefix cache had a part.", "key")
        self._warned = _counter("warnings", "Answers with a warning.")

    def gap(self, seconds: float) -> None:
        """Between two tokens of an answer."""
        self._gap.observe(seconds)

    def stepped(self, last: StepDelta) -> None:
        """Results of one step or more arrived."""
        self._tgi.stepped(last)

    def ended(self, record: Record) -> None:
        """A request ended, one way or another."""
        self._requests.add(1, record.name, str(record.status or 499))  # nginx's number for clients that left
        self._warned.add(record.warned)
        if not record.submitted:
            return self._tgi.refused(record)
        self._tgi.ended(record)
        self._prompt.add(record.prompt, record.name)
        self._generated.add(record.generated, record.name)
        self._cached.add(record.cached, record.name)
        self._hits.add(record.cached > 0, record.name)
        if record.first:
            self._first.observe(record.first - record.begin)
            self._request.observe(record.end - record.begin)

    def text(self, client: EngineClient, healthy: bool) -> bytes:
        """Prometheus's text of them all, now."""
        own = (
            self._first, self._gap, self._request, self._requests, self._prompt, self._generated, self._cached,
            self._hits, self._warned,
        )  # fmt: skip
        return exposition([*own, *self._engine(client, healthy), *self._tgi.families(client.last)])

    def _engine(self, client: EngineClient, healthy: bool) -> list[Number]:
        last, info = client.last, self._info
        build = _gauge("build_info", "1; what runs.", "version", "program", "backend", "format")
        build.set(1, __version__, info.program, info.backend, info.format)
        pages = _gauge("kv_pages", "Pages of the KV pool.", "state")
        states = {"used": last.pages_used, "cached": last.pages_cached, "withheld": last.pages_withheld}
        for state, count in {**states, "free": info.pages - sum(states.values())}.items():
            pages.set(count, state)
        now = {
            _gauge("healthy", "Whether requests are served now."): healthy,
            _gauge("running", "Sequences that run."): last.running,
            _gauge("waiting", "Sequences that wait."): last.waiting,
            _gauge("paused", "Sequences whose readers are behind."): last.paused,
            _gauge("kv_use_ratio", "Part of the KV pool that sequences hold."): last.pages_used / max(info.pages, 1),
            _counter("steps", "Steps of this engine process."): last.step,
            _counter("preemptions", "Sequences that gave way, in this engine process."): last.counters.preemptions,
            _counter("recomputed_tokens", "That they made compute again."): last.counters.recomputed_tokens,
            _counter("engine_restarts", "Engine processes that were replaced."): client.restarts,
        }
        for family, value in now.items():
            family.set(value)
        return [build, pages, *now]
