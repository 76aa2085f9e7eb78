"""The watermark on the wire: which requests get one, by the policy of their API key, and POST /watermark/detect, which
tries all that this server marks with under one secret: that of the caller's key. With no API keys it is the public one.
"""

from __future__ import annotations

from functools import partial

import msgspec

from ridgeline.config import WATERMARKS
from ridgeline.engine.detection import detect
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.watermark import PUBLIC_KEY, Watermark, check_watermark
from ridgeline.errors import InvalidRequest
from ridgeline.server.errors import Forbidden, Reply
from ridgeline.server.http import Call
from ridgeline.server.keys import POLICIES, Key, KeyRing
from ridgeline.server.schema import DetectRequest, WatermarkScheme, decode
from ridgeline.server.service import Service

MUST, MAY, NEVER = POLICIES
_FOR_KEY = "for this API key, whose policy is"
MARKED_ANYWAY = f"watermark false is not followed: answers are always marked {_FOR_KEY} {MUST!r}"


def marked(
    service: Service, key: Key | None, asked: bool | WatermarkScheme | None, params: SamplingParams
) -> SamplingParams:
    """The same with the watermark that a request gets. InvalidRequest where its API key's policy forbids what is asked,
    or asks for what cannot be.
    """
    mark = watermark_of(service, asked) if key is None else watermark_of(service, asked, key.watermark, key.marks_by)
    if params.beams:
        refuse_unmarked(key, "beam search", "use_beam_search")
    return params if mark is None else msgspec.structs.replace(params, watermark=mark)


def refuse_unmarked(key: Key | None, what: str, field: str) -> None:
    """InvalidRequest where answers are always marked for this key: `what`, asked for by `field`, cannot be."""
    if key is not None and key.watermark == MUST:
        raise InvalidRequest(f"answers are always marked {_FOR_KEY} {MUST!r}, and {what} cannot be", field)


def watermark_of(
    service: Service, asked: bool | WatermarkScheme | None, policy: str = MAY, key: int = PUBLIC_KEY
) -> Watermark | None:
    """The watermark of a request. `policy` and `key` are those of whoever sent it: with no API keys configured each
    request may choose, and the key is public. InvalidRequest where the policy forbids what is asked.
    """
    wanted = policy == MUST if asked is None else asked is not False
    if wanted and policy == NEVER:
        raise InvalidRequest(f"answers are {NEVER} marked {_FOR_KEY} {NEVER!r}; leave watermark out", "watermark")
    if not wanted and policy == MUST:
        raise InvalidRequest(f"answers are always marked {_FOR_KEY} {MUST!r}; leave watermark out", "watermark")
    if not wanted:
        return None
    scheme = asked.scheme if isinstance(asked, WatermarkScheme) else service.config.watermark_scheme
    return _watermark(service, scheme, key)


def _watermark(service: Service, scheme: str, key: int) -> Watermark:
    mark = Watermark(scheme, service.config.watermark_gamma, service.config.watermark_delta, key)
    check_watermark(mark)
    return mark


async def detect_mark(keys: KeyRing, service: Service, call: Call) -> Reply:
    """POST /watermark/detect: what a text, or its tokens, say of a watermark."""
    return await call.stream.run(partial(_detect, keys, service, call))


def _detect(keys: KeyRing, service: Service, call: Call) -> Reply:
    request, headers = decode(call.body, DetectRequest)
    secret = _secret(keys, call.key, request.key)
    tokens = _tokens(request, service)
    schemes = WATERMARKS if request.scheme is None else (request.scheme,)
    found = detect(tokens, [_watermark(service, scheme, secret) for scheme in schemes])
    return Reply(msgspec.to_builtins(found), headers=headers)


def _secret(keys: KeyRing, caller: Key | None, name: str | None) -> int:
    """What texts are tried with: the caller's own, or that of the API key called `name`. Whoever may not have it is not
    told whether there is one.
    """
    if caller is None:
        if name is not None:
            raise InvalidRequest("this server has no API keys; leave key out", "key")
        return PUBLIC_KEY
    if name is None or name == caller.name:
        return caller.marks_by
    if not caller.may("admin"):
        raise Forbidden("the marks of another API key need a key of scope admin; leave key out for those of your own")
    if (other := keys.named(name)) is None:
        raise InvalidRequest(f"there is no API key called {name[:80]!r}", "key")
    return other.marks_by


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
