"""What /metrics tells: ours (`ridgeline_*`), and TGI's under their own names (server/tgi_metrics.py).

Requests are counted once, from their record, at their end; engines are asked when somebody looks; only the gap
between tokens and the size of steps are noted as they come. Labels are bounded: keys have names of the key file, and
beyond some hundreds are counted together. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator

from ridgeline import __version__
from ridgeline.engine.client import EngineClient
from ridgeline.engine.records import EngineInfo, StepDelta
from ridgeline.server.exposition import Histogram, Number, exposition
from ridgeline.server.record import Record
from ridgeline.server.tgi_metrics import TGIMetrics

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_GAPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_MOST_KEYS = 256
_OTHER_KEYS = "(others)"  # no key can be called so


def _counter(name: str, about: str, *labels: str) -> Number:
    return Number(f"ridgeline_{name}_total", about, "counter", *labels)


def _gauge(name: str, about: str, *labels: str) -> Number:
    return Number(f"ridgeline_{name}", about, "gauge", *labels)


class _ByKey:
    """A histogram of seconds for each key; requests without one have no label."""

    def __init__(self, name: str, about: str) -> None:
        self._name, self._about = f"ridgeline_{name}", about
        self._found: dict[str, Histogram] = {}
        self.of("")  # is there from the beginning

    def of(self, key: str) -> Histogram:
        if key not in self._found:
            label = {"key": key} if key else {}
            self._found[key] = Histogram(self._name, self._about, _SECONDS, **label)
        return self._found[key]

    def __iter__(self) -> Iterator[Histogram]:
        return iter(self._found.values())


class Metrics:
    """All numbers of one server. In the event loop only."""

    def __init__(self, info: EngineInfo) -> None:
        self._info, self._tgi = info, TGIMetrics(info)
        self._first = _ByKey("time_to_first_token_seconds", "From a request's arrival.")
        self._gap = Histogram("ridgeline_inter_token_seconds", "Between the tokens of an answer.", _GAPS)
        self._request = _ByKey("request_seconds", "Of requests with an answer, to its end.")
        self._keys = {""}  # those that are counted by their own name
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
        key = self._key(record.name)
        self._requests.add(1, key, str(record.outcome))
        self._warned.add(record.warned)
        if not record.submitted:
            return self._tgi.refused(record)
        self._tgi.ended(record)
        self._prompt.add(record.prompt, key)
        self._generated.add(record.generated, key)
        self._cached.add(record.cached, key)
        self._hits.add(record.cached > 0, key)
        if record.first:
            self._first.of(key).observe(record.first - record.begin)
        if not record.error:
            self._request.of(key).observe(record.end - record.begin)

    def _key(self, name: str) -> str:
        if name not in self._keys and len(self._keys) > _MOST_KEYS:
            return _OTHER_KEYS
        self._keys.add(name)
        return name

    def text(self, client: EngineClient, healthy: bool) -> bytes:
        """Prometheus's text of them all, now."""
        own = (
            *self._first, self._gap, *self._request, self._requests, self._prompt, self._generated, self._cached,
            self._hits, self._warned,
        )  # fmt: skip
        return exposition([*own, *self._engine(client, healthy), *self._tgi.families(client.ledger)])

    def _engine(self, client: EngineClient, healthy: bool) -> list[Number]:
        last, info = client.ledger.last, self._info
        build = _gauge("build_info", "1; what runs.", "version", "program", "backend", "format")
        build.set(1, __version__, info.program, info.backend, info.format)
        pages = _gauge("kv_pages", "Pages of the KV pool.", "state")
        states = {"used": last.pages_used, "cached": last.pages_cached, "withheld": last.pages_withheld}
        for state, count in {**states, "free": info.pages - sum(states.values())}.items():
            pages.set(count, state)
        now = {
            _gauge("healthy", "Whether requests are served now."): healthy,
            _gauge("running", "Sequences that run."): last.running,
            _gauge("waiting", "Sequences that wait."): client.ledger.waiting,
            _gauge("paused", "Sequences whose readers are behind."): last.paused,
            _gauge("kv_use_ratio", "Part of the KV pool that sequences hold."): last.pages_used / max(info.pages, 1),
            _counter("steps", "Steps of this engine process."): last.step,
            _counter("preemptions", "Sequences that gave way, in this engine process."): last.counters.preemptions,
            _counter("recomputed_tokens", "That they made compute again."): last.counters.recomputed_tokens,
            _counter("engine_restarts", "Engine processes that were replaced."): client.restarts,
        }
        if last.counters.attainment:
            about = "Part of the roofline that the last steps reached, where `ridgeline hardware --measure` has run."
            now[_gauge("attainment_ratio", about)] = last.counters.attainment
        for family, value in now.items():
            family.set(value)
        return [build, pages, *now]
