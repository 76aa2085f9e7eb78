"""What OpenAI's routes share: sampling fields, ids, usage, finish reasons, and the list of models."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ridgeline.engine.params import MAX_BEAMS, SamplingParams
from ridgeline.engine.records import EOS, LENGTH, STOP, Terms
from ridgeline.errors import InvalidRequest
from ridgeline.server import sse
from ridgeline.server.errors import Reply
from ridgeline.server.guided import field_of, grammar_of
from ridgeline.server.http import Call
from ridgeline.server.jobs import Job
from ridgeline.server.keys import Key
from ridgeline.server.schema import OpenAIRequest, warn
from ridgeline.server.service import Service
from ridgeline.server.terms import terms_of
from ridgeline.server.tools import unfollowed
from ridgeline.server.watermark import marked
from ridgeline.text.tokenizer import Tokenizer

FINISH = {EOS: "stop", STOP: "stop", LENGTH: "length"}
MIN_LOGPROB = -9999.0  # what OpenAI reports for "never"; JSON has no infinity


@dataclass(frozen=True)
class Head:
    """The fields every object of one answer repeats."""

    id: str
    created: int
    model: str
    fingerprint: str

    @classmethod
    def new(cls, prefix: str, service: Service, id: str) -> Head:
        """`id`: that of the HTTP request, "" for a new one."""
        return cls(f"{prefix}-{id or uuid.uuid4().hex}", int(time.time()), service.model, service.info.program)

    def wrap(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An object of `kind` with these choices."""
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices, **more,
        }  # fmt: skip

    def line(self, kind: str, **more: Any) -> Callable[[list[dict[str, Any]]], bytes]:
        """The same as a line of a stream; what all its lines share is encoded here, once."""
        first, last = sse.data(self.wrap(kind, [0], **more)).split(b'"choices":[0]')
        first += b'"choices":'
        return lambda choices: first + sse.encode(choices) + last


class Plan(Protocol):
    """A body, understood."""

    @property
    def head(self) -> Head: ...

    @property
    def request(self) -> OpenAIRequest: ...

    @property
    def jobs(self) -> list[Job]: ...

    @property
    def headers(self) -> dict[str, str]: ...


P = TypeVar("P", bound=Plan)


class Lines:
    """The lines of a stream, objects of `kind`. `count` tells the usage so far: the last line says it, or all do, as
    the request asks."""

    def __init__(self, plan: Plan, kind: str, count: Callable[[], dict[str, Any]]) -> None:
        self._head, self._kind, self._count, request = plan.head, kind, count, plan.request
        self._at_end, self._throughout = request.include_usage, request.usage_throughout
        self._pending: dict[str, Any] = {"usage": None} if self._at_end else {}
        self._usual = self._head.line(kind, **self._pending)

    def of(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """A line for each choice, which may say more."""
        line = self._usual
        if self._throughout or more:
            counted = {"usage": self._count()} if self._throughout else self._pending
            line = self._head.line(self._kind, **counted, **more)
        return b"".join(line([choice]) for choice in choices)

    def end(self) -> bytes:
        """What is said behind all choices."""
        if not self._at_end:
            return sse.DONE
        return sse.data(self._head.wrap(self._kind, [], usage=self._count())) + sse.DONE


async def submitted(understand: Callable[[Service, bytes, str, Key | None], P], service: Service, call: Call) -> P:
    """Understand a call's body and submit its jobs, in a thread."""

    def submit() -> P:
        plan = understand(service, call.body, call.id, call.key)
        for job in plan.jobs if service.config.max_input_tokens else ():
            service.check_input(len(job.prompt), "prompt")
        try:
            warn(plan.headers, *call.stream.check(plan.jobs))
        except InvalidRequest as wrong:
            raise _by_field(wrong, plan.request) from None
        call.stream.submit(plan.jobs, terms(service, plan.request, call.headers))
        return plan

    return await call.stream.run(submit)


def _by_field(wrong: InvalidRequest, request: OpenAIRequest) -> InvalidRequest:
    """The same of a grammar, by the field that asks for it. What tools are made into is not for clients to read."""
    if wrong.param != "grammar":
        return wrong
    if field := field_of(request):
        return InvalidRequest(f"{field}: {wrong}", field)
    return unfollowed(getattr(request, "tools", None) or [], wrong)


def terms(service: Service, request: OpenAIRequest, headers: Mapping[str, str]) -> Terms:
    return terms_of(service, headers, request.priority, request.cache_salt)


def usage(prompt: int, completion: int, cached: int, reasoning: int = 0) -> dict[str, Any]:
    """Token counts; `cached` prompt tokens are those that the prefix cache had. Details without a source are zero."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def sampling(r: OpenAIRequest, service: Service, key: Key | None, **more: Any) -> SamplingParams:
    """SamplingParams of a request; `more` are those only one route has. Ranges are checked at submission."""
    stop = (r.stop,) if isinstance(r.stop, str) else tuple(r.stop or ())
    service.check_limits(shown(r), len(stop), "n")
    given: dict[str, Any] = {
        "temperature": r.temperature, "top_p": r.top_p, "top_k": r.top_k, "min_p": r.min_p,
        "typical_p": r.typical_p, "min_tokens": r.min_tokens,
        "frequency_penalty": r.frequency_penalty, "presence_penalty": r.presence_penalty,
        "repetition_penalty": r.repetition_penalty, "ignore_eos": r.ignore_eos,
        "skip_special_tokens": r.skip_special_tokens, "include_stop": r.include_stop_str_in_output,
        "grammar": grammar_of(r),
    }  # fmt: skip
    given |= more | _candidates(r, service, more.get("logprobs"))
    params = SamplingParams(
        stop=stop,
        stop_token_ids=tuple(r.stop_token_ids or ()),
        bad_words=_bad_words(r.bad_words or [], service.tokenizer),
        logit_bias=_logit_bias(r.logit_bias or {}),
        seed=_seed(r.seed),
        **{name: value for name, value in given.items() if value is not None},
    )
    return marked(service, key, r.watermark, params)


def shown(r: OpenAIRequest) -> int:
    """Choices of an answer."""
    return 1 if r.n is None else r.n


def _candidates(r: OpenAIRequest, service: Service, logprobs: int | None) -> dict[str, Any]:
    """What is computed for the choices: `best_of` answers, or beams. Answers are ranked by their logprobs."""
    n = shown(r)
    count = n if r.best_of is None else r.best_of
    service.check_limits(count, 0, "best_of")
    if count < n:
        raise InvalidRequest(f"best_of must be at least n, which is {n}; it is {count}", "best_of")
    if r.use_beam_search:
        if not 2 <= count <= MAX_BEAMS:
            raise InvalidRequest(f"beam search has best_of beams, or else n: 2 to {MAX_BEAMS}, not {count}", "best_of")
        return {"n": n, "beams": count, "length_penalty": r.length_penalty, "early_stopping": r.early_stopping}
    for name, neutral in (("length_penalty", 1), ("early_stopping", False)):
        if getattr(r, name) not in (None, neutral):
            raise InvalidRequest(f"{name} is for beam search; set use_beam_search to true, or leave it out", name)
    if count > n and r.stream:
        raise InvalidRequest("best_of above n is not available in streams; use stream: false", "best_of")
    return {"n": count, "logprobs": 0 if count > n and logprobs is None else logprobs}


def _bad_words(words: list[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The ids of each word as a text begins with it, and as it follows a space."""
    forms: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for form in (bare, f" {bare}") if bare else (word,):
            forms[tuple(tokenizer.encode(form, add_special=False))] = None
    return tuple(forms)


def _logit_bias(given: dict[str, float]) -> dict[int, float]:
    bias = {}
    for token, value in given.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise InvalidRequest(
                f"logit_bias maps token ids to numbers; {token[:40]!r} is not a token id", "logit_bias"
            )
        if not -100 <= value <= 100:
            raise InvalidRequest(f"logit_bias of token {token} must be -100 to 100, is {value}", "logit_bias")
        bias[int(token)] = value
    return bias


def _seed(seed: int | None) -> int | None:
    """OpenAI's seeds are signed 64-bit, ours unsigned: the same bits."""
    return seed + (1 << 64) if seed is not None and -(1 << 63) <= seed < 0 else seed


def check_max_tokens(name: str, value: int | None, least: int = 1) -> None:
    """InvalidRequest by the name the client used."""
    if value is not None and value < least:
        raise InvalidRequest(f"{name} must be at least {least}, is {value}", name)


def split_prompts(prompt: str | list[str | int | list[int]], field: str) -> list[str | list[int]]:
    """One entry per prompt of the four shapes: a string, several, token ids, or several lists of them."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest(f"{field} is an empty list; give at least one entry", field)
    if all(isinstance(p, int) for p in prompt):
        return [[p for p in prompt if isinstance(p, int)]]
    if any(isinstance(p, int) for p in prompt) or len({type(p) for p in prompt}) > 1:
        raise InvalidRequest(f"{field} mixes shapes; give strings, or token ids, or lists of token ids", field)
    return [p for p in prompt if not isinstance(p, int)]


def model_record(service: Service, name: str) -> dict[str, Any]:
    """One entry of /v1/models; an alias has the real id as `root`."""
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "ridgeline",
        "root": service.model, "parent": None, "max_model_len": service.info.context,
    }  # fmt: skip


def list_models(service: Service) -> Reply:
    names = (service.model, *service.config.aliases)
    return Reply({"object": "list", "data": [model_record(service, name) for name in names]})


def get_model(service: Service, name: str) -> Reply:
    service.check_model(name)
    return Reply(model_record(service, name))
