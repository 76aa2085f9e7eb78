"""Ranges of request fields, for the OpenAPI document: types say nothing of them, and most are the server's own limits.

What refuses a value outside is each route's own check; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ridgeline.config import WATERMARKS
from ridgeline.engine.params import MAX_BIAS, MAX_STOP_IDS, MAX_TOP_LOGPROBS
from ridgeline.server.service import Service

_KEYWORDS = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems", "items"),
    "object": ("maxProperties", "propertyNames", "additionalProperties"),
}
Schema = dict[str, Any]


def narrow(service: Service, components: dict[str, Schema]) -> None:
    """Put the ranges into the schemas of request bodies."""
    for name, fields in _bounds(service).items():
        for field, bound in fields.items():
            properties = components[name]["properties"]
            if "anyOf" in bound or "enum" in bound:
                kept = {key: value for key, value in properties[field].items() if key == "default"}
                properties[field] = bound | kept
                continue
            for branch in _branches(properties[field]):
                branch |= {key: bound[key] for key in _KEYWORDS.get(branch.get("type", ""), ()) if key in bound}
    content = {"content": {"type": ["string", "array"]}}
    components["Message"] |= _one_of("role", ("assistant", {}), ("", content))
    components["ContentPart"] |= _one_of("type", ("text", {"text": {"type": "string"}}), ("refusal", {}))


def _one_of(field: str, *cases: tuple[str, dict[str, Schema]]) -> Schema:
    """What else a struct must have, by the value of a field; "" is any other."""
    return {"anyOf": [
        {"properties": {**({field: {"const": value}} if value else {}), **more}, "required": list(more)}
        for value, more in cases
    ]}  # fmt: skip


def _branches(schema: Schema) -> Iterator[Schema]:
    yield from schema.get("anyOf", (schema,))


def _range(least: float, most: float) -> Schema:
    return {"minimum": least, "maximum": most}


def _above(least: float, most: float) -> Schema:
    return {"exclusiveMinimum": least, "maximum": most}


def _inside(least: float, most: float) -> Schema:
    return {"exclusiveMinimum": least, "exclusiveMaximum": most}


_WORD = {"type": "string", "minLength": 1}


def _bounds(service: Service) -> dict[str, dict[str, Schema]]:
    """Schema -> field -> keywords."""
    config, new = service.config, service.max_total_tokens - 1
    stops = {"minLength": 1, "maxItems": config.max_stop_sequences, "items": _WORD}
    common = _common(service) | {"stop": stops}
    return {
        "GenerateRequest": {"inputs": {"minLength": 1}},
        "Truncation": {"truncate": _range(1, service.max_input_tokens)},
        "ChatTokenizeRequest": {"messages": {"minItems": 1}, "model": common["model"]},
        "PromptRequest": {"model": common["model"]},
        "DetokenizeRequest": {"tokens": {"items": _token(service)}, "model": common["model"]},
        "DetectRequest": {
            "token_ids": {"items": _token(service)}, "scheme": {"enum": [None, *WATERMARKS]}, **_named(service),
        },
        "EmbeddingRequest": {
            "input": _prompts(service), "model": common["model"], "dimensions": {"minimum": 1},
            "encoding_format": {"enum": [None, "float", "base64"]}, "cache_salt": common["cache_salt"],
        },
        "Message": {"role": {"enum": ["assistant", "developer", "function", "system", "tool", "user"]}},
        "Parameters": {
            "best_of": _range(1, config.max_best_of), "temperature": _above(0, 100),
            "repetition_penalty": _above(0, 100), "frequency_penalty": _range(-2, 2), "top_k": _range(1, 1 << 30),
            "top_p": _inside(0, 1), "typical_p": _inside(0, 1), "max_new_tokens": _range(1, new), "stop": stops,
            "truncate": _range(1, service.max_input_tokens), "seed": _range(0, (1 << 64) - 1),
            "top_n_tokens": _range(0, config.max_top_n_tokens),
        },
        "ChatRequest": common | {
            "messages": {"minItems": 1}, "top_logprobs": _range(0, MAX_TOP_LOGPROBS), "max_tokens": _range(1, new),
            "max_completion_tokens": _range(1, new),
        },
        "CompletionRequest": common | {
            "prompt": _prompts(service), "logprobs": _range(0, MAX_TOP_LOGPROBS), "max_tokens": _range(0, new),
        },
        "InferRequest": {"inputs": {"minItems": 1, "maxItems": config.max_client_batch_size}},
        "VertexRequest": {"instances": {
            "minItems": 1, "maxItems": config.max_client_batch_size,
            "items": {"anyOf": [{"$ref": f"#/components/schemas/{x}"} for x in ("GenerateRequest", "ChatRequest")]},
        }},
    }  # fmt: skip


def _common(service: Service) -> dict[str, Schema]:
    """Of both OpenAI requests."""
    candidates = _range(1, service.config.max_best_of)
    return {
        "model": {"enum": [None, *service.names]}, "temperature": _range(0, 100), "top_p": _above(0, 1),
        "top_k": _range(0, 1 << 30), "min_p": _range(0, 1), "typical_p": _above(0, 1),
        "min_tokens": _range(0, 1 << 30), "n": candidates, "best_of": candidates, "length_penalty": _range(-10, 10),
        "early_stopping": {"enum": [None, True, False, "never"]}, "frequency_penalty": _range(-2, 2),
        "presence_penalty": _range(-2, 2), "repetition_penalty": _above(0, 100),
        "stop_token_ids": {"maxItems": MAX_STOP_IDS, "items": _token(service)}, "bad_words": {"items": _WORD},
        "logit_bias": {
            "maxProperties": MAX_BIAS, "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", **_range(-100, 100)},
        },
        "prompt_logprobs": _range(0, MAX_TOP_LOGPROBS), "seed": _range(-(1 << 63), (1 << 64) - 1),
        "cache_salt": {"maxLength": 128},
        **({} if service.info.policy == "priority" else {"priority": {"enum": [None, 0]}}),
    }  # fmt: skip


def _named(service: Service) -> dict[str, Schema]:
    """Without API keys there are no names of any."""
    access = service.config.access
    return {} if access.api_keys or access.api_key else {"key": {"enum": [None]}}


def _token(service: Service) -> Schema:
    return {"type": "integer", **_range(0, service.info.vocab - 1)}


def _prompts(service: Service) -> Schema:
    ids = {"type": "array", "minItems": 1, "items": _token(service)}
    several = {"type": "array", "minItems": 1, "maxItems": service.config.max_client_batch_size}
    return {"anyOf": [_WORD, several | {"items": _WORD}, ids, several | {"items": ids}]}
