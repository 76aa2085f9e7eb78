"""POST /v1/embeddings: texts or token ids to vectors of unit length.

How many inputs a request has is bounded by its body: they go to the engine as many at once as it runs, and keep their
places until the last has gone.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from ridgeline.engine.params import embedding
from ridgeline.engine.records import check_prompt
from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call
from ridgeline.server.jobs import Job
from ridgeline.server.openai import split_prompts
from ridgeline.server.schema import decode_openai
from ridgeline.server.service import Service
from ridgeline.server.terms import terms_of

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(msgspec.Struct):
    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None


@dataclass(frozen=True)
class Plan:
    """An embedding request, understood."""

    request: EmbeddingRequest
    jobs: list[Job]
    headers: dict[str, str]


async def embeddings(service: Service, call: Call) -> Reply:
    """One vector per input, in their order."""
    plan = await call.stream.run(lambda: understand(service, call.body))
    terms = terms_of(service, call.headers, plan.request.priority, plan.request.cache_salt)
    found: dict[int, bytes] = {}
    size = service.info.max_requests
    for start in range(0, len(plan.jobs), size):
        part, more = plan.jobs[start : start + size], start + size < len(plan.jobs)
        await call.stream.run(partial(call.stream.submit, part, terms, more))
        async for batch in call.stream.batches():
            found |= {start + event.job: event.delta.vector for event in batch if event.delta.vector}
    vectors = [found[i] for i in range(len(plan.jobs))]
    return Reply(await call.stream.run(lambda: answer(service, plan, vectors)), headers=plan.headers)


def understand(service: Service, body: bytes) -> Plan:
    """What a body asks for. Typed errors name what is wrong with it."""
    request, headers = decode_openai(body, EmbeddingRequest, service.config.strict)
    service.check_model(request.model)
    if request.encoding_format not in (None, "float", "base64"):
        raise InvalidRequest(
            f"encoding_format must be float or base64, is {request.encoding_format[:40]!r}", "encoding_format"
        )
    if request.dimensions is not None and request.dimensions < 1:
        raise InvalidRequest(f"dimensions must be at least 1, is {request.dimensions}", "dimensions")
    given = split_prompts(request.input, "input")
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(f"input has {len(given)} entries; at most {MAX_INPUTS} are allowed", "input")
    params = embedding(service.config.pooling or "last")
    tokenizer, texts = service.tokenizer, [x for x in given if isinstance(x, str)]
    jobs = []
    for i, one in enumerate(given):
        ids = [*tokenizer.encode(one, add_special=True), *tokenizer.tail] if isinstance(one, str) else one
        try:
            check_prompt(service.info, ids, params)
            service.check_input(len(ids), "input")
        except InvalidRequest as wrong:
            raise type(wrong)(f"input {i}: {wrong}", "input") from None
        jobs.append(Job(ids, params))
    return Plan(request, jobs, service.warned(headers, *texts))


def answer(service: Service, plan: Plan, vectors: Sequence[bytes]) -> dict[str, Any]:
    """The list of vectors: cut to `dimensions`, then of length 1."""
    data = [
        {"object": "embedding", "index": i, "embedding": _shown(vector, plan.request)}
        for i, vector in enumerate(vectors)
    ]
    tokens = sum(len(job.prompt) for job in plan.jobs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": service.model, "usage": usage}


def _shown(vector: bytes, request: EmbeddingRequest) -> str | list[float]:
    values = np.frombuffer(vector, "<f4").astype(np.float64)
    if request.dimensions is not None:
        if request.dimensions > len(values):
            raise InvalidRequest(f"dimensions must be at most {len(values)}, is {request.dimensions}", "dimensions")
        values = values[: request.dimensions]
    length = float(np.linalg.norm(values))
    unit = (values / length if length else values).astype("<f4")
    if request.encoding_format == "base64":
        return base64.b64encode(unit.tobytes()).decode()
    return [float(x) for x in unit]
