"""Endpoint: one POST route as an ASGI app. Bounded body, handler, one answer or one stream, errors in the API's shape.

The moment the client goes away the handler is cancelled, and with it everything it submitted. Must not know what a
request means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ridgeline.errors import RidgelineError
from ridgeline.server import sse
from ridgeline.server.errors import BodyTooLarge, BodyTooSlow, ErrorShape, Incomplete, Malformed, Reply
from ridgeline.server.hub import Hub
from ridgeline.server.jobs import Event
from ridgeline.server.keys import Key
from ridgeline.server.record import DROPPED, Record, headers_of, record_of
from ridgeline.server.stream import Stream

DRAIN_BYTES = 64 << 20  # read and dropped of a body over the limit, so that the refusal is not lost in a reset

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """A request as handlers see it: its whole body and headers (names in lower case), when it began
    (perf_counter), what it is called, its stream of deltas, and its API key, if it has one with a name."""

    body: bytes
    headers: Mapping[str, str]
    begin: float
    id: str
    stream: Stream
    key: Key | None = None


@dataclass(frozen=True)
class Events:
    """A streamed answer, all of it complete server-sent events: what it begins with, what each delta says, its end.

    Plain calls, because one is made for every token. `errors` where they are not spelt as the route spells them.
    """

    begin: bytes
    event: Callable[[Event], bytes]
    end: Callable[[], bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: ErrorShape | None = None


Handler = Callable[[Call], Awaitable["Reply | Events"]]


class ClientGone(Exception):
    """The client closed the connection: nobody is left to answer."""


class Endpoint:
    """An ASGI app. Every request ends in exactly one answer, or in silence if its client left."""

    def __init__(self, hub: Hub, handler: Handler, errors: ErrorShape, payload_limit: int) -> None:
        self._hub, self._handler, self._errors, self._limit = hub, handler, errors, payload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            body = await self._body(scope, receive)
            await while_connected(receive, self._answer(body, headers_of(scope), record, send))
        except ClientGone:
            record.error = DROPPED
        except RidgelineError as error:
            record.error = error.kind
            await send_reply(send, self._errors.reply(error))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            record.error = Incomplete.kind
            await send_reply(send, self._errors.reply(_unforeseen()))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        patience = self._hub.max_pause
        try:
            return await asyncio.wait_for(read_body(scope, receive, self._limit), patience)
        except asyncio.TimeoutError:
            raise BodyTooSlow(f"the body was not complete after {patience:g} seconds") from None

    async def _answer(self, body: bytes, headers: Mapping[str, str], record: Record, send: Send) -> None:
        async with self._hub.stream(record) as stream:
            try:
                answer = await self._handler(Call(body, headers, record.begin, record.id, stream, record.key))
            except RecursionError:  # it was read with more of the stack left than what is made of it is written with
                raise Malformed("the body is nested too deeply") from None
            if isinstance(answer, Reply):
                await send_reply(send, answer)
            else:
                await stream.begun()  # until then no status has gone out
                await self._send_events(send, answer, stream)

    async def _send_events(self, send: Send, answer: Events, stream: Stream) -> None:
        errors = answer.errors or self._errors

        async def say(batch: list[Event]) -> None:
            if piece := b"".join(map(answer.event, batch)):
                stream.spoke()
            await _send_piece(send, piece or _sign(stream))

        await send(_start(200, {**sse.HEADERS, **answer.headers}))
        try:
            await _send_piece(send, answer.begin)
            async for batch in stream.batches(say):
                await say(batch)
            last = answer.end()
        except RidgelineError as error:
            stream.record.error, last = error.kind, errors.in_stream(error)
        except Exception:
            log.exception("a stream failed")
            stream.record.error, last = Incomplete.kind, errors.in_stream(_unforeseen())
        await send({"type": "http.response.body", "body": last})


def _sign(stream: Stream) -> bytes:
    """A comment, if it is time that the client hears something."""
    sign = stream.sign()
    if sign is None:
        return b""
    return sse.prefill(*sign) if sign[1] else sse.KEEP_ALIVE


async def _send_piece(send: Send, piece: bytes) -> None:
    if piece:
        await send({"type": "http.response.body", "body": piece, "more_body": True})


def _unforeseen() -> Incomplete:
    return Incomplete("the server failed on this request; its log has the details")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. BodyTooLarge names both sizes; ClientGone if the client leaves meanwhile."""
    declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    size = int(declared) if declared.isdigit() else 0
    if size > DRAIN_BYTES:
        raise BodyTooLarge(f"the body has {size} bytes; the limit is {limit}")
    pieces, size = [], 0
    more = True
    while more and size <= DRAIN_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        more = message.get("more_body", False)
    if size > limit:
        raise BodyTooLarge(f"the body has {'at least ' if more else ''}{size} bytes; the limit is {limit}")
    return b"".join(pieces)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, cancelled at once with ClientGone if the client disconnects first."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_response(reply: Reply) -> Response:
    """A whole answer, for routes that are Starlette's own."""
    kind = None if reply.body is None else "application/json"
    body = b"" if reply.body is None else msgspec.json.encode(reply.body)
    return Response(body, reply.status, dict(reply.headers), media_type=kind)


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a whole answer."""
    plain = isinstance(reply.body, str)
    body = b"" if reply.body is None else reply.body.encode() if plain else msgspec.json.encode(reply.body)
    sized = {"content-length": str(len(body)), **reply.headers}
    if body:
        sized["content-type"] = "text/plain; charset=utf-8" if plain else "application/json"
    await send(_start(reply.status, sized))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, headers: Mapping[str, str]) -> Message:
    pairs = [(k.encode(), v.encode("latin-1", "replace")) for k, v in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}
