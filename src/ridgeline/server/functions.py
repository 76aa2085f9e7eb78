"""Tools under their old names on chat: `functions` and `function_call`, in requests and in messages.

They are served as tools, one call at a time; answers have the old shape (speech.py). Must not know prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ridgeline.errors import InvalidRequest, ToolError
from ridgeline.server.schema import ChatRequest, Message, ToolCall
from ridgeline.server.tools import ToolUse, tool_use


def use_of(r: ChatRequest) -> ToolUse | None:
    """What may be called, be it a tool or a function. ToolError names the field at fault."""
    if not r.functions:
        if r.function_call not in (None, "none", "auto"):
            raise ToolError("function_call asks for a call, but functions is empty; give them", "function_call")
        return tool_use(r)
    if r.tools or r.tool_choice is not None:
        raise ToolError("functions exclude tools and tool_choice; give one of the two", "functions")
    if isinstance(r.function_call, str) and r.function_call not in ("none", "auto"):
        raise ToolError("function_call is none, auto, or {'name': ...}", "function_call")
    asked = msgspec.structs.replace(
        r,
        tools=[{"type": "function", "function": function} for function in r.functions],
        tool_choice={"type": "function", "function": r.function_call} if isinstance(r.function_call, dict) else None,
        parallel_tool_calls=False,
    )
    try:
        return None if r.function_call == "none" else tool_use(asked)
    except InvalidRequest as wrong:
        at_fault = "function_call" if wrong.param == "tool_choice" else "functions"
        raise type(wrong)(f"functions are served as tools: {wrong}", at_fault) from None


def modern(messages: Sequence[Message]) -> list[Message]:
    """Messages in which calls of functions, and their results, are those of tools: a result is of the last call."""
    found: list[Message] = []
    call = "call_0"
    for i, m in enumerate(messages):
        if m.function_call is not None:
            if m.tool_calls:
                raise InvalidRequest(f"messages[{i}]: function_call and tool_calls exclude each other", "messages")
            call = f"call_{i}"
            calls = [ToolCall(id=call, function=m.function_call)]
            found.append(msgspec.structs.replace(m, function_call=None, tool_calls=calls))
        elif m.role == "function":
            if not m.name:
                raise InvalidRequest(f"messages[{i}]: the name of the function is missing", "messages")
            found.append(msgspec.structs.replace(m, role="tool", tool_call_id=call))
        else:
            found.append(m)
    return found
