"""The app: routes to handlers, and a server process around it.

`create_app` builds the ASGI app over any EngineClient; `serve` loads a model in a child process and listens.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from ridgeline.config import AccessConfig, ServerConfig, one_text_thread
from ridgeline.engine.client import EngineClient
from ridgeline.engine.load import find, tokenizer_of
from ridgeline.engine.process import ProcessClient
from ridgeline.errors import ConfigError, RidgelineError
from ridgeline.guidance.compiler import Compiler
from ridgeline.server import debug, kserve, openai, tgi
from ridgeline.server.access import Access, is_loopback
from ridgeline.server.chat import chat
from ridgeline.server.clouds import invocations, vertex
from ridgeline.server.completions import completions
from ridgeline.server.document import document, page
from ridgeline.server.embeddings import embeddings
from ridgeline.server.errors import ErrorShape, NoRoute, OpenAIErrors, Reply, shape_of
from ridgeline.server.exposition import CONTENT_TYPE
from ridgeline.server.front import Front
from ridgeline.server.gentle import GentleServer
from ridgeline.server.health import health_reply
from ridgeline.server.http import Call, Endpoint, Events, as_response
from ridgeline.server.hub import Hub
from ridgeline.server.keys import KeyRing
from ridgeline.server.log import told
from ridgeline.server.observe import observers
from ridgeline.server.patience import ignore_lost_peers, patient
from ridgeline.server.record import REQUEST_ID
from ridgeline.server.schema import WARNING_HEADER
from ridgeline.server.service import Service, public_name, sha_of
from ridgeline.server.strict import OPEN_ROUTES, StrictErrors, strictly, tgi_models
from ridgeline.server.tgi_tokens import chat_tokenize
from ridgeline.server.tokens import detokenize, tokenize
from ridgeline.server.tracing import packages
from ridgeline.server.watermark import detect_mark
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.fetch import Progress
from ridgeline.weights.hub import ResolvedModel
from ridgeline.weights.load import open_checkpoint
from ridgeline.weights.pooling import pooling_of_folder, pooling_of_gguf

log = logging.getLogger(__name__)
_UVICORN_LOG = {"debug": "debug", "error": "error"}  # of less than warnings, nothing but on demand
FLUSH_S = 10  # how long a shutdown lets what was said last go out
SEND_BYTES = 256 << 10  # the system's own buffer of a connection, in which what nobody reads waits unseen


def create_app(
    client: EngineClient, tokenizer: Tokenizer, config: ServerConfig, model_name: str, model_sha: str | None = None
) -> Starlette:
    """The ASGI app. It pumps `client` between lifespan's startup and shutdown; closing the client is the caller's.

    `model_sha`: of the model's file or snapshot, where it is known.
    """
    if config.disable_grammar_support:
        client.compiler = None
    elif client.compiler is None:
        client.compiler = Compiler(tokenizer, client.info.vocab)
    hub = Hub(client, config.max_undelivered, config.max_pause)
    service = Service(client.info, tokenizer, config, model_name, sha=model_sha)
    keyed = bool(config.access.api_keys or config.access.api_key)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        hub.start()
        try:
            yield
        finally:
            hub.stop()

    access = Access(config.access, hub, config.health_route, OPEN_ROUTES if config.tgi_strict else ())
    shape = partial(_shape, strict=config.tgi_strict)
    posts = _posts(service, hub, access.keys)
    routes = [Route(path, post, methods=["POST"]) for path, post in posts.items()]
    app = Starlette(
        routes=[*routes, *_gets(service, hub), *debug.routes(hub, local_only=not keyed)],
        middleware=[*_cors(config.access), Middleware(Front, access, observers(config, hub), shape, posts)],
        lifespan=lifespan,
        exception_handlers={HTTPException: partial(_no_route, shape), Exception: partial(_unforeseen, shape)},
    )
    app.router.redirect_slashes = False
    app.state.hub = hub
    return app


def _cors(access: AccessConfig) -> list[Middleware]:
    if not access.cors_allow_origin:
        return []
    shown = [REQUEST_ID, WARNING_HEADER, "retry-after", "retry-after-ms"]
    allowed = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": shown}
    return [Middleware(CORSMiddleware, allow_origins=list(access.cors_allow_origin), **allowed)]


def _posts(service: Service, hub: Hub, keys: KeyRing) -> dict[str, Endpoint]:
    handlers: dict[str, Callable[[Service, Call], Awaitable[Reply | Events]]] = {
        "/v1/chat/completions": chat, "/v1/completions": completions,
        "/v1/embeddings": embeddings, "/detokenize": detokenize,
        "/": tgi.legacy, "/generate": tgi.generate, "/generate_stream": tgi.generate_stream,
        "/tokenize": tokenize, "/chat_tokenize": chat_tokenize, "/invocations": invocations, "/vertex": vertex,
        "/watermark/detect": partial(detect_mark, keys), kserve.INFER: kserve.infer,
    }  # fmt: skip
    if route := service.config.predict_route:
        handlers[route] = vertex
    limit, strict = service.config.payload_limit, service.config.tgi_strict
    if strict:
        handlers |= {path: strictly(handlers[path]) for path in ("/v1/chat/completions", "/v1/completions")}
    return {
        path: Endpoint(hub, partial(handler, service), _shape(path, strict), limit)
        for path, handler in handlers.items()
    }


def _gets(service: Service, hub: Hub) -> list[Route]:
    async def health(request: Request) -> Response:
        return as_response(health_reply(hub))

    async def metrics(request: Request) -> Response:
        return Response(hub.metrics.text(hub.client, hub.problem is None), headers={"content-type": CONTENT_TYPE})

    async def info(request: Request) -> Response:
        return as_response(tgi.info(service))

    async def openapi(request: Request) -> Response:
        return as_response(Reply(document(service)))

    async def docs(request: Request) -> Response:
        return HTMLResponse(page(service))

    async def models(request: Request) -> Response:
        return as_response((tgi_models if service.config.tgi_strict else openai.list_models)(service))

    async def model(request: Request) -> Response:
        try:
            return as_response(openai.get_model(service, request.path_params["id"]))
        except RidgelineError as error:
            return as_response(_shape("/v1/models", service.config.tgi_strict).reply(error))

    paths = {
        "/": health, "/health": health, "/ping": health, "/info": info, "/metrics": metrics,
        "/v1/models": models, "/v1/models/{id:path}": model,
        "/openapi.json": openapi, "/api-doc/openapi.json": openapi, "/docs": docs,
    }  # fmt: skip
    if route := service.config.health_route:
        paths[route] = health
    return [*(Route(path, handler, methods=["GET"]) for path, handler in paths.items()), *kserve.routes(service, hub)]


def _shape(path: str, strict: bool) -> ErrorShape:
    """How errors of this route are spelt; `strict`: as TGI does it."""
    shape = shape_of(path, strict)
    return StrictErrors() if strict and isinstance(shape, OpenAIErrors) else shape


async def _no_route(shape: Callable[[str], ErrorShape], request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    what = f"{request.method} {request.url.path[:200]}"
    message = f"there is no route {what}" if fault.status_code == 404 else f"{what}: {fault.detail}"
    reply = shape(request.url.path).reply(NoRoute(message, fault.status_code))
    response = as_response(reply)
    response.headers.update(fault.headers or {})
    if fault.status_code == 405:  # Starlette names the methods of the first route of this path alone
        here = [x for x in request.app.routes if x.matches(request.scope)[0] is not Match.NONE]
        response.headers["allow"] = ", ".join(sorted({method for x in here for method in x.methods}))
    return response


async def _unforeseen(shape: Callable[[str], ErrorShape], request: Request, fault: Exception) -> Response:
    return as_response(shape(request.url.path).reply(NoRoute("the server failed on this request", 500)))


def serve(config: ServerConfig, progress: Progress | None = None) -> None:
    """Load the model in a child process and serve it until SIGINT or SIGTERM. Prints one line with the URL."""
    with told(config.log_format, config.log_level):
        _serve(config, progress)


def _serve(config: ServerConfig, progress: Progress | None) -> None:
    one_text_thread()
    check(config)
    listener = listen(config)
    try:
        found, tokenizer, pooling = _open(config, progress)
        name, config = public_name(found), replace(config, pooling=config.pooling or pooling)
        client = ProcessClient(replace(config.engine, log_json=config.log_format == "json"))
        try:
            app = create_app(client, tokenizer, config, name, sha_of(found))
            server = GentleServer(uvicorn_config(app, config), app.state.hub, config.drain_timeout)
            listener.listen()
            for note in client.info.notes:
                _say(config, logging.INFO, note)
            _say_where(config, name, _url(listener, bool(config.access.tls_cert)))
            ignore_lost_peers()
            server.run(sockets=[listener])
        finally:
            client.close()
    finally:
        listener.close()


def _say(config: ServerConfig, level: int, text: str) -> None:
    """For whoever started the server, whatever the log's level is, or as a line of the log where that is JSON."""
    if config.log_format == "json":
        log.log(level, "%s", text)
    else:
        print(f"ridgeline: {text}", file=sys.stderr, flush=True)


def _say_where(config: ServerConfig, name: str, url: str) -> None:
    said = {"event": "serving", "model": name, "url": url}
    print(json.dumps(said) if config.log_format == "json" else f"ridgeline serves {name} at {url}", flush=True)


def uvicorn_config(app: Starlette, config: ServerConfig) -> uvicorn.Config:
    """How uvicorn serves an app. ConfigError for TLS that cannot be used."""
    access = config.access
    lines: dict[str, Any] = {"log_config": None} if config.log_format == "json" else {}  # else uvicorn has its own
    settings = uvicorn.Config(
        app, http=patient(config.max_pause), log_level=_UVICORN_LOG.get(config.log_level, "warning"),
        access_log=False, lifespan="on", timeout_graceful_shutdown=FLUSH_S, ssl_certfile=access.tls_cert or None,
        ssl_keyfile=access.tls_key or None, **lines,
    )  # fmt: skip
    try:
        settings.load()
    except OSError as wrong:  # of ssl too
        raise ConfigError(f"TLS with {Path(access.tls_cert).name!r} cannot be used: {wrong}") from None
    return settings


def check(config: ServerConfig) -> None:
    """ConfigError for what can be known to be wrong before a model is loaded."""
    check_openness(config)
    KeyRing(config.access.api_keys)
    if config.otlp_endpoint:
        packages()
    uvicorn_config(Starlette(), config)


def check_openness(config: ServerConfig) -> None:
    """Say or refuse what would let anybody in."""
    access = config.access
    if access.api_keys or access.api_key or is_loopback(config.hostname):
        return
    if not access.open:
        raise ConfigError(
            f"without API keys the server is for this machine alone, not {config.hostname}; give --api-keys, or --open"
        )
    _say(config, logging.WARNING, f"warning: without API keys everybody who reaches {config.hostname} is served")


def listen(config: ServerConfig) -> socket.socket:
    """Bound before the model is loaded, so that a taken port is known at once, but not listening: until the server is
    ready, connections are refused. Port 0 takes a free one.

    A connection whose peer takes nothing is closed after twice `max_pause`: once for the request, once for its error.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in config.hostname else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # connections inherit these
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * config.max_pause))
    try:
        listener.bind((config.hostname, config.port))
        return listener
    except (OSError, OverflowError) as error:
        where = f"{config.hostname}:{config.port}"
        raise ConfigError(f"cannot listen on {where}: {error}; choose another --port or --hostname") from None


def _url(listener: socket.socket, tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"http{'s' * tls}://" + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _open(config: ServerConfig, progress: Progress | None) -> tuple[ResolvedModel, Tokenizer, str]:
    """The model's files, its tokenizer, and how they pool embeddings, unless that is settled."""
    found = find(config.engine.model, progress)
    if found.kind == "dir":
        pooling = None if config.pooling else pooling_of_folder(found.path)
        return found, tokenizer_of(found), pooling or ""
    checkpoint = open_checkpoint(found.path)
    pooling = None if config.pooling else pooling_of_gguf(checkpoint.metadata)
    return found, tokenizer_of(found, checkpoint), pooling or ""
