"""Quotas of a key: requests and tokens a minute, requests at once, and when to come again.

Tokens are paid for as they are used, so a request may start while any are left; what it takes beyond is waited for by
the next one. Must not know HTTP. In the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ridgeline.errors import Overloaded
from ridgeline.server.keys import Key

Clock = Callable[[], float]


class OverQuota(Overloaded):
    """The key has used what it may for now."""

    kind = "rate_limit_exceeded"


class Bucket:
    """Holds `limit`, and is refilled by as much in a minute; 0 = holds any amount. It may be overdrawn."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit, self._clock = limit, clock
        self._level, self._at = float(limit), clock()

    def wait(self, limit: int) -> float:
        """Seconds until there is one to take; 0 = now. The limit may be another than before."""
        now = self._clock()
        if not limit:
            self._limit = 0
            return 0.0
        level = self._level + (now - self._at) * limit / 60 if self._limit else limit
        self._level, self._limit, self._at = min(level, limit), limit, now
        return max(0.0, (1 - self._level) * 60 / limit) if self._level < 1 - 1e-9 else 0.0

    def take(self, amount: int) -> None:
        if self._limit:
            self._level -= amount


class Account:
    """What one key uses."""

    def __init__(self, key: Key, clock: Clock) -> None:
        self._requests, self._tokens = Bucket(key.rate, clock), Bucket(key.tokens, clock)
        self._running = 0
        self.spend = self._tokens.take

    @contextmanager
    def request(self, key: Key, retry_after: Callable[[], float]) -> Iterator[None]:
        """OverQuota names the limit; else the request counts until the context ends. `retry_after` guesses when
        another one of the key's requests will have ended."""
        for bucket, limit, what in ((self._requests, key.rate, "requests"), (self._tokens, key.tokens, "tokens")):
            if wait := bucket.wait(limit):
                raise OverQuota(f"key {key.name} may use {limit} {what} a minute, and has; try later", wait)
        if key.concurrency and self._running >= key.concurrency:
            raise OverQuota(f"key {key.name} may have {key.concurrency} requests at once, and has", retry_after())
        self._requests.take(1)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


class Quotas:
    """The accounts of all keys, by name."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, key: Key) -> Account:
        """Kept for good: names come from the key file, never from clients."""
        if key.name not in self._accounts:
            self._accounts[key.name] = Account(key, self._clock)
        return self._accounts[key.name]
