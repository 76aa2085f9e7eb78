"""Request bodies as clients send them: msgspec structs per API, decoded strictly, and what was ignored.

Fields that would change the answer and are not built are refused by name; other unknown fields are reported in a
warning header. Must not know engines or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from ridgeline.errors import InvalidRequest

T = TypeVar("T", bound=msgspec.Struct)

WARNING_HEADER = "x-ridgeline-warning"
REASON_HEADER = "x-ridgeline-reason"  # why the engine is not well, percent-encoded where it must be
_MAX_NAMES = 20


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # a defence for links over the internet; no field is added here


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    refusal: str | None = None


class OpenAIRequest(msgspec.Struct):
    """What chat and completions share."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    min_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    response_format: Any = None  # this and the next five ask for a grammar (guided.py)
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    priority: int | None = None  # as in vLLM: lower goes first
    cache_salt: str | None = None  # as in vLLM: who gives another one shares no prefix
    user: str | None = None  # these three name an end user to the server's owner, and change nothing here
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(OpenAIRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(OpenAIRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None


class Parameters(msgspec.Struct):
    """TGI's `parameters`."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: int | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Any = None


class GenerateRequest(msgspec.Struct):
    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = None


# Neutral values mean the same as leaving the field out: such a request is served.
_OPENAI_NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "regex": (),
    "ebnf": (),
    "grammar": (),
    "stop_regex": (),
    "logits_processors": ([],),
    "lora_path": (),
}
_TGI_NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "watermark": (False,),
    "adapter_id": (),
}

_NESTED: Mapping[str, type[msgspec.Struct]] = {
    "messages": Message,
    "stream_options": StreamOptions,
    "parameters": Parameters,
}


def decode_openai(body: bytes, kind: type[T]) -> tuple[T, dict[str, str]]:
    """The request and the headers that say what of it is ignored. InvalidRequest names the field at fault."""
    raw = _object(body)
    _refuse_unbuilt(raw, _OPENAI_NOT_BUILT)
    return _convert(raw, kind), _warning(raw, kind, set(_OPENAI_NOT_BUILT))


def decode_tgi(body: bytes) -> tuple[GenerateRequest, dict[str, str]]:
    """The same for TGI's body, whose unbuilt fields are in `parameters`."""
    raw = _object(body)
    parameters = raw.get("parameters")
    if isinstance(parameters, dict):
        _refuse_unbuilt(parameters, _TGI_NOT_BUILT)
    known = {f"parameters.{name}" for name in _TGI_NOT_BUILT}
    return _convert(raw, GenerateRequest), _warning(raw, GenerateRequest, known)


def _object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 at byte {error.start} of a string") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("the body must be a JSON object")
    return raw


def _convert(raw: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        text = str(error).replace("`", "'")
        found = re.search(r"\$\.(\w+)", text) or re.search(r"required field '(\w+)'", text)
        message = re.sub(r" - at '\$\.?(.*)'$", r" at \1", text).removesuffix(" at ")
        raise InvalidRequest(f"the request is malformed: {message}", found[1] if found else None) from None


def _refuse_unbuilt(raw: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> None:
    for name, neutral in table.items():
        value = raw.get(name)
        if value is not None and value not in neutral:
            raise InvalidRequest(f"{name} is not built yet in this server; leave it out", name)


def warn(headers: dict[str, str], *said: str) -> None:
    """Add to the header that warns."""
    if texts := [text for text in (headers.get(WARNING_HEADER), *said) if text]:
        headers[WARNING_HEADER] = "; ".join(texts)


def _warning(raw: Mapping[str, Any], kind: type[msgspec.Struct], known: set[str]) -> dict[str, str]:
    ignored = sorted(name for name in set(_unknown(raw, kind)) if name not in known)
    if not ignored:
        return {}
    # Names come from the client: only visible ASCII may enter a header.
    shown = [re.sub(r"[^\x21-\x7e]", "?", name)[:64] for name in ignored[:_MAX_NAMES]]
    more = f" and {len(ignored) - _MAX_NAMES} more" if len(ignored) > _MAX_NAMES else ""
    return {WARNING_HEADER: f"ignored fields: {', '.join(shown)}{more}"}


def _unknown(raw: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str = "") -> list[str]:
    fields = kind.__struct_fields__
    names = [prefix + name for name in raw if name not in fields]
    for name, nested in _NESTED.items():
        if name not in fields or prefix != "":
            continue
        inner = raw.get(name)
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, dict):
                names += _unknown(item, nested, f"{name}.")
    return names
