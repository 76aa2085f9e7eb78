"""Errors on the wire: each API's body and status for a typed error, whole or inside a stream.

Also the errors only a server has. Must not know requests or engines; every message is meant for the user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ridgeline.errors import DeadlinePassed, InvalidRequest, ModelNotFound, Overloaded, RidgelineError, TemplateError
from ridgeline.server import sse


class BodyTooLarge(RidgelineError):
    """The request body is over the server's limit."""

    status = 413
    kind = "payload_too_large"


class BodyTooSlow(RidgelineError):
    """The client did not send all of its request in time."""

    status = 408
    kind = "slow_request"


class Unhealthy(RidgelineError):
    """The engine cannot serve: it died for good, or is shutting down."""

    status = 503
    kind = "healthcheck"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """`retry_after` seconds, where somebody else may serve by then."""
        super().__init__(message)
        self.retry_after = retry_after


class Incomplete(RidgelineError):
    """An unforeseen fault on our side; the log has the details."""

    status = 500
    kind = "incomplete_generation"


class Malformed(InvalidRequest):
    """A body that is not JSON, or not of the request's shape; `plain` is TGI's own status for it."""

    def __init__(self, message: str, param: str | None = None, plain: int = 400) -> None:
        super().__init__(message, param)
        self.plain = plain


class NoRoute(RidgelineError):
    """A path or method nobody serves."""

    status = 404
    kind = "not_found"

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.status = status


class Unauthorized(RidgelineError):
    """No API key was given, or none of ours."""

    status = 401
    kind = "invalid_api_key"


class Forbidden(RidgelineError):
    """Known or not, whoever asks may not have this."""

    status = 403
    kind = "forbidden"


class NotJSON(RidgelineError):
    """A body that does not say that it is JSON."""

    status = 415
    kind = "unsupported_media_type"


@dataclass(frozen=True)
class Reply:
    """A whole answer; `body` becomes JSON, None an empty body, a str plain text."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class ErrorShape(Protocol):
    """How one API spells errors."""

    def reply(self, error: RidgelineError) -> Reply: ...

    def in_stream(self, error: RidgelineError) -> bytes:
        """The last lines of a stream that fails after its status went out."""


class OpenAIErrors:
    """{"error": {message, type, param, code}}; validation is 400, a template that fails 422."""

    def reply(self, error: RidgelineError) -> Reply:
        status = 400 if error.status == 422 and not isinstance(error, TemplateError) else error.status
        return Reply(self._body(error), status, _headers(error))

    def in_stream(self, error: RidgelineError) -> bytes:
        return sse.data(self._body(error)) + sse.DONE

    def _body(self, error: RidgelineError) -> dict[str, Any]:
        kinds = {429: "rate_limit_error", **dict.fromkeys((424, 500, 503, 504), "server_error")}
        kind = error.kind if isinstance(error, TemplateError) else kinds.get(error.status, "invalid_request_error")
        code = getattr(error, "code", None if error.kind == "validation" else error.kind)
        param = "model" if isinstance(error, ModelNotFound) else getattr(error, "param", None)
        return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class TGIErrors:
    """{"error", "error_type"}; validation is 422. `strict`: what is wrong with a body as such is told in plain text,
    which TGI's clients cannot read, and of a key that is missing nothing is said."""

    strict: bool = False

    def reply(self, error: RidgelineError) -> Reply:
        if self.strict and isinstance(error, (Malformed, NotJSON, BodyTooLarge)):
            return Reply(str(error), error.plain if isinstance(error, Malformed) else error.status)
        if self.strict and isinstance(error, Unauthorized):
            return Reply(None, error.status, _headers(error))
        return Reply(self._body(error), error.status, _headers(error))

    def in_stream(self, error: RidgelineError) -> bytes:
        body = self._body(error)
        return sse.data(body | {"error_type": f"{error.kind}_stream"} if isinstance(error, Incomplete) else body)

    def _body(self, error: RidgelineError) -> dict[str, Any]:
        return {"error": str(error), "error_type": error.kind}


def shape_of(path: str, strict: bool = False) -> ErrorShape:
    """How errors of this route are spelt; `strict` as TGI does it."""
    return OpenAIErrors() if path.startswith("/v1/") or path == "/detokenize" else TGIErrors(strict)


def _headers(error: RidgelineError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, (Overloaded, DeadlinePassed, Unhealthy)) and error.retry_after is not None:
        more = {"connection": "close"} if isinstance(error, Unhealthy) else {}  # the next one may reach another server
        # OpenAI's client looks at milliseconds first.
        waits = {"retry-after": math.ceil(error.retry_after), "retry-after-ms": math.ceil(1000 * error.retry_after)}
        return {**{name: str(value) for name, value in waits.items()}, **more}
    if isinstance(error, Unhealthy):
        return {"x-should-retry": "false"}  # OpenAI's client retries every 5xx otherwise
    return {}
