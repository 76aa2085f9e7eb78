"""TGI's POST /tokenize and /chat_tokenize: what the model reads of a text, token by token.

Offsets are in characters of the text. Parts of one character share its place; a token that no text spells, such as a
BOS, is at 0 to 0.
"""

from __future__ import annotations

from typing import Any

from ridgeline.server.chat import understand
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call
from ridgeline.server.schema import TokenizeRequest, decode_tgi
from ridgeline.server.service import Service


def tokens_of(service: Service, body: bytes) -> Reply:
    """POST /tokenize: the body of /generate, of which `truncate` counts."""
    request, headers = decode_tgi(body, TokenizeRequest)
    keep = request.parameters.truncate if request.parameters else None
    service.check_truncation(keep)
    listed = _tokens(service, request.inputs, add_special=True)
    return Reply(listed[-keep:] if keep else listed, headers=service.warned(headers, request.inputs))


async def chat_tokenize(service: Service, call: Call) -> Reply:
    """POST /chat_tokenize: the body of a chat."""

    def work() -> Reply:
        plan = understand(service, call.body)
        body = {"tokenize_response": _tokens(service, plan.text, add_special=False), "templated_text": plan.text}
        return Reply(body, headers=plan.headers)

    return await call.stream.run(work)


def _tokens(service: Service, text: str, add_special: bool) -> list[dict[str, Any]]:
    spans = service.tokenizer.encode_with_offsets(text, add_special)
    return [{"id": id, "text": text[start:stop], "start": start, "stop": stop} for id, start, stop in spans]
