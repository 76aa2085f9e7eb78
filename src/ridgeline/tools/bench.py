"""Bench: prefill and decode speed of a loaded model, round by round, each beside what the machine could do just then.

Prompts are seeded random ids, new in every round, so that no cached prefix can help. Decoding starts from 16 tokens.
Attainment is 1 at the ceiling: a prefill's arithmetic at the peaks of what it multiplies, a decode's bytes of weights
and KV at the speed of a loop that only loads as many. Each round is held against its own ceilings, since a virtual
machine's change while it runs.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ridgeline.analysis.hardware import Peaks
from ridgeline.analysis.roofline import Roofline
from ridgeline.engine.params import SamplingParams
from ridgeline.llm import LLM
from ridgeline.ops.spec import Load
from ridgeline.program import cost
from ridgeline.program.ir import Program
from ridgeline.tools.timing import Timing, timed

DECODE_PROMPT = 16


@dataclass(frozen=True)
class Round:
    """One prefill and one decode, and the machine's ceilings just before them."""

    ceilings: Peaks
    prefill: Timing
    decode: Timing

    def attainment(self, program: Program) -> dict[str, float]:
        """Of both phases."""
        roofline, stream = Roofline(program, self.ceilings), 0.0
        for load in self.decode.decode_loads:
            nbytes = roofline.stream_bytes(load)
            stream += nbytes / (self.ceilings.read_gb_s(nbytes) * 1e9)
        compute = sum(map(roofline.compute_seconds, self.prefill.prefill_loads))
        return {"prefill": compute / self.prefill.prefill_s, "decode": stream / self.decode.decode_s}


@dataclass(frozen=True)
class Bench:
    """All rounds of a bench."""

    rounds: tuple[Round, ...]

    @property
    def prefill_tok_s(self) -> float:
        return statistics.median(r.prefill.prefill_tok_s for r in self.rounds)

    @property
    def decode_tok_s(self) -> float:
        return statistics.median(r.decode.decode_tok_s for r in self.rounds)

    @property
    def overhead_ms(self) -> float | None:
        """Median milliseconds of a decode step outside the native call; None for a backend without one."""
        return median(r.decode.overhead_ms for r in self.rounds)

    def attainments(self, program: Program) -> dict[str, list[float]]:
        """Attainment of both phases, by round."""
        found = [r.attainment(program) for r in self.rounds]
        return {phase: [x[phase] for x in found] for phase in ("prefill", "decode")}


def first_token(llm: LLM) -> Timing:
    """One token for a short prompt: the first answer of a process, cold."""
    return timed(llm, prompt_of(llm, DECODE_PROMPT, random.Random(0)), greedy(1))


def warm_up(llm: LLM, prefill: int) -> None:
    """A prefill as it will be measured: what it touches is in memory from then on."""
    timed(llm, prompt_of(llm, prefill, random.Random(0)), greedy(1))


def decode_bytes(llm: LLM, decode: int) -> float:
    """Bytes of weights and KV that an average step of a decode reads."""
    step = cost.total(llm.program, Load(((DECODE_PROMPT + decode // 2, 1),), 1))
    return step.weight_bytes + step.kv_bytes


def bench(llm: LLM, prefill: int, decode: int, rounds: int, ceilings: Callable[[], Peaks]) -> Bench:
    """`rounds` of a prompt of `prefill` tokens, and of `decode` tokens after the first."""
    rng, done = random.Random(1), []
    for _ in range(rounds):
        now = ceilings()
        prefilled = timed(llm, prompt_of(llm, prefill, rng), greedy(1))
        decoded = timed(llm, prompt_of(llm, DECODE_PROMPT, rng), greedy(decode + 1))
        done.append(Round(now, prefilled, decoded))
    return Bench(tuple(done))


def prompt_of(llm: LLM, count: int, rng: random.Random) -> Sequence[int]:
    """`count` random token ids."""
    return [rng.randrange(llm.info.vocab) for _ in range(count)]


def greedy(tokens: int) -> SamplingParams:
    """Exactly `tokens` likeliest tokens."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def median(values: Iterable[float | None]) -> float | None:
    """Median of the values there are; None without any."""
    known = [x for x in values if x is not None]
    return statistics.median(known) if known else None
