"""Grammars of answers that call tools, in Lark as llguidance reads it.

A call is spelled as its convention writes it, its arguments follow the tool's schema, and JSON has the blanks that
models are trained on, no others. It must not know requests, nor what obeys a grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.text.conventions import MARK, Convention
from ridgeline.text.reasoning import Marks
from ridgeline.text.tagged import Tags, kinds_of

Spell = Callable[[str], str]  # a mark as a grammar has it: quoted text, or the special token that it is
Schemas = Mapping[str, Mapping[str, Any]]  # of tools' arguments, by name

_DEPTH = 32  # to which schemas are looked at
_MOST = 1 << 20  # characters of the rules of all tools' members
_ANY = "/(.|\\n)*/"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KINDS = {"string": "string", "integer": "INTEGER", "number": "NUMBER", "boolean": "/true|false/", "object": "object"}
_FENCED = r"""
value: object | list | string | NUMBER | /true|false|null/
object: "{" (KEY ":" value ("," KEY ":" value)*)? "}"
list: "[" (value ("," value)*)? "]"
KEY: /[A-Za-z_][A-Za-z0-9_.-]{0,63}/
NUMBER: INTEGER /(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
"""


def quoted(text: str) -> str:
    """A string as grammars have it."""
    return json.dumps(text, ensure_ascii=False)


class Thought(msgspec.Struct, frozen=True):
    """A thought that may come before an answer; `inside`: the prompt has opened it."""

    marks: Marks
    inside: bool


def forcing(convention: Convention, tools: Schemas, spell: Spell, several: bool, thought: Thought | None = None) -> str:
    """Answers that are a call, or `several`, and nothing else but a thought before it."""
    return "\n".join([
        f"start: {_thought(thought)}call{_further(convention, several)}",
        *_thoughts(thought, spell),
        *_rules(convention, tools, spell),
    ])  # fmt: skip


def allowing(
    convention: Convention, tools: Schemas, spell: Spell, several: bool, thought: Thought | None = None
) -> str:
    """The same, or answers of any text, which may end with calls: those that begin are complete."""
    calls = f"body{_further(convention, several)}"
    opens, rules = convention.fence[0], []
    if not opens:
        start, rules = f"call{_further(convention, several)} | PLAIN", ["PLAIN: /([^{\\s](.|\\n)*)?/"]
    elif spell(opens).startswith("<"):
        start, rules = f"TEXT | TEXT {spell(opens)} {calls}", [f"TEXT: {_ANY}"]
    else:
        start, rules = f"TEXT | before {calls}", [f"TEXT: {_ANY}", f"before[lazy]: {_ANY} {spell(opens)}"]
    rules += [*_thoughts(thought, spell), *_rules(convention, tools, spell)]
    return "\n".join([f"start: {_thought(thought)}({start})", *rules])


def _further(convention: Convention, several: bool) -> str:
    return f" ({quoted(convention.several)} call)*" if several and convention.several else ""


def _thought(thought: Thought | None) -> str:
    if thought is None:
        return ""
    return "thought " if thought.inside else "thought? "


def _thoughts(thought: Thought | None, spell: Spell) -> list[str]:
    """What `thought` is: text through the mark behind it, and blanks."""
    if thought is None:
        return []
    opens = "" if thought.inside else f"{spell(thought.marks.opens)} "
    closes = spell(thought.marks.closes)
    if closes.startswith("<"):
        return [f"thought: {opens}{_ANY} {closes} BLANKS", "BLANKS: /\\s{0,4}/"]
    return [f"thought: {opens}thinking BLANKS", f"thinking[lazy]: {_ANY} {closes}", "BLANKS: /\\s{0,4}/"]


def _rules(c: Convention, tools: Schemas, spell: Spell) -> list[str]:
    """What `call` and `body` are: a call with the mark before it, and without."""
    opens, closes = (f" {spell(mark)}" if mark else "" for mark in c.fence)
    bodies = " | ".join(f"body_{i}" for i in range(len(tools)))
    rules, room = [f"call:{opens} body", f"body: {bodies}"], _MOST
    for i, (name, schema) in enumerate(tools.items()):
        parts = (_spelled(text, spell) for text in (c.before + name, c.between))
        rules.append(f"body_{i}: {' '.join(parts)} arguments_{i} {_spelled(c.after, spell)}{closes}")
        if c.tags is not None:
            tagged = _tagged(i, schema, c.tags, room)
            rules += tagged
            room -= sum(map(len, tagged))
        elif c.quote:
            fenced = _Fenced(f"fenced_{i}", spell(c.quote))
            rules += [f"arguments_{i}: {fenced.value(schema)}", *fenced.rules]
        else:
            rules.append(f"arguments_{i}: %json {json.dumps(_closed(schema))}")
    if c.tags is not None:
        rules.append(f"tagged[lazy]: {_ANY} {quoted(_behind(c.tags))}")
    if c.quote:
        mark = spell(c.quote)
        text = "/[^<]*/" if mark.startswith('"') else _ANY
        rules += [f"string: {mark} STRING {mark}", f"STRING: {text}", _FENCED.strip()]
    return rules


def _spelled(text: str, spell: Spell) -> str:
    """Text of a convention, its marks as what they are."""
    found, at = [], 0
    for mark in MARK.finditer(text):
        if (token := spell(mark[0])).startswith("<"):
            found += [*([quoted(text[at : mark.start()])] if mark.start() > at else []), token]
            at = mark.end()
    return " ".join([*found, quoted(text[at:])] if text[at:] else found)


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema: an object's, without members that are not listed unless it says that there may be others."""
    shown = {"type": "object", **schema, "x-guidance": _COMPACT}
    if "properties" in shown:
        shown.setdefault("additionalProperties", False)
    return shown


class _Fenced:
    """Rules of a schema's values in Gemma's spelling; what it says beyond types, members and choices is not looked at.

    A member is a rule of its own, for text within text would grow with each level.
    """

    def __init__(self, prefix: str, quote: str) -> None:
        self._prefix, self._quote = prefix, quote
        self.rules: list[str] = []

    def value(self, schema: Any, depth: int = 0) -> str:
        """What matches a value."""
        if not isinstance(schema, Mapping) or depth > _DEPTH:
            return "value"
        if choices := _choices(schema):
            return "(" + " | ".join(f"{self._quote} {quoted(c)} {self._quote}" for c in choices) + ")"
        members = schema.get("properties")
        if isinstance(members, Mapping):
            return self._object(members, _required(schema), depth)
        if schema.get("type") == "array":
            item = self._rule(self.value(schema.get("items"), depth + 1))
            return f'("[" ({item} ("," {item})*)? "]")'
        return _KINDS.get(str(schema.get("type", "")), "value")

    def _object(self, members: Mapping[str, Any], required: list[Any], depth: int) -> str:
        """Required members, then any of the others in their order."""
        spelled = {
            name: self._rule(f"{quoted(name + ':')} {self.value(shape, depth + 1)}") for name, shape in members.items()
        }
        must = [rule for name, rule in spelled.items() if name in required]
        may = [rule for name, rule in spelled.items() if name not in required]
        if must:
            return " ".join(['("{"', ' "," '.join(must), *(f'("," {rule})?' for rule in may), '"}")'])
        starts, rest = [], ""
        for rule in reversed(may):
            starts.append(rule + rest)
            rest = " " + self._rule(f'("," {rule})?{rest}')
        return '("{" (' + " | ".join(reversed(starts)) + ')? "}")' if starts else '"{}"'

    def _rule(self, text: str) -> str:
        name = f"{self._prefix}_{len(self.rules)}"
        self.rules.append(f"{name}: {text}")
        return name


def _choices(schema: Any) -> list[str]:
    """The strings that a schema lists, if it lists nothing else."""
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    good = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    return choices if good and choices else []


def _required(schema: Mapping[str, Any]) -> list[Any]:
    required = schema.get("required")
    return required if isinstance(required, list) else []


def _tagged(i: int, schema: Mapping[str, Any], tags: Tags, room: int) -> list[str]:
    """Rules of a tool's arguments as tagged text: required members, then any of the others in their order. Of strings
    only choices are looked at. InvalidRequest where the members' have more than `room` characters."""
    members = schema.get("properties")
    members = members if isinstance(members, Mapping) else {}
    required = _required(schema)
    gap = "\n" if tags.lines or tags.value[0] else ""
    rules, must, may = list[str](), list[str](), list[str]()
    for j, (name, shape) in enumerate(members.items()):
        value = "tagged"
        if _choices(shape) or kinds_of(shape, schema) != {"string"}:
            value = f"value_{i}_{j} {quoted(_behind(tags))}"
            rules.append(f"value_{i}_{j}: {_plain(shape, schema)}")
            room -= len(rules[-1])
        if room < 0:  # at once: each may carry all of the schema's definitions
            raise InvalidRequest(
                f"the schemas of tools are too large: their grammar has over {_MOST} characters", "tools"
            )
        member = f"{quoted(tags.key[0] + name + tags.key[1] + gap + tags.value[0])} {value}"
        (must if name in required else may).append(member)
    arguments = " ".join([*must, *(f"({member})?" for member in may)])
    return [f"arguments_{i}: {arguments or quoted('')}", *rules]


def _behind(tags: Tags) -> str:
    """What stands between a value and what comes next."""
    return ("\n" if tags.lines else "") + tags.value[1] + "\n"


def _plain(shape: Any, root: Mapping[str, Any]) -> str:
    """A value that is not any text: one of several, or JSON."""
    if choices := _choices(shape):
        return " | ".join(quoted(choice) for choice in choices)
    inner = dict(shape) if isinstance(shape, Mapping) else {}
    if "$ref" in json.dumps(inner):
        inner |= {key: root[key] for key in ("$defs", "definitions") if key in root}
    return f"%json {json.dumps({**inner, 'x-guidance': _COMPACT})}"
