"""What must hold of a request's answer, whatever happened around it: the request alone gets the same, bit for bit."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import CANCELLED, EXPIRED, NO_MEMORY, Delta, Token
from soak.engines import Engines
from soak.scenario import Ask, Scenario

_KEPT = 20_000  # answers


class Seen:
    """What a sink saw of one request, by choice. `delivered` counts its tokens."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[Token]] = defaultdict(list)
        self.text: dict[int, str] = defaultdict(str)
        self.finish: dict[int, str] = {}
        self.prompt: tuple[Token, ...] | None = None
        self.delivered = 0

    def __call__(self, delta: Delta) -> None:
        assert delta.choice not in self.finish, "a delta after the end"
        self.tokens[delta.choice] += delta.tokens
        self.text[delta.choice] += delta.text
        self.delivered += len(delta.tokens)
        if delta.prompt is not None:
            assert self.prompt is None, "prompt logprobs come twice"
            self.prompt = delta.prompt
        if delta.finish is not None:
            self.finish[delta.choice] = delta.finish


class Request:
    """An ask that an engine accepted: what it may generate is settled."""

    def __init__(self, ask: Ask, limit: int) -> None:
        self.ask, self.seen, self.id, self.left = ask, Seen(), 0, False
        self.halts = list(ask.halts)
        self.back_at: float | None = None  # when its reader is, while that is behind
        self.params = msgspec.structs.replace(ask.params, max_tokens=limit)

    @property
    def wants_to_leave(self) -> bool:
        return not self.left and 0 <= self.ask.leaves_after <= self.seen.delivered

    @property
    def ended(self) -> bool:
        return len(self.seen.finish) == self.params.n


class Judge:
    """Holds answers against those of requests alone, each of which is computed once."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._alone: dict[bytes, Seen] = {}

    def judge(self, s: Scenario, requests: list[Request]) -> Counter[str]:
        """AssertionError where an answer is another one, or no end; else how many ended how."""
        ends: Counter[str] = Counter()
        for number, r in enumerate(requests):
            assert r.ended, f"request {number}: choices {sorted(r.seen.finish)} of {r.params.n} have ended"
            for choice, finish in r.seen.finish.items():
                ends[finish] += 1
                assert finish != NO_MEMORY or s.scarce, f"request {number}: no memory, of which there is enough"
                alone, its = self._choice(s, r, choice)
                _same(f"request {number}, choice {choice}", r, choice, alone, its)
            if r.seen.prompt is not None:
                alone, _ = self._choice(s, r, 0)
                assert r.seen.prompt == alone.prompt, f"request {number}: prompt logprobs differ from those alone"
        return ends

    def _choice(self, s: Scenario, r: Request, choice: int) -> tuple[Seen, int]:
        """The answer that holds what a choice must be, and which of its choices does: one with a seed of its own is
        that of a request for it alone.
        """
        p = r.params
        if not p.seeds:
            return self.alone(s, r, p), choice
        return self.alone(s, r, msgspec.structs.replace(p, n=1, seeds=(), seed=p.seeds[choice])), 0

    def alone(self, s: Scenario, r: Request, params: SamplingParams) -> Seen:
        """The answer to a request with these parameters that has an engine to itself."""
        model = s.model, s.kv_format, s.format
        key = msgspec.msgpack.encode((model, r.ask.prompt, params))
        if key not in self._alone:
            if len(self._alone) > _KEPT:
                self._alone.clear()
            client, seen = LocalClient(self._engines.alone(*model)), Seen()
            client.submit(r.ask.prompt, params, seen)
            while not client.idle:
                client.pump()
            self._alone[key] = seen
        return self._alone[key]


def _same(what: str, r: Request, choice: int, alone: Seen, its: int) -> None:
    seen, whole = r.seen.tokens[choice], alone.tokens[its]
    cut = r.seen.finish[choice] in (CANCELLED, EXPIRED, NO_MEMORY)
    if cut:
        whole = whole[: len(seen)]
    at = next((i for i, (a, b) in enumerate(zip(seen, whole, strict=False)) if a != b), min(len(seen), len(whole)))
    assert seen == whole, f"{what}: token {at} is {seen[at:][:1]}, alone {whole[at:][:1]}"
    if not cut:
        ended, other = (r.seen.finish[choice], r.seen.text[choice]), (alone.finish[its], alone.text[its])
        assert ended == other, f"{what}: ends as {ended}, alone as {other}"
