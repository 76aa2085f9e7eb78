"""Bench: prefill and decode speed of a loaded model, medians of interleaved rounds, with the roofline beside them.

Prompts are seeded random ids, new in every round, so that no cached prefix can help. Decoding starts from 16 tokens.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.analysis.roofline import Roofline
from ridgeline.engine.params import SamplingParams
from ridgeline.llm import LLM
from ridgeline.tools.timing import Timing, attainment, timed

DECODE_PROMPT = 16


@dataclass(frozen=True)
class Bench:
    """All rounds of a bench."""

    prefill: tuple[Timing, ...]
    decode: tuple[Timing, ...]

    @property
    def prefill_tok_s(self) -> float:
        return statistics.median(t.prefill_tok_s for t in self.prefill)

    @property
    def decode_tok_s(self) -> float:
        return statistics.median(t.decode_tok_s for t in self.decode)

    def attainment(self, roofline: Roofline) -> dict[str, float]:
        """Median attainment of both phases."""
        return {
            phase: statistics.median(attainment(roofline, t)[phase] or 0.0 for t in rounds)
            for phase, rounds in (("prefill", self.prefill), ("decode", self.decode))
        }


def first_token(llm: LLM) -> Timing:
    """One token for a short prompt: the first answer of a process, cold."""
    return timed(llm, _prompt(llm, DECODE_PROMPT, random.Random(0)), _params(1))


def bench(llm: LLM, prefill: int, decode: int, rounds: int) -> Bench:
    """`rounds` of a prompt of `prefill` tokens, and of `decode` tokens after the first."""
    rng = random.Random(1)
    prefills, decodes = [], []
    for _ in range(rounds):
        prefills.append(timed(llm, _prompt(llm, prefill, rng), _params(1)))
        decodes.append(timed(llm, _prompt(llm, DECODE_PROMPT, rng), _params(decode + 1)))
    return Bench(tuple(prefills), tuple(decodes))


def _prompt(llm: LLM, count: int, rng: random.Random) -> Sequence[int]:
    return [rng.randrange(llm.info.vocab) for _ in range(count)]


def _params(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
