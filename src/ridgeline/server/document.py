"""The OpenAPI document: what each route takes and answers, from the types that bodies are decoded with.

Ranges are those of the running server's limits. Rules between fields have no place in a schema: their refusals are
among each route's statuses.
"""

from __future__ import annotations

import html
import re
from typing import Any

import msgspec

from ridgeline import __version__
from ridgeline.engine.detection import Finding
from ridgeline.server import replies as r
from ridgeline.server import schema as s
from ridgeline.server.bounds import narrow
from ridgeline.server.embeddings import EmbeddingRequest
from ridgeline.server.errors import OpenAIErrors, shape_of
from ridgeline.server.kserve import MODEL, InferRequest
from ridgeline.server.service import Service
from ridgeline.server.strict import loosen
from ridgeline.server.tokens import DetokenizeRequest, PromptRequest

_JSON, _SSE = "application/json", "text/event-stream"
_PAGES = {"/docs": "text/html", "/metrics": "text/plain"}
_WORDS = {  # of every status that routes with a body may answer
    400: "The request breaks a rule; the message names the field",
    401: "No API key, or an unknown one, where the server asks for keys",
    403: "This key, host or origin may not ask here",
    404: "There is no such model",
    408: "The request, or the taking of its answer, was too slow",
    413: "The body is longer than the payload limit",
    415: "The body does not say that it is JSON",
    422: "The request breaks a rule; the message names the field",
    424: "The engine failed during the request",
    429: "Overloaded: come back after `retry-after` seconds",
    500: "A fault of the server",
    503: "The engine is not well",
    504: "The request's time was up before its first token",
}


class VertexRequest(msgspec.Struct):
    instances: list[Any]


class ChatTokenizeRequest(msgspec.Struct):
    """Of a chat's body, what makes its text."""

    messages: list[s.Message]
    model: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Operation(msgspec.Struct, frozen=True):
    """A method of a route: `says` in a line; what its body, its reply and an event of its stream may be."""

    method: str
    path: str
    says: str
    reply: tuple[Any, ...] = ()
    takes: tuple[Any, ...] = ()
    event: tuple[Any, ...] = ()
    statuses: tuple[int, ...] = ()

    @property
    def openai(self) -> bool:
        return isinstance(shape_of(self.path), OpenAIErrors)

    def all_statuses(self, strict: bool = False) -> tuple[int, ...]:
        """But for success. `strict`: as TGI has them."""
        if not self.takes:
            return self.statuses
        wrong = (400, 422) if strict else (400,) if self.openai else (422,)
        found = {401, 403, 408, 413, 415, 429, 500, 503, *wrong, *self.statuses}
        if s.ChatRequest in self.takes:
            found |= {404, 422}  # another model; a template that fails
        if s.CompletionRequest in self.takes:
            found |= {404}
        if "tokenize" not in self.path:
            found |= {424, 504}
        return tuple(sorted(found))


_TEXT, _CHAT, _COMPLETION = (s.GenerateRequest,), (s.ChatRequest,), (s.CompletionRequest,)
_ANY = (dict[str, Any],)
_HEALTH, _MODEL = "200 where requests are served", MODEL.replace(":path", "")
OPERATIONS = (
    *(Operation("GET", path, _HEALTH, statuses=(403, 503)) for path in ("/", "/health", "/ping")),
    Operation("GET", "/metrics", "What Prometheus reads", statuses=(401, 403)),
    Operation("GET", "/info", "The model and the server's limits", (r.Info,), statuses=(401, 403)),
    Operation("GET", "/v1/models", "Names of the model", (r.Models,), statuses=(401, 403)),
    Operation("GET", "/v1/models/{id}", "One of them", (r.Model,), statuses=(401, 403, 404)),
    Operation("GET", "/openapi.json", "This document", _ANY, statuses=(401, 403)),
    Operation("GET", "/api-doc/openapi.json", "This document", _ANY, statuses=(401, 403)),
    Operation("GET", "/docs", "This document, for people", statuses=(401, 403)),
    Operation("GET", "/debug/requests/{id}", "What was decided for a request", (r.AboutRequest,),
              statuses=(401, 403, 404)),
    Operation("GET", "/debug/engine", "What the engine is doing", _ANY, statuses=(401, 403)),
    Operation("POST", "/generate", "Continue a text", (r.GenerateReply,), _TEXT),
    Operation("POST", "/generate_stream", "Continue a text, token by token", (), _TEXT, (r.StreamReply,)),
    Operation("POST", "/", "Either, as `stream` says", (list[r.GenerateReply],), _TEXT, (r.StreamReply,)),
    Operation("POST", "/tokenize", "The tokens of a text; `prompt` and `messages` are vLLM's",
              (list[r.SimpleToken], r.Counted), (s.TokenizeRequest, PromptRequest), statuses=(404,)),
    Operation("POST", "/detokenize", "The text of tokens", (r.Detokenized,), (DetokenizeRequest,), statuses=(404,)),
    Operation("POST", "/chat_tokenize", "The tokens of a chat", (r.ChatTokenizeReply,), (ChatTokenizeRequest,),
              statuses=(404,)),
    Operation("POST", "/invocations", "SageMaker's: any of three bodies",
              (list[r.GenerateReply], r.ChatCompletion, r.Completion), _TEXT + _CHAT + _COMPLETION,
              (r.StreamReply, r.ChatChunk, r.Completion)),
    Operation("POST", "/vertex", "Vertex AI's: several bodies at once", (r.Predictions,), (VertexRequest,),
              statuses=(404,)),
    Operation("POST", "/v1/chat/completions", "Answer a chat", (r.ChatCompletion,), _CHAT, (r.ChatChunk,)),
    Operation("POST", "/v1/completions", "Continue texts", (r.Completion,), _COMPLETION, (r.Completion,)),
    Operation("POST", "/v1/embeddings", "Vectors of texts", (r.Embeddings,), (EmbeddingRequest,), statuses=(404,)),
    Operation("POST", "/watermark/detect", "Whether a text is marked", (Finding,), (s.DetectRequest,)),
    Operation("GET", "/v2", "KServe's: the server", (r.Served,), statuses=(401, 403)),
    Operation("GET", "/v2/health/live", "Whether the server runs", (r.Ready,), statuses=(401, 403)),
    Operation("GET", "/v2/health/ready", "Whether requests are served", (r.Ready,), statuses=(401, 403, 503)),
    Operation("GET", _MODEL, "KServe's: the model", (r.Served,), statuses=(401, 403, 404)),
    Operation("GET", f"{_MODEL}/ready", "Whether it is served", (r.Ready,), statuses=(401, 403, 404, 503)),
    Operation("POST", f"{_MODEL}/infer", "Continue texts", (r.InferReply,), (InferRequest,), statuses=(404,)),
)  # fmt: skip


def document(service: Service) -> dict[str, Any]:
    """The document of one server."""
    types = {kind for o in OPERATIONS for kind in (*o.reply, *o.takes, *o.event)} | {r.TGIError, r.OpenAIError}
    ordered = sorted(types, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    narrow(service, components)
    told = dict(zip(ordered, schemas, strict=True))
    if service.config.tgi_strict:
        loosen(components)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, told, service)
    for named, route in (("/vertex", service.config.predict_route), ("/health", service.config.health_route)):
        if route:
            paths[route] = paths[named]
    about = {"title": "Ridgeline", "version": __version__, "description": f"Serves {service.model}."}
    return {"openapi": "3.2.0", "info": about, "paths": paths, "components": {"schemas": components}}


def _operation(o: Operation, told: dict[Any, Any], service: Service) -> dict[str, Any]:
    strict = service.config.tgi_strict
    error = {_JSON: {"schema": told[r.OpenAIError if o.openai and not strict else r.TGIError]}}
    plain = {**error, "text/plain": {"schema": {"type": "string"}}} if strict else error
    good: dict[str, Any] = {_JSON: {"schema": _any(told, o.reply)}} if o.reply else {}
    if o.event:
        good[_SSE] = {"itemSchema": _event(_any(told, o.event), ends=o.event != (r.StreamReply,))}
    if page_type := _PAGES.get(o.path):
        good = {page_type: {"schema": {"type": "string"}}}
    responses: dict[str, Any] = {"200": {"description": o.says, **({"content": good} if good else {})}}
    for status in o.all_statuses(strict):
        shown = plain if status in (400, 413, 415, 422) else error
        responses[str(status)] = {"description": _WORDS[status], "content": shown}
    made: dict[str, Any] = {"summary": o.says, "responses": responses}
    if o.takes:
        made["requestBody"] = {"required": True, "content": {_JSON: {"schema": _any(told, o.takes)}}}
    if names := re.findall(r"{(\w+)}", o.path):
        made["parameters"] = [_parameter(name, service) for name in names]
    return made


def _parameter(name: str, service: Service) -> dict[str, Any]:
    known = name == "model" and not service.config.tgi_strict
    schema = {"enum": [*service.names]} if known else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _any(told: dict[Any, Any], kinds: tuple[Any, ...]) -> Any:
    return told[kinds[0]] if len(kinds) == 1 else {"anyOf": [told[kind] for kind in kinds]}


def _event(data: Any, ends: bool) -> dict[str, Any]:
    """A line of a stream; OpenAI's end with one that is no JSON."""
    shown: dict[str, Any] = {"type": "string", "contentMediaType": _JSON, "contentSchema": data}
    shown = {"anyOf": [{"const": "[DONE]"}, shown]} if ends else shown
    return {"type": "object", "required": ["data"], "properties": {"data": shown}}


def page(service: Service) -> str:
    """The routes as one plain page, which loads nothing."""
    rows = "".join(
        f"<tr><td>{o.method}</td><td><code>{html.escape(o.path)}</code></td><td>{html.escape(o.says)}</td></tr>"
        for o in OPERATIONS
    )
    title = f"Ridgeline: {html.escape(service.model)}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<h1>{title}</h1><p>Schemas: <a href=openapi.json>openapi.json</a></p><table>{rows}</table></html>"
    )
