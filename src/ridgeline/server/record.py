"""Record: what is known of one HTTP request, for quotas, metrics, logs and traces.

Filled in as the request goes, read once at its end. Holds numbers and names only: nothing of prompts or answers.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from ridgeline.server.keys import Key

DROPPED = "dropped"  # the error where the client left
_LEFT = 499  # nginx's status for that
REQUEST_ID, TRACEPARENT = "x-request-id", "traceparent"
_KEY = "ridgeline.record"  # in an ASGI scope
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # it goes into headers, logs and the ids of objects


def _free(tokens: int) -> None:
    """What tokens cost whom no quota binds."""


@dataclass(slots=True, eq=False)
class Record:
    """Times are perf_counter's, but for `wall`: nanoseconds since the epoch at the beginning. 0 = not yet."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    method: str = ""
    path: str = ""
    traceparent: str = ""
    key: Key | None = None
    spend: Callable[[int], None] = _free  # tells the key's quota of tokens
    begin: float = field(default_factory=time.perf_counter)
    wall: int = field(default_factory=time.time_ns)
    submitted: float = 0.0
    started: float = 0.0  # by the engine, the first of its choices
    first: float = 0.0  # token
    last: float = 0.0
    end: float = 0.0
    gap: float = 0.0  # between the last two steps that brought tokens
    prompt: int = 0  # tokens; also the next two
    cached: int = 0
    generated: int = 0
    most: int = 0  # new tokens that were asked for, 0: no limit
    choices: int = 0
    finish: str = ""  # of the choice that ended last
    status: int = 0
    error: str = ""  # kind of the error that it ended with
    warned: bool = False

    @property
    def name(self) -> str:
        """Of its key; "" for none."""
        return self.key.name if self.key is not None else ""

    @property
    def outcome(self) -> int:
        """Its status, but 499 where the client left before it had its answer, or all of it."""
        return _LEFT if self.error == DROPPED or not self.status else self.status

    @property
    def waited_until(self) -> float:
        """When the engine began with it, as far as is known."""
        return self.started or self.submitted

    def ran(self, seconds: float, now: float) -> None:
        """The engine had been computing one of its choices for so long."""
        began = max(now - seconds, self.submitted)
        self.started = min(self.started or began, began)

    def tokens(self, count: int, now: float) -> bool:
        """Tokens arrived. Whether others had come in a step before, `gap` seconds ago."""
        if not self.first:
            self.first = now
        elif now > self.last:
            self.gap = now - self.last
        self.last = now
        self.generated += count
        self.spend(count)
        return self.gap > 0.0


def record_of(scope: Scope) -> Record:
    """The record of a request, made at the first call. It is called what the client calls it, if that is a name."""
    found: Record | None = scope.get(_KEY)
    if found is None:
        headers = headers_of(scope)
        given = headers.get(REQUEST_ID, "")
        named = {"id": given} if _ID.fullmatch(given) else {}
        method, path, trace = scope["method"], scope["path"], headers.get(TRACEPARENT, "")
        found = scope[_KEY] = Record(method=method, path=path, traceparent=trace, **named)
    return found


def headers_of(scope: Scope) -> Mapping[str, str]:
    """Names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
