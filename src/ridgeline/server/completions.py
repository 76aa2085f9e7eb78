"""POST /v1/completions: one or many prompts (text or token ids) to jobs, and their deltas to OpenAI's objects.

Choices are numbered prompt by prompt: prompt p's choice c has index p * n + c. `echo` puts the prompt, and with
`logprobs` its tokens, in front; `max_tokens` 0 with `echo` generates one token and drops it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import LENGTH, Token
from ridgeline.errors import InvalidRequest
from ridgeline.server import sse
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call, Events
from ridgeline.server.hub import Event, Job
from ridgeline.server.keys import Key
from ridgeline.server.logprobs import LogprobLists, Prompt, read_prompt
from ridgeline.server.openai import FINISH, Head, check_max_tokens, sampling, shown, split_prompts, submitted, usage
from ridgeline.server.schema import CompletionRequest, decode_openai
from ridgeline.server.service import Choice, Service, best, collect, deltas, spoken
from ridgeline.server.watermark import refuse_unmarked

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True)
class Plan:
    """A completion request, understood: a job per prompt. `dropped`: the generated token is no part of the answer."""

    head: Head
    request: CompletionRequest
    params: SamplingParams
    prompts: list[Prompt]
    dropped: bool
    headers: dict[str, str]

    @property
    def jobs(self) -> list[Job]:
        return [Job(p.ids, self.params) for p in self.prompts]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(p.ids) for p in self.prompts)


async def completions(service: Service, call: Call) -> Reply | Events:
    """Continue every prompt, whole or as one interleaved stream."""
    plan = await submitted(understand, service, call)
    if plan.request.stream:
        return Events(_lines(service, plan, call), plan.headers)
    done = await collect(call.stream, [plan.params.n] * len(plan.prompts))
    return Reply(answer(service, plan, done), headers=plan.headers)


def understand(service: Service, body: bytes, id: str = "", key: Key | None = None) -> Plan:
    """What a body asks for. Typed errors name what is wrong with it. The answer's id ends with `id`, or a new one."""
    request, headers = decode_openai(body, CompletionRequest, service.config.strict)
    service.check_model(request.model)
    params, dropped = _params(request, service, key)
    given = split_prompts(request.prompt, "prompt")
    if len(given) * params.n > (most := service.config.max_client_batch_size):
        raise InvalidRequest(f"{len(given)} prompts x n {params.n} exceed the limit of {most}", "prompt")
    texts = [p for p in given if isinstance(p, str)]
    prompts = [read_prompt(service.tokenizer, p, bool(request.echo)) for p in given]
    return Plan(Head.new("cmpl", service, id), request, params, prompts, dropped, service.warned(headers, *texts))


def answer(service: Service, plan: Plan, done: list[list[Choice]]) -> dict[str, Any]:
    """The whole answer; done[p][c] is candidate c of prompt p. All of them count as usage, as with OpenAI."""
    n = shown(plan.request)
    choices = [
        _choice(service, plan, p, p * n + i, choice, candidates[0].prompt)
        for p, candidates in enumerate(done)
        for i, choice in enumerate(best(candidates, n))
    ]
    generated = 0 if plan.dropped else sum(len(c.tokens) for group in done for c in group)
    count = usage(plan.prompt_tokens, generated, sum(group[0].cached for group in done))
    return plan.head.wrap("text_completion", choices, usage=count)


def _params(r: CompletionRequest, service: Service, key: Key | None) -> tuple[SamplingParams, bool]:
    wanted = DEFAULT_MAX_TOKENS if r.max_tokens is None else r.max_tokens
    check_max_tokens("max_tokens", wanted, 0 if r.echo else 1)
    if r.logprobs is not None and not 0 <= r.logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"logprobs must be 0 to {MAX_TOP_LOGPROBS}, is {r.logprobs}", "logprobs")
    scored = bool(r.echo) and r.logprobs is not None
    if scored and r.stream and (r.n or 1) > 1:
        raise InvalidRequest("echo with logprobs and n > 1 is not built yet for streams; use stream: false", "echo")
    more = {"max_tokens": max(wanted, 1), "logprobs": r.logprobs, "prompt_logprobs": scored}
    if wanted == 0:
        refuse_unmarked(key, "an echo without new tokens", "max_tokens")
    return sampling(r, service, key, **more), wanted == 0


def _choice(
    service: Service, plan: Plan, p: int, index: int, choice: Choice, scores: tuple[Token, ...] | None
) -> dict[str, Any]:
    """A choice of prompt p, whose logprobs are `scores`: they came with its first candidate, and belong to all."""
    echo = plan.request.echo
    lists = LogprobLists(service.tokenizer, plan.params)
    text = ""
    if echo:
        text += plan.prompts[p].text
        lists.add_prompt(plan.prompts[p], scores or ())
    if not plan.dropped:
        text += choice.text
        lists.add(spoken(choice.tokens, choice.finish, plan.params.stop_token_ids), len(text))
    scored = plan.request.logprobs is not None
    finish = LENGTH if plan.dropped else choice.finish
    return _piece(index, text, lists.take() if scored else None, FINISH[finish])


def _piece(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class _Streamed:
    """One choice of a stream: how much of it was sent."""

    def __init__(self, service: Service, plan: Plan, event: Event) -> None:
        self._plan, self._prompt = plan, plan.prompts[event.job]
        self._lists = LogprobLists(service.tokenizer, plan.params)
        self._length = 0
        self._index = event.job * plan.params.n + event.delta.choice
        self._begun = False

    def pieces(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of an event: content where there is any, then an empty one with the finish reason."""
        plan, delta = self._plan, event.delta
        text, tokens = "", list[Token]()
        if plan.request.echo and not self._begun:
            text = self._prompt.text
            self._lists.add_prompt(self._prompt, delta.prompt or ())
        self._begun = True
        if not plan.dropped:
            text += delta.text
            tokens = spoken(delta.tokens, delta.finish, plan.params.stop_token_ids)
        self._length += len(text)
        scored = plan.request.logprobs is not None
        # Before the end, text that may begin a stop string is held back: offsets are ahead of it.
        self._lists.add(tokens, sys.maxsize if delta.finish is None else self._length)
        logprobs = self._lists.take() if scored else None
        found = []
        if text or (logprobs is not None and logprobs["tokens"]):
            found.append(_piece(self._index, text, logprobs, None))
        if delta.finish is not None:
            finish = LENGTH if plan.dropped else delta.finish
            found.append(_piece(self._index, "", None, FINISH[finish]))
        return found


async def _lines(service: Service, plan: Plan, call: Call) -> AsyncGenerator[bytes, None]:
    pending = {"usage": None} if plan.request.include_usage else {}
    choices: dict[tuple[int, int], _Streamed] = {}
    generated, cached = 0, dict.fromkeys(range(len(plan.prompts)), 0)
    async for event in deltas(call.stream):
        if event is None:
            yield sse.KEEP_ALIVE
            continue
        generated += 0 if plan.dropped else len(event.delta.tokens)
        cached[event.job] = max(cached[event.job], event.delta.cached)
        key = event.job, event.delta.choice
        if key not in choices:
            choices[key] = _Streamed(service, plan, event)
        for piece in choices[key].pieces(event):
            yield sse.data(plan.head.wrap("text_completion", [piece], **pending))
    if plan.request.include_usage:
        count = usage(plan.prompt_tokens, generated, sum(cached.values()))
        yield sse.data(plan.head.wrap("text_completion", [], usage=count))
    yield sse.DONE
