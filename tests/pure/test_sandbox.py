"""Templates that mean harm: they reach nothing outside, and end early and small."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest

from ridgeline.errors import TemplateError
from ridgeline.text.sandbox import Limits
from ridgeline.text.template import ChatTemplate


def render(source: str) -> str:
    return ChatTemplate(source).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].x }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ (messages | map(attribute='__class__') | first).x }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].pop('role') }}",
        "{{ (1).to_bytes(4, 'big') }}",
        "{{ 'a'.encode() }}",
        "{{ range.__self__.x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.fromkeys('ab') }}",
        "{{ cycler.__init__.x }}",
        "{{ self._TemplateReference__context.parent }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ lipsum() }}",
    ],
)
def test_nothing_outside_can_be_reached(source):
    with pytest.raises(TemplateError):
        render(source)


def growing(step: str, start: str = "'ab'") -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.x }}}}"


BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10**9) %}x{% endfor %}",
    "string times": "{{ 'a' * 10**9 }}",
    "power": "{{ 9**9**9 }}",
    "squaring": growing("{% set ns.x = ns.x * ns.x %}", "3"),
    "doubling with +": growing("{% set ns.x = ns.x + ns.x %}"),
    "doubling with ~": growing("{% set ns.x = ns.x ~ ns.x %}"),
    "doubling in a set block": growing("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "doubling a list": growing("{% set ns.x = ns.x + ns.x %}", "[1]"),
    "a list of itself twice": growing("{% set ns.x = [ns.x, ns.x] %}", "[1]"),
    "a dict of itself twice": growing("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{}") + "{{ ns.x | tojson }}",
    "a namespace in itself": growing("{% set ns.x = namespace(a=ns.x, b=ns.x) %}") + "{{ 9**9**9 }}",
    "deep nesting": "{% set ns = namespace(x=()) %}{% for i in range(9999) %}{% set ns.x = (ns.x,) %}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "long text in a loop": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "% width as argument": "{{ '%*d' % (1000000000, 1) }}",
    "% precision": "{{ '%.1000000000f' % 1 }}",
    "% of much": "{{ '%(a)s' * 9999 % {'a': 'x' * 9999} }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format width as argument": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format of much": "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "replace filter": "{% set x = 'a' * 9999 %}{{ x | replace('a', x) }}",
    "replace method": "{% set x = 'a' * 9999 %}{{ x.replace('', x) }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "join filter": "{{ (['a'] * 9999) | join('b' * 9999) }}",
    "join of a huge repeat": "{{ ('b' * 9999).join('a' * 9999) }}",
    "split": "{{ ('a ' * 1999999).split() | length }}",
    "list of characters": "{{ ('é' * 3999999) | list | length }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "indent filter": "{{ ('a\n' * 99) | indent(10**9) }}",
    "tojson indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "round": "{{ 15 | round(-10**9) }}",
    "sum of lists": "{{ ([[1] * 999] * 99) | sum(start=[]) }}",
    "colliding keys": "{{ range(0, 10**30, 10**25) | unique | list }}",
    "joiner": "{% set j = joiner('a' * 3999999) %}{% for i in range(999) %}{{ j() }}{% endfor %}",
    "huge integer filter": "{{ ('1' * 3999999) | int(0, 2) }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused(name):
    def spent() -> float:
        start = time.process_time()
        with pytest.raises(TemplateError, match="larger than|more than|deeper than|too big"):
            render(BOMBS[name])
        return time.process_time() - start

    gc.freeze()  # or the collector walks what all earlier tests have left, within the time measured
    try:
        assert any(spent() < 0.1 for _ in range(3))
    finally:
        gc.unfreeze()
    tracemalloc.start()  # measured apart, for it slows everything down
    try:
        spent()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


def test_the_clock_stops_what_the_counts_let_pass():
    slow = "{% for i in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(TemplateError, match="ran for more than"):
        ChatTemplate(slow, limits=Limits(seconds=0.2)).render([])
    assert time.monotonic() - start < 1
