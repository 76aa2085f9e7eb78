"""Who is told of every request at its end: metrics, and where they are asked for, a log and traces."""

from __future__ import annotations

import sys

from ridgeline.config import ServerConfig
from ridgeline.server.front import Observer
from ridgeline.server.hub import Hub
from ridgeline.server.log import Log
from ridgeline.server.tracing import tracer


def observers(config: ServerConfig, hub: Hub) -> list[Observer]:
    """In the order in which they are told."""
    found: list[Observer] = [hub.metrics.ended]
    if config.log_format != "none":
        found.append(Log(config.log_format, sys.stderr, config.log_level))
    if config.otlp_endpoint:
        found.append(tracer(config.otlp_endpoint, config.otlp_service_name, hub.client.info))
    return found
