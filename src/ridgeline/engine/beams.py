"""Beam search: which continuations of a request live on, and which are its answers.

The meaning is transformers' `generate(num_beams=k, do_sample=False)`. `Search` is its arithmetic, over logprobs alone;
`Beams` plays it on sequences, which it has the scheduler fork. Must not know batches, clients or text.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import msgspec

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import EOS, LENGTH, STOP, Token
from ridgeline.engine.scheduler import Scheduler
from ridgeline.engine.sequence import Copy, Sequence


class Branch(msgspec.Struct, frozen=True):
    """A beam of the next step: that of this one at `parent`, and a token behind it."""

    parent: int
    token: Token
    total: float  # sum of logprobs of the answer so far


class Answer(msgspec.Struct, frozen=True):
    """A continuation that has ended, with why, and the score that ranks it."""

    tokens: list[Token]
    score: float
    finish: str


class Search:
    """The beams of one request, likeliest first, and the best answers found.

    A step takes the likeliest continuations of all beams. Those among the first `width` that end are answers, by their
    logprob over length ** length_penalty; the first `width` that do not end are the beams of the next step. It needs
    the `wanted` likeliest tokens behind each beam: so many that `width` of them go on, whichever end. (Where a model
    has more than 10 ends, and all of them are likely, a step may have fewer beams.)
    """

    def __init__(self, params: SamplingParams, limit: int, eos: frozenset[int]) -> None:
        self._params, self._limit, self.width = params, limit, params.beams
        self._stops, self._eos = frozenset(params.stop_token_ids), frozenset() if params.ignore_eos else eos
        self.wanted = min(max(self.width + len(self._stops | self._eos), params.logprobs or 0), MAX_TOP_LOGPROBS)
        self._beams: list[tuple[float, list[Token]]] = [(0.0, [])]
        self.answers: list[Answer] = []  # best first, at most `width`

    def advance(self, rows: Seq[Token]) -> list[Branch]:
        """Rows have the likeliest tokens behind each beam, in order. The beams of the next step; none: it has ended."""
        length = len(self._beams[0][1]) + 1
        found = self._continued(rows, length)
        going: list[Branch] = []
        for rank, branch in enumerate(found):
            finish = self._finish(branch.token.id, length)
            if finish is None:
                going.append(branch)
            elif rank < self.width:
                tokens = [*self._beams[branch.parent][1], branch.token]
                self.answers.append(Answer(tokens, branch.total / length**self._params.length_penalty, finish))
        self.answers.sort(key=lambda a: -a.score)
        del self.answers[self.width :], going[self.width :]
        if not going or self._enough(going[0].total, length):
            return []
        self._beams = [(b.total, [*self._beams[b.parent][1], b.token]) for b in going]
        return going

    def _continued(self, rows: Seq[Token], length: int) -> list[Branch]:
        """Continuations of all beams, likeliest first; of equal ones those of earlier beams, then of lower tokens."""
        ends = self._stops | self._eos if length <= self._params.min_tokens else frozenset[int]()
        shown = self._params.logprobs
        branches = [
            Branch(i, Token(id) if shown is None else Token(id, logprob, row.top[:shown]), total + logprob)
            for i, ((total, _), row) in enumerate(zip(self._beams, rows, strict=True))
            for id, logprob in row.top
            if id not in ends and logprob > float("-inf")
        ]
        return sorted(branches, key=lambda b: -b.total)

    def _finish(self, token: int, length: int) -> str | None:
        if length > self._params.min_tokens and token in self._stops:
            return STOP
        if length > self._params.min_tokens and token in self._eos:
            return EOS
        return LENGTH if length == self._limit else None

    def _enough(self, best: float, length: int) -> bool:
        """Whether no beam, of which the first has `best` in all, is thought to become a better answer."""
        p = self._params
        if len(self.answers) < self.width:
            return False
        longest = self._limit if p.early_stopping == "never" and p.length_penalty > 0 else length
        return p.early_stopping is True or best / longest**p.length_penalty <= self.answers[-1].score


class Beams:
    """The sequences of a search: one per beam, and those that stand by.

    A beam goes on once every other one of its step has its row too, so the last page of each, where it is not full, is
    its own; children share the full ones. One that gave way is computed again first, and its row with it.
    """

    def __init__(self, search: Search, sequences: Seq[Sequence]) -> None:
        self.search = search
        self._lines, self._spare = [sequences[0]], list(sequences[1:])
        self._rows: dict[int, Token] = {}  # by choice

    def add(self, s: Sequence, row: Token) -> None:
        """What may follow a beam."""
        self._rows[s.choice] = row

    @property
    def ready(self) -> bool:
        """Whether every beam has its row and its keys."""
        return all(s.choice in self._rows and not s.sources and s.computed == len(s.tokens) for s in self._lines)

    def advance(self, scheduler: Scheduler, most: int) -> list[Copy] | None:
        """Go on to the next step with at most so many copies, which it makes first; None: the search has ended.

        The first child of a beam takes its place; others take those of beams that have none.
        """
        branches = self.search.advance([self._rows[s.choice] for s in self._lines])
        if not branches:
            return None
        parents = {b.parent for b in branches}
        for i, s in enumerate(self._lines):
            s.followers = []
            if i not in parents:
                scheduler.park(s)
                self._spare.append(s)
        self._spare.sort(key=lambda s: s.choice)
        lines, children = self._placed(branches)
        copies: list[Copy] = []
        for parent, forks in children.items():
            copies += scheduler.fork(parent, forks, (most - len(copies)) // len(parent.groups))[1]
        for s, b in zip(lines, branches, strict=True):
            s.append(b.token.id)
        self._lines = lines
        self._rows.clear()
        return copies

    def _placed(self, branches: Seq[Branch]) -> tuple[list[Sequence], dict[Sequence, list[Sequence]]]:
        """A sequence for each branch, and those among them that are to be forked, by the one they go on from."""
        lines: list[Sequence] = []
        children: dict[Sequence, list[Sequence]] = {}
        for b in branches:
            s = self._lines[b.parent]
            if s in lines:
                child = self._spare.pop(0)
                child.tokens, child.match = s.tokens[:], s.match
                children.setdefault(s, []).append(child)
                s = child
            lines.append(s)
        return lines, children
