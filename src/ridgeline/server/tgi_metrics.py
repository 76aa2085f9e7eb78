"""TGI's metrics under TGI's names, with TGI's buckets, so that its dashboards go on.

Steps are mixed here, so all of them are counted as `decode`, and a prefill for each first token; what has no meaning
here (filtering and concatenating batches, speculated tokens, a queue of the router's own) is there and stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator

from ridgeline.engine.client import EngineClient
from ridgeline.engine.records import PAGE, EngineInfo, StepDelta
from ridgeline.server.exposition import Histogram, Number
from ridgeline.server.record import Record

_DURATIONS = tuple(1e-4 * 1.5**i for i in range(1, 36))
_METHODS = ("prefill", "decode")
_FAILURES = {  # kind of error: TGI's word
    "validation": "validation", "overloaded": "overloaded", "rate_limit_exceeded": "overloaded",
    "template_error": "template", "generation": "generation", "dropped": "dropped",
}  # fmt: skip
_OTHERS = "incomplete"


def _lengths(limit: int) -> list[float]:
    return [limit / 100 * (i + 1) for i in range(100)]


class TGIMetrics:
    """Counters of requests and batches. In the event loop only."""

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._count = Number("tgi_request_count", "Requests that were made.", "counter")
        self._success = Number("tgi_request_success", "And answered.", "counter")
        self._failure = Number("tgi_request_failure", "And not.", "counter", "err")
        for word in (*dict.fromkeys(_FAILURES.values()), _OTHERS):
            self._failure.add(0, word)
        self._batches = [
            Number(f"tgi_batch_inference_{what}", about, "counter", "method")
            for what, about in (("count", "Batches."), ("success", "That went well."), ("failure", "That did not."))
        ]
        self._concat = Number("tgi_batch_concat", "Batches that were joined.", "counter", "reason")
        for reason in ("backpressure", "wait_exceeded", "chunking"):
            self._concat.add(0, reason)
        for method in _METHODS:
            for family in self._batches:
                family.add(0, method)
        self._durations = {
            what: Histogram(f"tgi_request_{what}_duration".replace("__", "_"), "Seconds.", _DURATIONS)
            for what in ("", "validation", "queue", "inference", "mean_time_per_token")
        }
        context = info.context
        self._input = Histogram("tgi_request_input_length", "Tokens.", _lengths(context - 1))
        self._generated = Histogram("tgi_request_generated_tokens", "Tokens.", _lengths(context))
        self._most = Histogram("tgi_request_max_new_tokens", "Tokens.", _lengths(context))
        self._skipped = Histogram("tgi_request_skipped_tokens", "Tokens.", (0.0,))
        self._size = Histogram("tgi_batch_next_size", "Sequences of a step.", range(1, 1025))
        self._steps = {
            (what, method): Histogram(f"tgi_batch_{what}_duration", "Seconds.", _DURATIONS, method=method)
            for what in ("inference", "forward", "decode", "filter", "concat")
            for method in _METHODS
        }
        self._step, self._at = 0, 0.0  # number and time of the last step

    def stepped(self, last: StepDelta, now: float) -> None:
        """Results of one step or more arrived; their time is known where they followed others."""
        steps = last.step - self._step if last.step >= self._step else last.step  # a new engine begins at 0
        self._step = last.step
        if steps <= 0:
            return
        for family in self._batches[:2]:
            family.add(steps, "decode")
        self._size.observe(last.running)
        if self._at:
            self._steps["inference", "decode"].observe((now - self._at) / steps)
        self._at = now if last.running else 0.0

    def refused(self, record: Record) -> None:
        """A request ended before it was submitted; only errors were for the model."""
        if record.error:
            self._count.add(1)
            self._failure.add(1, _FAILURES.get(record.error, _OTHERS))

    def ended(self, record: Record) -> None:
        """A request that was submitted ended."""
        self._count.add(1)
        self._durations[""].observe(record.end - record.begin)
        self._durations["validation"].observe(record.submitted - record.begin)
        self._durations["inference"].observe(record.end - record.submitted)
        self._input.observe(record.prompt)
        if record.first:
            for family in self._batches[:2]:
                family.add(1, "prefill")
        if record.most:
            self._most.observe(record.most)
        if record.error:
            return self._failure.add(1, _FAILURES.get(record.error, _OTHERS))
        self._success.add(1)
        self._generated.observe(record.generated)
        mean = (record.end - record.submitted) / max(record.generated, 1)
        self._durations["mean_time_per_token"].observe(mean)

    def families(self, client: EngineClient) -> Iterator[Number | Histogram]:
        """All of them, with gauges as of the engine's last step."""
        last = client.last
        yield from (self._count, self._success, self._failure, *self._batches, self._concat)
        gauges = {
            "queue_size": client.waiting,
            "batch_current_size": last.running,
            "batch_current_max_tokens": last.pages_used * PAGE,
            "batch_max_total_tokens": self._info.pages * PAGE,
        }
        for name, value in gauges.items():
            gauge = Number(f"tgi_{name}", "At the last step.", "gauge")
            gauge.set(value)
            yield gauge
        yield from (*self._durations.values(), self._input, self._generated, self._most, self._skipped, self._size)
        yield from self._steps.values()
