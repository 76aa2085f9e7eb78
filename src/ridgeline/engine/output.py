"""The text of one choice: detokeniser and stop strings in a row, as the engine's Text protocol asks."""

from __future__ import annotations

from ridgeline.engine.params import SamplingParams
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.stop import StopMatcher
from ridgeline.text.tokenizer import Tokenizer


class ChoiceText:
    """Text that may be shown, token by token: never a partial character, never a possible beginning of a stop."""

    __slots__ = ("_detokenizer", "_early", "_matcher")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop, params.include_stop) if params.stop else None
        self._early = params.min_tokens  # tokens to come that end nothing

    def push(self, token: int) -> tuple[str, bool]:
        text = self._detokenizer.push(token)
        may_stop = self._early == 0
        self._early -= not may_stop
        if self._matcher is None:
            return text, False
        shown, matched = self._matcher.push(text, may_stop)
        return shown, matched is not None

    def flush(self) -> str:
        """What was held back, at the end; nothing after a stop string."""
        rest = self._detokenizer.flush()
        if self._matcher is None:
            return rest
        shown, _ = self._matcher.push(rest, self._early == 0)
        return shown + self._matcher.flush()
