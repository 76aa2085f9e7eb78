"""Searches for ways that end an answer: they take no more than their bounds, however long a way is."""

from __future__ import annotations

import gc

import pytest

from letters import Letters, of_schema
from ridgeline.guidance import closing
from ridgeline.guidance.compiler import Compiler

LETTERS = Letters()
COMPILER = Compiler(LETTERS, 320)


def test_a_search_keeps_no_more_states_the_longer_it_goes_on(monkeypatch):
    """Each has all of its text's rows: kept, they would take the length of the longest way squared."""
    kept, nearest = list[int](), closing._nearest

    def counted(*given):
        if len(kept) % 50 == 0:
            states = (found for found in gc.get_objects() if isinstance(found, closing._State))
            kept.append(sum(state.matcher is not None for state in states))
        else:
            kept.append(0)
        return nearest(*given)

    monkeypatch.setattr(closing, "_nearest", counted)
    schema = of_schema({"type": "array", "minItems": 200, "items": {"type": "number"}})
    assert len(COMPILER.compile(schema).result().closing) == 402
    assert len(kept) > 400 and max(kept) < 60


class Refusing:
    """A matcher that refuses the last token of whatever is longer than `fits`."""

    def __init__(self, fits: int) -> None:
        self.fits, self.given = fits, 0

    def validate_tokens(self, tokens: list[int]) -> int:
        self.given += len(tokens)
        return min(len(tokens), max(self.fits, len(tokens) - 1))


@pytest.mark.parametrize(("find", "fits"), [(closing.rejoin, 0), (closing.resume, 0), (closing.resume, 8)])
def test_long_ways_are_not_fitted_for_long(find, fits):
    matcher = Refusing(fits)
    assert find(matcher, list(range(5000))) is None
    assert matcher.given < 15_000  # of 12,500,000


def test_a_long_way_gets_shorter_as_it_is_gone():
    """Also where other tokens are in the place of its own."""
    items = of_schema({"type": "array", "minItems": 900, "items": {"type": "integer"}})
    compiled = COMPILER.compile(items).result()
    n = len(compiled.closing)
    guide = compiled.guide(n + 9, False)
    bracket, seven, comma = (next(i for i in LETTERS.encode(c, False)) for c in "[7,")
    assert n == 1802
    for i, token in enumerate((bracket, *(seven, comma) * 100)):
        assert guide.advance(token).tokens == (token,)
        assert len(guide.closing) == n - 1 - i
