"""`ridgeline serve MODEL`: the HTTP server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.limits import LIMITS, SERVED
from ridgeline.cli.operate import ACCESS, WATCHING, WATERMARK
from ridgeline.cli.options import parse_bytes, takes
from ridgeline.cli.output import tell
from ridgeline.cli.settings import CONFIG
from ridgeline.config import AccessConfig, EngineConfig, ServerConfig


@takes(engine=SERVED, limits=LIMITS, access=ACCESS, watching=WATCHING, watermark=WATERMARK)
def serve(
    engine: EngineConfig,
    limits: tuple[dict[str, Any], dict[str, Any]],
    access: AccessConfig,
    watching: dict[str, Any],
    watermark: dict[str, Any],
    config: Annotated[str, CONFIG] = "",
    check: Annotated[bool, Option("Say whether the settings are good, and end.", flag="--check")] = False,
    port: Annotated[int, Option("Port; 0 takes a free one.")] = ServerConfig.port,
    hostname: Annotated[str, Option("Address to listen on.")] = ServerConfig.hostname,
    step_tokens: Annotated[int, Option("Most tokens in one step.")] = EngineConfig.step_tokens,
    step_ms: Annotated[int, Option("How long a step may take that reads prompts while others answer; 0: any time.")] = (
        EngineConfig.step_ms
    ),
    policy: Annotated[str, Option("Who goes first: fcfs, priority, mlfq or fair.")] = EngineConfig.policy,
    admission: Annotated[
        str, Option("overcommit, or strict: book each request's worst case.")
    ] = EngineConfig.admission,
    prefix_sharing: Annotated[
        str, Option("What prompts have in common is computed once per tenant, or once for all.")
    ] = EngineConfig.prefix_sharing,
    prefix_cache_file: Annotated[
        str, Option("Keep the prefix cache here between runs.", metavar="FILE", default="not kept")
    ] = EngineConfig.prefix_cache_file,
    prefix_cache_size: Annotated[
        int, Option("And of it no more than this.", metavar="SIZE", parser=parse_bytes, default="1G")
    ] = EngineConfig.prefix_cache_size,
    max_wait: Annotated[float, Option("Seconds until a request's first token; 0: any time.")] = ServerConfig.max_wait,
    max_time: Annotated[float, Option("Seconds until a request's end; 0: any time.")] = ServerConfig.max_time,
    max_undelivered: Annotated[
        int, Option("An answer pauses with so much of it unread.", metavar="SIZE", parser=parse_bytes, default="64K")
    ] = ServerConfig.max_undelivered,
    max_pause: Annotated[float, Option("And ends after so many seconds of that.")] = ServerConfig.max_pause,
    strict: Annotated[bool, Option("Refuse OpenAI requests with unknown fields.", flag="--strict")] = False,
    trust_request_chat_template: Annotated[
        bool, Option("Let chat requests bring their own template.", flag="--trust-request-chat-template")
    ] = False,
    pooling: Annotated[
        str,
        Option("Of whose hidden states embeddings are made: last or mean. Default: as the model's files say, or last."),
    ] = ServerConfig.pooling,
) -> None:
    """Serve the OpenAI and TGI APIs."""
    from ridgeline.server import app

    engine = replace(
        engine, **limits[0], step_tokens=step_tokens, step_ms=step_ms, policy=policy, admission=admission,
        prefix_sharing=prefix_sharing, prefix_cache_file=prefix_cache_file, prefix_cache_size=prefix_cache_size,
    )  # fmt: skip
    more = {
        "max_undelivered": max_undelivered, "max_pause": max_pause, "max_wait": max_wait, "max_time": max_time,
        "strict": strict, "pooling": pooling, "trust_request_chat_template": trust_request_chat_template,
    }  # fmt: skip
    settings = ServerConfig(engine, hostname, port, access=access, **limits[1], **more, **watching, **watermark)
    if check:
        app.check(settings)
        return tell("the settings are good")
    _serve(settings)


def _serve(config: ServerConfig) -> None:
    from ridgeline.cli.session import fetch
    from ridgeline.server import app
    from ridgeline.server.log import told

    with told(config.log_format, config.log_level):
        fetch(config.engine.model)
        app.serve(config)
