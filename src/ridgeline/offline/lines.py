"""The lines of an OpenAI batch file, read as a stream, each with a key of its own and what is wrong with it.

A line's key follows from its bytes, so it is the same in every run over the same file. Files are anybody's: a line is
bounded. Must not know models: whether a body can be served is found later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ridgeline.config import ServerConfig
from ridgeline.errors import ConfigError, InvalidRequest

MAX_LINE = ServerConfig.payload_limit
MAX_CUSTOM_ID = 512  # characters


@dataclass(frozen=True)
class Line:
    """A request, or the `fault` of a line that holds none. `number` counts from 1; `custom_id` None: unknown."""

    number: int
    key: str
    custom_id: str | None = None
    url: str = ""
    body: bytes = b""
    fault: InvalidRequest | None = None


class _Envelope(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"")


def read_lines(path: Path) -> Iterator[Line]:
    """All lines but blank ones. Holds the digests of keys and custom_ids that came before; no text of other lines."""
    keys: set[bytes] = set()
    ids: set[bytes] = set()
    try:
        with path.open("rb") as file:
            for number, (size, digest, data) in enumerate(_raw_lines(file), start=1):
                if size > MAX_LINE or data.strip():
                    key = _new(digest, keys)
                    yield _read(number, size, key.hex(), data, ids)
    except OSError as wrong:
        raise ConfigError(f"{path} cannot be read: {wrong.strerror}") from wrong


def _new(key: bytes, keys: set[bytes]) -> bytes:
    """`key`, or where the same line came before, one that follows from it; noted in `keys`."""
    while key in keys:
        key = _digest(key)
    keys.add(key)
    return key


def _raw_lines(file: BinaryIO) -> Iterator[tuple[int, bytes, bytes]]:
    """Size, digest and bytes of each line, without its end; of one over the bound, only its beginning."""
    while first := file.readline(MAX_LINE + 1):
        hashed, size, piece = hashlib.blake2b(digest_size=16), 0, first
        while piece:
            ends = piece.endswith(b"\n")
            text = piece[:-1] if ends else piece
            hashed.update(text)
            size += len(text)
            piece = b"" if ends else file.readline(MAX_LINE + 1)
        yield size, hashed.digest(), first.removesuffix(b"\n")


def _read(number: int, size: int, key: str, data: bytes, ids: set[bytes]) -> Line:
    custom_id = None
    try:
        if size > MAX_LINE:
            raise InvalidRequest(f"the line has {size} bytes; at most {MAX_LINE} are allowed")
        given = _decode(data)
        custom_id = _custom_id(given.custom_id)
        digest = _digest(custom_id.encode())
        if digest in ids:
            raise InvalidRequest(f"custom_id {custom_id!r} was given to a line before", "custom_id")
        ids.add(digest)
        if given.method != "POST":
            raise InvalidRequest(f"method must be 'POST', is {given.method!r:.40}", "method")
        if not isinstance(given.url, str):
            raise InvalidRequest(f"url must be text, is {given.url!r:.40}", "url")
        if not bytes(given.body):
            raise InvalidRequest("body is missing", "body")
        return Line(number, key, custom_id, given.url, bytes(given.body))
    except InvalidRequest as wrong:
        fault = InvalidRequest(f"line {number}: {wrong}", wrong.param)
        return Line(number, key, custom_id, fault=fault)


def _decode(data: bytes) -> _Envelope:
    try:
        return msgspec.json.decode(data, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise InvalidRequest(f"it is no JSON object: {str(wrong).replace('`', chr(39))}") from None


def _custom_id(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= MAX_CUSTOM_ID:
        raise InvalidRequest(f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters", "custom_id")
    return given


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
