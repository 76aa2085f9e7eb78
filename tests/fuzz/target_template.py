"""Fuzz target: chat templates, mutated by their words, rendered with odd messages, tools and variables.

Bound: what `Limits` allow in all, at four bytes a character, and 32 MiB for the compiled template: 320 MiB.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import test_sandbox
import test_template
from meter import MIB, Check
from mutate import text, value

from ridgeline.text.template import ChatTemplate

BOUND = 320 * MIB
_WORD = re.compile(r"\{[{%#]-?|-?[}%#]\}|\w+|'[^'\n]*'|\"[^\"\n]*\"|\s+|.", re.DOTALL)
_WORDS = """
    ( ) [ ] { } . , : | ~ + - * / // % ** == != < > <= >= = {{ }} {% %} {# #} {%- -%} if else elif endif for in endfor
    set endset macro endmacro call endcall filter endfilter raw endraw block endblock extends include import from
    with endwith autoescape generation endgeneration break continue do debug trans recursive not and or is none true
    false defined mapping string iterable number sequence sameas divisibleby eq callable upper lower title trim list
    dict items keys values length first last join map select reject selectattr rejectattr sort unique groupby batch
    slice sum round int float abs min max replace indent center wordcount format tojson e safe default random pprint
    xmlattr urlize striptags dictsort string attr reverse truncate messages message role content tools documents loop
    index0 previtem nextitem cycle changed depth0 length namespace ns range joiner cycler caller varargs kwargs self
    bos_token raise_exception strftime_now add_generation_prompt __class__ __mro__ __globals__ __init__ _x 0 1 -1 2 3
    99 10**9 1e308 1e999 0.1 9999999999999999999 'a' '' '%s' '%1000d' '{}' '{:99}' '{0.a}' '\\n' 'é' '\\U0001f600'
""".split()
_PHRASES = (
    "{% for x in messages %}", "{% endfor %}", "{% for i in range(9) %}", "{{ x * 9 }}", "{% if true %}", "{% endif %}",
    "{% set ns = namespace(x='ab') %}", "{% set ns.x = ns.x ~ ns.x %}", "{{ messages | tojson(indent=2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}", "{{ m(m) }}", "{{ loop(messages) }}", "{{ x | join(x) | list | length }}",
    "{{ '%s' % messages }}", "{{ range(99999) | map('string') | list }}", "{{ messages | sum(start=[]) }}",
    "{% set x = x ~ x %}", "{{ strftime_now('%Y') }}", "{% call m(1) %}{% endcall %}", "\n", "{{ [x, x, x] }}",
    "{% raw %}", "{% endraw %}", "{{ (('a' * 999) | list).index('b') }}", "{{ 2 ** 62 }}", "{{ x.split('') }}",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    source: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


class Fuzz:
    """Seeds are the template tests' own: families' templates, language examples and bombs."""

    def __init__(self, scratch: Path) -> None:
        conversations = [Case(source, m, o) for source, m, o, _ in test_template.CONVERSATIONS]
        language = next(m for m in test_template.test_language.pytestmark if m.name == "parametrize")
        self.plain = [Case(c.source, c.messages, c.options) for c in conversations]
        self.short = [Case(source, [{"role": "user", "content": "Hi"}]) for source, _ in language.args[1]]
        self.bombs = [Case(source, [{"role": "user", "content": "Hi"}]) for source in test_sandbox.BOMBS.values()]

    def mutate(self, rng: Random) -> Case:
        pick = rng.random()
        seeds = self.plain if pick < 0.5 else self.short if pick < 0.97 else self.bombs
        seed, source = rng.choice(seeds), ""
        source = seed.source
        if rng.random() < 0.85:
            for _ in range(rng.choice((1, 1, 2, 4, 8))):
                source = self._words(rng, source)
        messages, options = copy.deepcopy(seed.messages), dict(seed.options)
        for _ in range(rng.choice((0, 0, 1, 1, 3))):
            messages = _objects(value(rng, messages, depth=1))
        if rng.random() < 0.2:
            options |= {rng.choice(("continue_final_message", "add_generation_prompt")): rng.random() < 0.7}
        if rng.random() < 0.2:
            options |= {"tools": _objects([value(rng, test_template.WEATHER)])}
        if rng.random() < 0.2:
            options |= {rng.choice(("x", "documents", "enable_thinking", "date_string")): value(rng, "x")}
        return Case(source, messages, options)

    def _words(self, rng: Random, source: str) -> str:
        words = _WORD.findall(source) or [""]
        at = rng.randrange(len(words))
        match rng.randrange(9):
            case 0:
                del words[at : at + rng.choice((1, 1, 2, 9))]
            case 1 | 2:
                words[at] = rng.choice(_WORDS)
            case 3:
                words.insert(at, rng.choice(_WORDS))
            case 4 | 5:
                words.insert(at, rng.choice(_PHRASES))
            case 6:
                end = at + rng.randrange(1, 30)
                words[end:end] = words[at:end] * rng.choice((1, 1, 2, 40))
            case 7:
                other = _WORD.findall(rng.choice(self.plain + self.short).source)
                start = rng.randrange(len(other))
                words[at:at] = other[start : start + rng.randrange(1, 40)]
            case _:
                words[at] = text(rng, words[at])
        return "".join(words)[:70_000]

    def parse(self, data: bytes) -> Case:
        """The source, and after a NUL byte the messages as JSON."""
        source, _, rest = data.partition(b"\0")
        try:
            given = json.loads(rest)
        except (ValueError, RecursionError):
            given = None
        usual = self.plain[3].messages
        return Case(source.decode("utf-8", "replace"), _objects(given) if isinstance(given, list) else usual)

    def corpus(self) -> list[bytes]:
        return [c.source.encode() + b"\0" + json.dumps(c.messages).encode() for c in self.plain + self.short]

    def run(self, case: Case, check: Check) -> None:
        try:
            template = ChatTemplate(case.source, "<s>", "</s>", clock=lambda: datetime(2025, 3, 4))
            assert isinstance(template.render(case.messages, **case.options), str)
        finally:
            check("rendering", BOUND)


def _objects(x: Any) -> list[dict[str, Any]]:
    """The messages in what may not be a list of messages: others are refused before a template is rendered."""
    return [m for m in x if isinstance(m, dict)] if isinstance(x, list) else []
