"""docs/benchmarks.md from stored results: a table per case. Measures nothing.

Every figure of ours stands beside what it was measured against in the same round: the ratio is the result, absolute
figures orient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from peers.machine import LOADS
from peers.rounds import Result, figures, median, median_ratio, states, used
from peers.work import FIGURES, Work, title

NOT_MEASURED = "not measured"
HEAD = """\
# Benchmarks against other CPU engines

Written by `benchmarks/peers/cpu.py`; not edited by hand. Every engine does the same work with the same number of
threads, in turn within each round; a ratio is taken within a round, and the tables show medians over the rounds.

- **Ratio**: how many times better ours is; above 1 is in our favour, for rates and for times.
- **Rounds**: how many count, by the state of the machine: *together* if the cores used share a last-level cache
  (a barrier of two threads under 150 ns), *apart* if not; behind it the median of that barrier. Rounds in which the
  state changed count only where there are no others.
- **loads only**: what decoding would reach if reading the weights' bytes once per token were all it had to do.
- **KL**: mean divergence in nats of next-token distributions from those of the same weights with float activations:
  what the engine's own arithmetic costs, not what the weight format costs. Measured on the same text in windows of 512
  tokens, by each engine's own means; "-" where there is none, where the weights are random, or where a run did not ask.
- **prefill**: tokens of the prompt over the time to the first token. **decode**: tokens after the first over their
  time, at a short context unless said. **output**: generated tokens of a static batch over the whole time, prefill
  included. **start to first token**: from the start of a process, files in the page cache.
"""


class Subject(msgspec.Struct):
    """An entry as it was measured. reason: why it was not, else empty."""

    title: str
    engine: str
    format: str
    version: str = ""
    kl: float | None = None
    reason: str = ""


class CaseRecord(msgspec.Struct):
    """What a case is about, beside its results. subjects: ours first."""

    name: str
    subjects: list[Subject]
    cpu: str
    threads: int
    absent: dict[str, str] = msgspec.field(default_factory=dict)


class Store(msgspec.Struct):
    """All that was measured so far: the last result of each case and piece of work."""

    cases: list[CaseRecord] = msgspec.field(default_factory=list)
    results: list[Result] = msgspec.field(default_factory=list)

    def put(self, case: CaseRecord, result: Result) -> None:
        """Add a result in the place of the one it replaces. KLs known from before are kept."""
        old = {s.title: s for c in self.cases if c.name == case.name for s in c.subjects}
        for subject in case.subjects:
            before = old.get(subject.title)
            if before and subject.kl is None and before.version == subject.version:
                subject.kl = before.kl
        self.cases = _replaced(self.cases, case, [c.name == case.name for c in self.cases])
        same = [(r.case, r.work) == (result.case, result.work) for r in self.results]
        self.results = _replaced(self.results, result, same)


def document(store: Store, works: dict[str, Work]) -> str:
    """The whole file."""
    return "\n".join([HEAD, *(section(case, store.results, works) for case in store.cases)])


def section(case: CaseRecord, results: Iterable[Result], works: dict[str, Work]) -> str:
    """One case: who took part, the figures, and who did not."""
    own = sorted((r for r in results if r.case == case.name), key=lambda r: list(works).index(r.work))
    dates = sorted({r.date for r in own})
    when = dates[0] if len(set(dates)) == 1 else f"{dates[0]} to {dates[-1]}" if dates else NOT_MEASURED
    who = [[s.title, s.engine, s.version or NOT_MEASURED, s.format, _kl(s.kl)] for s in case.subjects]
    rows = [row for r in own for row in _rows(case, r, works[r.work])]
    lines = [
        f"## {case.name}\n",
        f"{case.cpu}, {case.threads} threads, {when}.\n",
        *_table(["entry", "engine", "version", "format", "KL"], who),
        "",
        *_table(["work", "entry", "theirs", "ours", "ratio", "rounds"], rows),
        "",
    ]
    absent = {**case.absent, **{s.title: s.reason for s in case.subjects if s.reason}}
    if absent:
        lines += [f"Not measured: {'; '.join(f'{name} ({why})' for name, why in absent.items())}.", ""]
    return "\n".join(lines)


def _rows(case: CaseRecord, result: Result, work: Work) -> list[list[str]]:
    ours, peers = case.subjects[0].title, [s.title for s in case.subjects[1:]]
    absent = {s.title for s in case.subjects if s.reason}  # the reason is told once, below the table
    rows = []
    for figure in figures(result.rounds, ours) or [f for f in FIGURES if f in _gives(work)]:
        mine = median(result.rounds, ours, figure)
        for peer in [*peers, LOADS]:
            theirs = median(result.rounds, peer, figure)
            if peer == LOADS and theirs is None:
                continue
            value = median_ratio(result.rounds, ours, peer, figure)
            reason = "" if peer in absent else result.failed.get(peer, "")
            shown = NOT_MEASURED + (f": {reason}" if reason else "") if theirs is None else _number(theirs, figure)
            rows.append([
                title(work, figure), peer, shown, _number(mine, figure), "-" if value is None else f"{value:.2f}",
                states(result.rounds) if len(used(result.rounds)) else "-",
            ])  # fmt: skip
    return rows


def _gives(work: Work) -> Sequence[str]:
    names = {"batch": ("output",), "long": ("decode",), "cold": ("first token",)}
    return names.get(work.kind, ("prefill", "decode"))


def _kl(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _number(value: float | None, figure: str) -> str:
    if value is None:
        return "-"
    digits = 2 if FIGURES[figure] == "s" else 1 if value < 1000 else 0
    return f"{value:.{digits}f} {FIGURES[figure]}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _replaced(items: list, new: object, same: list[bool]) -> list:  # type: ignore[type-arg]
    """`items` with `new` where `same` is true, else at the end."""
    if not any(same):
        return [*items, new]
    return [new if hit else item for item, hit in zip(items, same, strict=True)]
