"""GET /debug/requests/{id} and /debug/engine: what the engine decided for a request, and what it is doing.

For whoever runs the server: a key of scope admin, or without keys only loopback addresses, are answered. Any other key
is told of its own requests.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ridgeline.errors import RidgelineError
from ridgeline.server.access import is_loopback
from ridgeline.server.errors import NoRoute, Reply, TGIErrors
from ridgeline.server.http import as_response
from ridgeline.server.hub import Hub
from ridgeline.server.record import record_of

_OTHER = re.compile(r"choice \d+ of request (\d+)")  # as the journal's words name it


def routes(hub: Hub, local_only: bool) -> list[Route]:
    """Both routes, over the hub's client; `local_only`: for clients on the same machine."""

    async def request(asked: Request) -> Reply:
        key = record_of(asked.scope).key
        return about_request(hub, asked.path_params["id"], None if key is None or key.may("admin") else key.name)

    async def engine(asked: Request) -> Reply:
        return about_engine(hub)

    return [
        Route("/debug/requests/{id}", _answered(request, local_only), methods=["GET"]),
        Route("/debug/engine", _answered(engine, local_only), methods=["GET"]),
    ]


def about_request(hub: Hub, id: str, key: str | None = None) -> Reply:
    """`id`: a reply's `x-request-id`, an OpenAI object's `id`, or the engine's number, which the words also name. With
    `key` for whoever has that one: there is nothing then but its own requests."""
    numbers, why = hub.remembered.ids(id, key), hub.client.ledger.why
    own = None if key is None else hub.remembered.own(key)
    if not numbers and id.isascii() and id.isdigit() and len(id) < 16 and why(int(id)):
        numbers = [int(id)] if own is None or int(id) in own else []
    if not numbers:
        raise NoRoute(f"no request {id[:80]!r} is remembered")

    def hidden(other: re.Match[str]) -> str:
        return other[0] if own is None or int(other[1]) in own else "another request"

    told = [{"request": n, "why": [_OTHER.sub(hidden, said) for said in why(n)]} for n in numbers]
    return Reply({"id": id, "requests": told})


def about_engine(hub: Hub) -> Reply:
    """Sequences and pages after the engine's last step, and what it has done since it was loaded."""
    ledger, info = hub.client.ledger, hub.client.info
    last = ledger.last
    done = last.counters
    free = info.pages - last.pages_used - last.pages_cached - last.pages_withheld
    return Reply({
        "step": last.step, "running": last.running, "waiting": ledger.waiting, "paused": last.paused,
        "most_running": info.max_requests, "queue": info.queue,
        "pages": {
            "total": info.pages, "used": last.pages_used, "cached": last.pages_cached,
            "free": free, "withheld": last.pages_withheld, "bytes_each": info.page_bytes,
        },
        **asdict(done), "reading": asdict(done.reading), "answering": asdict(done.answering),
        "policy": info.policy, "admission": info.admission, "prefix_sharing": info.prefix_sharing,
        "problem": hub.problem,
    })  # fmt: skip


def _answered(
    handler: Callable[[Request], Awaitable[Reply]], local_only: bool
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(asked: Request) -> Response:
        try:
            if local_only and (asked.client is None or not is_loopback(asked.client.host)):
                raise NoRoute("this route is for clients on the server's own machine", 403)
            reply = await handler(asked)
        except RidgelineError as error:
            reply = TGIErrors().reply(error)
        return as_response(reply)

    return answer
