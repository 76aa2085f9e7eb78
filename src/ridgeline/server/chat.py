"""POST /v1/chat/completions: messages through the chat template to one job, and its deltas to OpenAI's objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import Delta, Token
from ridgeline.errors import InvalidRequest
from ridgeline.server import sse
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call, Events
from ridgeline.server.hub import Job
from ridgeline.server.openai import FINISH, MIN_LOGPROB, Head, check_max_tokens, sampling, shown, submitted, usage
from ridgeline.server.schema import ChatRequest, Message, decode_openai
from ridgeline.server.service import Choice, Service, best, collect, deltas, spoken
from ridgeline.text.tokenizer import Tokenizer

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_RESERVED = {"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True)
class Plan:
    """A chat request, understood: one job, which continues `text`."""

    head: Head
    request: ChatRequest
    text: str
    job: Job
    headers: dict[str, str]

    @property
    def jobs(self) -> list[Job]:
        return [self.job]

    @property
    def params(self) -> SamplingParams:
        return self.job.params


async def chat(service: Service, call: Call) -> Reply | Events:
    """Answer one conversation, whole or as a stream."""
    plan = await submitted(understand, service, call)
    if plan.request.stream:
        return Events(_lines(service, plan, call), plan.headers)
    return Reply(answer(service, plan, await collect(call.stream, [plan.params.n])), headers=plan.headers)


def understand(service: Service, body: bytes, id: str = "") -> Plan:
    """What a body asks for. Typed errors name what is wrong with it. The answer's id ends with `id`, or a new one."""
    request, headers = decode_openai(body, ChatRequest)
    service.check_model(request.model)
    params = sampling(request, service, max_tokens=_max_tokens(request), logprobs=_logprobs(request))
    extra = request.chat_template_kwargs or {}
    if reserved := _RESERVED & extra.keys():
        raise InvalidRequest(f"chat_template_kwargs may not set {', '.join(sorted(reserved))}", "chat_template_kwargs")
    if not request.messages:
        raise InvalidRequest("messages is empty; give at least one", "messages")
    text = service.template.render(
        [_message(i, m) for i, m in enumerate(request.messages)],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        **extra,
    )
    prompt = service.tokenizer.encode(text, add_special=False)
    return Plan(Head.new("chatcmpl", service, id), request, text, Job(prompt, params), service.warned(headers, text))


def answer(service: Service, plan: Plan, done: list[list[Choice]]) -> dict[str, Any]:
    """The whole answer, of the one job's choices. All candidates count as usage, as with OpenAI."""
    chosen = [_choice(service.tokenizer, plan, i, c) for i, c in enumerate(best(done[0], shown(plan.request)))]
    count = usage(len(plan.job.prompt), sum(len(c.tokens) for c in done[0]), done[0][0].cached)
    return plan.head.wrap("chat.completion", chosen, usage=count)


def _max_tokens(request: ChatRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    check_max_tokens("max_tokens", old)
    check_max_tokens("max_completion_tokens", new)
    if old is not None and new is not None and old != new:
        raise InvalidRequest(f"max_tokens {old} and max_completion_tokens {new} differ; give one", "max_tokens")
    return new if new is not None else old


def _logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be 0 to {MAX_TOP_LOGPROBS}, is {top}", "top_logprobs")
    if top and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if request.logprobs else None


def _message(index: int, m: Message) -> dict[str, Any]:
    """A message as templates see it."""
    where = f"messages[{index}]"
    if m.role in ("tool", "function") or m.tool_calls or m.function_call is not None:
        raise InvalidRequest(f"{where}: tool calls are not built yet in this server; leave them out", "messages")
    if m.role not in _ROLES:
        known = ", ".join(_ROLES)
        raise InvalidRequest(f"{where}: unknown role {m.role[:40]!r}; known are {known}", "messages")
    shown = {"role": _ROLES[m.role], "content": _content(where, m)}
    optional = {"name": m.name, "reasoning_content": m.reasoning_content}
    return shown | {key: value for key, value in optional.items() if value is not None}


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
    return "".join(part.text or "" for part in m.content)


def _choice(tokenizer: Tokenizer, plan: Plan, index: int, c: Choice) -> dict[str, Any]:
    tokens = spoken(c.tokens, c.finish, plan.params.stop_token_ids)
    return {
        "index": index,
        "message": {"role": "assistant", "content": c.text, "refusal": None},
        "logprobs": _logprob_items(tokenizer, tokens) if plan.request.logprobs else None,
        "finish_reason": FINISH[c.finish],
    }


def _logprob_items(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    def item(id: int, logprob: float) -> dict[str, Any]:
        spelled = tokenizer.token_bytes(id)
        text = spelled.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(spelled)}

    listed = [item(t.id, t.logprob) | {"top_logprobs": [item(*alternative) for alternative in t.top]} for t in tokens]
    return {"content": listed, "refusal": None}


async def _lines(service: Service, plan: Plan, call: Call) -> AsyncGenerator[bytes, None]:
    """Role first, then content, then an empty delta with the finish reason, per choice; usage if asked; the end."""
    pending = {"usage": None} if plan.request.include_usage else {}

    def line(choice: dict[str, Any]) -> bytes:
        return sse.data(plan.head.wrap("chat.completion.chunk", [choice], **pending))

    yield b"".join(line(_piece(i, {"role": "assistant", "content": ""})) for i in range(plan.params.n))
    generated = cached = 0
    async for event in deltas(call.stream):
        if event is None:
            yield sse.KEEP_ALIVE
            continue
        delta = event.delta
        generated += len(delta.tokens)
        cached = max(cached, delta.cached)
        if (content := _content_piece(service.tokenizer, plan.params, delta)) is not None:
            yield line(content)
        if delta.finish is not None:
            yield line(_piece(delta.choice, {}) | {"finish_reason": FINISH[delta.finish]})
    if plan.request.include_usage:
        yield sse.data(
            plan.head.wrap("chat.completion.chunk", [], usage=usage(len(plan.job.prompt), generated, cached))
        )
    yield sse.DONE


def _piece(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _content_piece(tokenizer: Tokenizer, params: SamplingParams, delta: Delta) -> dict[str, Any] | None:
    """The content chunk of a delta; None where it has nothing to show."""
    tokens = spoken(delta.tokens, delta.finish, params.stop_token_ids) if params.logprobs is not None else []
    if not delta.text and not tokens:
        return None
    piece = _piece(delta.choice, {"content": delta.text})
    return piece | {"logprobs": _logprob_items(tokenizer, tokens)} if tokens else piece
