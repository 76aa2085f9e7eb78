"""Request bodies as clients send them: msgspec structs per API, decoded strictly, and what was ignored.

Fields that would change the answer and are not built are refused by name; other unknown fields are reported in a
warning header. Must not know engines or HTTP.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Malformed

T = TypeVar("T", bound=msgspec.Struct)

WARNING_HEADER = "x-ridgeline-warning"
REASON_HEADER = "x-ridgeline-reason"  # why the engine is not well, percent-encoded where it must be
_MAX_NAMES = 20


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: every chunk has the usage so far
    include_obfuscation: bool | None = None  # a defence for links over the internet; no field is added here


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct):
    id: str | None = None
    type: str = "function"
    index: int | None = None  # of a delta, which some clients send back as it came
    function: CalledFunction | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None


class WatermarkScheme(msgspec.Struct, forbid_unknown_fields=True):
    scheme: str


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
    watermark: bool | WatermarkScheme | None = None
    response_format: Any = None  # this and the next five ask for a grammar (guided.py)
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    priority: int | None = None  # as in vLLM: lower goes first
    cache_salt: str | None = None  # as in vLLM: who gives another one shares no prefix
    user: str | None = None  # these name an end user to the server's owner, and change nothing here
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None  # the owner's own notes
    prompt_logprobs: int | None = None  # these two are vLLM's (extras.py)
    return_token_ids: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_throughout(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatRequest(OpenAIRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None  # tools under their old names (functions.py)
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    echo: bool | None = None  # vLLM's: a last message of the assistant's is put in front of its continuation


class CompletionRequest(OpenAIRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


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
    watermark: bool | None = None
    grammar: Any = None


class Truncation(msgspec.Struct):
    """What of `parameters` counts where nothing is generated."""

    truncate: int | None = None


class TokenizeRequest(msgspec.Struct):
    inputs: str
    parameters: Truncation | None = None


class GenerateRequest(msgspec.Struct):
    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = None


class DetectRequest(msgspec.Struct):
    text: str | None = None
    token_ids: list[int] | None = None
    scheme: str | None = None
    key: str | None = None  # the name of an API key


# Neutral values mean the same as leaving the field out: such a request is served.
_OPENAI_NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),  # in completions
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),  # in chats
    "stop_regex": (),
    "logits_processors": ([],),
    "lora_path": (),
}
_ELSEWHERE = {"regex": "guided_regex", "ebnf": "guided_grammar", "grammar": "guided_grammar"}  # others' names
_TGI_NOT_BUILT: Mapping[str, tuple[Any, ...]] = {
    "adapter_id": (),
}

_NESTED: Mapping[str, type[msgspec.Struct]] = {
    "messages": Message,
    "stream_options": StreamOptions,
    "parameters": Parameters,
}


_met: set[type] = set()  # that msgspec has looked at, with all that is in them
_meeting = threading.Lock()


def decode_openai(body: bytes, kind: type[T], strict: bool = False) -> tuple[T, dict[str, str]]:
    """The request and the headers that say what of it is ignored, which `strict` refuses.

    InvalidRequest names the field at fault.
    """
    raw = decode_object(body)
    table = {name: neutral for name, neutral in _OPENAI_NOT_BUILT.items() if name not in kind.__struct_fields__}
    _refuse_unbuilt(raw, table)
    for name, ours in _ELSEWHERE.items():
        if raw.get(name) is not None:
            raise InvalidRequest(f"{name} is called {ours} here, or structured_outputs", name)
    request, headers = _convert(raw, kind), dict[str, str]()
    ignored(headers, _ignored(raw, kind, set(table)), strict)
    return request, headers


def decode(body: bytes, kind: type[T]) -> tuple[T, dict[str, str]]:
    """The same for bodies of which nothing is unbuilt."""
    raw = decode_object(body)
    headers: dict[str, str] = {}
    ignored(headers, _ignored(raw, kind, set()))
    return _convert(raw, kind), headers


def decode_tgi(body: bytes, kind: type[T]) -> tuple[T, dict[str, str]]:
    """The same for TGI's body, whose unbuilt fields are in `parameters`."""
    raw = decode_object(body)
    parameters = raw.get("parameters")
    if isinstance(parameters, dict):
        _refuse_unbuilt(parameters, _TGI_NOT_BUILT)
    known = {"stream", *(f"parameters.{name}" for name in _TGI_NOT_BUILT)}
    headers: dict[str, str] = {}
    ignored(headers, _ignored(raw, kind, known))
    return _convert(raw, kind), headers


def fields_of(body: bytes) -> frozenset[str]:
    """The names that a body gives values to."""
    return frozenset(decode_object(body))


def decode_object(body: bytes) -> dict[str, Any]:
    """A body's fields, of any kind."""
    try:
        raw = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not valid UTF-8 at byte {error.start} of a string") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise Malformed(f"the body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise Malformed("the body must be a JSON object", plain=422)
    return raw


def convert(raw: Any, kind: type[T]) -> T:
    """msgspec's, from any thread: it looks at a type when it first meets it, and crashes where two threads do so."""
    if kind not in _met:
        with _meeting:
            msgspec.json.Decoder(kind)
            _met.add(kind)
    return msgspec.convert(raw, kind)


def _convert(raw: dict[str, Any], kind: type[T]) -> T:
    try:
        return convert(raw, kind)
    except (msgspec.ValidationError, RecursionError) as wrong:
        error = wrong
    try:
        return convert(_whole(raw), kind)
    except (msgspec.ValidationError, RecursionError):
        text = str(error).replace("`", "'")
        found = re.search(r"\$\.(\w+)", text) or re.search(r"required field '(\w+)'", text)
        message = re.sub(r" - at '\$\.?(.*)'$", r" at \1", text).removesuffix(" at ")
        raise Malformed(f"the request is malformed: {message}", found[1] if found else None, plain=422) from None


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 7.0 is the integer 7."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    return [_whole(inner) for inner in value] if isinstance(value, list) else value


def _refuse_unbuilt(raw: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> None:
    for name, neutral in table.items():
        value = raw.get(name)
        if value is not None and value not in neutral:
            raise InvalidRequest(f"{name} is not built yet in this server; leave it out", name)


def warn(headers: dict[str, str], *said: str) -> None:
    """Add to the header that warns."""
    if texts := [text for text in (headers.get(WARNING_HEADER), *said) if text]:
        headers[WARNING_HEADER] = "; ".join(texts)


def ignored(headers: dict[str, str], names: Sequence[str], strict: bool = False) -> None:
    """Say in the header that warns which fields are ignored; `strict` refuses them."""
    if not names:
        return
    # Names come from the client: only visible ASCII may enter a header.
    shown = [re.sub(r"[^\x21-\x7e]", "?", name)[:64] or '""' for name in names[:_MAX_NAMES]]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    said = f"ignored fields: {', '.join(shown)}{more}"
    if strict:
        raise InvalidRequest(f"{said}; this server is strict: leave them out")
    warn(headers, said)


def _ignored(raw: Mapping[str, Any], kind: type[msgspec.Struct], known: set[str]) -> list[str]:
    return sorted(name for name in set(_unknown(raw, kind)) if name not in known)


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
