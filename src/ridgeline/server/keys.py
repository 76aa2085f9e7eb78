"""API keys: a JSON file of names, hashes, scopes and quotas, and finding the key that a client gave.

Keys are drawn with 256 random bits, so that one SHA-256 hides them; a file is replaced whole, and read again when it
has changed. Must not know routes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from ridgeline.errors import ConfigError

SCOPES = ("user", "metrics", "admin")
POLICIES = ("must", "may", "never")  # of a key's watermark
_PREFIX = "rl-"
_LOOK_S = 1.0  # between looks at the file
_MOST = 1 << 24  # bytes of it
log = logging.getLogger(__name__)


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key. `hash` is the SHA-256 of what clients send, in hex; admin may all that the others may; limits are of
    requests and tokens a minute, and of requests at once: 0 = none. `watermark` says whether answers are marked, and
    `watermark_key` by what: 16 hex digits; "" follows from the hash, and so from what clients send."""

    name: str
    hash: str
    scopes: tuple[Literal["user", "metrics", "admin"], ...] = ("user",)
    rate: int = 0
    tokens: int = 0
    concurrency: int = 0
    watermark: Literal["must", "may", "never"] = "may"
    watermark_key: str = ""

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    @property
    def marks_by(self) -> int:
        """The key of its watermarks, 64 bits."""
        return int(self.watermark_key or hashed(f"watermark {self.hash}")[:16], 16)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: tuple[Key, ...]


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def new_key(name: str, **more: object) -> tuple[str, Key]:
    """What the client is to send, which is kept nowhere, and the key as it is kept."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    drawn = {"watermark_key": secrets.token_hex(8)}
    key = Key(name=name, hash=hashed(secret), **drawn | more)  # type: ignore[arg-type]
    _check(key)
    return secret, key


def read_keys(path: Path) -> tuple[Key, ...]:
    """ConfigError names what is wrong with the file."""
    try:
        if path.stat().st_size > _MOST:
            raise ConfigError(f"the key file {path} is over {_MOST} bytes")
        keys = msgspec.json.decode(path.read_bytes(), type=_File).keys
    except OSError as wrong:
        raise ConfigError(f"the key file cannot be read: {wrong}; make one with ridgeline keys add") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise ConfigError(f"the key file {path} is malformed: {wrong}") from None
    for key in keys:
        _check(key)
    for what in ("name", "hash"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise ConfigError(f"the key file {path} has two keys of one {what}")
    return keys


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file at once; only its owner may read it."""
    text = msgspec.json.format(msgspec.json.encode(_File(tuple(keys))), indent=2)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text + b"\n")
        os.replace(part, path)
    except OSError as wrong:
        with suppress(OSError):
            part.unlink()
        raise ConfigError(f"the key file cannot be written: {wrong}") from None


def _check(key: Key) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", key.name):
        raise ConfigError(f"a key's name is 1 to 64 letters, digits, '.', '_' or '-', not {key.name[:80]!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", key.hash):
        raise ConfigError(f"key {key.name}: hash must be a SHA-256 in hex")
    if not key.scopes:
        raise ConfigError(f"key {key.name} has no scopes; give it some of {', '.join(SCOPES)}")
    if not re.fullmatch(r"([0-9a-f]{16})?", key.watermark_key):
        raise ConfigError(f"key {key.name}: watermark_key must be 16 hex digits")
    for limit in ("rate", "tokens", "concurrency"):
        if not 0 <= getattr(key, limit) <= 1 << 40:
            raise ConfigError(f"key {key.name}: {limit} must be 0 (no limit) or more, is {getattr(key, limit)}")


class KeyRing:
    """The keys of a file, as it is now, and one more that has no name and may do everything (TGI's --api-key)."""

    def __init__(self, file: str = "", key: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = Path(file) if file else None, clock
        self._own = (Key(name="", hash=hashed(key), scopes=SCOPES),) if key else ()
        self._seen = self._stamp()
        self._looked = clock()
        self._keys = read_keys(self._path) if self._path else ()

    def __bool__(self) -> bool:
        """Whether keys are asked for: also where the file has none left."""
        return self._path is not None or bool(self._own)

    def find(self, secret: str) -> Key | None:
        """Takes as long whichever key it is, and whether it is one."""
        self._look()
        given, found = hashed(secret), None
        for key in (*self._own, *self._keys):
            if hmac.compare_digest(key.hash, given):
                found = key
        return found

    def named(self, name: str) -> Key | None:
        return next((key for key in (*self._own, *self._keys) if key.name == name), None)

    def _look(self) -> None:
        """Read the file again if it has changed; a broken one changes nothing."""
        now = self._clock()
        if self._path is None or now - self._looked < _LOOK_S:
            return
        self._looked = now
        if (stamp := self._stamp()) != self._seen:
            self._seen = stamp
            try:
                self._keys = read_keys(self._path)
            except ConfigError as wrong:
                log.error("ridgeline: the keys stay as they are: %s", wrong)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path) if self._path else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None
