"""Access: who may ask for what. With keys, by one table of routes and scopes; without, only who cannot be a stranger.

A browser on the server's own machine brings strangers in: pages of other origins, and names that were made to point
here (DNS rebinding). So without keys Host must be this machine or listed, and Origin must be ours or listed. Must not
know what a request means.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext

from starlette.types import Scope

from ridgeline.config import AccessConfig
from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Forbidden, NotJSON, Unauthorized
from ridgeline.server.hub import Hub
from ridgeline.server.keys import Key, KeyRing
from ridgeline.server.quota import Quotas
from ridgeline.server.record import Record, headers_of
from ridgeline.server.terms import TENANT

_READS = ("GET", "HEAD")
OPEN = ""
SCOPES: tuple[tuple[str, tuple[str, ...], str], ...] = (  # pattern of the path, methods (none: all), scope: first match
    (r"/|/health|/ping", _READS, OPEN),
    (r"/metrics", (), "metrics"),
    (r"/debug/requests/.*", (), "user"),
    (r"/debug/.*", (), "admin"),
    (r".*", (), "user"),
)


def scope_of(method: str, path: str) -> str:
    """What a key needs for a route; OPEN: there it needs none."""
    return next(
        needed
        for pattern, methods, needed in SCOPES
        if re.fullmatch(pattern, path, re.DOTALL) and (not methods or method in methods)
    )


class Access:
    """The rules of one server. `health`: one more path that tells of its health (ServerConfig.health_route). `unasked`:
    methods and paths that need no key either."""

    def __init__(
        self, config: AccessConfig, hub: Hub, health: str = "", unasked: Collection[tuple[str, str]] = ()
    ) -> None:
        self._config, self._hub, self._health, self._unasked = config, hub, health, unasked
        self.keys, self._quotas = KeyRing(config.api_keys, config.api_key), Quotas()
        self._hosts = {_name_of(host) or host.lower() for host in config.allowed_hosts}

    def admit(self, scope: Scope, record: Record) -> AbstractContextManager[None]:
        """A context for the time of the request, which counts against its key's quotas; typed errors refuse it.

        Sets the record's key, and makes the key's name the tenant, as if a header had said so.
        """
        headers = headers_of(scope)
        needed = self._needed(scope["method"], scope["path"])
        if not self.keys or self._config.allowed_hosts:
            self._check_host(headers.get("host"))
        if not self.keys:
            self._check_origin(headers)
        elif needed != OPEN:
            record.key = self._find(headers, needed)
        if scope["method"] == "POST":
            _check_type(headers)
        if record.key is None or not record.key.name or needed != "user" or scope["method"] in _READS:
            return nullcontext()
        if TENANT in headers:
            raise InvalidRequest(f"{TENANT} is the name of the API key on this server; leave it out", TENANT)
        scope["headers"] = [*scope["headers"], (TENANT.encode(), record.key.name.encode())]
        account = self._quotas.of(record.key)
        record.spend = account.spend
        return account.request(record.key, self._hub.client.ledger.retry_after)

    def _needed(self, method: str, path: str) -> str:
        if ("GET" if method == "HEAD" else method, path) in self._unasked:
            return OPEN
        return scope_of(method, "/health" if path == self._health else path)

    def _find(self, headers: Mapping[str, str], needed: str) -> Key:
        kind, _, secret = headers.get("authorization", "").partition(" ")
        given = secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise Unauthorized("an API key is needed: send it as Authorization: Bearer KEY, or as x-api-key")
        key = self.keys.find(given)
        if key is None:
            raise Unauthorized("this API key is not known here")
        if not key.may(needed):
            raise Forbidden(f"this needs a key of scope {needed}; key {key.name} has {', '.join(key.scopes)}")
        return key

    def _check_host(self, host: str | None) -> None:
        if host is None or (self._config.open and not self._hosts):
            return  # every browser sends it
        name = _name_of(host)
        if not (is_loopback(name) or name in self._hosts or "*" in self._hosts):
            raise Forbidden(f"the host {host[:80]!r} is not served here; --allowed-hosts lists those that are")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._config.cors_allow_origin or "*" in self._config.cors_allow_origin:
            return
        host = headers.get("host", "")
        if origin not in (f"http://{host}", f"https://{host}"):
            raise Forbidden(f"pages of {origin[:80]!r} may not ask here; --cors-allow-origin lists those that may")


def _check_type(headers: Mapping[str, str]) -> None:
    """A browser sends other types to anybody without asking first. What has neither a type nor a body is let through:
    it asks for nothing, and a route that takes no POST says so."""
    given = headers.get("content-type", "")
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if empty and "content-type" not in headers:
        return
    if given.partition(";")[0].strip().lower() != "application/json":
        raise NotJSON(f"the content-type must be application/json, is {given[:80]!r}")


def _name_of(host: str) -> str:
    """The name or address in a Host header, as names are compared; "" where it is none."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", host, re.ASCII)
    return found[1].strip("[]").lower().removesuffix(".") if found else ""


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine, whoever resolves it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
