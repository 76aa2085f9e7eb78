"""The shapes of replies, for the OpenAPI document. Handlers build plain dicts; tests hold both together.

A field that may be left out has a default of UNSET; one that may be null says so.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

Finish = Literal["length", "eos_token", "stop_sequence"]
OpenAIFinish = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class GeneratedToken(Struct):
    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(Struct):
    id: int
    text: str
    logprob: float | None


class Sequence(Struct, kw_only=True):
    """How an answer was made."""

    finish_reason: Finish
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[GeneratedToken]] | UnsetType = UNSET


class BestOfSequence(Sequence, kw_only=True):
    generated_text: str


class Details(Sequence, kw_only=True):
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET


class GenerateReply(Struct):
    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(Struct):
    finish_reason: Finish
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamReply(Struct, kw_only=True):
    """An event of a stream; only the last has the text, and the details if they were asked for."""

    index: int
    token: GeneratedToken
    top_tokens: list[GeneratedToken] | UnsetType = UNSET
    generated_text: str | None
    details: StreamDetails | None


class SimpleToken(Struct):
    """A token of a text, and where it is there, in characters."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeReply(Struct):
    tokenize_response: list[SimpleToken]
    templated_text: str


class Counted(Struct):
    """vLLM's: the ids of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Struct):
    prompt: str


class Embedding(Struct):
    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Predictions(Struct):
    predictions: list[str]


class Ready(Struct):
    live: bool


class Served(Struct):
    """KServe's: a server or a version of a model."""

    name: str
    version: str
    extensions: list[str]


class OutputTensor(Struct):
    """A text in UTF-8: `data` are its bytes."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES"]
    data: list[int]


class InferReply(Struct):
    id: str
    outputs: list[OutputTensor]


class Info(Struct):
    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    model_dtype: str
    model_device_type: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_batch_size: int
    max_client_batch_size: int
    validation_workers: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class TGIError(Struct):
    error: str
    error_type: str


class OpenAIFault(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Struct):
    error: OpenAIFault


class PromptDetails(Struct):
    cached_tokens: int


class CompletionDetails(Struct):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class PromptLogprob(Struct):
    """vLLM's: of a token that might stand in the prompt, by its id."""

    logprob: float
    rank: int | None
    decoded_token: str


class CalledFunction(Struct):
    name: str
    arguments: str


class ToolCall(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: OpenAIFinish
    token_ids: list[int] | UnsetType = UNSET  # this and the prompt's are vLLM's


class ChatCompletion(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: OpenAIFinish | None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    """An event of a chat's stream, which ends with [DONE]."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: OpenAIFinish | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct):
    """A completion, and an event of its stream, which ends with [DONE]."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class Models(Struct):
    object: Literal["list"]
    data: list[Model]


class Why(Struct):
    request: int
    why: list[str]


class AboutRequest(Struct):
    id: str
    requests: list[Why]
