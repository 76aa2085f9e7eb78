"""TGI's own routes: POST / (legacy), /generate, /generate_stream, and GET /info.

Kept from TGI: sampling is on with `do_sample`, with any of temperature, top_k, top_p, typical_p, or without
`parameters`; the stop sequence stays in the text. Token texts join to the generated text (special tokens aside), so
clients may concatenate them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from ridgeline import __version__
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Delta, Token
from ridgeline.errors import ContextExceeded, InvalidRequest
from ridgeline.server import sse
from ridgeline.server.errors import Reply
from ridgeline.server.guided import tgi_grammar
from ridgeline.server.http import Call, Events
from ridgeline.server.hub import THREADS
from ridgeline.server.jobs import Event, Job
from ridgeline.server.keys import Key
from ridgeline.server.record import Record
from ridgeline.server.schema import GenerateRequest, Parameters, decode_tgi, warn
from ridgeline.server.service import Choice, Service, collect
from ridgeline.server.terms import terms_of
from ridgeline.server.watermark import MARKED_ANYWAY, marked
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.tokenizer import Tokenizer

_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class Plan:
    """A request, understood: one job with a choice per candidate of best_of, each with its own seed (None when
    greedy)."""

    inputs: str
    parameters: Parameters
    job: Job
    seeds: list[int | None]
    stream: bool
    headers: dict[str, str]

    @property
    def prompt(self) -> Sequence[int]:
        return self.job.prompt

    @property
    def prefix(self) -> str:
        return self.inputs if self.parameters.return_full_text else ""


async def legacy(service: Service, call: Call) -> Reply | Events:
    """POST /: the body says whether to stream; a whole answer is a list of one."""
    plan = await call.stream.run(partial(_submit, service, call, None))
    if plan.stream:
        return _events(service, plan)
    reply = await _whole(service, plan, call)
    return Reply([reply.body], headers=reply.headers)


async def generate(service: Service, call: Call) -> Reply:
    """POST /generate."""
    return await _whole(service, await call.stream.run(partial(_submit, service, call, False)), call)


async def generate_stream(service: Service, call: Call) -> Events:
    """POST /generate_stream."""
    return _events(service, await call.stream.run(partial(_submit, service, call, True)))


def info(service: Service) -> Reply:
    """GET /info."""
    engine, config = service.info, service.config
    return Reply({
        "model_id": service.model, "model_sha": service.sha, "model_pipeline_tag": "text-generation",
        "model_dtype": engine.format, "model_device_type": "cpu",
        "max_concurrent_requests": engine.max_requests + engine.queue, "max_best_of": config.max_best_of,
        "max_stop_sequences": config.max_stop_sequences, "max_top_n_tokens": config.max_top_n_tokens,
        "max_input_tokens": service.max_input_tokens, "max_total_tokens": service.max_total_tokens,
        "max_batch_size": engine.max_requests, "max_client_batch_size": config.max_client_batch_size,
        "validation_workers": THREADS, "router": "ridgeline", "version": __version__, "sha": None, "docker_label": None,
    })  # fmt: skip


def _submit(service: Service, call: Call, stream: bool | None) -> Plan:
    """`stream` None is POST /, where the body says it."""
    request, headers = decode_tgi(call.body, GenerateRequest)
    if stream is None and service.config.tgi_strict:
        p = request.parameters or Parameters(do_sample=True)
        request.parameters = msgspec.structs.replace(p, return_full_text=_or(p.return_full_text, True))
    plan = understand(service, request, bool(request.stream) if stream is None else stream, headers, call.key)
    if request.stream and stream is False:
        warn(plan.headers, "stream is for POST / and has no effect here")
    warn(plan.headers, *call.stream.check([plan.job]))
    call.stream.submit([plan.job], terms_of(service, call.headers))
    return plan


def understand(
    service: Service, request: GenerateRequest, stream: bool, headers: dict[str, str], key: Key | None
) -> Plan:
    """What a request asks for. InvalidRequest names what is wrong with it."""
    p = request.parameters or Parameters()
    _check(p, service, stream)
    prompt = _prompt(request, p, service)
    seeds = _seeds(p, _samples(request))
    warned = service.warned(headers, request.inputs)
    params = marked(service, key, p.watermark or None, _params(p, seeds))  # TGI's clients send false with every request
    if p.watermark is False and params.watermark is not None:
        warn(warned, MARKED_ANYWAY)
    job = Job(prompt, params)
    return Plan(request.inputs, p, job, seeds, stream, warned)


def _samples(request: GenerateRequest) -> bool:
    p = request.parameters
    if p is None or p.do_sample or p.temperature not in (None, 1.0):
        return True
    return p.top_k is not None or p.top_p is not None or p.typical_p is not None


def _check(p: Parameters, service: Service, stream: bool) -> None:
    """InvalidRequest by TGI's names and rules."""
    limits = {"top_p": 1.0, "typical_p": 1.0, "temperature": None, "repetition_penalty": None}
    for name, high in limits.items():
        value = getattr(p, name)
        if value is not None and (value <= 0 or (high is not None and value >= high)):
            rule = "above 0" if high is None else "above 0 and below 1"
            raise InvalidRequest(f"{name} must be {rule}, is {value}", name)
    for name in ("top_k", "max_new_tokens"):
        value = getattr(p, name)
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1, is {value}", name)
    if p.seed is not None and not 0 <= p.seed <= _U64:
        raise InvalidRequest(f"seed must be 0 to {_U64}, is {p.seed}", "seed")
    service.check_truncation(p.truncate)
    top, most = p.top_n_tokens or 0, service.config.max_top_n_tokens
    if not 0 <= top <= most:
        raise InvalidRequest(f"top_n_tokens must be 0 to {most}, is {top}", "top_n_tokens")
    service.check_limits(1 if p.best_of is None else p.best_of, len(p.stop or ()), "best_of")
    if stream and p.decoder_input_details:
        raise InvalidRequest("decoder_input_details is not available in streams", "decoder_input_details")
    if stream and (p.best_of or 1) > 1:
        raise InvalidRequest("best_of above 1 is not available in streams", "best_of")


def _prompt(request: GenerateRequest, p: Parameters, service: Service) -> list[int]:
    if not request.inputs:
        raise InvalidRequest("inputs must not be empty", "inputs")
    prompt = service.tokenizer.encode(request.inputs, add_special=True)
    prompt = prompt[-p.truncate :] if p.truncate is not None else prompt
    context, new = service.max_total_tokens, p.max_new_tokens or 1
    service.check_input(len(prompt), "inputs")
    if len(prompt) + new > context:
        raise ContextExceeded(
            f"inputs has {len(prompt)} tokens and max_new_tokens is {new}: together {len(prompt) + new}, "
            f"over the limit of {context}",
            "max_new_tokens",
        )
    return prompt


def _seeds(p: Parameters, samples: bool) -> list[int | None]:
    """A seed per candidate."""
    count = p.best_of or 1
    if not samples:
        if count > 1:
            raise InvalidRequest("best_of above 1 needs sampling; set do_sample to true", "best_of")
        return [None]
    if p.seed is not None and count > 1:
        raise InvalidRequest("best_of above 1 and seed exclude each other: candidates must differ", "best_of")
    return [p.seed if p.seed is not None else random.getrandbits(64) for _ in range(count)]


def _params(p: Parameters, seeds: list[int | None]) -> SamplingParams:
    """All candidates; without a seed the only one is greedy. Penalties see the prompt too, as in TGI."""
    drawn = tuple(seed for seed in seeds if seed is not None)
    return SamplingParams(
        max_tokens=p.max_new_tokens,
        temperature=_or(p.temperature, 1.0) if drawn else 0.0,
        top_k=_or(p.top_k, 0),
        top_p=_or(p.top_p, 1.0),
        typical_p=_or(p.typical_p, 1.0),
        repetition_penalty=_or(p.repetition_penalty, 1.0),
        frequency_penalty=_or(p.frequency_penalty, 0.0),
        count_prompt=True,
        n=len(seeds),
        seeds=drawn,
        stop=tuple(p.stop or ()),
        include_stop=True,
        logprobs=p.top_n_tokens or 0,
        prompt_logprobs=bool(p.decoder_input_details),
        grammar=tgi_grammar(p.grammar),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


class _TokenTexts:
    """Token records of one choice, in order. Texts are cut where characters end: a token may show nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer, skip_special=False)

    def records(self, delta: Delta | Choice) -> list[dict[str, Any]]:
        """{id, text, logprob, special} of the delta's tokens; the last one of a choice shows what was held back."""
        shown = [self._record(t.id, t.logprob, self._text.push(t.id)) for t in delta.tokens]
        if delta.finish and shown:
            shown[-1]["text"] += self._text.flush()
        return shown

    def top(self, token: Token) -> list[dict[str, Any]]:
        """The likeliest alternatives at a token's place."""
        return [self._record(id, logprob, self._tokenizer.token_text(id)) for id, logprob in token.top]

    def _record(self, id: int, logprob: float, text: str) -> dict[str, Any]:
        return {"id": id, "text": text, "logprob": logprob, "special": self._tokenizer.is_special(id)}


def _ranked(candidates: list[Choice]) -> list[int]:
    """Their numbers, the likeliest first."""
    return sorted(range(len(candidates)), key=lambda i: -candidates[i].mean_logprob)


async def _whole(service: Service, plan: Plan, call: Call) -> Reply:
    (candidates,) = await collect(call.stream, [len(plan.seeds)])
    order = _ranked(candidates)
    best = candidates[order[0]]
    body: dict[str, Any] = {"generated_text": plan.prefix + best.text}
    if plan.parameters.details or plan.parameters.decoder_input_details:
        prefill = _prefill(service.tokenizer, plan, candidates) if plan.parameters.decoder_input_details else []
        described = [_details(service.tokenizer, plan, candidates[i], plan.seeds[i], prefill) for i in order]
        body["details"] = described[0]
        if len(described) > 1:
            others = zip(described[1:], order[1:], strict=True)
            texts = [{"generated_text": plan.prefix + candidates[i].text, **details} for details, i in others]
            body["details"]["best_of_sequences"] = texts
    return Reply(body, headers={**plan.headers, **timings(call.stream.record, len(plan.inputs), len(best.tokens))})


def _details(
    tokenizer: Tokenizer, plan: Plan, c: Choice, seed: int | None, prefill: list[dict[str, Any]]
) -> dict[str, Any]:
    texts = _TokenTexts(tokenizer)
    top = {"top_tokens": [texts.top(t) for t in c.tokens]} if plan.parameters.top_n_tokens else {}
    return {
        "finish_reason": c.finish, "generated_tokens": len(c.tokens), "seed": seed, "prefill": prefill,
        "tokens": texts.records(c), **top,
    }  # fmt: skip


def _prefill(tokenizer: Tokenizer, plan: Plan, candidates: list[Choice]) -> list[dict[str, Any]]:
    """The prompt's own tokens with their logprobs; the first has none."""
    scores = [None, *(t.logprob for t in candidates[0].prompt or ())]
    pairs = zip(plan.prompt, scores, strict=True)
    return [{"id": id, "text": tokenizer.token_text(id), "logprob": logprob} for id, logprob in pairs]


def timings(record: Record, characters: int, generated: int) -> dict[str, str]:
    """TGI's headers, so far: x-compute-time in seconds, the others in whole ms as TGI has them."""
    now = time.perf_counter()
    inference = now - record.waited_until
    return {
        **_compute(characters),
        "x-compute-time": f"{now - record.begin:.6f}",
        "x-total-time": _ms(now - record.begin),
        "x-validation-time": _ms(record.submitted - record.begin),
        "x-queue-time": _ms(record.waited_until - record.submitted),
        "x-inference-time": _ms(inference),
        "x-time-per-token": _ms(inference / max(generated, 1)),
        "x-prompt-tokens": str(record.prompt),
        "x-generated-tokens": str(generated),
    }


def _ms(seconds: float) -> str:
    return str(int(seconds * 1e3))


def _compute(characters: int) -> dict[str, str]:
    return {"x-compute-type": "cpu", "x-compute-characters": str(characters)}


def _events(service: Service, plan: Plan) -> Events:
    return Events(b"", _Lines(service, plan).event, bytes, {**plan.headers, **_compute(len(plan.inputs))})


class _Lines:
    """A stream's lines, one per token; the last also has the whole text and, if asked, the details."""

    def __init__(self, service: Service, plan: Plan) -> None:
        self._plan, self._texts = plan, _TokenTexts(service.tokenizer)
        self._whole, self._index = plan.prefix, 0

    def event(self, event: Event) -> bytes:
        delta = event.delta
        self._whole += delta.text
        records = zip(delta.tokens, self._texts.records(delta), strict=True)
        return b"".join(sse.data(self._line(delta, token, record)) for token, record in records)

    def _line(self, delta: Delta, token: Token, record: dict[str, Any]) -> dict[str, Any]:
        self._index += 1
        line: dict[str, Any] = {"index": self._index, "token": record}
        if self._plan.parameters.top_n_tokens:
            line["top_tokens"] = self._texts.top(token)
        line |= {"generated_text": None, "details": None}
        if delta.finish is not None and token is delta.tokens[-1]:
            line["generated_text"] = self._whole
            line["details"] = _final(self._plan, delta.finish, self._index) if self._plan.parameters.details else None
        return line


def _final(plan: Plan, finish: str, generated: int) -> dict[str, Any]:
    return {
        "finish_reason": finish, "generated_tokens": generated, "seed": plan.seeds[0], "input_length": len(plan.prompt),
    }  # fmt: skip
