"""EngineClient: the one seam between whoever wants tokens and the engine, in this process or a child.

The client's side keeps the record of every live request (prompt, seed, emitted tokens), accepts or refuses, hands
deltas to sinks, and so can replay everything after an engine process died.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from ridgeline.engine.engine import Engine
from ridgeline.engine.ledger import Ledger, Places, Sink
from ridgeline.engine.orders import handle
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import (
    CANCELLED,
    NO_TERMS,
    EngineInfo,
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
    ledger: Ledger  # of its requests: says what is known of them, and books places for more

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
        self.ledger = Ledger(engine.info, engine.clock)
        self._pumping = threading.Lock()  # callers in several threads take turns

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int:
        check_grammar(self.compiler, self.info, prompt, params)
        return self.ledger.accept(prompt, params, sink, terms, places).id

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        self.ledger.cancel(id, reason)

    def pause(self, id: int) -> None:
        self.ledger.pause(id)

    def resume(self, id: int) -> None:
        self.ledger.pause(id, False)

    def pump(self, timeout: float = 0.0) -> None:
        with self._pumping:
            for message in self.ledger.due():
                handle(self.engine, message)
            if not self.engine.idle:
                self.ledger.take(self.engine.step())

    @property
    def idle(self) -> bool:
        return self.ledger.empty and self.engine.idle

    def gone(self) -> str | None:
        return None

    def unhealthy(self) -> str | None:
        return None

    def close(self) -> None:
        self.ledger.fail_all(CANCELLED)
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
