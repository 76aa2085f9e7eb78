"""The prefix cache between runs: a file of its pages, written when an engine ends in order and read when one starts.

[magic][length of the header][header, JSON][pages][digest of all before]. A file is read only if everything that makes a
page's bytes is the same as when it was written; it is hostile input all the same, and whatever is wrong with it costs a
note, never the start. Knows pages as bytes, not what they mean.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from ridgeline.backends.base import PageBytes
from ridgeline.engine.kept_header import (
    FIXED,
    MAGIC,
    MAX_HEADER,
    Header,
    Identity,
    KeptNode,
    Unfit,
    read_header,
    whole,
)
from ridgeline.engine.prefix import Node, PrefixCache

log = logging.getLogger(__name__)


class Kept:
    """The file of one engine's prefix cache, of at most `limit` bytes. Both ways between steps only."""

    def __init__(self, path: Path, limit: int, identity: Identity, pages: PageBytes) -> None:
        self.path, self.limit, self.identity, self.pages = path, limit, identity, pages

    def save(self, cache: PrefixCache) -> None:
        """Write what was used last, as much as the limit allows; an empty cache leaves the file as it is."""
        nodes, header = self._chosen(cache)
        if not nodes:
            return
        try:
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)  # of mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    self._write(file, nodes, msgspec.json.encode(header))
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as wrong:
            log.warning("ridgeline: the prefix cache was not kept in %s: %s", self.path, wrong)

    def _chosen(self, cache: PrefixCache) -> tuple[list[Node], Header]:
        """The nodes to keep, the last used first but behind their parents, and their header."""
        index: dict[Node, int] = {}
        kept: list[KeptNode] = []
        keys = cache.keys()
        header = len(msgspec.json.encode(Header(self.identity, kept)))
        data = 0
        for last in cache.newest():
            for node in _missing(last, index):
                parent = node.parent
                assert parent is not None
                held = tuple(page >= 0 for page in node.pages)
                if not whole(held, self.identity.groups):
                    break  # nothing goes on from here
                k = KeptNode(index.get(parent), keys.get(parent, ""), node.tokens, held)
                header += len(msgspec.json.encode(k)) + 1
                data += sum(held) * self.pages.nbytes
                if header > MAX_HEADER or FIXED + header + data > self.limit:
                    return list(index), Header(self.identity, kept)
                index[node] = len(index)
                kept.append(k)
        return list(index), Header(self.identity, kept)

    def _write(self, file: BinaryIO, nodes: list[Node], header: bytes) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for part in (MAGIC, len(header).to_bytes(8, "little"), header):
            digest.update(part)
            file.write(part)
        for node in nodes:
            for page in node.pages:
                if page >= 0:
                    data = self.pages.read(page)
                    digest.update(data)
                    file.write(data)
        file.write(digest.digest())

    def load(self, cache: PrefixCache) -> str:
        """Fill an empty cache from the file, as far as the pool has room. What to tell the user, "" without a file."""
        try:
            if not self.path.exists():
                return ""
            pages = self._load(cache)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, Unfit) as wrong:
            return f"the prefix cache begins empty: {self.path} {_why(wrong)}; the next orderly stop replaces it"
        return f"the prefix cache begins with {pages} pages of {self.path}"

    def _load(self, cache: PrefixCache) -> int:
        if not self.path.is_file():  # a pipe would be waited for
            raise Unfit("is no file")
        pool, filled = cache.pool, list[list[int]]()
        digest = hashlib.blake2b(digest_size=16)
        try:
            with self.path.open("rb") as file:
                nodes = read_header(file, self.identity, self.pages.nbytes, digest).nodes
                room = True
                for node in nodes:
                    room = room and pool.has(sum(node.held))
                    if room:
                        filled.append([])
                    for held in node.held:
                        data = self._page(file, digest) if held else b""
                        if room:
                            filled[-1].append(pool.take() if held else -1)
                        if room and held:
                            self.pages.write(filled[-1][-1], data)
                if file.read(digest.digest_size + 1) != digest.digest():
                    raise Unfit("is damaged: its digest is another")
            _publish(cache, nodes, filled)
            return sum(page >= 0 for pages in filled for page in pages)
        finally:  # what the cache knows now it keeps
            for page in (page for pages in filled for page in pages if page >= 0):
                pool.give(page)

    def _page(self, file: BinaryIO, digest: hashlib.blake2b) -> bytes:
        data = file.read(self.pages.nbytes)
        if len(data) < self.pages.nbytes:
            raise Unfit("became shorter while it was read")
        digest.update(data)
        return data


def _missing(node: Node, known: dict[Node, int]) -> list[Node]:
    """A node and those before it, the first of them first, but for those that are known."""
    line = []
    while node.parent is not None and node not in known:
        line.append(node)
        node = node.parent
    return line[::-1]


def _publish(cache: PrefixCache, nodes: list[KeptNode], filled: list[list[int]]) -> None:
    made: list[Node] = []
    for node, pages in zip(nodes, filled, strict=False):
        parent = cache.root(node.key) if node.parent is None else made[node.parent]
        made.append(cache.publish(parent, node.tokens, pages))
    for last in reversed(made):
        cache.touch(last)


def _why(wrong: Exception) -> str:
    if isinstance(wrong, OSError):
        return f"cannot be read ({wrong.strerror})"
    return str(wrong) if isinstance(wrong, Unfit) else "has a header that cannot be read"
