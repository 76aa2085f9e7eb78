"""A fake engine client and a bare ASGI client: the server's tests need neither a model nor an HTTP library.

The fake answers with scripted bytes, one token per pump, through the real ledger and the real text side, so refusals,
stop strings and cancellations are the engine's own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import tokenizers
import uvicorn
from starlette.applications import Starlette
from tokenizers import decoders, models, pre_tokenizers

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.engine.ledger import Ledger, Places, Sink
from ridgeline.engine.output import ChoiceText
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import (
    CANCELLED,
    EMBEDDED,
    EOS,
    FAILED,
    LENGTH,
    NO_TERMS,
    STOP,
    Delta,
    EngineInfo,
    GroupInfo,
    Submit,
    Terms,
    Token,
)
from ridgeline.server.app import create_app
from ridgeline.text.tokenizer import SpecialTokens, Tokenizer

MODEL = "smollm2-135m"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if shout is defined %}!{{ shout }}!{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EOS_TEXT = "<|end|>"
ANSWER = "Hi wörld, bye."


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """One token per byte, and one special token that ends an answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(EOS_TEXT, special=True)])
    eos = len(letters)
    return Tokenizer(backend, SpecialTokens(eos_ids=frozenset({eos}), eos_token=EOS_TEXT, chat_template=template))


def engine_info(context: int = 200) -> EngineInfo:
    return EngineInfo(
        model="fake", vocab=257, context=context, pages=10_000, page_bytes=1, groups=(GroupInfo("all", 0),),
        step_tokens=64, step_ms=0, max_requests=8, queue=8, depth=1, admission="overcommit", policy="fcfs",
        backend="fake", format="f32", activations="float32",
        kv_format="f32", threads=1, weight_bytes=1, program="program-hash", load_seconds=0.0,
    )  # fmt: skip


class FakeClient:
    """EngineClient whose every choice says `answer` and ends with EOS. `gate` cleared holds all tokens back.

    `crash_at` ends every choice as failed at that token; `explode` makes pump raise; `pace` is seconds per token; `ran`
    are those that a first token says its choice took.
    """

    def __init__(self, tokenizer: Tokenizer, answer: str | bytes = ANSWER, context: int = 200) -> None:
        self.info, self.compiler = engine_info(context), None
        self.gate = threading.Event()
        self.gate.set()
        self.crash_at, self.explode, self.pace, self.ran = -1, False, 0.0, 0.0
        self.problem: str | None = None
        self.restarts = 0
        self.read = (0, 0)  # of every prompt
        self.submitted: list[Submit] = []
        self.cancelled: list[int] = []
        self.reasons: dict[int, str] = {}  # of cancellations
        self.paused: set[int] = set()
        self.pauses = 0
        self.finished: list[tuple[int, int, str]] = []
        self._tokenizer = tokenizer
        script = tokenizer.encode(answer, add_special=False) if isinstance(answer, str) else byte_ids(tokenizer, answer)
        self._script = [*script, *tokenizer.eos_ids]
        self.ledger = Ledger(self.info)
        self.ledger.why, self.ledger.progress = self._why, lambda id: self.read
        self._lock = threading.Lock()
        self._running: dict[tuple[int, int], tuple[Submit, ChoiceText, int]] = {}

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int:
        request = self.ledger.accept(prompt, params, sink, terms, places)
        with self._lock:
            self.submitted.append(request)
            for choice in range(params.n):
                self._running[request.id, choice] = (request, ChoiceText(self._tokenizer, params), 0)
        return request.id

    def cancel(self, id: int, reason: str = CANCELLED) -> None:
        with self._lock:
            self.reasons.setdefault(id, reason)  # first: `pump` looks without the lock
            self.cancelled.append(id)

    def pause(self, id: int) -> None:
        with self._lock:
            self.paused.add(id)
            self.pauses += 1

    def resume(self, id: int) -> None:
        with self._lock:
            self.paused.discard(id)

    def pump(self, timeout: float) -> None:
        if self.explode:
            raise RuntimeError("the fake exploded")
        with self._lock:
            running = dict(self._running)
        for (id, choice), (request, text, at) in running.items():
            if id in self.cancelled:
                self._deliver(Delta(id, choice, (), text.flush(), self.reasons[id]))
            elif self.gate.is_set() and id not in self.paused:
                self._deliver(self._advance(request, choice, text, at))
        idle = not running or not self.gate.is_set()
        time.sleep(min(timeout, 0.002) if idle else self.pace)

    def _advance(self, request: Submit, choice: int, text: ChoiceText, at: int) -> Delta:
        p, id = request.params, request.id
        if at == self.crash_at:
            return Delta(id, choice, (), "", FAILED)
        if p.embed:
            size = len(request.prompt)
            return Delta(id, choice, (), "", EMBEDDED, vector=struct.pack("<3f", 3, 4, 0 if size == 1 else size))
        chosen = self._script[at % len(self._script)]
        prompt = None
        if p.prompt_logprobs and choice == 0 and at == 0:
            prompt = tuple(self._token(t, -2.0, p) for t in request.prompt[1:])
        finish, shown = None, ""
        if chosen in p.stop_token_ids:
            finish = STOP
        elif chosen in self._tokenizer.eos_ids and not p.ignore_eos:
            finish = EOS
        else:
            shown, stopped = text.push(chosen)
            finish = STOP if stopped else None
        if finish is None and at + 1 == (p.max_tokens or self.info.context - len(request.prompt)):
            finish = LENGTH
        shown += text.flush() if finish else ""
        with self._lock:
            self._running[id, choice] = (request, text, at + 1)
        token = self._token(chosen, -0.5 - choice, p)
        return Delta(id, choice, (token,), shown, finish, prompt, ran=0.0 if at else self.ran)

    def _token(self, id: int, logprob: float, p: SamplingParams) -> Token:
        if p.logprobs is None:
            return Token(id)
        return Token(id, logprob, tuple((other, -0.5 - other) for other in range(p.logprobs)))

    def _deliver(self, delta: Delta) -> None:
        if delta.finish is not None:
            self.finished.append((delta.id, delta.choice, delta.finish))
            with self._lock:
                del self._running[delta.id, delta.choice]
        self.ledger.deliver(delta)

    def _why(self, id: int) -> list[str]:
        return [f"choice 0 is number {id} of the fake"] if any(s.id == id for s in self.submitted) else []

    @property
    def idle(self) -> bool:
        return self.ledger.empty

    @property
    def choices(self) -> int:
        return self.ledger.choices

    def gone(self) -> str | None:
        return self.problem

    def unhealthy(self) -> str | None:
        return self.problem

    def close(self) -> None:
        self.ledger.fail_all(CANCELLED)


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The ids of raw bytes, valid UTF-8 or not."""
    by_byte = {tokenizer.token_bytes(id): id for id in range(256)}
    return [by_byte[bytes([b])] for b in data]


@dataclass
class Answer:
    """What an ASGI app sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data lines of a stream; [DONE] stays a string."""
        lines = [x.removeprefix("data: ") for x in self.body.decode().split("\n\n") if x.startswith("data: ")]
        return [x if x == "[DONE]" else json.loads(x) for x in lines]


@dataclass
class Server:
    """An app over a fake client. `client` records what reached it."""

    client: FakeClient
    app: Starlette

    @classmethod
    def new(
        cls, answer: str | bytes = ANSWER, template: str | None = TEMPLATE, policy: str = "fcfs", context: int = 200,
        **config: Any,
    ) -> Server:  # fmt: skip
        tokenizer = byte_tokenizer(template)
        client = FakeClient(tokenizer, answer, context)
        client.info = msgspec.structs.replace(client.info, policy=policy)
        settings = ServerConfig(EngineConfig("fake", backend="reference"), **{"aliases": ("nick",), **config})
        return cls(client, create_app(client, tokenizer, settings, "fake-model"))

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        """One request in an app of its own life; `body` is JSON unless it is bytes."""
        return asyncio.run(self._alone("POST", path, body, **options))

    def get(self, path: str, method: str = "GET") -> Answer:
        return asyncio.run(self._alone(method, path, b""))

    async def _alone(self, method: str, path: str, body: Any, **options: Any) -> Answer:
        async with self.running():
            return await self.ask(method, path, body, **options)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The app's lifespan. A hub lives once, so an app does too."""
        async with self.app.router.lifespan_context(self.app):
            yield

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        leave: Callable[[Answer], bool] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        client: str = "127.0.0.1",
        content_type: str | None = "application/json",
    ) -> Answer:
        """A request to the running app. The client disconnects once `leave(answer so far)` holds."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        typed = [(b"content-type", content_type.encode())] if content_type is not None else []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [*typed, *headers], "server": ("test", 80), "client": (client, 1),
        }  # fmt: skip
        answer, given = Answer(), False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": data, "more_body": False}
            while leave is None or not leave(answer):
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert answer.status == 0, "two answers to one request"
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode("latin-1") for k, v in message["headers"]}
            else:
                answer.body += message.get("body", b"")

        await self.app(scope, receive, send)
        return answer


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something another thread does."""
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen in time")


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The URL of an app on a free port of its own, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def engine_config() -> EngineConfig:
    """The native backend where it is built, else the oracle; exact activations in both."""
    native = importlib.util.find_spec("ridgeline.backends.cpu._native") is not None
    return EngineConfig(
        model=MODEL, backend="cpu" if native else "reference", activations="float32", kv_format="f32",
        kv_memory=200 << 20, context=512, threads=1,
    )  # fmt: skip
