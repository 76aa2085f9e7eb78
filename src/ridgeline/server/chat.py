"""POST /v1/chat/completions: messages through the chat template to one job, and its deltas to OpenAI's objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import LENGTH, Delta, Token
from ridgeline.errors import InvalidRequest
from ridgeline.server import sse
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call, Events
from ridgeline.server.hub import Job
from ridgeline.server.keys import Key
from ridgeline.server.messages import plain
from ridgeline.server.openai import FINISH, MIN_LOGPROB, Head, check_max_tokens, sampling, shown, submitted, usage
from ridgeline.server.schema import ChatRequest, decode_openai
from ridgeline.server.service import Choice, Service, best, collect, deltas, spoken
from ridgeline.server.speech import Hearing, Speech, ThoughtCount, message
from ridgeline.server.tools import ToolUse, grammar_of, special_id, tool_use
from ridgeline.text.dialogue import Dialogue
from ridgeline.text.reasoning import is_open
from ridgeline.text.tokenizer import Tokenizer

_RESERVED = {"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True)
class Plan:
    """A chat request, understood: one job, which continues `text`, and how its answers are heard."""

    head: Head
    request: ChatRequest
    text: str
    job: Job
    hearing: Hearing
    short_ids: bool
    headers: dict[str, str]

    @property
    def jobs(self) -> list[Job]:
        return [self.job]

    @property
    def params(self) -> SamplingParams:
        return self.job.params

    def speech(self, choice: int) -> Speech:
        """For the text of a choice."""
        return Speech(self.hearing, f"{self.head.id}-{choice}", self.short_ids)


async def chat(service: Service, call: Call) -> Reply | Events:
    """Answer one conversation, whole or as a stream."""
    plan = await submitted(understand, service, call)
    if plan.request.stream:
        return Events(_lines(service, plan, call), plan.headers)
    return Reply(answer(service, plan, await collect(call.stream, [plan.params.n])), headers=plan.headers)


def understand(service: Service, body: bytes, id: str = "", key: Key | None = None) -> Plan:
    """What a body asks for. Typed errors name what is wrong with it. The answer's id ends with `id`, or a new one."""
    request, headers = decode_openai(body, ChatRequest, service.config.strict)
    service.check_model(request.model)
    if not request.messages:
        raise InvalidRequest("messages is empty; give at least one", "messages")
    more: dict[str, Any] = {"max_tokens": _max_tokens(request), "logprobs": _logprobs(request)}
    dialogue, use = service.dialogue_of(request.chat_template), tool_use(request)
    text = dialogue.render(
        [plain(i, m) for i, m in enumerate(request.messages)],
        use.shown if use is not None else [],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        **_template_arguments(request, dialogue),
    )
    hearing = _hearing(dialogue, use, text)
    params = _audible(sampling(request, service, key, **more), hearing, dialogue, service.tokenizer)
    calls = grammar_of(use, dialogue, service.tokenizer, text) if use is not None else None
    if calls is not None and params.grammar is not None:
        raise InvalidRequest("calls that tools force leave no room for another grammar; ask for one of them", "tools")
    if calls is not None:
        params = msgspec.structs.replace(params, grammar=calls)
    job = Job(service.tokenizer.encode(text, add_special=False), params)
    head = Head.new("chatcmpl", service, id)
    return Plan(head, request, text, job, hearing, dialogue.short_ids, service.warned(headers, text))


def _hearing(dialogue: Dialogue, use: ToolUse | None, prompt: str) -> Hearing:
    marks = dialogue.marks
    inside = marks is not None and is_open(marks, prompt)
    if use is None:
        return Hearing(marks, inside)
    return Hearing(marks, inside, dialogue.convention.syntax, use.schemas)


def _audible(params: SamplingParams, hearing: Hearing, dialogue: Dialogue, tokenizer: Tokenizer) -> SamplingParams:
    """The same, but special tokens that tell thoughts and calls are shown, and an answer ends where results begin."""
    convention = dialogue.convention
    marks = [] if hearing.marks is None else [hearing.marks.opens, hearing.marks.closes]
    marks += [] if hearing.syntax is None else convention.marks
    if any(special_id(tokenizer, mark) is not None for mark in marks):
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    if hearing.syntax is None or not convention.results:
        return params
    id = special_id(tokenizer, convention.results)
    if id is None:
        return msgspec.structs.replace(params, stop=(*params.stop, convention.results))
    return msgspec.structs.replace(params, stop_token_ids=(*params.stop_token_ids, id))


def _template_arguments(request: ChatRequest, dialogue: Dialogue) -> dict[str, Any]:
    """Variables for the template. Of `reasoning_effort`, "none" is what most templates call `enable_thinking`."""
    extra = dict(request.chat_template_kwargs or {})
    if reserved := _RESERVED & extra.keys():
        raise InvalidRequest(f"chat_template_kwargs may not set {', '.join(sorted(reserved))}", "chat_template_kwargs")
    effort, source = request.reasoning_effort, dialogue.template.source
    if effort is not None and "reasoning_effort" in source:
        extra.setdefault("reasoning_effort", effort)
    if effort == "none" and "enable_thinking" in source:
        extra.setdefault("enable_thinking", False)
    return extra


def answer(service: Service, plan: Plan, done: list[list[Choice]]) -> dict[str, Any]:
    """The whole answer, of the one job's choices. All candidates count as usage, as with OpenAI."""
    chosen = [_choice(service.tokenizer, plan, i, c) for i, c in enumerate(best(done[0], shown(plan.request)))]
    thoughts = [ThoughtCount(plan.hearing, service.tokenizer) for _ in done[0]]
    for thought, choice in zip(thoughts, done[0], strict=True):
        thought.add(choice.tokens)
    generated, thought_tokens = sum(len(c.tokens) for c in done[0]), sum(t.tokens for t in thoughts)
    count = usage(len(plan.job.prompt), generated, done[0][0].cached, thought_tokens)
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


def _choice(tokenizer: Tokenizer, plan: Plan, index: int, c: Choice) -> dict[str, Any]:
    tokens = spoken(c.tokens, c.finish, plan.params.stop_token_ids)
    speech = plan.speech(index)
    said = message(speech.push(c.text, last=True))
    return {
        "index": index,
        "message": said,
        "logprobs": _logprob_items(tokenizer, tokens) if plan.request.logprobs else None,
        "finish_reason": _finish(c.finish, speech),
    }


def _finish(finish: str, speech: Speech) -> str:
    return "tool_calls" if speech.called and finish != LENGTH else FINISH[finish]


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

    def tally() -> dict[str, Any]:
        return usage(len(plan.job.prompt), generated, cached, sum(t.tokens for t in thoughts))

    choices = range(plan.params.n)
    yield b"".join(line(_piece(i, {"role": "assistant", "content": ""})) for i in choices)
    generated = cached = 0
    speeches, thoughts = (
        [plan.speech(i) for i in choices],
        [ThoughtCount(plan.hearing, service.tokenizer) for _ in choices],
    )
    async for event in deltas(call.stream):
        if event is None:
            yield sse.KEEP_ALIVE
            continue
        delta = event.delta
        generated += len(delta.tokens)
        cached = max(cached, delta.cached)
        thoughts[delta.choice].add(delta.tokens)
        for piece in _pieces(service.tokenizer, plan, speeches[delta.choice], delta):
            yield line(piece)
        if delta.finish is not None:
            yield line(_piece(delta.choice, {}) | {"finish_reason": _finish(delta.finish, speeches[delta.choice])})
    if plan.request.include_usage:
        yield sse.data(plan.head.wrap("chat.completion.chunk", [], usage=tally()))
    yield sse.DONE


def _piece(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _pieces(tokenizer: Tokenizer, plan: Plan, speech: Speech, delta: Delta) -> list[dict[str, Any]]:
    """The chunks of what a delta says, the first of them with the logprobs of its tokens."""
    scored = plan.params.logprobs is not None and plan.request.logprobs
    tokens = spoken(delta.tokens, delta.finish, plan.params.stop_token_ids) if scored else []
    said = speech.push(delta.text, last=delta.finish is not None)
    if tokens and not said:
        said = [{"content": ""}]
    found = [_piece(delta.choice, one) for one in said]
    if tokens:
        found[0]["logprobs"] = _logprob_items(tokenizer, tokens)
    return found
