"""Options of `serve` on who may use the server, how it is watched and ended, and how it marks answers."""

from __future__ import annotations

from typing import Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.options import Group
from ridgeline.config import LOG_FORMATS, LOG_LEVELS, WATERMARKS, AccessConfig, ServerConfig

_ACCESS: dict[str, tuple[Any, Any]] = {
    "api_keys": (Annotated[str, Option("Ask for keys of this file; see `ridgeline keys`.", metavar="FILE")], ""),
    "api_key": (Annotated[str, Option("Ask for this key, which may do everything.", metavar="KEY")], ""),
    "open": (Annotated[bool, Option("Listen beyond this machine without keys.", flag="--open")], False),
    "allowed_hosts": (
        Annotated[list[str] | None, Option("What the Host header may say; *: anything; repeatable.", metavar="HOST")],
        None,
    ),
    "cors_allow_origin": (
        Annotated[list[str] | None, Option("Whose pages may ask; *: anybody's; repeatable.", metavar="ORIGIN")],
        None,
    ),
    "tls_cert": (Annotated[str, Option("Certificate, in PEM: serve https.", metavar="FILE")], ""),
    "tls_key": (Annotated[str, Option("Its key, if it is not in there.", metavar="FILE")], ""),
}
_WATCHING: dict[str, tuple[Any, Any]] = {
    "drain_timeout": (
        Annotated[float, Option("Seconds that running answers have when the server is told to end.")],
        ServerConfig.drain_timeout,
    ),
    "log_format": (
        Annotated[str, Option(f"A line on stderr for each request: {', '.join(LOG_FORMATS)}.")],
        ServerConfig.log_format,
    ),
    "log_level": (
        Annotated[str, Option(f"Of the log, no less than this: {', '.join(LOG_LEVELS)}.")],
        ServerConfig.log_level,
    ),
    "otlp_endpoint": (
        Annotated[str, Option("Send traces to this collector, such as http://localhost:4318.", metavar="URL")],
        ServerConfig.otlp_endpoint,
    ),
    "otlp_service_name": (Annotated[str, Option("What traces call the server.")], ServerConfig.otlp_service_name),
}
_WATERMARK: dict[str, tuple[Any, Any]] = {
    "watermark_scheme": (
        Annotated[str, Option(f"Where no other is asked for: {', '.join(WATERMARKS)}.")],
        ServerConfig.watermark_scheme,
    ),
    "watermark_gamma": (
        Annotated[float, Option("Part of all tokens that is green in marked answers.")],
        ServerConfig.watermark_gamma,
    ),
    "watermark_delta": (Annotated[float, Option("What their logits gain.")], ServerConfig.watermark_delta),
}


def _access(**values: Any) -> AccessConfig:
    lists = {name: tuple(values.pop(name) or ()) for name in ("allowed_hosts", "cors_allow_origin")}
    return AccessConfig(**values, **lists)


ACCESS = Group(_ACCESS, _access)
WATCHING = Group(_WATCHING, dict)
WATERMARK = Group(_WATERMARK, dict)
