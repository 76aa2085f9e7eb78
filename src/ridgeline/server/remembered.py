"""Remembered: which of the engine's ids a request's name leads to, for those who ask what became of it.

Bounded: clients choose names, and how many prompts a request has. In the event loop only. Must not know HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

_REQUESTS = 4096
_LISTED = 64  # ids of each: all that are told, and all that are kept once it has ended


class Remembered:
    """The last thousands of requests, each by its key's name and its own."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    def begin(self, key: str, name: str, ids: list[int]) -> None:
        """`ids` may grow until the end. A name that is used again stands for the last request."""
        self._found[key, name] = ids
        self._found.move_to_end((key, name))
        if len(self._found) > _REQUESTS:
            self._found.popitem(last=False)

    def end(self, key: str, name: str, ids: list[int]) -> None:
        """Keep the last of these ids."""
        if self._found.get((key, name)) is ids:
            self._found[key, name] = ids[-_LISTED:]

    def ids(self, name: str, key: str | None = None) -> list[int]:
        """Of requests of this name, which may have a prefix; with `key` of this key's alone."""
        names = (name, name.partition("-")[2])
        return [id for (_, found), ids in self._of(key) if found in names for id in ids[-_LISTED:]]

    def own(self, key: str) -> set[int]:
        """Of all requests of this key: made once for all that is asked of it, as it goes through thousands."""
        return {id for _, ids in self._of(key) for id in ids}

    def _of(self, key: str | None) -> Iterator[tuple[tuple[str, str], list[int]]]:
        return (item for item in self._found.items() if key in (None, item[0][0]))
