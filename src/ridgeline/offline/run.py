"""Run: answer the lines of a batch over one engine client, long ones first, and write each answer as it ends.

A line without a seed gets one that follows from its key, so an answer does not depend on when, in which run or beside
which others it was computed.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ridgeline.engine.client import EngineClient
from ridgeline.engine.feed import Feeder, Work
from ridgeline.engine.ledger import Sink
from ridgeline.engine.params import SamplingParams, check_params
from ridgeline.engine.records import Delta, EngineInfo, Terms, check_prompt
from ridgeline.errors import EngineFailed, InvalidRequest, RidgelineError
from ridgeline.offline.journal import Journal
from ridgeline.offline.lines import Line
from ridgeline.server import chat, completions, openai
from ridgeline.server.errors import OpenAIErrors
from ridgeline.server.jobs import Job
from ridgeline.server.service import Choice, Service

WINDOW = 512  # lines that are looked at ahead of those the engine has
WINDOW_BYTES = 64 << 20  # and the bytes of their bodies
PUMP_S = 0.2


@dataclass(frozen=True)
class Route:
    """How a URL's bodies are read, and its answers put together."""

    understand: Callable[[Service, bytes], Any]
    answer: Callable[[Service, Any, list[list[Choice]]], dict[str, Any]]


ROUTES = {
    "/v1/chat/completions": Route(chat.understand, chat.answer),
    "/v1/completions": Route(completions.understand, completions.answer),
}


@dataclass
class Totals:
    """What a run has done so far: lines answered (errors are answers too), and tokens."""

    lines: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    generated: int = 0


class Asked:
    """A line that can be served: its jobs, what it expects at most, and its choices as they grow."""

    def __init__(self, line: Line, route: Route, plan: Any, terms: Terms, info: EngineInfo) -> None:
        check_params(plan.params, info.vocab)
        self.line, self.route, self.plan, self.terms = line, route, plan, terms
        self.jobs = [seeded(job, line.key, i) for i, job in enumerate(plan.jobs)]
        self.length = max(len(j.prompt) + check_prompt(info, j.prompt, j.params) for j in self.jobs)
        self.done = [[Choice() for _ in range(job.params.n)] for job in self.jobs]
        self.left = sum(map(len, self.done))

    @property
    def failed(self) -> bool:
        return any(c.finish not in openai.FINISH for group in self.done for c in group)


class Run:
    """One batch. `warn` is told, once each, what of bodies is ignored."""

    def __init__(self, client: EngineClient, service: Service, journal: Journal, warn: Callable[[str], object]) -> None:
        self.totals = Totals()
        self._client, self._service, self._journal, self._warn = client, service, journal, warn
        self._ended: list[Asked] = []
        self._warned: set[str] = set()

    def run(self, lines: Iterable[Line], progress: Callable[[Totals], object]) -> None:
        """Answer all lines; `progress` is told after every step. Raises ConfigError where the output fails."""
        feeder = Feeder(self._client, self._work(lines))
        while feeder.fill():
            self._client.pump(PUMP_S)
            ended, self._ended = self._ended, []
            for asked in ended:
                self._answer(asked)
            progress(self.totals)

    def _work(self, lines: Iterable[Line]) -> Iterator[Work]:
        for asked in longest_first(self._understood(lines)):
            for i, job in enumerate(asked.jobs):
                self.totals.prompt_tokens += len(job.prompt)
                yield Work(job.prompt, job.params, self._sink(asked, i), asked.terms)

    def _understood(self, lines: Iterable[Line]) -> Iterator[Asked]:
        """Lines that can be served; the others are answered with their error here."""
        for line in lines:
            try:
                yield self._understand(line)
            except RidgelineError as fault:
                self._refuse(line, fault)

    def _understand(self, line: Line) -> Asked:
        if line.fault is not None:
            raise line.fault
        route = ROUTES.get(line.url)
        if route is None:
            raise InvalidRequest(f"url {line.url[:200]!r} is not served; known are {', '.join(ROUTES)}", "url")
        plan = route.understand(self._service, line.body)
        if plan.request.stream:
            raise InvalidRequest("stream is not for batches; leave it out", "stream")
        for said in plan.headers.values():
            if said not in self._warned and len(self._warned) < 20:
                self._warned.add(said)
                self._warn(f"line {line.number}: {said}")
        terms = openai.terms(self._service, plan.request, {})
        return Asked(line, route, plan, terms, self._client.info)

    def _sink(self, asked: Asked, job: int) -> Sink:
        def add(delta: Delta) -> None:
            asked.done[job][delta.choice].add(delta)
            self.totals.generated += len(delta.tokens)
            if delta.finish is not None:
                asked.left -= 1
                if not asked.left:
                    self._ended.append(asked)

        return add

    def _answer(self, asked: Asked) -> None:
        line = asked.line
        if asked.failed:
            return self._refuse(line, EngineFailed("the engine failed before the answer was complete"))
        body = asked.route.answer(self._service, asked.plan, asked.done)
        response = {"status_code": 200, "request_id": line.key, "body": body}
        self._journal.append(line.key, line.custom_id, response, None)
        self.totals.lines += 1

    def _refuse(self, line: Line, fault: RidgelineError) -> None:
        self._journal.append(line.key, line.custom_id, None, OpenAIErrors().reply(fault).body["error"])
        self.totals.lines += 1
        self.totals.errors += 1


def seeded(job: Job, key: str, index: int) -> Job:
    """The job with a seed: its own, or one that follows from its line's key and its place in the line."""
    if job.params.seed is not None:
        return job
    digest = hashlib.blake2b(f"{key} {index}".encode(), digest_size=8).digest()
    params: SamplingParams = msgspec.structs.replace(job.params, seed=int.from_bytes(digest, "little") >> 1)
    return Job(job.prompt, params)


def longest_first(asked: Iterable[Asked]) -> Iterator[Asked]:
    """Always the longest of the next WINDOW: short ones are left for the end, which no long one then holds up."""
    window: list[tuple[int, int, Asked]] = []
    held = 0
    for order, a in enumerate(asked):
        heapq.heappush(window, (-a.length, order, a))
        held += len(a.line.body)
        while len(window) >= WINDOW or (window and held > WINDOW_BYTES):
            held -= len(window[0][2].line.body)
            yield heapq.heappop(window)[2]
    while window:
        yield heapq.heappop(window)[2]
