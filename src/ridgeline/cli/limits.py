"""Options of `ridgeline serve` that TGI's launcher has too, under its names."""

from __future__ import annotations

from typing import Annotated, Any

from ridgeline.cli.command import Option
from ridgeline.cli.options import ENGINE, Group, parse_bytes
from ridgeline.config import EngineConfig, ServerConfig


def _limit(help: str, name: str, **more: Any) -> tuple[Any, Any]:
    return Annotated[int, Option(help, **more)], getattr(ServerConfig, name)


_TOTAL = Option("Longest prompt and answer together.", flag="--max-total-tokens", default="the model's own limit")
_INPUT = {"alias": "--max-input-length", "default": "one less than --max-total-tokens"}
_MOST = Option("Sequences that run or wait; more are refused.", minimum=1, default=f"{EngineConfig.queue} may wait")
LIMIT_OPTIONS: dict[str, tuple[Any, Any]] = {
    "max_requests": (Annotated[int, Option("Sequences that run at once.")], EngineConfig.max_requests),
    "max_concurrent_requests": (Annotated[int | None, _MOST], None),
    "max_input_tokens": _limit("Longest prompt.", "max_input_tokens", **_INPUT),
    "max_best_of": _limit("Most candidates of a request.", "max_best_of"),
    "max_stop_sequences": _limit("Most stop strings of a request.", "max_stop_sequences"),
    "max_top_n_tokens": _limit("Most alternatives told of a token.", "max_top_n_tokens"),
    "max_client_batch_size": _limit("Most prompts in one request.", "max_client_batch_size"),
    "payload_limit": _limit("Longest body of a request.", "payload_limit", metavar="SIZE", parser=parse_bytes),
    "predict_route": (
        Annotated[str, Option("Where Vertex AI asks, beside /vertex.", metavar="PATH")],
        ServerConfig.predict_route,
    ),
    "health_route": (
        Annotated[str, Option("And where it looks whether the server is well.", metavar="PATH")],
        ServerConfig.health_route,
    ),
    "tgi_strict": (
        Annotated[bool, Option("Do as TGI where this server deviates for the better (docs/tgi.md).")],
        ServerConfig.tgi_strict,
    ),
    "disable_grammar_support": (
        Annotated[bool, Option("Refuse requests that need a grammar.", flag="--disable-grammar-support")],
        ServerConfig.disable_grammar_support,
    ),
}


def _limits(
    max_requests: int, max_concurrent_requests: int | None, **limits: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the engine, and of the server."""
    most = max_concurrent_requests or max_requests + EngineConfig.queue
    return {"max_requests": min(max_requests, most), "queue": max(most - max_requests, 0)}, limits


LIMITS = Group(LIMIT_OPTIONS, _limits)
SERVED = Group({**ENGINE.options, "context": (Annotated[int, _TOTAL], 0)}, ENGINE.build)
