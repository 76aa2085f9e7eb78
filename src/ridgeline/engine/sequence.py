"""A sequence: one choice of a request, from admission to its one end. Owns its tokens, pages and shown text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

from ridgeline.engine.bans import Bans
from ridgeline.engine.embed import Embedding
from ridgeline.engine.pages import PagePool
from ridgeline.engine.policies import Job, Rank
from ridgeline.engine.prefix import Node, PrefixCache, first_visible
from ridgeline.engine.records import PAGE, EngineInfo, Submit, pages_needed, prefix_key

if TYPE_CHECKING:
    from ridgeline.engine.guides import Watched
    from ridgeline.guidance.guide import Mask

Copy = tuple[int, int, int, int]  # group, source slot, target slot, slots


class Text(Protocol):
    """Turns tokens into text that may be shown. `push` gives (new text, whether a stop string just matched)."""

    def push(self, token: int) -> tuple[str, bool]: ...

    def flush(self) -> str: ...


class Sequence:
    """`tokens` are known ids (prompt, then output); `sources` stand for tokens sampled by steps still in flight.

    A step closes part of the gap between `computed` (keys in the cache) and both together; there are no phases. The
    last `unscored` of them were not sampled but must follow, and are delivered when a step has their logprobs.
    `node` stands for those of its full pages that the prefix cache knows.
    """

    # With more than 30 attributes CPython gives each its own hash table, and a step reads most of them of all.
    __slots__ = (
        "bans", "began", "cached", "choice", "computed", "embedding", "finish", "followers", "freed", "groups", "guide",
        "held", "history", "id", "job", "limit", "looks_back", "lost", "mask", "match", "most_pages", "node",
        "params", "prompt_len", "rank", "record", "root", "scored", "seed", "shared", "shares", "sources", "tables",
        "text", "tokens", "unguided", "unscored", "waits", "wants_prompt",
    )  # fmt: skip

    def __init__(
        self, request: Submit, choice: int, info: EngineInfo, text: Text, eos: frozenset[int], root: Node, now: float
    ) -> None:
        prompt = request.prompt
        emitted = request.emitted[choice] if choice < len(request.emitted) else ()
        self.id, self.choice, self.params = request.id, choice, request.params
        self.seed = request.params.seeds[choice] if request.params.seeds else request.seed
        self.job = Job((request.id, choice), request.terms.tenant, request.terms.priority, len(prompt), now)
        self.shares = prefix_key(request.terms, info)
        self.rank: Rank = ()  # as the policy last gave it
        self.prompt_len = len(prompt)
        self.tokens = [*prompt, *emitted]
        self.sources: list[tuple[int, int]] = []
        self.unscored = 0
        self.limit = self.prompt_len + request.limit
        self.computed = 0
        self.finish: str | None = None
        self.groups = info.groups
        self.tables = [array("i") for _ in info.groups]  # of pages; -1: given back
        self.freed = [0] * len(info.groups)  # pages already behind the window, per group
        self.shared = 0  # pages it began with and keeps to its end, which are not its own
        self.root = self.node = root
        self.match = root  # where the prefix cache was last seen to lead its tokens
        self.most_pages = pages_needed(info, self.limit)
        if self.params.beams:  # which wait for each other: the first stands for all
            self.most_pages = 0 if choice else pages_needed(info, self.limit, self.params.beams, len(prompt))
        self.waits = ""  # what it was last said to wait for
        self.lost = 0  # tokens that had keys when it was preempted
        self.cached: int | None = None  # prompt tokens that the cache had when this sequence first ran
        self.began: float | None = None  # when the first step with it was
        self.followers: list[Sequence] = []  # other choices, which wait for this one to read their common prompt
        self.text = text
        self.record: array[int] | None = None  # what build.py keeps of it
        self.embedding = Embedding(self.params.embed) if self.params.embed else None
        self.wants_prompt = choice == 0 and (
            self.params.prompt_logprobs or (self.embedding is not None and self.embedding.every)
        )
        self.scored = 0  # prompt tokens whose logprobs, or hidden rows, are known: no step computes their rows again
        self.bans = Bans(self.params, eos) if self.params.bans else None
        self.looks_back = self.params.looks_back
        self.held = False  # what its last token leads to, or what it may begin with, is still being found (guides.py)
        self.guide: Watched | None = None
        self.mask: Mask | None = None  # of the tokens that may follow
        self.unguided = False  # nothing is known to follow those that are
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
        if self.finish is not None or self.held or (self.sources and (self.looks_back or wanted >= self.limit)):
            return 0
        return wanted - self.computed

    @property
    def shown(self) -> int:
        """Tokens that are known and need no step before they are delivered."""
        return len(self.tokens) - self.unscored

    @property
    def settled(self) -> int:
        """Tokens before the first one whose logprob, or hidden row, is wanted and not known: the row that tells it is
        that of the last of them."""
        return self.scored + 1 if self.wants_prompt else self.shown

    def append(self, token: int) -> None:
        """A token becomes known."""
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

    def missing(self, upto: int) -> int:
        """Pages it has to take before positions below `upto` have slots."""
        pages, missing = -(-upto // PAGE), 0
        for table in self.tables:
            if len(table) < pages:
                missing += pages - len(table)
        return missing

    @property
    def own(self) -> int:
        """Pages it holds beside those it began with."""
        return sum(map(len, self.tables)) - sum(self.freed) - self.shared

    @property
    def needs(self) -> tuple[int, int]:
        """Pages of its own for what is known of it, and how many more each further page of tokens takes."""
        tokens, pages, growing = len(self.tokens), -self.shared, 0
        for group in self.groups:
            inside = not group.window or tokens < group.window
            pages += -(-(tokens if inside else group.window) // PAGE)
            growing += inside
        return pages, growing

    def reach(self, pages: int) -> int:
        """Positions below which all have slots once it has taken so many more pages."""
        return min(map(len, self.tables)) * PAGE + pages // len(self.tables) * PAGE

    def extend(self, pool: PagePool, upto: int) -> None:
        """Take pages so that positions below `upto` have slots."""
        for table in self.tables:
            while len(table) * PAGE < upto:
                table.append(pool.take(after=table[-1] if table else -1))

    def adopt(self, pool: PagePool, node: Node) -> None:
        """Begin behind a node of the prefix cache, with its pages."""
        path, self.computed = node.path(), node.depth * PAGE
        for g, (group, table) in enumerate(zip(self.groups, self.tables, strict=True)):
            first = self.freed[g] = first_visible(group.window, self.computed)
            table.extend([-1] * first)
            table.extend(pool.share(step.pages[g]) for step in path[first:])
            self.shared += 0 if group.window else len(path)
        self.node = node

    def publish(self, cache: PrefixCache) -> None:
        """Show the prefix cache the pages that have filled up with known tokens."""
        full = min(self.computed, len(self.tokens)) // PAGE
        while (at := self.node.depth) < full:
            pages = [table[at] for table in self.tables]
            self.node = cache.publish(self.node, tuple(self.tokens[at * PAGE : (at + 1) * PAGE]), pages)
            for table, page in zip(self.tables, pages, strict=True):
                table[at] = page

    def fork(self, pool: PagePool, child: Sequence) -> list[Copy]:
        """Give one that goes on from the same tokens their pages: shared, but for a last one that is not full, which is
        copied.
        """
        upto = len(self.tokens)
        rest, copies = upto % PAGE, []
        for g, table in enumerate(self.tables):
            mine = child.tables[g]
            mine.extend(pool.share(page) if page >= 0 else -1 for page in table[: upto // PAGE])
            child.shared += 0 if self.groups[g].window else upto // PAGE
            if rest:
                mine.append(pool.take(after=mine[-1] if mine else -1))
                copies.append((g, table[len(mine) - 1] * PAGE, mine[-1] * PAGE, rest))
        child.freed, child.computed, child.node, child.cached = self.freed[:], upto, self.node, self.cached
        return copies

    def slide(self, pool: PagePool) -> None:
        """Give back pages of window groups that no later token can see."""
        for g, group in enumerate(self.groups):
            if group.window:
                visible = min(first_visible(group.window, self.computed), len(self.tables[g]))
                for i in range(self.freed[g], visible):
                    pool.give(self.tables[g][i])
                    self.tables[g][i] = -1
                self.freed[g] = max(self.freed[g], visible)

    def release(self, cache: PrefixCache) -> None:
        """Give back all pages, at the end or to make room; what the cache knows of them it may keep."""
        for g, table in enumerate(self.tables):
            for page in table:
                if page >= 0:
                    cache.pool.give(page)
            del table[:]
            self.freed[g] = 0
        cache.touch(self.node)
        self.node, self.computed, self.shared = self.root, 0, 0


def sequences(
    request: Submit, info: EngineInfo, texts: Seq[Text], eos: frozenset[int], root: Node, now: float
) -> list[Sequence]:
    """One sequence per beam, or choice that has not ended yet; it ends at the ids `eos` and begins behind `root`."""
    choices = (c for c in range(request.params.width) if c not in request.done)
    return [Sequence(request, c, info, texts[c], eos, root, now) for c in choices]
