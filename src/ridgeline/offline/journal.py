"""The output file: one whole line per answer, written once. What a killed run left is read back and continued.

A line that lacks its end was torn by a kill in the middle of a write; it is cut off and its request asked again. Only
files that begin as ours are cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ridgeline.errors import ConfigError

SYNC_S = 5.0  # what a power cut may take, in seconds of work
_ID = "batch_req_"
_BEGIN = f'{{"id":"{_ID}'.encode()


@dataclass(frozen=True)
class Left:
    """What earlier runs did: the keys of lines that are answered, and how many of those are errors."""

    done: frozenset[str]
    errors: int


class _Entry(msgspec.Struct):
    """A line of output as far as resuming needs it."""

    id: str
    custom_id: str | None
    error: Any


class Journal:
    """An output file, created where missing and kept from other processes until `close`."""

    def __init__(self, path: Path, source: Path) -> None:
        """ConfigError for a path that cannot be written, is in use, or is `source`, the input."""
        self._path, self._synced = path, time.monotonic()
        with self._told():
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._claim(source)
        except BaseException:
            os.close(self._fd)
            raise

    def _claim(self, source: Path) -> None:
        own = os.fstat(self._fd)
        if not stat.S_ISREG(own.st_mode):
            raise ConfigError(f"{self._path} is no regular file; give another -o")
        if os.path.samestat(own, source.stat()):
            raise ConfigError(f"{self._path} is the input; give another -o")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self._path} is being written by another process") from None

    def clear(self) -> None:
        """Begin anew."""
        with self._told():
            os.ftruncate(self._fd, 0)

    def recover(self, keys: Container[str]) -> Left:
        """What is done already. ConfigError, and nothing is changed, if the file answers other lines than `keys`."""
        done, errors, end = set[str](), 0, 0
        with self._told(), open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            self._check_ours(file.read(len(_BEGIN)))
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self._check_ours(line[: len(_BEGIN)])
                    break
                entry = self._entry(number, line)
                if entry.id.removeprefix(_ID) not in keys:
                    raise ConfigError(
                        f"{self._path}:{number} answers custom_id {entry.custom_id!r}, which the input does not ask, "
                        "or asks in other words: it belongs to another input; give another -o, or --fresh to begin anew"
                    )
                done.add(entry.id.removeprefix(_ID))
                errors += entry.error is not None
                end += len(line)
            os.ftruncate(self._fd, end)
        return Left(frozenset(done), errors)

    def append(self, key: str, custom_id: str | None, response: Any, error: Any) -> None:
        """One line, written whole and at once."""
        record = {"id": _ID + key, "custom_id": custom_id, "response": response, "error": error}
        data = memoryview(msgspec.json.encode(record) + b"\n")
        with self._told():
            while data:  # one write, but on a full disk, which the next one tells
                data = data[os.write(self._fd, data) :]
            if time.monotonic() - self._synced >= SYNC_S:
                os.fsync(self._fd)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Everything is on the disk, and the file is free for others."""
        with self._told():
            os.fsync(self._fd)
            os.close(self._fd)

    def _entry(self, number: int, line: bytes) -> _Entry:
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ConfigError(
                f"{self._path}:{number} is no line of output; give another -o, or --fresh to overwrite the file"
            ) from None
        return entry

    def _check_ours(self, beginning: bytes) -> None:
        if not _BEGIN.startswith(beginning):
            raise ConfigError(f"{self._path} is no output file; give another -o, or --fresh to overwrite it")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as wrong:
            raise ConfigError(f"{self._path} cannot be written: {wrong.strerror}") from wrong
