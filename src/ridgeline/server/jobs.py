"""Jobs: what an HTTP request asks of the engine, what comes back, and what an end means that is none of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import CANCELLED, EXPIRED, FAILED, NO_MEMORY, UNDELIVERED, UNGUIDED, Delta
from ridgeline.errors import DeadlinePassed, EngineFailed, RidgelineError, Undelivered

BROKEN: dict[str, Callable[[], RidgelineError]] = {  # what an end means that is none of an answer
    CANCELLED: lambda: EngineFailed("the engine was shut down before the answer was complete"),
    FAILED: lambda: EngineFailed("the engine failed before the answer was complete"),
    NO_MEMORY: lambda: EngineFailed("the system had no memory left to complete the answer"),
    UNGUIDED: lambda: EngineFailed("what the grammar allows next could not be found within its bounds"),
    EXPIRED: lambda: DeadlinePassed("the request's time was up before its answer was complete"),
    UNDELIVERED: lambda: Undelivered("the answer was read too slowly: what waited was too much for too long"),
}


@dataclass(frozen=True)
class Job:
    """A prompt to continue. An HTTP request may hold several; its events name them by position."""

    prompt: Sequence[int]
    params: SamplingParams


class Event(msgspec.Struct, frozen=True, gc=False):
    """A delta of the request's job number `job`."""

    job: int
    delta: Delta


def size_of(delta: Delta) -> int:
    """About the bytes of a delta: its text and tokens. A prompt's logprobs come once, so they need no bound."""
    size = len(delta.text)
    for token in delta.tokens:
        size += 16 * (1 + len(token.top))
    return size
