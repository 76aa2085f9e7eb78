"""POST /v1/completions: one or many prompts (text or token ids) to jobs, and their deltas to OpenAI's objects.

Choices are numbered prompt by prompt: prompt p's choice c has index p * n + c. `echo` puts the prompt, and with
`logprobs` its tokens, in front; `max_tokens` 0 with `echo` generates one token and drops it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ridgeline.engine.params import MAX_TOP_LOGPROBS, SamplingParams
from ridgeline.engine.records import LENGTH, Delta, Token
from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Reply
from ridgeline.server.extras import of_answer, of_prompt, scored
from ridgeline.server.http import Call, Events
from ridgeline.server.jobs import Event, Job
from ridgeline.server.keys import Key
from ridgeline.server.logprobs import LogprobLists, Prompt, read_prompt
from ridgeline.server.openai import (
    FINISH,
    Head,
    Lines,
    check_max_tokens,
    sampling,
    shown,
    split_prompts,
    submitted,
    usage,
)
from ridgeline.server.schema import CompletionRequest, decode_openai
from ridgeline.server.service import Choice, Service, best, collect, spoken
from ridgeline.server.watermark import refuse_unmarked
from ridgeline.text.infill import infill
from ridgeline.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
_CHUNK = "text_completion"


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
        lines = _Lines(service, plan)
        return Events(b"", lines.event, lines.said.end, plan.headers)
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
    prompts = [_read(service.tokenizer, request, p) for p in given]
    return Plan(Head.new("cmpl", service, id), request, params, prompts, dropped, service.warned(headers, *texts))


def _read(tokenizer: Tokenizer, r: CompletionRequest, given: str | list[int]) -> Prompt:
    if not r.suffix:
        return read_prompt(tokenizer, given, bool(r.echo))
    if r.echo or not isinstance(given, str):
        raise InvalidRequest(
            "suffix goes with prompts that are text, and not with echo; leave one of them out", "suffix"
        )
    ids = infill(tokenizer, given, r.suffix)
    if ids is None:
        raise InvalidRequest("suffix needs a model that fills in the middle; this one has no tokens for it", "suffix")
    return Prompt("", ids, [])


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
    usual = None if service.config.tgi_strict else DEFAULT_MAX_TOKENS  # None: all the room there is
    wanted = usual if r.max_tokens is None else r.max_tokens
    check_max_tokens("max_tokens", wanted, 0 if r.echo else 1)
    if r.logprobs is not None and not 0 <= r.logprobs <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"logprobs must be 0 to {MAX_TOP_LOGPROBS}, is {r.logprobs}", "logprobs")
    echoed = bool(r.echo) and r.logprobs is not None
    if echoed and r.stream and (r.n or 1) > 1:
        raise InvalidRequest("echo with logprobs and n > 1 is not built yet for streams; use stream: false", "echo")
    if wanted == 0:
        refuse_unmarked(key, "an echo without new tokens", "max_tokens")
    most = None if wanted is None else max(wanted, 1)
    return sampling(r, service, key, max_tokens=most, **scored(r, r.logprobs, echoed)), wanted == 0


def _choice(
    service: Service, plan: Plan, p: int, index: int, choice: Choice, scores: tuple[Token, ...] | None
) -> dict[str, Any]:
    """A choice of prompt p, whose logprobs are `scores`: they came with its first candidate, and belong to all."""
    echo, more = plan.request.echo, of_prompt(plan.request, service.tokenizer, plan.prompts[p].ids, scores)
    lists = LogprobLists(service.tokenizer, plan.params, plan.request.logprobs or 0)
    text = ""
    if echo:
        text += plan.prompts[p].text
        lists.add_prompt(plan.prompts[p], scores or ())
    if not plan.dropped:
        more |= of_answer(plan.request, choice.tokens)
        text += choice.text
        lists.add(spoken(choice.tokens, choice.finish, plan.params.stop_token_ids), len(text))
    logprobs = lists.take() if plan.request.logprobs is not None else None
    finish = LENGTH if plan.dropped else choice.finish
    return _piece(index, text, logprobs, FINISH[finish]) | more


def _piece(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class _Streamed:
    """One choice of a stream: how much of it was sent."""

    def __init__(self, service: Service, plan: Plan, event: Event) -> None:
        self._plan, self._prompt = plan, plan.prompts[event.job]
        shown = plan.request.logprobs
        self._lists = None if shown is None else LogprobLists(service.tokenizer, plan.params, shown)
        self._more = of_prompt(plan.request, service.tokenizer, self._prompt.ids, None)
        self._length = 0
        self._index = event.job * plan.params.n + event.delta.choice
        self._begun = False

    def pieces(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of an event: content where there is any, then an empty one with the finish reason."""
        plan, delta = self._plan, event.delta
        text = self._prompt.text if plan.request.echo and not self._begun else ""
        text += "" if plan.dropped else delta.text
        logprobs = None if self._lists is None else self._logprobs(self._lists, delta, len(text))
        self._begun = True
        if not plan.dropped:
            self._more |= of_answer(plan.request, delta.tokens)
        found = []
        if text or self._more or (logprobs is not None and logprobs["tokens"]):
            found.append(_piece(self._index, text, logprobs, None) | self._more)
        self._more = {}
        if delta.finish is not None:
            finish = LENGTH if plan.dropped else delta.finish
            found.append(_piece(self._index, "", None, FINISH[finish]))
        return found

    def _logprobs(self, lists: LogprobLists, delta: Delta, characters: int) -> dict[str, Any]:
        """Those of a delta that says so much."""
        plan = self._plan
        if plan.request.echo and not self._begun:
            lists.add_prompt(self._prompt, delta.prompt or ())
        self._length += characters
        tokens = [] if plan.dropped else spoken(delta.tokens, delta.finish, plan.params.stop_token_ids)
        # Before the end, text that may begin a stop string is held back: offsets are ahead of it.
        lists.add(tokens, sys.maxsize if delta.finish is None else self._length)
        return lists.take()


class _Lines:
    """A stream's lines."""

    def __init__(self, service: Service, plan: Plan) -> None:
        self._service, self._plan = service, plan
        self.said = Lines(plan, _CHUNK, self._usage)
        self._choices: dict[tuple[int, int], _Streamed] = {}
        self._generated, self._cached = 0, [0] * len(plan.prompts)

    def event(self, event: Event) -> bytes:
        self._generated += 0 if self._plan.dropped else len(event.delta.tokens)
        self._cached[event.job] = max(self._cached[event.job], event.delta.cached)
        key = event.job, event.delta.choice
        if key not in self._choices:
            self._choices[key] = _Streamed(self._service, self._plan, event)
        return self.said.of(self._choices[key].pieces(event))

    def _usage(self) -> dict[str, Any]:
        return usage(self._plan.prompt_tokens, self._generated, sum(self._cached))
