"""What a choice may not say next: end tokens that come too early, and the last tokens of bad words.

Follows from a request's parameters and its own answer alone, so replays and batches of any shape ban the same. Must
not know sequences, batches or text.
"""

from __future__ import annotations

from collections.abc import Sequence

from ridgeline.engine.params import SamplingParams


class Bans:
    """The bans of one request; `eos` are the model's own end tokens.

    A bad word counts from the answer's first token on: one that the prompt begins is not noticed, as in vLLM.
    """

    def __init__(self, params: SamplingParams, eos: frozenset[int]) -> None:
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos)
        self._min_tokens = params.min_tokens
        self._always = frozenset(word[0] for word in params.bad_words if len(word) == 1)
        self._words: dict[int, list[tuple[list[int], int]]] = {}  # by the last token but one: what precedes, the last
        for *begin, last in params.bad_words:
            if begin:
                self._words.setdefault(begin[-1], []).append((begin, last))

    def after(self, tokens: Sequence[int], prompt: int, generated: int) -> set[int]:
        """Ids that may not follow `generated` tokens of an answer; `tokens` are the prompt's `prompt` ones and as many
        of the answer as are known: all of them, if there are bad words of several tokens.
        """
        banned = set(self._always)
        if generated < self._min_tokens:
            banned |= self._ends
        if generated and self._words:
            assert len(tokens) == prompt + generated, "bad words look at tokens that are still in flight"
            for begin, last in self._words.get(tokens[-1], ()):
                if len(begin) <= generated and list(tokens[-len(begin) :]) == begin:
                    banned.add(last)
        return banned
