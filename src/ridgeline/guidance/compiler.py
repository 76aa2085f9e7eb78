"""Compiler: grammars to matchers, in one thread of its own, with bounds and a memory of the last ones.

A client's side compiles to accept or refuse, an engine's to guide; both find the same. The thread gives way to all
others, and its stack is deep: llguidance reads a grammar's rules recursively.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import TYPE_CHECKING

from ridgeline.errors import InvalidRequest
from ridgeline.guidance.closing import Ways
from ridgeline.guidance.grammar import Grammar, check_form, explain, parts, translate, wholes

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ridgeline.guidance.guide import Guide
    from ridgeline.guidance.vocabulary import Tokens, Vocabulary

BUDGET_S = 10.0  # for compiling, waiting for others' turns included
_KEPT = 64  # grammars
_STATES = 4096  # looked at for the first closing
_STACK = 256 << 20  # of addresses; memory is what is touched
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


class Compiler:
    """Compiles grammars for one model, whose logits have `size` columns."""

    def __init__(self, tokens: Tokens, size: int) -> None:
        self._tokens, self._size = tokens, size
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None

    def compile(self, grammar: Grammar) -> Future[Compiled]:
        """From any thread. The future raises InvalidRequest for a grammar that cannot be followed."""
        with self._lock:
            known = self._known.get(grammar)
            if known is None or (known.done() and known.exception() is None and known.result().spent):
                self._thread = self._thread or thread("ridgeline-grammars", _NICE)
                known = self._known[grammar] = self._thread.submit(self._compile, grammar)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(grammar)
            return known

    def check(self, grammar: Grammar, limit: int) -> list[str]:
        """InvalidRequest for a grammar that is not to be had, or has no answer of `limit` tokens. What to warn of."""
        check_form(grammar)
        if not self._tokens.eos_ids:
            raise InvalidRequest("this model has no end token, without which no grammar can be followed", "grammar")
        try:
            compiled = self.compile(grammar).result(BUDGET_S)
        except Late:
            raise InvalidRequest(
                f"the grammar was not compiled within {BUDGET_S:g} seconds; simplify it, or try again later", "grammar"
            ) from None
        least = len(compiled.closing) if compiled.closing is not None else None
        if grammar.guaranteed and least is None:
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

    def _compile(self, grammar: Grammar) -> Compiled:
        from llguidance import LLMatcher, LLParserLimits

        from ridgeline.guidance.vocabulary import Vocabulary

        text = translate(grammar)
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokens, self._size)
        limits = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
        matcher = LLMatcher(self._vocabulary.matching, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise explain(grammar, matcher.get_error())
        spell = self._vocabulary.matching.tokenize_str
        ways = Ways(self._vocabulary, [tokens for text in parts(grammar) if (tokens := spell(text))])
        answers = ([*spell(text), self._vocabulary.end] for text in wholes(grammar))
        known = min((a for a in answers if matcher.validate_tokens(a) == len(a)), key=len, default=None)
        states = _STATES if grammar.guaranteed else _STATES // 16
        found = (
            ways.shortest(matcher, [], states, len(known) - 1 if known else 0)
            if known != [self._vocabulary.end]
            else None
        )
        return Compiled(matcher, ways, found or known, grammar.guaranteed)


def thread(name: str, nice: int = 0) -> ThreadPoolExecutor:
    """One thread with a deep stack; a `nice` one lets others go first where cores are short, by as much."""

    def begin() -> None:
        if nice and hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)  # Linux: of this thread alone

    pool = ThreadPoolExecutor(1, name, begin)
    with _stack_lock:  # the size is that of all threads started meanwhile
        before = threading.stack_size(_STACK)
        try:
            pool.submit(int)
        finally:
            threading.stack_size(before)
    return pool
