"""The tools of a chat request: which may be called, whether one must be, and the grammar that sees to it.

OpenAI's fields in, plain records out. Must not know messages, streams or the engine beyond its parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.params import Grammar
from ridgeline.errors import InvalidRequest, ToolError
from ridgeline.guidance.refusals import unsupported
from ridgeline.server.schema import ChatRequest, convert
from ridgeline.text.call_grammars import Thought, allowing, forcing, quoted
from ridgeline.text.dialogue import Dialogue
from ridgeline.text.reasoning import is_open
from ridgeline.text.tokenizer import Tokenizer

_MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    function: Function
    type: str = "function"


@dataclass(frozen=True)
class ToolUse:
    """What a request allows: `shown` to the template, `schemas` of those that may be called; `forced`: one must be.

    `several` calls may be made at once. `exact`: arguments must follow their schemas even where no call is forced.
    """

    shown: list[dict[str, Any]]
    schemas: Mapping[str, Mapping[str, Any]]
    forced: bool
    several: bool
    exact: bool


def tool_use(request: ChatRequest) -> ToolUse | None:
    """None where nothing may be called. ToolError names the tool or the field at fault."""
    tools = [_tool(i, raw) for i, raw in enumerate(request.tools or ())]
    names = [tool.function.name for tool in tools]
    if len(tools) > _MAX_TOOLS:
        raise ToolError(f"{len(tools)} tools are given; at most {_MAX_TOOLS} are allowed", "tools")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolError(f"tools has {twice[0]!r} twice; give each function a name of its own", "tools")
    forced, allowed = _choice(request.tool_choice, names)
    if not allowed:
        return None
    schemas = {t.function.name: _parameters(t) for t in tools if t.function.name in allowed}
    named = isinstance(request.tool_choice, dict) and request.tool_choice.get("type") == "function"
    return ToolUse(
        [_shown(raw) for raw in request.tools or ()],
        schemas,
        forced,
        request.parallel_tool_calls is not False and not named,  # a named tool is called once
        any(tool.function.strict for tool in tools),
    )


def grammar_of(use: ToolUse, dialogue: Dialogue, tokenizer: Tokenizer, prompt: str) -> Grammar | None:
    """What an answer to `prompt` must be: a forced call; or any text, but calls in it as they should be, where that is
    asked for or the model was never taught to make them; or anything at all."""

    def spell(mark: str) -> str:
        id = special_id(tokenizer, mark)
        return quoted(mark) if id is None else f"<[{id}]>"

    if not (use.forced or use.exact or not use.several or not dialogue.native):
        return None
    marks = dialogue.marks
    thought = None if marks is None else Thought(marks, is_open(marks, prompt))
    write = forcing if use.forced else allowing
    return Grammar("lark", write(dialogue.convention, use.schemas, spell, use.several, thought), complete=use.forced)


def unfollowed(tools: list[dict[str, Any]], wrong: InvalidRequest) -> ToolError:
    """What is wrong with a grammar that was made for these, without the grammar's own text."""
    text = str(wrong)
    if not text.startswith("the lark grammar"):  # but something of it as a whole, in our own words
        return ToolError(f"the tools' parameters cannot be followed: {text}", "tools")
    inner = re.search(r"failed to compile JSON schema: (.*?)( \d+ \||$)", text)
    said = inner[1] if inner else ""
    for tool in tools:
        function = tool["function"]
        if places := unsupported(function.get("parameters"), said):
            where = f"the parameters of {function['name']!r} cannot be followed at {places}: not supported"
            return ToolError(f"{where} ({said})", "tools")
    return ToolError(f"a tool's parameters cannot be followed{': ' if said else ''}{said}", "tools")


def special_id(tokenizer: Tokenizer, mark: str) -> int | None:
    """The special token that a mark is, or None where it is text."""
    ids = tokenizer.encode(mark, add_special=False)
    return ids[0] if len(ids) == 1 and tokenizer.is_special(ids[0]) else None


def _tool(index: int, raw: dict[str, Any]) -> Tool:
    where = f"tools[{index}]"
    if raw.get("type", "function") != "function":
        raise ToolError(f"{where}: only tools of type 'function' are served, not {raw['type']!r:.40}", "tools")
    try:
        tool = convert(raw, Tool)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ToolError(f"{where}: {str(error).replace('`', chr(39))}", "tools") from None
    if not _NAME.fullmatch(tool.function.name):
        raise ToolError(
            f"{where}: a name has 1 to 64 letters, digits and any of _ . : / -; it is {tool.function.name[:80]!r}",
            "tools",
        )
    kind = (tool.function.parameters or {}).get("type", "object")
    if kind != "object":
        raise ToolError(f"{where}: parameters must be the schema of an object, not of {kind!r:.40}", "tools")
    return tool


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; one without has none."""
    given = tool.function.parameters
    return {"type": "object", "properties": {}, "additionalProperties": False} if given is None else given


def _shown(raw: dict[str, Any]) -> dict[str, Any]:
    """A tool as templates expect it: with all that they may print, and no words about how it is to be served."""
    function = {key: value for key, value in raw["function"].items() if key != "strict" and value is not None}
    function.setdefault("description", "")  # some templates put it together with other text
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}


def _choice(given: str | dict[str, Any] | None, names: list[str]) -> tuple[bool, list[str]]:
    """Whether a call is forced, and of which tools."""
    if given is None or given in ("auto", "none"):
        return False, [] if given == "none" else names
    mode, wanted = _named(given)
    if mode == "required" and wanted is None:
        wanted = names
    if wanted is None or mode not in ("auto", "required"):
        raise ToolError(
            "tool_choice is none, auto, required, {'type': 'function', 'function': {'name': ...}}, or allowed_tools",
            "tool_choice",
        )
    if not names:
        raise ToolError("tool_choice asks for a call, but tools is empty; give the tools", "tool_choice")
    for name in wanted:
        if name not in names:
            raise ToolError(f"tool_choice names {name[:80]!r}, which is not among the tools", "tool_choice")
    return mode == "required", wanted


def _named(given: str | dict[str, Any]) -> tuple[str, list[str] | None]:
    """The mode, and the names where any are given: OpenAI's objects, or a bare name, as TGI takes it."""
    if given == "required":
        return "required", None
    if isinstance(given, str):
        return "required", [given]
    kind = given.get("type")
    inner = given.get(kind) if isinstance(kind, str) else None
    if not isinstance(inner, dict):
        return "", None
    if kind == "function" and isinstance(inner.get("name"), str):
        return "required", [inner["name"]]
    listed = inner.get("tools")
    if kind != "allowed_tools" or not isinstance(listed, list) or not listed:
        return "", None
    found = [_named(tool)[1] if isinstance(tool, dict) else None for tool in listed]
    if any(name is None for name in found):
        return "", None
    return str(inner.get("mode")), [name for names in found for name in names or ()]
