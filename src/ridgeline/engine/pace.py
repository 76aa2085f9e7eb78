"""How many tokens a step may have so that it ends in time: learned from the steps that ran."""

from __future__ import annotations

_NEW = 0.1  # weight of the last step in a mean
_LEAST = 8  # tokens of prompts that a step has, whatever it takes: they must go on


class Pace:
    """Seconds of a step as a line through two points: the mean step of decodes alone, and the mean one with prompts.

    Below the knee of its roofline a step costs reading the weights, which the first point knows; above it each token
    costs arithmetic, which the second does. Begins with a guess of `tokens` in `seconds`.
    """

    def __init__(self, tokens: int, seconds: float) -> None:
        self._small, self._large = (1.0, seconds / tokens), (float(tokens), seconds)

    def observe(self, tokens: int, seconds: float, prompts: bool) -> None:
        """A step of so many tokens, some of them of prompts or none, took so long."""
        old = self._large if prompts else self._small
        new = (old[0] + _NEW * (tokens - old[0]), old[1] + _NEW * (seconds - old[1]))
        self._small, self._large = (self._small, new) if prompts else (new, self._large)

    def tokens(self, decodes: int, seconds: float) -> int:
        """Tokens of prompts beside so many decodes for a step that takes about so long."""
        (few, short), (many, long) = self._small, self._large
        each = (long - short) / (many - few) if many > few and long > short else long / many
        if each <= 0:  # steps that took no time say nothing
            return 1 << 30
        return max(_LEAST, int((seconds - short) / each + few) - decodes)
