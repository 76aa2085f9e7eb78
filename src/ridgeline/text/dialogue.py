"""What a chat template makes of tools, and messages with tools for templates that know none.

Owns what is found out of a template by asking it: whether it shows tools, and how it wants a call's arguments. It must
not know requests, nor any API's objects beyond the messages that templates take.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.errors import TemplateError
from ridgeline.text.conventions import (
    HERMES,
    MISTRAL,
    MISTRAL_ARGS,
    Convention,
    answered,
    convention_of,
    described,
    written,
)
from ridgeline.text.reasoning import Marks, marks_of
from ridgeline.text.template import ChatTemplate

Message = Mapping[str, Any]

_ID = 9  # characters of a call's id, of which Mistral's templates insist on letters and digits
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "asks"}]
_PARAMETERS = {"type": "object", "properties": {"key": {"type": "string", "description": "says"}}, "required": ["key"]}
_TOOL = {
    "type": "function",
    "function": {"name": "shown_tool", "description": "tells", "parameters": _PARAMETERS},
}


@dataclass(frozen=True)
class Dialogue:
    """A chat template, and how its model calls tools: by a `convention`, which the template shows (`native`) or the
    system message tells. `spelled`: the template wants arguments as text. `marks` of thoughts, if its model thinks."""

    template: ChatTemplate
    convention: Convention
    native: bool
    spelled: bool
    marks: Marks | None

    @classmethod
    def of(cls, template: ChatTemplate) -> Dialogue:
        convention = convention_of(template.source)
        native = convention is not None and "shown_tool" in _said(template, _ASKED, tools=[_TOOL])
        return cls(
            template,
            convention if convention is not None and native else HERMES,
            native,
            native and not _wants_objects(template),
            marks_of(template.source),
        )

    @property
    def short_ids(self) -> bool:
        return self.native and self.convention in (MISTRAL, MISTRAL_ARGS)

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt. Messages are OpenAI's: calls have their arguments as JSON text, results the id of their call."""
        named = _with_names(messages)
        if not self.native:
            folded = _folded(named)
            return self.template.render(self._told(folded, described(tools)) if tools else folded, **options)
        return self.template.render([self._shown(m) for m in named], tools=list(tools) or None, **options)

    def _told(self, messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """Messages whose system message, or where the template takes none the first of the user, says this too."""
        first, *rest = messages
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
        system = {"role": "system", "content": text}
        if first["role"] != "user" or "tells" in _said(self.template, [{**system, "content": "tells"}, *_ASKED]):
            return [system, *messages]
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]

    def _shown(self, m: Message) -> Message:
        """A message as this template takes it."""
        shown = dict(m)
        if self.short_ids and "tool_call_id" in m:
            shown["tool_call_id"] = short_id(str(m["tool_call_id"]))
        if "tool_calls" in m:
            shown["tool_calls"] = [self._called(call) for call in m["tool_calls"]]
        return shown

    def _called(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        if not self.spelled:
            function["arguments"] = _object(function["arguments"])
        id = short_id(call["id"]) if self.short_ids else call["id"]
        return {**call, "id": id, "function": function}


def short_id(id: str) -> str:
    """The id of a call as all templates take it: itself, if it is nine letters and digits, or as many made of it."""
    if re.fullmatch(rf"[A-Za-z0-9]{{{_ID}}}", id):
        return id
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()[:_ID]


def _object(arguments: str) -> Any:
    """Arguments as an object; what is none stays text."""
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _said(template: ChatTemplate, messages: Sequence[Message], **options: Any) -> str:
    """What a template makes of messages; "" where it fails."""
    try:
        return template.render(messages, **options)
    except TemplateError:
        return ""


def _wants_objects(template: ChatTemplate) -> bool:
    """Whether a template writes arguments that are an object as JSON, or in a way of its own."""

    def said(arguments: Any) -> str:
        call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "shown_tool", "arguments": arguments}}
        result = {"role": "tool", "name": "shown_tool", "tool_call_id": call["id"], "content": "told"}
        messages = [*_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
        return _said(template, messages, tools=[_TOOL])

    given = said({"shown_key": "shown_value"})
    if "shown_value" in given and "'shown_key'" not in given:
        return True
    return '{"shown_key": "shown_value"}' not in said('{"shown_key": "shown_value"}')


def _with_names(messages: Sequence[Message]) -> list[Message]:
    """Results with the names of the tools that gave them, where their calls are known."""
    names: dict[str, str] = {}
    found: list[Message] = []
    for m in messages:
        for call in m.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        name = names.get(m.get("tool_call_id", ""))
        found.append({**m, "name": name} if m["role"] == "tool" and "name" not in m and name is not None else m)
    return found


def _folded(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a template without tools: calls and results are in their text."""
    found: list[dict[str, Any]] = []
    behind_result = False
    for m in messages:
        plain = {key: value for key, value in m.items() if key not in ("tool_calls", "tool_call_id")}
        if m["role"] == "tool":
            told = {"role": "user", "content": answered(m["content"])}
            if behind_result:
                found[-1]["content"] += "\n" + told["content"]
            else:
                found.append(told)
        else:
            calls = [
                written(c["function"]["name"], c["function"]["arguments"] or "{}") for c in m.get("tool_calls", ())
            ]
            plain["content"] = "\n".join(filter(None, (m["content"], *calls)))
            found.append(plain)
        behind_result = m["role"] == "tool"
    return found
