"""What TGI answers on clouds' own routes: SageMaker's POST /invocations and Vertex AI's POST /vertex.

Both take the bodies of other routes; a body is what its first field of `inputs`, `messages` and `prompt` says it is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.server import tgi
from ridgeline.server.chat import chat
from ridgeline.server.chat import understand as understand_chat
from ridgeline.server.completions import completions
from ridgeline.server.errors import OpenAIErrors, Reply
from ridgeline.server.http import Call, Events
from ridgeline.server.openai import terms
from ridgeline.server.schema import GenerateRequest, decode_object, decode_tgi
from ridgeline.server.service import Service
from ridgeline.server.several import Asked, texts
from ridgeline.server.strict import StrictErrors, strictly
from ridgeline.server.terms import terms_of


async def invocations(service: Service, call: Call) -> Reply | Events:
    """POST /invocations: a body of POST /, of a chat or of a completion, answered as there."""
    raw = decode_object(call.body)
    if "inputs" in raw:
        return await tgi.legacy(service, call)
    if "messages" not in raw and "prompt" not in raw:
        raise InvalidRequest("the body has none of inputs, messages and prompt; give one of them")
    handler, strict = chat if "messages" in raw else completions, service.config.tgi_strict
    answer = await (strictly(handler) if strict else handler)(service, call)
    if not isinstance(answer, Events):
        return answer
    return replace(answer, errors=StrictErrors() if strict else OpenAIErrors())


async def vertex(service: Service, call: Call) -> Reply:
    """POST /vertex: a text per instance. As with TGI, tokens are sampled unless an instance says otherwise."""
    headers: dict[str, str] = {}
    found = await texts(call, partial(_instances, service, call), headers)
    return Reply({"predictions": found}, headers=headers)


def _instances(service: Service, call: Call) -> list[Asked]:
    given = decode_object(call.body).get("instances")
    if not isinstance(given, list) or not given:
        raise InvalidRequest("instances must be a list that is not empty", "instances")
    service.check_batch(len(given), "instances")
    found = []
    for i, raw in enumerate(given):
        try:
            found.append(_instance(service, call, raw))
        except InvalidRequest as wrong:
            raise type(wrong)(f"instances[{i}]: {wrong}", wrong.param) from None
    if any(x.terms != found[0].terms for x in found):
        raise InvalidRequest("instances differ in priority or cache_salt; send them apart", "instances")
    return found


def _instance(service: Service, call: Call, raw: Any) -> Asked:
    if not isinstance(raw, dict) or not raw.keys() & {"inputs", "messages"}:
        raise InvalidRequest("an instance must be an object with inputs or messages", "instances")
    if raw.get("stream"):
        raise InvalidRequest("instances are not streamed; leave stream out", "stream")
    body = msgspec.json.encode(raw)
    if "inputs" not in raw:
        chatted = understand_chat(service, body, key=call.key)
        service.check_input(len(chatted.job.prompt), "messages")
        return Asked(chatted.job, chatted.echo, chatted.headers, terms(service, chatted.request, call.headers))
    request, headers = decode_tgi(body, GenerateRequest)
    if (p := request.parameters) is not None and p.do_sample is None:
        request.parameters = msgspec.structs.replace(p, do_sample=True)
    plan = tgi.understand(service, request, False, headers, call.key)
    return Asked(plan.job, plan.prefix, plan.headers, terms_of(service, call.headers))
