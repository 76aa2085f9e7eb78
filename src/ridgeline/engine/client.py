"""EngineClient: the one seam between whoever wants tokens and the engine, in this process or a child.

The client's side keeps the record of every live request (prompt, seed, emitted tokens), accepts or refuses, hands
deltas to sinks, and so can replay everything after an engine process died.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from ridgeline.engine.engine import Engine
from ridgeline.engine.ledger import Failures, Ledger, Places, Sink
from ridgeline.engine.orders import handle
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import (
    CANCELLED,
    NO_TERMS,
    EngineInfo,
    StepDelta,
    Terms,
    check_prompt,
)
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.compiler import BUDGET_S, Compiler


class EngineClient(Protocol):
    """`submit` refuses with a typed error or returns an id; then `sink` gets deltas until each choice has one finish.

    `pump` moves things on: it runs a step, or waits up to `timeout` seconds for one from the child, and calls sinks
    in the calling thread. The others may be called from any thread. A request that is paused gets nothing but what
    was on its way until it is resumed, or cancelled for `reason`.
    """

    info: EngineInfo
    restarts: int  # of the engine
    compiler: Compiler | None  # of grammars; without one they are refused

    @property
    def last(self) -> StepDelta:
        """The last step of the engine."""

    @property
    def waiting(self) -> int:
        """Choices that were accepted and neither run nor are paused, known to the engine or not."""

    @property
    def failures(self) -> Failures:
        """Steps that failed; what they were at is computed again."""

    def why(self, id: int) -> list[str]:
        """What was decided for a request and why, in words; as far back as is remembered."""

    def progress(self, id: int) -> tuple[int, int]:
        """Tokens of a prompt that was not read in one step: how many have been, and all of them; else (0, 0)."""

    def retry_after(self) -> float:
        """Seconds until what is queued now has had its turn, at the pace of the last ends."""

    def book(self, count: int) -> Places:
        """Places for choices of several requests, so that all are accepted or none. Overloaded where
        that is too many."""

    def unbook(self, places: Places) -> None:
        """Let others have what was not taken."""

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int: ...

    def cancel(self, id: int, reason: str = CANCELLED) -> None: ...

    def pause(self, id: int) -> None: ...

    def resume(self, id: int) -> None: ...

    def pump(self, timeout: float) -> None: ...

    @property
    def idle(self) -> bool: ...

    def gone(self) -> str | None:
        """Why requests can never be served again, or None."""

    def unhealthy(self) -> str | None:
        """Why they are not served now, or None: what is accepted meanwhile waits."""

    def close(self) -> None: ...


class LocalClient:
    """The engine in the calling thread: `pump` runs one step. For offline use and tests."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.info, self.compiler, self.restarts = engine, engine.info, engine.compiler, 0
        self._ledger = Ledger(engine.info, engine.clock)
        self._pumping = threading.Lock()  # callers in several threads take turns

    @property
    def last(self) -> StepDelta:
        return self._ledger.last

    @property
    def waiting(self) -> int:
        return self._ledger.waiting

    @property
    def failures(self) -> Failures:
        return self._ledger.failures

    def why(self, id: int) -> list[str]:
        return self._ledger.why(id)

    def progress(self, id: int) -> tuple[int, int]:
        return self._ledger.progress(id)

    def retry_after(self) -> float:
        return self._ledger.retry_after()

    def book(self, count: int) -> Places:
        return self._ledger.book(count)

    def unbook(self, places: Places) -> None:
        self._ledger.unbook(places)

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int:
        check_grammar(self.compiler, self.info, prompt, params)
        return self._ledger.accept(prompt, params, sink, terms, places).id

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        self._ledger.cancel(id, reason)

    def pause(self, id: int) -> None:
        self._ledger.pause(id)

    def resume(self, id: int) -> None:
        self._ledger.pause(id, False)

    def pump(self, timeout: float = 0.0) -> None:
        with self._pumping:
            for message in self._ledger.due():
                handle(self.engine, message)
            if not self.engine.idle:
                self._ledger.take(self.engine.step())

    @property
    def idle(self) -> bool:
        return self._ledger.empty and self.engine.idle

    def gone(self) -> str | None:
        return None

    def unhealthy(self) -> str | None:
        return None

    def close(self) -> None:
        self._ledger.fail_all(CANCELLED)
        if self.engine.kept is not None:
            with self._pumping:
                self.engine.close()


def check_grammar(
    compiler: Compiler | None, info: EngineInfo, prompt: Sequence[int], params: SamplingParams, wait_s: float = BUDGET_S
) -> list[str]:
    """InvalidRequest where a request has a grammar that cannot be followed in its tokens, NotCompiled where that is not
    known after `wait_s` seconds; else what to warn of."""
    if params.grammar is None:
        return []
    check_params(params, info.vocab)
    limit = check_prompt(info, prompt, params)
    if compiler is None:
        raise InvalidRequest("grammars are not available here (--disable-grammar-support)", "grammar")
    return compiler.check(params.grammar, limit, wait_s)
