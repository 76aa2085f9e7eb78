"""Grammars as clients ask for them: OpenAI's response_format, vLLM's structured_outputs and guided_*, TGI's grammar.

Translates fields to a Grammar and refuses what is none. Must not know engines; whether a grammar can be followed is
found at submission.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ridgeline.engine.params import Grammar
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.schemas import mapped
from ridgeline.server.schema import OpenAIRequest

_KINDS: Mapping[str, str] = {  # vLLM's names, also behind guided_
    "json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark", "json_object": "json_object",
}  # fmt: skip
_TOGETHER = ("allOf", "dependentSchemas")  # schemas in these hold beside others: none may close an object alone
_NEUTRAL = ("disable_any_whitespace", "disable_fallback")  # as it is here anyway


def grammar_of(r: OpenAIRequest) -> Grammar | None:
    """The one grammar that a request asks for. InvalidRequest names the field that is malformed, or a second one."""
    asked = _asked(r)
    if len(asked) > 1:
        raise InvalidRequest(f"{' and '.join(asked)} exclude each other; give one of them", list(asked)[1])
    return next(iter(asked.values()), None)


def field_of(r: OpenAIRequest) -> str | None:
    """The field that asks for a grammar; None where it is made for tools."""
    return next((field.split(".", maxsplit=1)[0] for field in _asked(r)), None)


def _asked(r: OpenAIRequest) -> dict[str, Grammar]:
    """Grammars by the fields that ask for them."""
    asked: dict[str, Grammar] = {}
    if (grammar := _response_format(r.response_format)) is not None:
        asked["response_format"] = grammar
    asked |= _structured(r.structured_outputs)
    for name in ("json", "regex", "choice", "grammar"):
        field = f"guided_{name}"
        if (value := getattr(r, field)) is not None:
            asked[field] = _vllm(field, name, value)
    return asked


def tgi_grammar(given: Any, field: str = "grammar") -> Grammar | None:
    """TGI's `grammar`, which its chats have as response_format: an object's properties are all that is generated unless
    its additionalProperties says more."""
    if given is None:
        return None
    kind, value = _get(given, "type", field), _get(given, "value", field)
    if kind == "regex":
        return Grammar("regex", _text(value, f"{field}.value"))
    if kind == "json_schema":
        value = _get(value, "schema", f"{field}.value")
    elif kind not in ("json", "json_object"):
        raise InvalidRequest(f"{field}.type must be json, json_object, json_schema or regex", field)
    schema = _schema(value, f"{field}.value")
    if not isinstance(schema.get("properties"), dict):
        raise InvalidRequest(f"{field}.value must have a 'properties' field", field)
    return Grammar("json_schema", _encoded(mapped(schema, _closed, _TOGETHER)))


def _response_format(given: Any) -> Grammar | None:
    if given is None:
        return None
    kind = _get(given, "type", "response_format")
    if kind == "text":
        return None
    if kind in ("json", "regex") or given.get("value") is not None:  # TGI's, and what its client makes of OpenAI's
        return tgi_grammar(given, "response_format")
    if kind == "json_object":
        return Grammar("json_object")
    if kind == "json_schema":
        inner = _get(given, "json_schema", "response_format")
        return Grammar("json_schema", _encoded(_schema(_get(inner, "schema", "response_format.json_schema"), "schema")))
    raise InvalidRequest(
        "response_format.type must be text, json_object, json_schema, or TGI's json and regex", "response_format"
    )


def _structured(given: Any) -> dict[str, Grammar]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidRequest("structured_outputs must be an object", "structured_outputs")
    found = {}
    for name, value in given.items():
        field = f"structured_outputs.{name[:40]}"
        if value in (None, False) or name in _NEUTRAL:
            continue
        if name not in _KINDS:
            raise InvalidRequest(f"{field} is not supported; give one of {', '.join(_KINDS)}", "structured_outputs")
        found[field] = _vllm(field, name, value)
    return found


def _vllm(field: str, name: str, value: Any) -> Grammar:
    kind = _KINDS[name]
    if kind == "json_object":
        return Grammar(kind)
    if kind == "json_schema":
        return Grammar(kind, _encoded(_schema(value, field)))
    return Grammar(kind, _encoded(value) if kind == "choice" else _text(value, field))


def _schema(value: Any, field: str) -> dict[str, Any]:
    """A schema, or the text of one."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError) as wrong:
            raise InvalidRequest(f"{field} is not valid JSON: {wrong}", field.split(".", maxsplit=1)[0]) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} must be a JSON schema: an object", field.split(".", maxsplit=1)[0])
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} must be a string", field.split(".", maxsplit=1)[0])
    return value


def _get(given: Any, name: str, field: str) -> Any:
    if not isinstance(given, dict) or name not in given:
        raise InvalidRequest(f"{field} must be an object with '{name}'", field.split(".", maxsplit=1)[0])
    return given[name]


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(node.get("properties"), dict):
        return node
    return {"type": "object", "additionalProperties": False, **node}
