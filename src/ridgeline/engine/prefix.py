"""The prefix cache: a radix tree over pages, shared by what begins alike (SGLang, arXiv:2312.07104).

An edge is one page of tokens, so prefixes part at page boundaries only, and a page is shared whole or not at all. What
a page holds depends on its tokens and those before it alone (invariant 1), so sharing changes no answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from weakref import WeakValueDictionary

from ridgeline.engine.pages import PagePool
from ridgeline.engine.records import PAGE, GroupInfo


class Node:
    """One page of tokens behind those of its parent, and its pages: one per group, -1 where the cache holds none."""

    __slots__ = ("__weakref__", "children", "depth", "known", "pages", "parent", "tokens")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], groups: int) -> None:
        self.parent, self.tokens = parent, tokens
        self.depth: int = parent.depth + 1 if parent else 0
        self.pages = [-1] * groups
        self.children: dict[tuple[int, ...], Node] = {}
        self.known = True  # until the cache forgets it

    def path(self) -> list[Node]:
        """The nodes of pages 0, 1, ... up to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


def first_visible(window: int, computed: int) -> int:
    """The first page that the token at position `computed` sees (window 0: all)."""
    return max(0, computed - window + 1) // PAGE if window else 0


class PrefixCache:
    """Trees of nodes, one per tenant, and the order in which they were last used.

    Sequences hold the pages they have matched, so those that only the cache holds are those of whole subtrees; but in
    groups with a window, where sequences let go of pages behind it, they may lie anywhere. All can be evicted.
    """

    def __init__(self, pool: PagePool, groups: Seq[GroupInfo]) -> None:
        self.pool, self.windows = pool, [group.window for group in groups]
        # Whoever may need a root holds it: its children, and the sequences that share them.
        self._roots: WeakValueDictionary[str, Node] = WeakValueDictionary()
        self._recent: OrderedDict[Node, None] = OrderedDict()  # the longest unused first; children before their parents

    def root(self, tenant: str) -> Node:
        """Where the prefixes of a tenant, or of another key (records.prefix_key), begin."""
        root = self._roots.get(tenant)
        if root is None:
            root = self._roots[tenant] = Node(None, (), len(self.windows))
        return root

    def keys(self) -> dict[Node, str]:
        """The roots that somebody needs, with their keys."""
        return {root: key for key, root in self._roots.items()}

    def newest(self) -> Iterator[Node]:
        """All nodes, the last used first."""
        return reversed(self._recent)

    def match(self, tokens: Seq[int], node: Node, most: int) -> Node:
        """The deepest node that the first `most` tokens lead to, and at least one of them beyond; `node`: where they
        led before."""
        while node.parent is not None and not node.known:
            node = node.parent
        for start in range(node.depth * PAGE, most - PAGE, PAGE):
            child = node.children.get(tuple(tokens[start : start + PAGE]))
            if child is None:
                break
            node = child
        return node

    def usable(self, node: Node) -> Node:
        """The deepest node up to this one that a sequence can go on from."""
        while node.parent is not None and not self._usable(node):
            node = node.parent
        return node

    def _usable(self, node: Node) -> bool:
        """Whether every group has the pages that the token behind a node sees."""
        path = node.path() if any(self.windows) else ()  # without windows no page is missing
        return all(
            step.pages[g] >= 0
            for g, window in enumerate(self.windows)
            for step in path[first_visible(window, node.depth * PAGE) :]
        )

    def touch(self, node: Node) -> None:
        """A node and those before it were used just now."""
        while node.parent is not None:
            if node in self._recent:  # else it was forgotten: a window left it without pages
                self._recent.move_to_end(node)
            node = node.parent

    def publish(self, node: Node, tokens: tuple[int, ...], pages: list[int]) -> Node:
        """The child of `node` for one full page of a sequence whose pages are `pages`, -1 where given back.

        Where the cache has such a page already, it takes the place of the sequence's own in `pages`.
        """
        child = node.children.get(tokens)
        if child is None:
            child = node.children[tokens] = Node(node, tokens, len(pages))
            self._recent[child] = None
        for g, page in enumerate(pages):
            kept = child.pages[g]
            if page < 0 or kept == page:
                continue
            if kept < 0:
                child.pages[g] = self.pool.keep(page)
            else:
                pages[g] = self.pool.share(kept)
                self.pool.give(page)
        return child

    def make_room(self, pages: int) -> bool:
        """Let go of the longest unused until `pages` are free; False, and nothing lost, if so many cannot be."""
        while not self.pool.has(pages):
            if self.pool.available < pages:
                return False
            node = next(iter(self._recent))
            self._thin(node)
            if node.children or any(page >= 0 for page in node.pages):
                self._recent.move_to_end(node)  # somebody uses it, or what comes behind it
            else:
                self._forget(node)
        return True

    def _thin(self, node: Node) -> None:
        for g, page in enumerate(node.pages):
            if page >= 0 and self.pool.is_cached(page) and (self.windows[g] or not node.children):
                self.pool.drop(page)
                node.pages[g] = -1

    def _forget(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[node.tokens]
        del self._recent[node]
        node.known = False
