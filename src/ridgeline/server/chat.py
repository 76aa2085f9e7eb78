"""POST /v1/chat/completions: messages through the chat template to one job, and its deltas to OpenAI's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import LENGTH, Delta, Token
from ridgeline.errors import InvalidRequest, ToolError
from ridgeline.server.errors import Reply
from ridgeline.server.extras import of_answer, of_prompt, scored
from ridgeline.server.functions import modern, use_of
from ridgeline.server.http import Call, Events
from ridgeline.server.jobs import Event, Job
from ridgeline.server.keys import Key
from ridgeline.server.messages import plain
from ridgeline.server.openai import (
    FINISH,
    MIN_LOGPROB,
    Head,
    Lines,
    check_max_tokens,
    sampling,
    shown,
    submitted,
    usage,
)
from ridgeline.server.schema import ChatRequest, decode_openai, ignored, warn
from ridgeline.server.service import Choice, Service, best, collect, spoken
from ridgeline.server.speech import Hearing, Speech, ThoughtCount, message
from ridgeline.server.tools import ToolUse, grammar_of, special_id
from ridgeline.text.dialogue import Dialogue
from ridgeline.text.reasoning import is_open
from ridgeline.text.tokenizer import Tokenizer

_CHUNK = "chat.completion.chunk"
_RESERVED = {"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}


@dataclass(frozen=True)
class Plan:
    """A chat request, understood: one job, which continues `text`, and how its answers are heard. `echo` is put in
    front of their content."""

    head: Head
    request: ChatRequest
    text: str
    job: Job
    hearing: Hearing
    echo: str
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
        lines = _Lines(service, plan)
        return Events(lines.begin(), lines.event, lines.said.end, plan.headers)
    return Reply(answer(service, plan, await collect(call.stream, [plan.params.n])), headers=plan.headers)


def understand(service: Service, body: bytes, id: str = "", key: Key | None = None) -> Plan:
    """What a body asks for. Typed errors name what is wrong with it. The answer's id ends with `id`, or a new one."""
    request, headers = decode_openai(body, ChatRequest, service.config.strict)
    service.check_model(request.model)
    if not request.messages:
        raise InvalidRequest("messages is empty; give at least one", "messages")
    more: dict[str, Any] = {"max_tokens": _max_tokens(request), **scored(request, _logprobs(request))}
    dialogue, use = service.dialogue_of(request.chat_template), use_of(request)
    messages = [plain(i, m) for i, m in enumerate(modern(request.messages))]
    text = dialogue.render(
        messages,
        use.shown if use is not None else [],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=bool(request.continue_final_message),
        **_template_arguments(request, dialogue),
    )
    ignored(headers, _unread(request, dialogue.template.source), service.config.strict)
    hearing = _hearing(dialogue, use, text, old=bool(request.functions))
    params = _audible(sampling(request, service, key, **more), hearing, dialogue, service.tokenizer)
    calls = grammar_of(use, dialogue, service.tokenizer, text) if use is not None else None
    if use is not None and params.grammar is not None:
        if use.forced:
            raise ToolError("calls that tools force leave no room for another grammar; ask for one of them", "tools")
        warn(headers, "the answer follows a grammar, so no tool can be called")
    elif calls is not None:
        params = msgspec.structs.replace(params, grammar=calls)
    job = Job(service.tokenizer.encode(text, add_special=False), params)
    head = Head.new("chatcmpl", service, id)
    echo = messages[-1]["content"] if request.echo and messages[-1]["role"] == "assistant" else ""
    return Plan(head, request, text, job, hearing, echo, dialogue.short_ids, service.warned(headers, text))


def _hearing(dialogue: Dialogue, use: ToolUse | None, prompt: str, old: bool) -> Hearing:
    marks = dialogue.marks
    inside = marks is not None and is_open(marks, prompt)
    syntax = dialogue.convention.syntax
    if use is None and not syntax.silent:
        return Hearing(marks, inside)
    return Hearing(marks, inside, syntax, {} if use is None else use.schemas, old)


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


def _unread(request: ChatRequest, source: str) -> list[str]:
    """What a request has for the template, and the template does not look at."""
    found = [f"chat_template_kwargs.{name}" for name in request.chat_template_kwargs or {} if name not in source]
    effort = request.reasoning_effort
    reads = "reasoning_effort" in source or (effort == "none" and "enable_thinking" in source)
    return found if effort is None or reads else [*found, "reasoning_effort"]


def answer(service: Service, plan: Plan, done: list[list[Choice]]) -> dict[str, Any]:
    """The whole answer, of the one job's choices. All candidates count as usage, as with OpenAI."""
    chosen = [_choice(service.tokenizer, plan, i, c) for i, c in enumerate(best(done[0], shown(plan.request)))]
    thoughts = [ThoughtCount(plan.hearing, service.tokenizer) for _ in done[0]]
    for thought, choice in zip(thoughts, done[0], strict=True):
        thought.add(choice.tokens)
    generated, thought_tokens = sum(len(c.tokens) for c in done[0]), sum(t.tokens for t in thoughts)
    count = usage(len(plan.job.prompt), generated, done[0][0].cached, thought_tokens)
    more = of_prompt(plan.request, service.tokenizer, plan.job.prompt, done[0][0].prompt)
    return plan.head.wrap("chat.completion", chosen, usage=count, **more)


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
    if plan.echo:
        said["content"] = plan.echo + (said["content"] or "")
    return {
        "index": index,
        "message": said,
        "logprobs": _logprob_items(tokenizer, tokens, plan.request) if plan.request.logprobs else None,
        "finish_reason": _finish(c.finish, speech),
        **of_answer(plan.request, c.tokens),
    }


def _finish(finish: str, speech: Speech) -> str:
    if not speech.called or finish == LENGTH:
        return FINISH[finish]
    return "function_call" if speech.old else "tool_calls"


def _logprob_items(tokenizer: Tokenizer, tokens: Sequence[Token], request: ChatRequest) -> dict[str, Any]:
    most = request.top_logprobs or 0

    def item(id: int, logprob: float) -> dict[str, Any]:
        spelled = tokenizer.token_bytes(id)
        text = spelled.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": list(spelled)}

    listed = [
        item(t.id, t.logprob) | {"top_logprobs": [item(*alternative) for alternative in t.top[:most]]} for t in tokens
    ]
    return {"content": listed, "refusal": None}


class _Lines:
    """A stream's lines: role first, then content, then an empty delta with the finish reason, per choice."""

    def __init__(self, service: Service, plan: Plan) -> None:
        self._tokenizer, self._plan, choices = service.tokenizer, plan, range(plan.params.n)
        self.said = Lines(plan, _CHUNK, self._usage)
        self._speeches = [plan.speech(i) for i in choices]
        self._thoughts = [ThoughtCount(plan.hearing, service.tokenizer) for _ in choices]
        self._generated = self._cached = 0

    def begin(self) -> bytes:
        plan, choices = self._plan, range(self._plan.params.n)
        first = [_piece(i, {"role": "assistant", "content": ""}) for i in choices]
        first += [_piece(i, {"content": plan.echo}) for i in choices if plan.echo]
        more = of_prompt(plan.request, self._tokenizer, plan.job.prompt, None)
        return self.said.of(first, **more)

    def event(self, event: Event) -> bytes:
        delta, speech = event.delta, self._speeches[event.delta.choice]
        self._generated += len(delta.tokens)
        self._cached = max(self._cached, delta.cached)
        self._thoughts[delta.choice].add(delta.tokens)
        pieces = _pieces(self._tokenizer, self._plan, speech, delta)
        if delta.finish is not None:
            pieces.append(_piece(delta.choice, {}) | {"finish_reason": _finish(delta.finish, speech)})
        return self.said.of(pieces)

    def _usage(self) -> dict[str, Any]:
        thoughts = sum(t.tokens for t in self._thoughts)
        return usage(len(self._plan.job.prompt), self._generated, self._cached, thoughts)


def _piece(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _pieces(tokenizer: Tokenizer, plan: Plan, speech: Speech, delta: Delta) -> list[dict[str, Any]]:
    """The chunks of what a delta says, the first of them with the logprobs of its tokens."""
    scored = plan.params.logprobs is not None and plan.request.logprobs
    tokens = spoken(delta.tokens, delta.finish, plan.params.stop_token_ids) if scored else []
    ids = of_answer(plan.request, delta.tokens) if delta.tokens else {}
    said = speech.push(delta.text, last=delta.finish is not None)
    if (tokens or ids) and not said:
        said = [{"content": ""}]
    found = [_piece(delta.choice, one) for one in said]
    if tokens:
        found[0]["logprobs"] = _logprob_items(tokenizer, tokens, plan.request)
    if ids:
        found[0] |= ids
    return found
