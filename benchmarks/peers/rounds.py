"""Strictly interleaved rounds: every engine does the same piece of work in turn, again and again.

A round is settled if the latency of a barrier stayed on one side (machine state) from its begin to its end; others
are repeated for a while. Ratios are taken within a round, and the median over rounds. Knows engines by their protocol.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from peers.child import Unmeasured
from peers.engines import Session
from peers.work import Work, ratio

UNSETTLED = "changing"


class Round(msgspec.Struct):
    """Figures by entry, and barriers of two threads in ns: at the begin and after each engine (None: not known)."""

    figures: dict[str, dict[str, float]]
    barrier_ns: list[float | None]
    state: str


class Result(msgspec.Struct):
    """All rounds of one piece of work in one case. failed: why an entry has no figures."""

    case: str
    work: str
    date: str
    rounds: list[Round]
    failed: dict[str, str] = msgspec.field(default_factory=dict)


class Instruments(msgspec.Struct):
    """How the machine is watched: a barrier of two threads in ns, and the name of the state that several make."""

    barrier: Callable[[], float | None]
    state_of: Callable[[list[float | None]], str]


def measure(
    work: Work, sessions: Mapping[str, Session], count: int, watch: Instruments, failed: dict[str, str]
) -> list[Round]:
    """Rounds until `count` are settled, twice as many at most. An entry that fails goes to `failed` and is left out."""
    rounds: list[Round] = []
    while sum(r.state != UNSETTLED for r in rounds) < count and len(rounds) < 2 * count:
        rounds.append(_round(work, sessions, len(rounds), watch, failed))
    return rounds


def _round(
    work: Work, sessions: Mapping[str, Session], number: int, watch: Instruments, failed: dict[str, str]
) -> Round:
    """One round. Each starts with another engine, so that none always runs behind the same neighbour."""
    titles = list(sessions)
    start = number % len(titles) if titles else 0
    barriers, figures = [watch.barrier()], {}
    for title in titles[start:] + titles[:start]:
        if title in failed:
            continue
        try:
            figures[title] = dict(sessions[title].run(work, seed=number + 1))
        except Unmeasured as wrong:
            failed[title] = str(wrong)
        barriers.append(watch.barrier())
    return Round(figures, barriers, watch.state_of(barriers))


def used(rounds: list[Round]) -> list[Round]:
    """The rounds that count: settled ones if there are any, else all."""
    return [r for r in rounds if r.state != UNSETTLED] or rounds


def figures(rounds: list[Round], title: str) -> list[str]:
    """Names of the figures an entry has."""
    return sorted({name for r in rounds for name in r.figures.get(title, {})}, reverse=True)


def median(rounds: list[Round], title: str, figure: str) -> float | None:
    """Median of an entry's figure."""
    found = [r.figures[title][figure] for r in used(rounds) if figure in r.figures.get(title, {})]
    return statistics.median(found) if found else None


def median_ratio(rounds: list[Round], ours: str, theirs: str, figure: str) -> float | None:
    """Median over rounds of how many times better ours is than theirs in the same round."""
    pairs = [(r.figures.get(ours, {}).get(figure), r.figures.get(theirs, {}).get(figure)) for r in used(rounds)]
    found = [ratio(figure, mine, other) for mine, other in pairs if mine and other]
    return statistics.median(found) if found else None


def states(rounds: list[Round]) -> str:
    """How many of the rounds that count were in which state, and the barrier: "apart 4, together 1; 262 ns"."""
    counts = Counter(r.state for r in used(rounds))
    known = [ns for r in used(rounds) for ns in r.barrier_ns if ns is not None]
    latency = f"; {statistics.median(known):.0f} ns" if known else ""
    return ", ".join(f"{state} {n}" for state, n in counts.most_common()) + latency
