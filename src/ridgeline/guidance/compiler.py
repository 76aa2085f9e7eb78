"""Compiler: grammars to matchers, in one thread of its own, with bounds and a memory of the last ones.

A client's side compiles to accept or refuse, an engine's to guide; both find the same. A grammar is tried first in a
process of its own. The thread gives way to all others, and its stack is deep: llguidance reads a grammar's rules
recursively.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import TYPE_CHECKING

from ridgeline.errors import InvalidRequest, Overloaded
from ridgeline.guidance.closing import Ways
from ridgeline.guidance.grammar import Grammar, check_form, explain, parts, translate, wholes
from ridgeline.guidance.trial import STACK, Trial

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ridgeline.guidance.guide import Guide
    from ridgeline.guidance.vocabulary import Tokens, Vocabulary

BUDGET_S = 10.0  # for compiling, waiting for others' turns included
_OWN_S = 8.0  # of compiling alone: a grammar that takes longer is itself at fault
_KEPT = 64  # grammars
_STATES = 4096  # looked at for the first closing
_EXAMPLE = 1024  # tokens of an example of a part, each of which is looked at wherever it might fit
_NICE = 10  # a tenth of a core that a model wants too: with less it would starve
_stack_lock = threading.Lock()


class Compiled:
    """A grammar, ready: `closing` is the shortest answer that was found, with its end token; None: none was."""

    def __init__(self, matcher: LLMatcher, ways: Ways, closing: list[int] | None, guaranteed: bool) -> None:
        self._matcher, self._ways, self.closing, self._guaranteed = matcher, ways, closing, guaranteed

    @property
    def spent(self) -> bool:
        """Whether an answer has met one of the matcher's bounds, which all share: it is to be compiled again."""
        return self._ways.spent

    def guide(self, limit: int, jumps: bool) -> Guide:
        """A guide for an answer of at most `limit` tokens."""
        from ridgeline.guidance.guide import Guide

        way = self.closing if self.closing is not None and len(self.closing) <= limit else None
        return Guide(self._matcher.deep_copy(), self._ways, way, limit, jumps, self._guaranteed)


class NotCompiled(Overloaded):
    """A grammar is not compiled yet, as others were before it; `future` is done when it is."""

    def __init__(self, future: Future[Compiled]) -> None:
        super().__init__("other requests' grammars are compiled first; try again later", BUDGET_S)
        self.future = future


class _Turn:
    """A grammar's place in the queue, left empty where nobody waits for it any more, after `until`."""

    future: Future[Compiled]

    def __init__(self, until: float) -> None:
        self.until = until

    @property
    def void(self) -> bool:
        """Whether it is to be compiled again."""
        if not self.future.done():
            return False
        fault = self.future.exception()
        return isinstance(fault, Overloaded) if fault is not None else self.future.result().spent


class Compiler:
    """Compiles grammars for one model, whose logits have `size` columns. `trial` may be None where whoever sends them
    has tried them."""

    def __init__(self, tokens: Tokens, size: int) -> None:
        self._tokens, self._size = tokens, size
        self.trial: Trial | None = Trial(_OWN_S / 2)
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[Grammar, _Turn] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None
        self._began = 0.0  # when the last turn began

    def compile(self, grammar: Grammar, wait_s: float = math.inf) -> Future[Compiled]:
        """From any thread. The future raises InvalidRequest for a grammar that cannot be followed, and Overloaded where
        its turn came when nobody had asked for it for `wait_s` seconds."""
        until = time.perf_counter() + wait_s
        with self._lock:
            turn = self._known.get(grammar)
            if turn is None or turn.void:
                self._thread = self._thread or thread("ridgeline-grammars", _NICE)
                turn = self._known[grammar] = _Turn(until)
                turn.future = self._thread.submit(self._take, turn, grammar)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            turn.until = max(turn.until, until)
            self._known.move_to_end(grammar)
            return turn.future

    def check(self, grammar: Grammar, limit: int, wait_s: float = BUDGET_S) -> list[str]:
        """InvalidRequest for a grammar that is not to be had, or has no answer of `limit` tokens; NotCompiled where
        others' turns take longer than `wait_s` seconds. What to warn of."""
        check_form(grammar)
        if not self._tokens.eos_ids:
            raise InvalidRequest("this model has no end token, without which no grammar can be followed", "grammar")
        future = self.compile(grammar, BUDGET_S)
        try:
            compiled = future.result(wait_s)
        except Late:
            if future.running() and time.perf_counter() - self._began > _OWN_S:
                raise InvalidRequest(
                    f"the grammar was not compiled within {_OWN_S:g} seconds; simplify it", "grammar"
                ) from None
            raise NotCompiled(future) from None
        least = len(compiled.closing) if compiled.closing is not None else None
        if grammar.guaranteed and least is None and not grammar.complete:
            raise InvalidRequest(
                f"no answer that the grammar allows was found within {_STATES} states; simplify it", "grammar"
            )
        if grammar.guaranteed and least is not None and least > limit:
            raise InvalidRequest(
                f"max_tokens is {limit}; the shortest answer found that the grammar allows has {least} tokens, "
                "its end token included",
                "max_tokens",
            )
        if least is None or least > limit:
            return ["the answer may be cut off before its grammar allows an end"]
        return []

    def _take(self, turn: _Turn, grammar: Grammar) -> Compiled:
        self._began = time.perf_counter()
        if self._began > turn.until:
            raise Overloaded("the grammar's turn came too late; try again later", BUDGET_S)
        return self._compile(grammar)

    def _compile(self, grammar: Grammar) -> Compiled:
        from llguidance import LLMatcher, LLParserLimits

        from ridgeline.guidance.vocabulary import Vocabulary

        text = translate(grammar)
        if self.trial is not None and (wrong := self.trial.run(text)):
            raise explain(grammar, wrong)
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokens, self._size)
        limits = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary.matching, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise explain(grammar, matcher.get_error())
        spell = self._vocabulary.matching.tokenize_str
        examples = ([part] if isinstance(part, int) else spell(part) for part in parts(grammar))
        usable = (tokens for tokens in examples if 0 < len(tokens) <= _EXAMPLE and max(tokens) < self._size)
        ways = Ways(self._vocabulary, list(usable))
        answers = ([*spell(text), self._vocabulary.end] for text in wholes(grammar))
        known = min((a for a in answers if matcher.validate_tokens(a) == len(a)), key=len, default=None)
        states = _STATES if grammar.guaranteed else _STATES // 16
        closing = known if known == [self._vocabulary.end] else ways.shortest(matcher, known, states)
        return Compiled(matcher, ways, closing, grammar.guaranteed)


def thread(name: str, nice: int = 0) -> ThreadPoolExecutor:
    """One thread with a deep stack; a `nice` one lets others go first where cores are short, by as much."""

    def begin() -> None:
        if nice and hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)  # Linux: of this thread alone

    pool = ThreadPoolExecutor(1, name, begin)
    with _stack_lock:  # the size is that of all threads started meanwhile
        before = threading.stack_size(STACK)
        try:
            pool.submit(int)
        finally:
            threading.stack_size(before)
    return pool
