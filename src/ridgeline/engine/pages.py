"""The pool of KV pages: who holds them. Accounts balance after every call (invariant 5)."""

from __future__ import annotations

import heapq


class PagePool:
    """Pages 0..total-1 with counts of their holders, handed out as neighbours where possible.

    Sequences and the prefix cache hold pages. A page is free (nobody does), cached (the cache alone does, and may let
    go of it) or used: free + cached + used = total.
    """

    def __init__(self, total: int) -> None:
        self.total = self.free = total
        self.cached = 0
        self._holders = [0] * total
        self._kept = bytearray(total)  # 1: the cache is one of the holders
        self._heap = list(range(total))  # may hold stale entries of pages taken as neighbours

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached

    @property
    def available(self) -> int:
        """Pages that a sequence can have once the cache lets go of what it alone holds."""
        return self.free + self.cached

    def take(self, after: int = -1) -> int:
        """A free page for one sequence: the neighbour of page `after` if it is free, else the lowest."""
        assert self.free > 0, "a page is taken from an empty pool"
        page = after + 1 if 0 <= after < self.total - 1 and not self._holders[after + 1] else self._lowest()
        self._holders[page] = 1
        self.free -= 1
        return page

    def share(self, page: int) -> int:
        """One more sequence holds a page."""
        assert self._holders[page] > 0, f"page {page} is shared, but nobody holds it"
        self.cached -= self._holders[page] == self._kept[page]
        self._holders[page] += 1
        return page

    def give(self, page: int) -> None:
        """A sequence lets go of a page."""
        assert self._holders[page] > self._kept[page], f"page {page} is given back twice"
        self._holders[page] -= 1
        if not self._holders[page]:
            self._release(page)
        elif self._holders[page] == self._kept[page]:
            self.cached += 1

    def keep(self, page: int) -> int:
        """The cache holds a page beside the sequences that do."""
        assert self._holders[page] > 0 and not self._kept[page], f"page {page} cannot be cached"
        self._kept[page] = 1
        self._holders[page] += 1
        return page

    def drop(self, page: int) -> None:
        """The cache lets go of a page."""
        assert self._kept[page], f"page {page} is not cached"
        self._kept[page] = 0
        self._holders[page] -= 1
        if not self._holders[page]:
            self.cached -= 1
            self._release(page)

    def is_cached(self, page: int) -> bool:
        """Whether the cache alone holds a page."""
        return bool(self._holders[page] == self._kept[page] == 1)

    def is_held_once(self, page: int) -> bool:
        """Whether one sequence holds a page, alone or beside the cache."""
        return self._holders[page] - self._kept[page] == 1

    def audit(self) -> None:
        """Count every page. O(total); tests and soaks call it after each step."""
        assert self.free == self._holders.count(0)
        assert self.cached == sum(map(self.is_cached, range(self.total)))
        assert 0 <= self.used <= self.total

    def _release(self, page: int) -> None:
        heapq.heappush(self._heap, page)
        self.free += 1

    def _lowest(self) -> int:
        while self._holders[page := heapq.heappop(self._heap)]:
            pass
        return page
