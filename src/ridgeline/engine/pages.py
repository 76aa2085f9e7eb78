"""The pool of KV pages: which are free, and how many are promised. Accounts balance after every call (invariant 5)."""

from __future__ import annotations

import heapq


class PagePool:
    """Pages 0..total-1, handed out as neighbours where possible, and bookings of pages not yet taken.

    A booking is a promise: `book(n)` succeeds only if n more pages can be taken at any later time.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.booked = 0  # promised and not yet taken
        self._is_free = [True] * total
        self._heap = list(range(total))  # may hold stale entries of pages taken as neighbours

    @property
    def free(self) -> int:
        return self.total - self.used

    def book(self, pages: int) -> bool:
        """Promise `pages` more pages, if they are there beside all earlier promises."""
        if self.booked + pages > self.free:
            return False
        self.booked += pages
        return True

    def unbook(self, pages: int) -> None:
        """Give back a promise."""
        assert 0 <= pages <= self.booked
        self.booked -= pages

    def take(self, after: int = -1) -> int:
        """One booked page: the neighbour of page `after` if free, else the lowest free one."""
        assert self.booked > 0, "a page is taken without a booking"
        page = after + 1 if 0 <= after < self.total - 1 and self._is_free[after + 1] else self._lowest()
        self._is_free[page] = False
        self.used += 1
        self.booked -= 1
        self._check()
        return page

    def give(self, page: int, *, rebook: bool = False) -> None:
        """Return a page; `rebook` keeps the promise (a window moved on and will need another page)."""
        assert not self._is_free[page], f"page {page} is freed twice"
        self._is_free[page] = True
        heapq.heappush(self._heap, page)
        self.used -= 1
        self.booked += rebook
        self._check()

    def audit(self) -> None:
        """Count every page: free + used = total. O(total); tests and soaks call it after each step."""
        assert sum(self._is_free) == self.free
        self._check()

    def _check(self) -> None:
        assert 0 <= self.used <= self.total
        assert self.booked <= self.free, "more pages are promised than are free"

    def _lowest(self) -> int:
        page = heapq.heappop(self._heap)
        while not self._is_free[page]:
            page = heapq.heappop(self._heap)
        return page
