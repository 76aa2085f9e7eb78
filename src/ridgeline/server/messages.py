"""OpenAI's messages to the plain ones that chat templates take. InvalidRequest names the message at fault."""

from __future__ import annotations

import json
from typing import Any

from ridgeline.errors import InvalidRequest
from ridgeline.server.schema import Message, ToolCall

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def plain(index: int, m: Message) -> dict[str, Any]:
    """A message: developer is system, parts are joined, calls keep their arguments as JSON text."""
    where = f"messages[{index}]"
    if m.role not in _ROLES:
        known = ", ".join(_ROLES)
        raise InvalidRequest(f"{where}: unknown role {m.role[:40]!r}; known are {known}", "messages")
    if m.role == "tool" and m.tool_call_id is None:
        raise InvalidRequest(f"{where}: tool_call_id is missing", "messages")
    if m.tool_calls and m.role != "assistant":
        raise InvalidRequest(f"{where}: only an assistant's message has tool_calls", "messages")
    shown: dict[str, Any] = {"role": _ROLES[m.role], "content": _content(where, m)}
    if m.tool_calls:
        shown["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", i, call) for i, call in enumerate(m.tool_calls)]
    thought = m.reasoning_content if m.reasoning_content is not None else m.reasoning
    optional = {"name": m.name, "reasoning_content": thought, "tool_call_id": m.tool_call_id}
    return shown | {key: value for key, value in optional.items() if value is not None}


def _call(where: str, index: int, call: ToolCall) -> dict[str, Any]:
    if call.type != "function" or call.function is None:
        raise InvalidRequest(f"{where}: only calls of type 'function' are served", "messages")
    given = call.function.arguments
    arguments = given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)
    return {
        "id": call.id or f"call_{index}",
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _content(where: str, m: Message) -> str:
    if isinstance(m.content, str):
        return m.content
    if m.content is None:
        if m.role != "assistant":
            raise InvalidRequest(f"{where}: content is missing", "messages")
        return m.refusal or ""
    for part in m.content:
        if part.type not in ("text", "refusal"):
            what = "images are" if part.type == "image_url" else f"{part.type[:40]!r} parts are"
            raise InvalidRequest(f"{where}: {what} not supported by this model; send text parts", "messages")
        if part.type == "text" and part.text is None:
            raise InvalidRequest(f"{where}: a text part has no text", "messages")
    return "".join(part.text or part.refusal or "" for part in m.content)
