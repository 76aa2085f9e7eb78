"""The pool of KV pages: who holds them. Accounts balance after every call (invariant 5)."""

from __future__ import annotations

import heapq
from collections.abc import Callable

SLAB = 4  # pages that are committed together, since they lie together (PAGE_RUN of the cpu backend)


class PagePool:
    """Pages 0..total-1 with counts of their holders, handed out as neighbours where possible.

    Sequences and the prefix cache hold pages. A page is free (nobody does), cached (the cache alone does, and may let
    go of it), used, or withheld: free + cached + used + withheld = total.

    Memory is reserved for all pages, and touched when they are used, the low ones first. Before that `commit` is asked
    whether the system has room for so many more; while it says no, pages that were never used are withheld.
    """

    def __init__(self, total: int, commit: Callable[[int], bool] | None = None) -> None:
        self.total = self.free = total
        self.cached = self.withheld = 0
        self._commit = commit
        self._committed = 0 if commit else total  # pages below have been used, or may be
        self._backed = self._committed  # of them, those that are free
        self._holders = [0] * total
        self._kept = bytearray(total)  # 1: the cache is one of the holders
        self._heap = list(range(total))  # may hold stale entries of pages taken as neighbours

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached - self.withheld

    @property
    def available(self) -> int:
        """Pages that a sequence can have once the cache lets go of what it alone holds."""
        return self.free + self.cached

    def has(self, pages: int) -> bool:
        """Whether so many pages are free, with memory for them."""
        if pages > self._backed and self._commit is not None:
            self.free, self.withheld = self.free + self.withheld, 0  # the system may have more by now
            while self._backed < pages <= self.free:
                more = min(SLAB, self.total - self._committed)
                if not self._commit(more):
                    self.withheld = self.total - self._committed
                    self.free -= self.withheld
                else:
                    self._committed += more
                    self._backed += more
        return pages <= self._backed

    def take(self, after: int = -1) -> int:
        """A free page for one sequence: the neighbour of page `after` if it is free, else the lowest."""
        assert self._backed > 0 or self.has(1), "a page is taken from an empty pool"
        page = after + 1 if 0 <= after < self._committed - 1 and not self._holders[after + 1] else self._lowest()
        self._holders[page] = 1
        self.free -= 1
        self._backed -= 1
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
        assert self.free + self.withheld == self._holders.count(0)
        assert self._backed == self._holders[: self._committed].count(0)
        assert not any(self._holders[self._committed :])
        assert self.cached == sum(map(self.is_cached, range(self.total)))
        assert 0 <= self.used <= self.total

    def _release(self, page: int) -> None:
        heapq.heappush(self._heap, page)
        self.free += 1
        self._backed += 1

    def _lowest(self) -> int:
        while self._holders[page := heapq.heappop(self._heap)]:
            pass
        return page
