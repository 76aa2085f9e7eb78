"""A live server over the default model, shared by the tests that need real answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from serving import MODEL, engine_config

from ridgeline.config import CacheConfig, ServerConfig
from ridgeline.engine.process import ProcessClient
from ridgeline.errors import RidgelineError
from ridgeline.server.app import create_app
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights import hub
from ridgeline.weights.load import open_checkpoint


@pytest.fixture(scope="session")
def model_file() -> hub.ResolvedModel:
    """The default model, fetched if need be."""
    try:
        return hub.resolve(MODEL, cache=CacheConfig.from_env().path)
    except RidgelineError as why:
        pytest.skip(f"the default model cannot be had: {why}")


@dataclass(frozen=True)
class Live:
    """A server listening on loopback in a thread, its engine in a child process."""

    url: str
    client: ProcessClient


@pytest.fixture(scope="session")
def live(model_file: hub.ResolvedModel) -> Iterator[Live]:
    config = engine_config()
    client = ProcessClient(config)
    tokenizer = from_gguf(open_checkpoint(model_file.path).metadata)
    app = create_app(client, tokenizer, ServerConfig(config), MODEL)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", client)
    server.should_exit = True
    thread.join(20)
    client.close()
