"""A server over the real engine and a step that only takes time: what `soak.overload` loads.

    python -m soak.simserver --places 64 --step-ms 100

Prints its port. Ends on SIGTERM, and then prints one line of JSON: what was accepted, and how it ended, in the engine
and for each request by name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.engine import process, worker
from ridgeline.engine.engine import Engine
from ridgeline.engine.executor import LocalExecutor
from ridgeline.engine.ledger import Places, Sink
from ridgeline.engine.output import ChoiceText
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.process import ProcessClient
from ridgeline.engine.records import CANCELLED, FINISHED, NO_TERMS, PAGE, Delta, EngineInfo, GroupInfo, Terms
from ridgeline.ops.sample import MAX_TOP
from ridgeline.program.batch import Batch, BatchLayout, Limits, StepResult
from ridgeline.program.ir import State
from ridgeline.server import app as apps
from ridgeline.server.front import Front
from ridgeline.server.gentle import GentleServer
from ridgeline.server.patience import ignore_lost_peers
from ridgeline.server.record import Record
from server.serving import byte_tokenizer

VOCAB, CONTEXT = 257, 2048
LETTER = 70  # some printable byte's id


class SlowStep:
    """Every token is the same letter, after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, batch: Batch) -> StepResult:
        rows = len(batch["out_rows"])
        time.sleep(self.seconds)
        top = np.full((rows, MAX_TOP), -1, np.int32), np.full((rows, MAX_TOP), -np.inf, np.float32)
        return StepResult(batch.size("step"), np.full(rows, LETTER, np.int32), np.full(rows, -1, np.float32), *top)


@dataclass
class Counts:
    """Of choices, over the life of the server."""

    accepted: int = 0
    ended: int = 0
    twice: int = 0
    tokens: int = 0  # that went out, but for those of answers that the server broke off


class SimClient(ProcessClient):
    """Counts the ends of what it accepts."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.counts, self.finishes = Counts(), Counter[str]()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        terms: Terms = NO_TERMS,
        places: Places | None = None,
    ) -> int:
        done: set[int] = set()
        made = 0

        def watched(delta: Delta) -> None:
            nonlocal made
            made += len(delta.tokens)
            self.counts.tokens += len(delta.tokens)
            if delta.finish is not None and delta.finish not in (*FINISHED, CANCELLED):
                self.counts.tokens -= made
            if delta.finish is not None:
                self.counts.twice += delta.choice in done
                self.counts.ended += delta.choice not in done
                done.add(delta.choice)
                self.finishes[delta.finish] += 1
            sink(delta)

        id = super().submit(prompt, params, watched, terms, places)
        self.counts.accepted += params.n
        return id


def engine(places: int, queue: int, seconds: float) -> Engine:
    limits = Limits(tokens=1024, requests=places, rows=places + 8, pages=CONTEXT // PAGE, vocab=VOCAB, hidden=1)
    layout = BatchLayout.of(limits, [State("kv", 1, 1, 2, window=0)])
    info = EngineInfo(
        model="sim", vocab=VOCAB, context=CONTEXT, pages=places * CONTEXT // PAGE, page_bytes=1,
        groups=(GroupInfo("kv", 0),), step_tokens=1024, step_ms=0, max_requests=places, queue=queue, depth=1,
        admission="overcommit", policy="fcfs", backend="sim", format="f32", activations="float32", kv_format="f32",
        threads=1, weight_bytes=0, program="sim", load_seconds=0.0,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    step = LocalExecutor(SlowStep(seconds))
    return Engine(step, layout, info, frozenset(), lambda request: ChoiceText(tokenizer, request.params))


class Requests:
    """An observer of requests: all ends of each one that was submitted, by the name it came with."""

    def __init__(self) -> None:
        self.ends: dict[str, list[str]] = {}

    def __call__(self, record: Record) -> None:
        if record.submitted:
            self.ends.setdefault(record.id, []).append(record.error or record.finish)


async def _tokens(client: SimClient, request: Request) -> Response:
    return Response(str(client.counts.tokens))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--max-pause", type=float, default=5.0)
    parser.add_argument("--engine", nargs=3, help="be the engine's process, on these")
    args = parser.parse_args()
    if args.engine:
        made = engine(args.places, args.queue, args.step_ms / 1000)
        worker.load = lambda config: SimpleNamespace(engine=made, opened=SimpleNamespace(backend=None))
        sys.argv[1:] = args.engine
        worker.main()
        return 0
    own = [sys.executable, *sys.orig_argv[1:], "--engine"]
    process.command = lambda *given: [*own, *worker.command(*given)[-3:]]
    serve(SimClient(EngineConfig("sim", backend="reference")), args.max_pause)
    return 0


def serve(client: SimClient, max_pause: float) -> None:
    config = ServerConfig(EngineConfig("sim", backend="reference"), port=0, max_pause=max_pause)
    app, listener = apps.create_app(client, byte_tokenizer(), config, "sim"), apps.listen(config)
    requests = Requests()
    next(m for m in app.user_middleware if m.cls is Front).args[1].append(requests)
    server = GentleServer(apps.uvicorn_config(app, config), app.state.hub, 20.0)
    app.router.routes.insert(0, Route("/tokens", partial(_tokens, client)))
    listener.listen(4096)
    print(listener.getsockname()[1], flush=True)
    ignore_lost_peers()
    server.run(sockets=[listener])
    client.close()
    told = {**asdict(client.counts), "finishes": client.finishes, "requests": requests.ends}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
