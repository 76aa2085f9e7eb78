"""Errors a user can act on. Each message names what to change; each class knows its HTTP meaning.

Our own bugs are assertions, never these. The server turns `status` and `kind` into the wire shape of each API:
TGI answers {error, error_type} (422 for validation), the OpenAI routes {error: {message, type, param, code}} (400).
"""

from __future__ import annotations


class RidgelineError(Exception):
    """Base of every error meant for a user. `kind` is the TGI error_type slug."""

    status = 422
    kind = "validation"


class InvalidRequest(RidgelineError):
    """A request (prompt, sampling value, body) breaks a stated rule. `param` names the field, if one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ToolError(InvalidRequest):
    """A request's tools are malformed, or cannot be called as it asks."""

    kind = "tool_error"


class ContextExceeded(InvalidRequest):
    """A prompt, or it and the answer asked for, is longer than the context."""

    code = "context_length_exceeded"  # OpenAI's, by which clients know that cutting the prompt may help


class TemplateError(RidgelineError):
    """The chat template is missing, fails, or exceeds its bounds."""

    kind = "template_error"


class MissingVariable(TemplateError):
    """The chat template reads a variable, or a field of one, that the request does not give."""

    kind = "missing_template_variable"


class ModelNotFound(RidgelineError):
    """An alias, Hub id or path that leads nowhere."""

    status = 404
    kind = "model_not_found"


class ModelFileError(RidgelineError):
    """A model file is truncated, lies about its sizes, or lacks a tensor or key."""

    kind = "model_file"


class Unsupported(RidgelineError):
    """Not built: names the op, format, architecture or key, and what to use instead where there is something."""

    kind = "unsupported"


class ConfigError(RidgelineError):
    """An engine or server setting that cannot be met; names the setting and the limit."""

    kind = "config"


class Overloaded(RidgelineError):
    """The bounded queue is full; try again after `retry_after` seconds."""

    status = 429
    kind = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlinePassed(RidgelineError):
    """An accepted request was not answered in the time it had; `retry_after` seconds are known if it never began."""

    status = 504
    kind = "deadline"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Undelivered(RidgelineError):
    """The client took so little of its answer for so long that the request was given up."""

    status = 408
    kind = "undelivered"


class EngineFailed(RidgelineError):
    """The engine could not finish an accepted request."""

    status = 424
    kind = "generation"
