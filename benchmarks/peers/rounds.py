"""Strictly interleaved rounds: every engine does the same piece of work in turn, again and again.

A round is settled if the core-to-core hand-over stayed on one side (machine state) from its begin to its end; others
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
    """Figures by entry, and the hand-overs in ns: at the begin and after each engine (None: not known)."""

    figures: dict[str, dict[str, float]]
    handover_ns: list[float | None]
    state: str


class Result(msgspec.Struct):
    """All rounds of one piece of work in one case. failed: why an entry has no figures."""

    case: str
    work: str
    date: str
    rounds: list[Round]
    failed: dict[str, str] = msgspec.field(default_factory=dict)


class Instruments(msgspec.Struct):
    """How the machine is watched: one hand-over in ns, and the name of the state that several make."""

    handover: Callable[[], float | None]
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
    handovers, figures = [watch.handover()], {}
    for title in titles[start:] + titles[:start]:
        if title in failed:
            continue
        try:
            figures[title] = dict(sessions[title].run(work, seed=number + 1))
        except Unmeasured as wrong:
            failed[title] = str(wrong)
        handovers.append(watch.handover())
    return Round(figures, handovers, watch.state_of(handovers))


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
    """How many of the rounds that count were in which state, such as "apart 4, together 1"."""
    counts = Counter(r.state for r in used(rounds))
    return ", ".join(f"{state} {n}" for state, n in counts.most_common())
