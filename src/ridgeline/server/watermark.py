"""The watermark on the wire: what of it a request gets, and POST /watermark/detect, which tries all that this server
marks with.
"""

from __future__ import annotations

from functools import partial

import msgspec

from ridgeline.config import WATERMARKS
from ridgeline.engine.detection import detect
from ridgeline.engine.watermark import PUBLIC_KEY, Watermark, check_watermark
from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Reply
from ridgeline.server.http import Call
from ridgeline.server.schema import DetectRequest, WatermarkScheme, decode
from ridgeline.server.service import Service

MUST, MAY, NEVER = "must", "may", "never"


def watermark_of(
    service: Service, asked: bool | WatermarkScheme | None, policy: str = MAY, key: int = PUBLIC_KEY
) -> Watermark | None:
    """The watermark of a request. `policy` and `key` are those of whoever sent it: with no API keys configured each
    request may choose, and the key is public. InvalidRequest where the policy forbids what is asked.
    """
    wanted = policy == MUST if asked is None else asked is not False
    if wanted and policy == NEVER:
        raise InvalidRequest("answers are never marked for this API key; leave watermark out", "watermark")
    if not wanted and policy == MUST:
        raise InvalidRequest("answers are always marked for this API key; leave watermark out", "watermark")
    if not wanted:
        return None
    scheme = asked.scheme if isinstance(asked, WatermarkScheme) else service.config.watermark_scheme
    return _watermark(service, scheme, key)


def _watermark(service: Service, scheme: str, key: int) -> Watermark:
    mark = Watermark(scheme, service.config.watermark_gamma, service.config.watermark_delta, key)
    check_watermark(mark)
    return mark


async def detect_mark(service: Service, call: Call) -> Reply:
    """POST /watermark/detect: what a text, or its tokens, say of a watermark."""
    return await call.stream.run(partial(_detect, service, call.body))


def _detect(service: Service, body: bytes) -> Reply:
    request, headers = decode(body, DetectRequest)
    tokens = _tokens(request, service)
    schemes = WATERMARKS if request.scheme is None else (request.scheme,)
    found = detect(tokens, [_watermark(service, scheme, PUBLIC_KEY) for scheme in schemes])
    return Reply(msgspec.to_builtins(found), headers=headers)


def _tokens(request: DetectRequest, service: Service) -> list[int]:
    if (request.text is None) == (request.token_ids is None):
        raise InvalidRequest("give either text or token_ids", "text")
    if request.text is not None:
        return service.tokenizer.encode(request.text, add_special=False)
    ids = request.token_ids or []
    outside = next((t for t in ids if not 0 <= t < service.info.vocab), None)
    if outside is not None:
        raise InvalidRequest(f"token_ids has {outside}, outside the vocabulary of {service.info.vocab}", "token_ids")
    return ids
