"""The app: routes to handlers, and a server process around it.

`create_app` builds the ASGI app over any EngineClient; `serve` loads a model in a child process and listens.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from itertools import count
from types import FrameType
from urllib.parse import quote

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ridgeline.config import ServerConfig
from ridgeline.engine.client import EngineClient
from ridgeline.engine.load import find, tokenizer_of
from ridgeline.engine.process import ProcessClient
from ridgeline.errors import ConfigError, RidgelineError
from ridgeline.guidance.compiler import Compiler
from ridgeline.server import debug, openai, tgi
from ridgeline.server.chat import chat
from ridgeline.server.completions import completions
from ridgeline.server.errors import ErrorShape, NoRoute, OpenAIErrors, Reply, TGIErrors, Unhealthy
from ridgeline.server.http import Endpoint
from ridgeline.server.hub import Hub
from ridgeline.server.schema import REASON_HEADER
from ridgeline.server.service import Service, public_name
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.fetch import Progress

GRACE_S = 10  # how long a shutdown lets running answers go on
SEND_BYTES = 256 << 10  # the system's own buffer of a connection, in which what nobody reads waits unseen


def create_app(client: EngineClient, tokenizer: Tokenizer, config: ServerConfig, model_name: str) -> Starlette:
    """The ASGI app. It pumps `client` between lifespan's startup and shutdown; closing the client is the caller's."""
    if client.compiler is None:
        client.compiler = Compiler(tokenizer, client.info.vocab)
    hub = Hub(client, config.max_undelivered, config.max_pause)
    service = Service(client.info, tokenizer, config, model_name)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        hub.start()
        try:
            yield
        finally:
            hub.stop()

    app = Starlette(
        routes=[*_posts(service, hub), *_gets(service, hub), *debug.routes(hub)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_route, Exception: _unforeseen},
    )
    app.router.redirect_slashes = False
    app.state.hub = hub
    return app


def _posts(service: Service, hub: Hub) -> list[Route]:
    handlers = {
        "/v1/chat/completions": chat, "/v1/completions": completions,
        "/": tgi.legacy, "/generate": tgi.generate, "/generate_stream": tgi.generate_stream,
    }  # fmt: skip
    limit = service.config.max_body_bytes
    return [
        Route(path, Endpoint(hub, partial(handler, service), _shape(path), limit), methods=["POST"])
        for path, handler in handlers.items()
    ]


def _gets(service: Service, hub: Hub) -> list[Route]:
    async def health(request: Request) -> Response:
        problem = hub.problem
        if problem is None:
            return Response()
        reply = TGIErrors().reply(Unhealthy("unhealthy"))  # TGI's own words; ours say why
        return _response(replace(reply, headers={**reply.headers, REASON_HEADER: quote(problem, safe=" ,.:;()'")}))

    async def info(request: Request) -> Response:
        return _response(tgi.info(service))

    async def models(request: Request) -> Response:
        return _response(openai.list_models(service))

    async def model(request: Request) -> Response:
        try:
            return _response(openai.get_model(service, request.path_params["id"]))
        except RidgelineError as error:
            return _response(OpenAIErrors().reply(error))

    paths = {
        "/": health, "/health": health, "/ping": health, "/info": info,
        "/v1/models": models, "/v1/models/{id:path}": model,
    }  # fmt: skip
    return [Route(path, handler, methods=["GET"]) for path, handler in paths.items()]


def _shape(path: str) -> ErrorShape:
    return OpenAIErrors() if path.startswith("/v1/") else TGIErrors()


def _response(reply: Reply) -> Response:
    body = msgspec.json.encode(reply.body)
    return Response(body, reply.status, dict(reply.headers), media_type="application/json")


async def _no_route(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    message = f"there is no route {what}" if fault.status_code == 404 else f"{what}: {fault.detail}"
    reply = _shape(request.url.path).reply(NoRoute(message, fault.status_code))
    response = _response(reply)
    response.headers.update(fault.headers or {})
    return response


async def _unforeseen(request: Request, fault: Exception) -> Response:
    return _response(_shape(request.url.path).reply(NoRoute("the server failed on this request", 500)))


def serve(config: ServerConfig, progress: Progress | None = None) -> None:
    """Load the model in a child process and serve it until SIGINT or SIGTERM. Prints one line with the URL."""
    listener = listen(config)
    try:
        name, tokenizer = _open_tokenizer(config, progress)
        client = ProcessClient(config.engine)
        try:
            app = create_app(client, tokenizer, config, name)
            server = uvicorn.Server(
                uvicorn.Config(
                    app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2 * GRACE_S
                )
            )
            stop_gently(server, app.state.hub)
            listener.listen()
            for note in client.info.notes:
                print(f"ridgeline: {note}", file=sys.stderr, flush=True)
            print(f"ridgeline serves {name} at {_url(listener)}", flush=True)
            server.run(sockets=[listener])
        finally:
            client.close()
    finally:
        listener.close()


def listen(config: ServerConfig) -> socket.socket:
    """Bound before the model is loaded, so that a taken port is known at once, but not listening: until the server is
    ready, connections are refused. Port 0 takes a free one.

    A connection whose peer takes nothing is closed after twice `max_pause`: once for the request, once for its error.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # connections inherit these
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * config.max_pause))
    try:
        listener.bind((config.host, config.port))
        return listener
    except (OSError, OverflowError) as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"cannot listen on {where}: {error}; choose another --port or --host") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _open_tokenizer(config: ServerConfig, progress: Progress | None) -> tuple[str, Tokenizer]:
    """The model's public name (never a path of this machine) and its tokenizer."""
    found = find(config.engine.model, progress)
    return public_name(found), tokenizer_of(found)


def stop_gently(server: uvicorn.Server, hub: Hub) -> None:
    """The first SIGINT or SIGTERM gives running answers GRACE_S; a second one ends them at once. Streams are told."""

    signals = count()  # atomic: a signal may arrive while the handler of another runs

    def stop(number: int, frame: FrameType | None) -> None:
        hub.end_soon(0 if next(signals) else GRACE_S)
        server.should_exit = True

    server.handle_exit = stop  # type: ignore[method-assign]
