"""TGI's metrics under TGI's names, with TGI's buckets, so that its dashboards go on.

Steps are mixed here: one that reads prompts counts as `prefill`, whatever else it does, and any other as `decode`; one
that fails is a step with which the engine was lost. Requests join those that run whenever there is room, as with TGI
where it cuts prompts into chunks. What does not happen here (joining for another reason, the work of filtering and
joining batches, speculated tokens) is there and stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator

from ridgeline.engine.ledger import Failures, Ledger
from ridgeline.engine.records import PAGE, EngineInfo, StepDelta, Steps
from ridgeline.server.exposition import Histogram, Number
from ridgeline.server.record import DROPPED, Record

_DURATIONS = tuple(1e-4 * 1.5**i for i in range(1, 36))
_METHODS = ("prefill", "decode")
_KINDS = {  # TGI's word: kinds of errors
    "validation": (
        "validation", "unsupported", "model_not_found", "tool_error", "utf8", "length mismatch",
        "suffix not supported", "batch size exceeded",
    ),
    "overloaded": ("overloaded", "rate_limit_exceeded"), "template": ("template_error", "missing_template_variable"),
    "generation": ("generation",), DROPPED: (DROPPED,),
}  # fmt: skip
_FAILURES = {kind: word for word, kinds in _KINDS.items() for kind in kinds}
_OTHERS = "incomplete"
_JOINING = "chunking"  # TGI's word for joining whenever there is room
_ASIDE = ("/tokenize", "/detokenize", "/chat_tokenize", "/watermark/detect")  # posts that ask nothing of the model
_UNASKED = {  # of requests that never were the model's, which TGI does not count
    "invalid_api_key", "forbidden", "unsupported_media_type", "payload_too_large", "slow_request", "not_found",
}  # fmt: skip


def _lengths(limit: int) -> list[float]:
    return [limit / 100 * (i + 1) for i in range(100)]


class TGIMetrics:
    """Counters of requests and batches. In the event loop only."""

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._count = Number("tgi_request_count", "Requests that were made.", "counter")
        self._success = Number("tgi_request_success", "And answered.", "counter")
        self._failure = Number("tgi_request_failure", "And not.", "counter", "err")
        for word in (*_KINDS, _OTHERS):
            self._failure.add(0, word)
        self._batches = [
            Number(f"tgi_batch_inference_{what}", about, "counter", "method")
            for what, about in (("count", "Batches."), ("success", "That went well."), ("failure", "That did not."))
        ]
        self._concat = Number("tgi_batch_concat", "Steps in which requests joined others.", "counter", "reason")
        for reason in ("backpressure", "wait_exceeded", _JOINING):
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
        self._seen = {method: Steps() for method in _METHODS}
        self._joins, self._failed = 0, dict.fromkeys(_METHODS, 0)

    def stepped(self, last: StepDelta) -> None:
        """Results of one step or more arrived."""
        for method, steps in zip(_METHODS, (last.counters.reading, last.counters.answering), strict=True):
            if steps.count < self._seen[method].count:  # a new engine begins at 0
                self._seen[method] = Steps()
            seen = self._seen[method]
            count = steps.count - seen.count
            if not count:
                continue
            forward, decode = (steps.forward_s - seen.forward_s) / count, (steps.decode_s - seen.decode_s) / count
            for what, each in (("forward", forward), ("decode", decode), ("inference", forward + decode)):
                self._steps[what, method].observe(each, count)
            for family in self._batches[:2]:
                family.add(count, method)
            self._size.observe(last.running, count)
            self._seen[method] = Steps(steps.count, steps.forward_s, steps.decode_s)

        joins = last.counters.joins
        self._concat.add(joins - (self._joins if joins >= self._joins else 0), _JOINING)
        self._joins = joins

    def _fail(self, failures: Failures) -> None:
        """So many steps have failed until now."""
        for method, count in zip(_METHODS, (failures.reading, failures.answering), strict=True):
            for family in (self._batches[0], self._batches[2]):
                family.add(count - self._failed[method], method)
            self._failed[method] = count

    def refused(self, record: Record) -> None:
        """A request ended before it was submitted; only errors were for the model."""
        asked = record.method == "POST" and record.path not in _ASIDE and record.error not in _UNASKED
        if record.error and asked:
            self._count.add(1)
            self._failure.add(1, _FAILURES.get(record.error, _OTHERS))

    def ended(self, record: Record) -> None:
        """A request that was submitted ended. As with TGI, times are those of answers."""
        self._count.add(1)
        self._input.observe(record.prompt)
        if record.most:
            self._most.observe(record.most)
        if record.error:
            return self._failure.add(1, _FAILURES.get(record.error, _OTHERS))
        self._success.add(1)
        self._generated.observe(record.generated)
        inference = record.end - record.waited_until
        for what, seconds in {
            "": record.end - record.begin,
            "validation": record.submitted - record.begin,
            "queue": record.waited_until - record.submitted,
            "inference": inference,
            "mean_time_per_token": inference / max(record.generated, 1),
        }.items():
            self._durations[what].observe(seconds)

    def families(self, ledger: Ledger) -> Iterator[Number | Histogram]:
        """All of them, with gauges as of the engine's last step."""
        last = ledger.last
        self._fail(ledger.failures)
        yield from (self._count, self._success, self._failure, *self._batches, self._concat)
        gauges = {
            "queue_size": ledger.waiting,
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
