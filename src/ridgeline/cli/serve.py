"""`ridgeline serve MODEL`: the HTTP server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from ridgeline.cli.command import Option
from ridgeline.cli.options import ENGINE, takes
from ridgeline.config import EngineConfig, ServerConfig


@takes(config=ENGINE)
def serve(
    config: EngineConfig,
    port: Annotated[int, Option("Port; 0 takes a free one.")] = ServerConfig.port,
    host: Annotated[str, Option("Address to listen on.")] = ServerConfig.host,
    max_requests: Annotated[int, Option("Sequences that run at once.")] = EngineConfig.max_requests,
    queue: Annotated[int, Option("Sequences that may wait.")] = EngineConfig.queue,
    step_tokens: Annotated[int, Option("Most tokens in one step.")] = EngineConfig.step_tokens,
) -> None:
    """Serve the OpenAI and TGI APIs."""
    from ridgeline.cli.session import fetch
    from ridgeline.server import app

    fetch(config.model)
    app.serve(
        ServerConfig(replace(config, max_requests=max_requests, queue=queue, step_tokens=step_tokens), host, port)
    )
