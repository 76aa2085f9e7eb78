"""The log of requests: one line each, as JSON or for people; and how all the rest of the server's log is written.
Nothing of prompts or answers is in it.

A line is of level info; of warn, where the request was refused or its answer cut short; of error, where it is our
failure.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, TextIO

import msgspec

from ridgeline.config import LOG_LEVELS
from ridgeline.engine.jsonlog import speak_json
from ridgeline.errors import DeadlinePassed, EngineFailed, RidgelineError, Undelivered
from ridgeline.server.errors import Incomplete
from ridgeline.server.record import Record

log = logging.getLogger(__name__)
_FAILED = 2  # a command's exit status for typed errors
_OURS = (EngineFailed.kind, Incomplete.kind)
_CUT = (DeadlinePassed.kind, Undelivered.kind)

_PYTHONS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


@contextlib.contextmanager
def told(format: str, level: str) -> Iterator[None]:
    """What goes on inside is logged as is asked for; as JSON, an error that ends it is a line of the log, too."""
    keep_quiet(level)
    if format == "json":
        speak_json()
    try:
        yield
    except RidgelineError as wrong:
        if format != "json":
            raise
        log.error("%s", wrong)
        raise SystemExit(_FAILED) from None


def keep_quiet(level: str) -> None:
    """Let what is below a level go unsaid in the rest of our log, too."""
    logging.getLogger("ridgeline").setLevel(_PYTHONS[level])


class Log:
    """Writes a line of each request that ends, unless it is below `level`."""

    def __init__(self, format: str, file: TextIO, level: str = "info") -> None:
        self._line, self._file = (_json if format == "json" else _text), file
        self._least = LOG_LEVELS.index(level)

    def __call__(self, record: Record) -> None:
        if LOG_LEVELS.index(level_of(record)) < self._least:
            return
        with contextlib.suppress(OSError, ValueError):  # nobody reads the log, or it is closed: requests go on
            self._file.write(self._line(described(record)) + "\n")
            self._file.flush()


def level_of(record: Record) -> str:
    """Of LOG_LEVELS. A stream may fail after its 200."""
    if record.status >= 500 or record.error in _OURS:
        return "error"
    return "warn" if record.status >= 400 or record.error in _CUT else "info"


def described(record: Record) -> dict[str, Any]:
    """What a line says. Times are seconds."""
    began = datetime.fromtimestamp(record.wall / 1e9, timezone.utc).isoformat(timespec="milliseconds")
    said: dict[str, Any] = {
        "time": began, "id": record.id, "key": record.name, "method": record.method, "path": record.path[:200],
        "status": record.outcome, "seconds": round(record.end - record.begin, 6),
    }  # fmt: skip
    if record.submitted:
        said |= {
            "prompt_tokens": record.prompt, "cached_tokens": record.cached, "generated_tokens": record.generated,
            "choices": record.choices, "finish": record.finish,
            "first_token": round(record.first - record.begin, 6) if record.first else None,
        }  # fmt: skip
    return said | ({"error": record.error} if record.error else {})


def _json(said: dict[str, Any]) -> str:
    return msgspec.json.encode({"event": "request", **said}).decode()


def _text(said: dict[str, Any]) -> str:
    time, method, path, status = (said.pop(name) for name in ("time", "method", "path", "status"))
    rest = " ".join(f"{name}={value}" for name, value in said.items() if value not in (None, ""))
    shown = "".join(c if c.isprintable() and c != " " else "?" for c in path)
    return f"{time} {method} {shown} {status} {rest}"
