"""The header of a kept prefix cache (kept.py): what its pages are of, and whether they are of use to this engine.

Owns the format, and the checks of what is read: a file is hostile input, even one whose digest is right.
"""

from __future__ import annotations

import hashlib
import os
from typing import Annotated, BinaryIO

import msgspec

from ridgeline.engine.records import PAGE, EngineInfo, GroupInfo

MAGIC = b"RLPC\x00\x01\x00\x00"
FIXED = len(MAGIC) + 8 + 16  # bytes beside header and pages
MAX_HEADER = 16 << 20

_TokenId = Annotated[int, msgspec.Meta(ge=0)]


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page's bytes, and who may see them, depend on beside its tokens. `weights` tells them from all others."""

    version: str
    weights: str
    program: str
    format: str
    activations: str
    kv_format: str
    groups: tuple[GroupInfo, ...]
    vocab: int
    prefix_sharing: str
    page_layout: str
    page_bytes: int


class KeptNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node of the prefix cache: which one of those before it is its parent (None: the root of `key`), its tokens, and
    in which groups it has a page."""

    parent: int | None
    key: str
    tokens: Annotated[tuple[_TokenId, ...], msgspec.Meta(min_length=PAGE, max_length=PAGE)]
    held: tuple[bool, ...]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds: nodes, the last used first but behind their parents. Their pages follow in this order."""

    identity: Identity
    nodes: list[KeptNode]


class Unfit(Exception):
    """Why a file cannot be used."""


def identity_of(info: EngineInfo, weights: str, layout: str, version: str) -> Identity:
    """What must be the same in the engine that reads a file."""
    return Identity(
        version, weights, info.program, info.format, info.activations, info.kv_format, info.groups, info.vocab,
        info.prefix_sharing, layout, info.page_bytes,
    )  # fmt: skip


def whole(held: tuple[bool, ...], groups: tuple[GroupInfo, ...]) -> bool:
    """Whether the pages are there that the cache counts on: only windows leave some behind."""
    return len(held) == len(groups) and all(here or g.window for here, g in zip(held, groups, strict=True))


def read_header(file: BinaryIO, identity: Identity, page_bytes: int, digest: hashlib.blake2b) -> Header:
    """The header of a file, good in itself, for this engine and for the file's length; `digest` takes what was read."""
    stat = os.fstat(file.fileno())
    head = file.read(len(MAGIC) + 8)
    size = int.from_bytes(head[len(MAGIC) :], "little")
    if not head.startswith(MAGIC) or stat.st_uid != os.geteuid():
        raise Unfit("is not a prefix cache that this user's ridgeline wrote")
    if not 0 < size <= min(MAX_HEADER, stat.st_size - FIXED):
        raise Unfit(f"has a header of {size} bytes, which it cannot have")
    data = file.read(size)
    digest.update(head + data)
    header = msgspec.json.decode(data, type=Header)
    names = [n for n in Identity.__struct_fields__ if getattr(header.identity, n) != getattr(identity, n)]
    if names:
        raise Unfit(f"was written by an engine with another {', '.join(names)}")
    for i, node in enumerate(header.nodes):
        if node.parent is not None and not 0 <= node.parent < i:
            raise Unfit(f"has node {i} before its parent")
        if max(node.tokens) >= identity.vocab:
            raise Unfit(f"has a token outside the vocabulary in node {i}")
        if not whole(node.held, identity.groups):
            raise Unfit(f"lacks pages of node {i}")
    pages = sum(sum(node.held) for node in header.nodes)
    if stat.st_size != FIXED + size + pages * page_bytes:
        raise Unfit(f"has {stat.st_size} bytes, which is not what {pages} pages take")
    return header
