"""KServe's v2 protocol as TGI speaks it: what is served, whether it is well, and POST .../infer.

Texts go in and come out as lists of bytes. A model has one version here, which goes by any name; with `--tgi-strict`,
as with TGI, so does the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ridgeline import __version__
from ridgeline.errors import InvalidRequest, RidgelineError
from ridgeline.server import tgi
from ridgeline.server.errors import Reply, TGIErrors
from ridgeline.server.health import health_reply
from ridgeline.server.http import Call, as_response
from ridgeline.server.hub import Hub
from ridgeline.server.schema import GenerateRequest, Parameters, decode_tgi
from ridgeline.server.service import Service
from ridgeline.server.several import Asked, texts
from ridgeline.server.terms import terms_of

MODEL = "/v2/models/{model:path}/versions/{version}"
INFER = f"{MODEL}/infer"
_MODEL_OF = re.compile(r"/v2/models/(.*)/versions/[^/]+/infer", re.DOTALL)

_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Size = Annotated[int, msgspec.Meta(ge=0)]


class InputTensor(msgspec.Struct):
    """A text in UTF-8: `data` are its bytes, whatever `shape` and `datatype` make of them."""

    name: str
    shape: list[_Size]
    datatype: str
    data: list[_Byte]


class OutputName(msgspec.Struct):
    name: str


class InferRequest(msgspec.Struct):
    """An answer of the name of each output is asked for, to the input in the same place."""

    id: str
    inputs: list[InputTensor]
    outputs: list[OutputName]
    parameters: Parameters | None = None


class NotUTF8(InvalidRequest):
    """TGI's own word for it."""

    kind = "utf8"


class LengthMismatch(InvalidRequest):
    """TGI's own word for it."""

    kind = "length mismatch"


def routes(service: Service, hub: Hub) -> list[Route]:
    """All but infer, which reaches the model."""

    def server(model: str, version: str) -> Reply:
        return _about("ridgeline", __version__, "health", "models", "metrics")

    def live(model: str, version: str) -> Reply:
        return Reply({"live": True})

    def ready(model: str, version: str) -> Reply:
        reply = health_reply(hub)
        return Reply({"live": True}) if reply.status == 200 else reply

    def about(model: str, version: str) -> Reply:
        return _about(model, version, "infer", "ready")

    handlers = {
        "/v2": server,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        MODEL: about,
        f"{MODEL}/ready": ready,
    }
    return [Route(path, _answered(service, handler), methods=["GET"]) for path, handler in handlers.items()]


async def infer(service: Service, call: Call) -> Reply:
    """POST .../infer: a generated text for each input."""
    request, headers = await call.stream.run(partial(_read, service, call))
    found = [text.encode() for text in await texts(call, partial(_asked, service, call, request), headers)]
    outputs = [
        {"name": output.name, "shape": [1, len(text)], "datatype": "BYTES", "data": list(text)}
        for output, text in zip(request.outputs, found, strict=True)
    ]
    return Reply({"id": request.id, "outputs": outputs}, headers=headers)


def _read(service: Service, call: Call) -> tuple[InferRequest, dict[str, str]]:
    named = _MODEL_OF.match(call.stream.record.path)  # routes may end with a line break
    assert named is not None, "the route has another path"
    _check_model(service, named[1])
    request, headers = decode_tgi(call.body, InferRequest)
    if len(request.inputs) != len(request.outputs):
        counts = f"{len(request.inputs)} inputs and {len(request.outputs)} outputs"
        raise LengthMismatch(f"there are {counts}; give an output for each input", "outputs")
    if not request.inputs:
        raise InvalidRequest("inputs must not be empty", "inputs")
    service.check_batch(len(request.inputs), "inputs")
    return request, headers


def _asked(service: Service, call: Call, request: InferRequest) -> list[Asked]:
    terms = terms_of(service, call.headers)
    given = [GenerateRequest(_text(i, tensor), request.parameters) for i, tensor in enumerate(request.inputs)]
    plans = [tgi.understand(service, one, False, {}, call.key) for one in given]
    return [Asked(plan.job, plan.prefix, plan.headers, terms) for plan in plans]


def _text(index: int, tensor: InputTensor) -> str:
    try:
        return bytes(tensor.data).decode()
    except UnicodeDecodeError as wrong:
        raise NotUTF8(f"inputs[{index}] is not valid UTF-8 at byte {wrong.start}", "inputs") from None


def _check_model(service: Service, name: str) -> None:
    if not service.config.tgi_strict:
        service.check_model(name)


def _about(name: str, version: str, *extensions: str) -> Reply:
    return Reply({"name": name, "version": version, "extensions": extensions})


def _answered(
    service: Service, handler: Callable[[str, str], Reply]
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """`handler` gets the names of a model and a version, where the path has them."""

    async def answer(asked: Request) -> Response:
        model, version = (asked.path_params.get(name, "") for name in ("model", "version"))
        try:
            if "model" in asked.path_params:
                _check_model(service, model)
            return as_response(handler(model, version))
        except RidgelineError as error:
            return as_response(TGIErrors().reply(error))

    return answer
