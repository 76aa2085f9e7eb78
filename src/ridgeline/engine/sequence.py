"""A sequence: one choice of a request, from admission to its one end. Owns its tokens, pages and shown text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from typing import Protocol

from ridgeline.engine.bans import Bans
from ridgeline.engine.pages import PagePool
from ridgeline.engine.records import PAGE, EngineInfo, Submit, pages_needed


class Text(Protocol):
    """Turns tokens into text that may be shown. `push` gives (new text, whether a stop string just matched)."""

    def push(self, token: int) -> tuple[str, bool]: ...

    def flush(self) -> str: ...


class Sequence:
    """`tokens` are known ids (prompt, then output); `sources` stand for tokens sampled by steps still in flight.

    A step closes part of the gap between `computed` (keys in the cache) and both together; there are no phases.
    `promised` counts booked pages not yet taken.
    """

    def __init__(self, request: Submit, choice: int, info: EngineInfo, text: Text, eos: frozenset[int]) -> None:
        prompt = request.prompt
        emitted = request.emitted[choice] if choice < len(request.emitted) else ()
        self.id, self.choice, self.params, self.seed = request.id, choice, request.params, request.seed
        self.prompt_len = len(prompt)
        self.tokens = [*prompt, *emitted]
        self.sources: list[tuple[int, int]] = []
        self.limit = self.prompt_len + request.limit
        self.computed = 0
        self.finish: str | None = None
        self.groups = info.groups
        self.tables = [array("i") for _ in info.groups]  # of pages; -1: given back
        self.freed = [0] * len(info.groups)  # pages already behind the window, per group
        self.pages = pages_needed(info, self.limit)
        self.promised = 0
        self.text = text
        self.record: array[int] | None = None  # what build.py keeps of it
        self.wants_prompt = self.params.prompt_logprobs and choice == 0
        self.bans = Bans(self.params, eos) if self.params.bans else None
        self.looks_back = self.params.looks_back
        self.history: dict[int, list[int]] | None = None
        if self.params.penalised:
            self.history = {}
            for position, token in enumerate(self.tokens):
                self._count(token, position)
        for token in emitted:
            text.push(token)

    @property
    def gap(self) -> int:
        """Tokens that steps may take: known or sampled in flight, without keys. 0 while it waits for one in flight."""
        wanted = len(self.tokens) + len(self.sources)
        if self.finish is not None or (self.sources and (self.looks_back or wanted >= self.limit)):
            return 0
        return wanted - self.computed

    def append(self, token: int) -> None:
        """A sampled token becomes known."""
        self.tokens.append(token)
        if self.history is not None:
            self._count(token, len(self.tokens) - 1)

    def forced(self, position: int) -> int:
        """The token that `position` must hold, or -1."""
        given, at = self.params.forced, position - self.prompt_len
        return given[at] if at < len(given) else -1

    def _count(self, token: int, position: int) -> None:
        assert self.history is not None
        counts = self.history.setdefault(token, [0, 0])
        counts[position >= self.prompt_len] += 1

    def admit(self, pool: PagePool) -> bool:
        """Book the worst case; False if the pool cannot promise it now."""
        if not pool.book(self.pages):
            return False
        self.promised = self.pages
        return True

    def extend(self, pool: PagePool, upto: int) -> None:
        """Take pages so that positions below `upto` have slots."""
        for table in self.tables:
            while len(table) * PAGE < upto:
                assert self.promised > 0, "a sequence takes more pages than it was promised"
                table.append(pool.take(after=table[-1] if table else -1))
                self.promised -= 1

    def slide(self, pool: PagePool) -> None:
        """Give back pages of window groups that no later token can see."""
        for g, group in enumerate(self.groups):
            if group.window:
                visible = max(0, self.computed - group.window + 1) // PAGE
                for i in range(self.freed[g], min(visible, len(self.tables[g]))):
                    pool.give(self.tables[g][i], rebook=True)
                    self.promised += 1
                    self.tables[g][i] = -1
                self.freed[g] = max(self.freed[g], visible)

    def release(self, pool: PagePool) -> None:
        """Give back all pages and promises. Called exactly once, at the end."""
        for table in self.tables:
            for page in table:
                if page >= 0:
                    pool.give(page)
            del table[:]
        pool.unbook(self.promised)
        self.promised = 0


def sequences(request: Submit, info: EngineInfo, texts: Seq[Text], eos: frozenset[int]) -> list[Sequence]:
    """One sequence per choice that has not ended yet."""
    return [Sequence(request, c, info, texts[c], eos) for c in range(request.params.n) if c not in request.done]
