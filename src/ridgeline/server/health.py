"""Whether the server is well: what probes are told, on whichever route they ask."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from ridgeline.server.errors import Reply, TGIErrors, Unhealthy
from ridgeline.server.hub import Hub
from ridgeline.server.schema import REASON_HEADER


def health_reply(hub: Hub) -> Reply:
    """An empty 200, or TGI's 503 with the reason in a header."""
    problem = hub.problem
    if problem is None:
        return Reply(None)
    reply = TGIErrors().reply(Unhealthy("unhealthy"))  # TGI's own words; ours say why
    return replace(reply, headers={**reply.headers, REASON_HEADER: quote(problem, safe=" ,.:;()'")})
