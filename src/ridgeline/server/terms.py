"""Terms of a request, from its headers and its body: on whose account it runs, how urgent it is, and until when.

Headers and fields can only lower what the server allows. Must not know what a request asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ridgeline.config import MAX_SECONDS
from ridgeline.engine.records import Terms
from ridgeline.errors import InvalidRequest
from ridgeline.server.service import Service

TENANT, MAX_WAIT, MAX_TIME = "x-ridgeline-tenant", "x-ridgeline-max-wait", "x-ridgeline-max-time"
_NAME = 128  # characters of a tenant or a salt
_PRIORITIES = 1 << 31


def terms_of(
    service: Service, headers: Mapping[str, str], priority: int | None = None, salt: str | None = None
) -> Terms:
    """InvalidRequest names the header or field at fault. `priority` is vLLM's: lower goes first; 0 by default."""
    tenant, salt, priority = headers.get(TENANT, ""), salt or "", priority or 0
    if not re.fullmatch(rf"[\x21-\x7e]{{0,{_NAME}}}", tenant):
        raise InvalidRequest(f"{TENANT} must be at most {_NAME} visible ASCII characters", TENANT)
    if len(salt) > _NAME:
        raise InvalidRequest(f"cache_salt has {len(salt)} characters; at most {_NAME} are allowed", "cache_salt")
    if priority and service.info.policy != "priority":
        raise InvalidRequest(
            f"priority needs a server with --policy priority; this one runs {service.info.policy}", "priority"
        )
    if not -_PRIORITIES < priority < _PRIORITIES:
        raise InvalidRequest(f"priority must be within +-{_PRIORITIES - 1}, is {priority}", "priority")
    wait_s = _seconds(headers, MAX_WAIT, service.config.max_wait)
    total_s = _seconds(headers, MAX_TIME, service.config.max_time)
    return Terms(tenant=tenant, salt=salt, priority=-priority, wait_s=wait_s, total_s=total_s)


def _seconds(headers: Mapping[str, str], name: str, most: float) -> float:
    """A limit of time: the server's, or the header's where that is lower; 0 = none."""
    given = headers.get(name)
    if given is None:
        return most
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", given, re.ASCII) or not 0 < float(given) <= MAX_SECONDS:
        raise InvalidRequest(f"{name} must be seconds above 0, at most {MAX_SECONDS:g}, is {given[:40]!r}", name)
    if most and float(given) > most:
        raise InvalidRequest(f"{name} is {given}; this server allows at most {most:g}", name)
    return float(given)
