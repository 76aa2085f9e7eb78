"""OpenAI's routes as TGI has them, for `--tgi-strict`: around the usual handlers, bodies and replies are changed.

Fields that TGI leaves aside are left aside here, the model's name among them; finish reasons are TGI's words; every
delta says its role; ids are empty; errors are TGI's; a last message of the assistant's is continued. Must not know
engines.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import msgspec

from ridgeline import __version__
from ridgeline.engine.records import EOS
from ridgeline.errors import InvalidRequest, RidgelineError, ToolError
from ridgeline.server import sse
from ridgeline.server.errors import Malformed, Reply, TGIErrors
from ridgeline.server.http import Call, Events
from ridgeline.server.jobs import Event
from ridgeline.server.schema import decode_object
from ridgeline.server.service import Service
from ridgeline.server.stream import Stream

Handler = Callable[[Service, Call], Awaitable[Reply | Events]]
OPEN_ROUTES = {  # that ask for no key, as with TGI, beside those that never do
    *(("GET", path) for path in ("/info", "/metrics", "/v1/models", "/docs", "/api-doc/openapi.json")),
    ("POST", "/chat_tokenize"),
}
_IGNORED = ("model", "n", "best_of", "logit_bias")
_IGNORED_OF_TEXTS = (*_IGNORED, "logprobs", "echo", "stream_options")
_LISTED = ("id", "object", "created", "owned_by")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class SuffixGiven(InvalidRequest):
    """TGI's own word for it."""

    kind = "suffix not supported"


class BatchExceeded(InvalidRequest):
    """TGI's own word for it."""

    kind = "batch size exceeded"


class StrictErrors:
    """TGI's errors, and its own kind inside a stream, which says 422 whatever happened."""

    def reply(self, error: RidgelineError) -> Reply:
        return TGIErrors(strict=True).reply(error)

    def in_stream(self, error: RidgelineError) -> bytes:
        return sse.data({"error": {"message": str(error), "http_status_code": 422}}) + sse.DONE


def strictly(handler: Handler) -> Handler:
    """The handler of chats or of completions, as TGI's."""

    async def strict(service: Service, call: Call) -> Reply | Events:
        given = decode_object(call.body)
        asked = _asked(service, given)
        ends = _Ends(call.stream, _name(given), _call_id(given))
        answer = await handler(service, replace(call, body=msgspec.json.encode(asked), stream=cast(Stream, ends)))
        if isinstance(answer, Events):
            return _Lines(answer, ends).events()
        return replace(answer, body=_whole(answer.body, ends))

    return strict


class _Ends:
    """How each choice ended; of whole answers, as their stream. Handlers ask for one choice of each prompt.

    `model`: what an answer calls it, where not as usual; `call_id`: of a first call of a tool, the others count on.
    """

    def __init__(self, stream: Stream, model: str = "", call_id: int | None = None) -> None:
        self._stream = stream
        self.found: dict[int, str] = {}
        self.model, self.call_id = model, call_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def batches(self) -> AsyncIterator[list[Event]]:
        async for batch in self._stream.batches():
            for event in batch:
                self.note(event)
            yield batch

    def note(self, event: Event) -> None:
        if event.delta.finish is not None:
            self.found[event.job] = event.delta.finish

    def reason(self, index: int, eos: str = "stop") -> str:
        finish = self.found.get(index, EOS)
        return eos if finish == EOS else finish


def _asked(service: Service, raw: dict[str, Any]) -> dict[str, Any]:
    """The body without what TGI leaves aside; errors where TGI's types are narrower."""
    chat = "messages" in raw
    if chat and raw.get("tools") and raw.get("response_format") is not None:
        raise ToolError("response_format and tools exclude each other; give one of them", "tools")
    for name, kind, said in (("stop", list, "a list"), ("logit_bias", list, "a list"), ("model", str, "a string")):
        if raw.get(name) is not None and not isinstance(raw[name], kind):
            raise Malformed(f"the request is malformed: {name} must be {said}", name, plain=422)
    if not chat:
        _check_texts(service, raw)
    most = service.config.max_top_n_tokens
    if chat and isinstance(top := raw.get("top_logprobs"), int) and top > most:
        raise InvalidRequest(f"top_logprobs must be 0 to {most}, is {top}", "top_logprobs")
    asked = {name: value for name, value in raw.items() if name not in (_IGNORED if chat else _IGNORED_OF_TEXTS)}
    if chat and type(asked.get("presence_penalty")) in (int, float):
        asked["repetition_penalty"] = asked.pop("presence_penalty") + 2
    if not chat and asked.get("stream"):
        asked["stream_options"] = {"include_usage": True}
    if chat and isinstance(told := asked.pop("tool_prompt", None), str) and told and asked.get("tools"):
        asked["messages"] = _prompted(asked["messages"], told)
    if chat and _is_open(asked["messages"]):
        asked |= {"continue_final_message": True, "add_generation_prompt": None}
    return asked


def _name(raw: dict[str, Any]) -> str:
    """The model that a chat asks for: TGI serves its own under any name, and answers with that."""
    given = raw.get("model")
    return given if "messages" in raw and isinstance(given, str) and given != "tgi" else ""


def _is_open(messages: Any) -> bool:
    """Whether the last message is the assistant's, to be continued."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant" and bool(last.get("content"))


def _prompted(messages: Any, told: str) -> Any:
    """Messages, the last of which says this too."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or not isinstance(content := last.get("content"), (str, list)):
        return messages
    more = f"\n---\n{told}"
    joined = content + more if isinstance(content, str) else [*content, {"type": "text", "text": more}]
    return [*messages[:-1], last | {"content": joined}]


def _call_id(raw: dict[str, Any]) -> int | None:
    """TGI counts calls through a conversation; where others made their ids, these go on as usual."""
    messages = raw.get("messages")
    calls = [m.get("tool_calls") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    ids = [c.get("id") for found in calls if isinstance(found, list) for c in found if isinstance(c, dict)]
    if not all(isinstance(id, str) and re.fullmatch(r"[0-9]{1,9}", id) for id in ids):
        return None
    return max((int(id) + 1 for id in ids), default=0)


def _check_texts(service: Service, raw: dict[str, Any]) -> None:
    if raw.get("suffix") is not None:
        raise SuffixGiven("suffix is not supported; leave it out", "suffix")
    prompt = raw.get("prompt")
    if not isinstance(prompt, list):
        return
    if not all(isinstance(p, str) for p in prompt):
        raise Malformed("the request is malformed: prompt must be a string or a list of strings", "prompt", plain=422)
    if len(prompt) > (most := service.config.max_client_batch_size):
        raise BatchExceeded(f"prompt holds {len(prompt)} texts; at most {most} are allowed", "prompt")


def _whole(body: dict[str, Any], ends: _Ends) -> dict[str, Any]:
    return _head(body, ends) | {"choices": [_choice(c, ends) for c in body["choices"]], "usage": _usage(body["usage"])}


def _head(body: dict[str, Any], ends: _Ends) -> dict[str, Any]:
    return body | {"id": "", "model": ends.model or body["model"], "system_fingerprint": f"{__version__}-native"}


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: counts[name] for name in _COUNTS}


def _choice(choice: dict[str, Any], ends: _Ends) -> dict[str, Any]:
    """A choice of a whole answer, or of a chat's stream."""
    made = dict(choice)
    if choice["finish_reason"] in ("stop", "length"):
        made["finish_reason"] = ends.reason(choice["index"])
    elif choice["finish_reason"] == "tool_calls":
        made["finish_reason"] = "stop"
    if "message" in choice:
        said = _numbered(choice["message"], ends)
        made["message"] = {name: value for name, value in said.items() if name != "refusal"}
    if "delta" in choice:
        made["delta"] = {"role": "assistant", "content": "", **_numbered(choice["delta"], ends)}
    if choice["logprobs"] is not None:
        made["logprobs"] = {"content": [_bare(item) for item in choice["logprobs"]["content"]]}
    return made


def _numbered(said: dict[str, Any], ends: _Ends) -> dict[str, Any]:
    """A message or a delta, with TGI's ids of calls."""
    if ends.call_id is None or "tool_calls" not in said:
        return said
    calls = [
        call | ({"id": str(ends.call_id + call.get("index", i))} if "id" in call else {})
        for i, call in enumerate(said["tool_calls"])
    ]
    return said | {"tool_calls": calls}


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    top = {"top_logprobs": [_bare(x) for x in item["top_logprobs"]]} if "top_logprobs" in item else {}
    return {"token": item["token"], "logprob": item["logprob"], **top}


def tgi_models(service: Service) -> Reply:
    """GET /v1/models: the one there is, as TGI lists it."""
    record = dict(zip(_LISTED, (service.model, "model", 0, service.model), strict=True))
    return Reply({"object": "list", "data": [record]})


def loosen(components: dict[str, dict[str, Any]]) -> None:
    """Make the schemas of OpenAI's replies fit these."""
    for name in ("ChatChoice", "ChatChunkChoice", "CompletionChoice"):
        components[name]["properties"]["finish_reason"] = {"type": ["string", "null"]}
    for name, kept in {"Usage": _COUNTS, "ChatMessage": ("role", "content"), "Model": _LISTED}.items():
        components[name]["required"] = [*kept]


class _Lines:
    """A stream whose events are changed, each; of completions, the last ones wait for the counts."""

    def __init__(self, usual: Events, ends: _Ends) -> None:
        self._usual, self._ends = usual, ends
        self._last: list[dict[str, Any]] = []

    def events(self) -> Events:
        return replace(self._usual, begin=self._changed(self._usual.begin), event=self._event, end=self._end)

    def _event(self, event: Event) -> bytes:
        self._ends.note(event)
        return self._changed(self._usual.event(event))

    def _end(self) -> bytes:
        return self._changed(self._usual.end())

    def _changed(self, block: bytes) -> bytes:
        lines = (line + b"\n\n" for line in block.split(b"\n\n")[:-1])
        return b"".join(self._line(line) if line.startswith(b"data: {") else line for line in lines)

    def _line(self, line: bytes) -> bytes:
        return _event(msgspec.json.decode(line[6:]), self._ends, self._last)


def _event(event: dict[str, Any], ends: _Ends, last: list[dict[str, Any]]) -> bytes:
    head = _head({name: value for name, value in event.items() if name != "usage"}, ends)
    choices, counts = event["choices"], event.get("usage")
    if event["object"] == "text_completion":
        if not choices:
            return b"".join(sse.data(head | {"choices": [c], "usage": _usage(counts)}) for c in last)
        (choice,) = choices
        if choice["finish_reason"] is not None:
            last.append(choice | {"finish_reason": ends.reason(choice["index"], "eos_token")})
            return b""
        return sse.data(head | {"choices": [choice | {"finish_reason": ""}]})
    made = [_choice(c, ends) for c in choices]
    if any(c["delta"] == {"role": "assistant", "content": ""} for c in choices):
        return b""  # TGI begins with the first token
    return sse.data(head | {"choices": made, **({"usage": _usage(counts)} if counts else {})})
