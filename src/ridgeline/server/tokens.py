"""POST /tokenize and /detokenize as vLLM has them: a prompt or a conversation to token ids, and ids back to text.

/tokenize is TGI's too: `inputs` asks for that one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.server.chat import understand
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call
from ridgeline.server.schema import decode_object, decode_openai, fields_of
from ridgeline.server.service import Service
from ridgeline.server.tgi_tokens import tokens_of


class PromptRequest(msgspec.Struct):
    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct):
    tokens: list[int]
    model: str | None = None


async def tokenize(service: Service, call: Call) -> Reply:
    """The ids of a `prompt`, or of the prompt that `messages` and what else a chat request has would make; TGI's
    records of the tokens of `inputs`."""
    return await call.stream.run(lambda: _tokenized(service, call.body))


def _tokenized(service: Service, body: bytes) -> Reply:
    given = fields_of(body)
    if "inputs" in given or service.config.tgi_strict:
        return tokens_of(service, body)
    if "messages" in given:
        raw = decode_object(body)
        shown = bool(raw.pop("return_token_strs", None))
        plan = understand(service, msgspec.json.encode(raw))
        return Reply(_counted(service, list(plan.job.prompt), shown), headers=plan.headers)
    request, headers = decode_openai(body, PromptRequest, service.config.strict)
    service.check_model(request.model)
    ids = service.tokenizer.encode(request.prompt, add_special=request.add_special_tokens is not False)
    found = _counted(service, ids, bool(request.return_token_strs))
    return Reply(found, headers=service.warned(headers, request.prompt))


def _counted(service: Service, ids: list[int], shown: bool) -> dict[str, Any]:
    strings = {"token_strs": [service.tokenizer.token_text(id) for id in ids]} if shown else {}
    return {"count": len(ids), "max_model_len": service.info.context, "tokens": ids, **strings}


async def detokenize(service: Service, call: Call) -> Reply:
    """The text of token ids, special ones included."""
    request, headers = decode_openai(call.body, DetokenizeRequest, service.config.strict)
    service.check_model(request.model)
    outside = next((id for id in request.tokens if not 0 <= id < service.info.vocab), None)
    if outside is not None:
        raise InvalidRequest(f"token id {outside} is outside the vocabulary of {service.info.vocab}", "tokens")
    text = await call.stream.run(lambda: service.tokenizer.decode(request.tokens, skip_special=False))
    return Reply({"prompt": text}, headers=headers)
