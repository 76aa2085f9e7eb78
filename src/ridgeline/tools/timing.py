"""Time one answer: prompt and decode speed, and attainment, the predicted time of its steps over the measured one.

Also what a decode step costs beside the backend's native call: schedule, build, commit, detokenise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.analysis.meter import metered
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import FAILED
from ridgeline.errors import EngineFailed
from ridgeline.llm import LLM, NOT_NUMBERS
from ridgeline.ops.spec import Load

if TYPE_CHECKING:
    from ridgeline.analysis.roofline import Roofline


@dataclass(frozen=True)
class Timing:
    """One answer. Prefill ends with the first token; decode is every token after it. Rates are 0 where undefined."""

    prompt_tokens: int
    tokens: int
    prefill_s: float
    decode_s: float
    prefill_loads: tuple[Load, ...]
    decode_loads: tuple[Load, ...]
    finish_reason: str
    decode_native_s: float | None = None  # of decode_s, in native calls; None for a backend without them

    @property
    def prefill_tok_s(self) -> float:
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 else 0.0

    @property
    def overhead_ms(self) -> float | None:
        """Milliseconds of an average decode step outside the native call."""
        if self.decode_native_s is None or not self.decode_loads:
            return None
        return 1e3 * (self.decode_s - self.decode_native_s) / len(self.decode_loads)


def timed(
    llm: LLM, prompt: Sequence[int], params: SamplingParams, show: Callable[[str], object] = lambda text: None
) -> Timing:
    """Answer `prompt` (one choice), handing text to `show` as it comes."""
    finish, tokens, first, before, native = "", 0, 0.0, 0, None
    with metered(llm) as meter, closing(llm.stream(prompt, params)) as deltas:
        begin = time.perf_counter()
        for delta in deltas:
            if delta.tokens and not tokens:
                first, before, native = time.perf_counter(), len(meter), _native_s(llm)
            tokens += len(delta.tokens)
            show(delta.text)
            finish = delta.finish or finish
        end, ended = time.perf_counter(), _native_s(llm)
    loads = meter.loads
    if finish == FAILED:
        raise EngineFailed(NOT_NUMBERS)
    inside = None if native is None or ended is None else ended - native
    return Timing(len(prompt), tokens, first - begin, end - first, loads[:before], loads[before:], finish, inside)


def _native_s(llm: LLM) -> float | None:
    """Seconds in native calls so far."""
    found: float | None = getattr(llm.step, "native_s", None)
    return found


def attainment(roofline: Roofline, timing: Timing) -> dict[str, float | None]:
    """Predicted over measured seconds of each phase, 1 being the roofline; None for a phase that did not happen."""

    def part(loads: Sequence[Load], seconds: float) -> float | None:
        return sum(map(roofline.seconds, loads)) / seconds if loads and seconds else None

    return {
        "prefill": part(timing.prefill_loads, timing.prefill_s),
        "decode": part(timing.decode_loads, timing.decode_s),
    }
