"""Front: what every request passes first and last. Its name, who may ask, and at its end who wants to know of it.

A pure ASGI middleware: nothing of it runs per event of a stream but one call. Must not know routes or engines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ridgeline.errors import RidgelineError
from ridgeline.server.access import Access
from ridgeline.server.errors import ErrorShape, Incomplete, shape_of
from ridgeline.server.http import send_reply
from ridgeline.server.record import REQUEST_ID, Record, record_of
from ridgeline.server.schema import WARNING_HEADER

_WARNING = WARNING_HEADER.encode()
Observer = Callable[[Record], None]


class Front:
    """Names, admits and records every HTTP request of `app`; `observers` see each record once, when it has ended.
    `shape`: how errors of a path are spelt. `posts` are asked for their paths at once, past what else `app` has around
    its routes: each layer there would be one more call for every token."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        observers: Sequence[Observer] = (),
        shape: Callable[[str], ErrorShape] = shape_of,
        posts: Mapping[str, ASGIApp] = MappingProxyType({}),
    ) -> None:
        self._app, self._access, self._observers, self._shape, self._posts = app, access, observers, shape, posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = record_of(scope)
        name = (REQUEST_ID.encode(), record.id.encode())

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.warned = any(key == _WARNING for key, _ in message["headers"])
                message["headers"] = [name, *message["headers"]]
            await send(message)

        try:
            await self._admitted(scope, record, receive, answer)
        except BaseException:  # which whoever is around this answers with a 500, or by closing the connection
            record.status, record.error = record.status or 500, record.error or Incomplete.kind
            raise
        finally:
            record.end = time.perf_counter()
            for observe in self._observers:
                observe(record)

    async def _admitted(self, scope: Scope, record: Record, receive: Receive, send: Send) -> None:
        with contextlib.ExitStack() as place:
            try:
                place.enter_context(self._access.admit(scope, record))
            except RidgelineError as error:
                record.error = error.kind
                return await send_reply(send, self._shape(scope["path"]).reply(error))
            post = self._posts.get(scope["path"]) if scope["method"] == "POST" else None
            await (post or self._app)(scope, receive, send)
