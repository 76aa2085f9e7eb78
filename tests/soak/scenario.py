"""Scenarios: all that a run depends on, drawn from a seed and written as JSON. Knows no engine."""

from __future__ import annotations

import random

import msgspec

from ridgeline.config import ADMISSIONS, KV_FORMATS, POLICIES, PREFIX_SHARING, WATERMARKS
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import NO_TERMS, Terms
from ridgeline.engine.watermark import Watermark

TINY = ("full", "windowed", "mixed")
REAL = "smollm2-135m"
SIGNALS = ("SIGKILL", "SIGSTOP", "SIGSEGV")
_VOCAB = 250  # ids below this are tokens of every model
_REAL_EVERY = 25  # so many scenarios are one of the real model
_CRASH_EVERY = 4
Span = tuple[int, int]  # of steps: the first, and that behind the last
_PAGE = 64


class Halt(msgspec.Struct, frozen=True):
    """A reader falls behind once it has so many tokens of all choices, and is back after so long."""

    after: int
    time: int


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request: submitted at `at`, cancelled after so many tokens of all its choices or at `gone_at` (-1: never).

    Times are steps of the engine where it runs in this process, else tokens delivered to all.
    """

    at: int
    prompt: tuple[int, ...]
    params: SamplingParams
    terms: Terms = NO_TERMS
    leaves_after: int = -1
    gone_at: int = -1
    halts: tuple[Halt, ...] = ()  # in order


class Kill(msgspec.Struct, frozen=True):
    """A signal for the engine process once so many tokens were delivered to all."""

    at: int
    signal: str


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """An engine's settings and what befalls it. `pages` are per KV group; a virtual token takes `token_s`."""

    seed: int
    model: str
    kv_format: str
    format: str
    policy: str
    admission: str
    prefix_sharing: str
    pages: int
    context: int
    step_tokens: int
    step_ms: int
    max_requests: int
    queue: int
    depth: int
    token_s: float
    asks: tuple[Ask, ...]
    deaths: tuple[int, ...] = ()  # steps at which the engine in this process is lost, and replaced by a new one
    kills: tuple[Kill, ...] = ()
    crash: bool = False  # over an engine process
    scarce: tuple[Span, ...] = ()  # when the system has no more memory
    pressed: tuple[Span, ...] = ()  # when in every eighth step all that run give their pages up, for nobody

    def settings(self) -> dict[str, int | str]:
        """What an EngineConfig takes as it is."""
        names = ("kv_format", "format", "policy", "admission", "context", "step_tokens", "step_ms", "max_requests")
        return {name: getattr(self, name) for name in (*names, "queue", "prefix_sharing")}


def within(spans: tuple[Span, ...], step: int) -> bool:
    return any(first <= step < behind for first, behind in spans)


def draw(seed: int) -> Scenario:
    """The scenario of a seed, the same on every machine."""
    rng = random.Random(seed)
    crash = seed % _CRASH_EVERY == 1
    real = seed % _REAL_EVERY == 6
    most = 2 if real else 8
    asks = _asks(rng, crash, 8 if real else rng.choice([6, 16, 30]), rng.choice([0.1, 0.1, 0.1, 0.8]))
    tokens = sum(a.params.n * (a.params.max_tokens or 60) for a in asks)
    kills = sorted(rng.sample(range(1, max(3, tokens // 4)), rng.randint(1, 2))) if crash else ()
    return Scenario(
        seed=seed,
        model=REAL if real else rng.choice(TINY),
        kv_format=rng.choice(KV_FORMATS),
        format="" if real else rng.choice(["", "", "int8"]),
        policy=rng.choice(POLICIES),
        admission=rng.choice([ADMISSIONS[0], *ADMISSIONS]),
        prefix_sharing=rng.choice(PREFIX_SHARING),
        pages=rng.choice([6, 8, 8, 12]),
        context=512,
        step_tokens=rng.choice([16, 24, 48, 200]),
        step_ms=rng.choice([0, 20, 60]),
        max_requests=most if crash else rng.choice([2, most, most]),
        queue=rng.choice([8, 200]),
        depth=1 if crash else rng.choice([1, 1, 2]),
        token_s=rng.choice([1e-4, 1e-3, 1e-2]),
        asks=asks,
        deaths=() if crash else tuple(sorted(rng.randint(1, 200) for _ in range(rng.choice([0, 0, 1, 2])))),
        kills=tuple(Kill(at, rng.choice(SIGNALS)) for at in kills),
        crash=crash,
        scarce=() if crash else _spans(rng, 60, 80),
        pressed=() if crash else _spans(rng, 300, 1500),
    )


def _spans(rng: random.Random, most: int, longest: int) -> tuple[Span, ...]:
    """None in most scenarios; else they begin at step `most` at the latest."""
    firsts = [rng.randint(0, most) for _ in range(rng.choice([0, 0, 1, 3]))]
    return tuple((first, first + rng.choice([rng.randint(1, 80), longest])) for first in firsts)


def _asks(rng: random.Random, crash: bool, count: int, searches: float) -> tuple[Ask, ...]:
    """Requests in order of time, with bursts and pauses, that begin like one of three texts."""
    stems = [[rng.randrange(3, _VOCAB) for _ in range(rng.randint(40, 260))] for _ in range(3)]
    asks: list[Ask] = []
    at = 0
    for _ in range(count):
        at += rng.choice([0, 0, 0, 0, 2, 10, 30])
        if asks and rng.random() < 0.15:  # an answer that the prefix cache may know, up to a page of it
            old = rng.choice(asks)
            terms = _terms(rng, crash)
            asks.append(msgspec.structs.replace(old, at=at, terms=terms, leaves_after=-1, gone_at=-1, halts=()))
            continue
        stem, tail = rng.choice(stems), [rng.randrange(3, _VOCAB) for _ in range(rng.randint(0, 40))]
        prompt = (*stem[: rng.randint(1, rng.choice([30, len(stem)]))], *tail)
        params = _params(rng)
        if rng.random() < searches:
            params = _search(rng)
            prompt = prompt[: max(len(prompt) // _PAGE * _PAGE - rng.randint(0, 12), 1)]  # beams part, then pages fill
        leaves = rng.random() < 0.15
        asks.append(
            Ask(
                at=at,
                prompt=prompt,
                params=params,
                terms=_terms(rng, crash),
                leaves_after=rng.randint(0, 60) if leaves else -1,
                gone_at=at + rng.randint(0, 60) if not leaves and rng.random() < 0.1 else -1,
                halts=_halts(rng) if rng.random() < 0.2 else (),
            )
        )
    return tuple(asks)


def _halts(rng: random.Random) -> tuple[Halt, ...]:
    after = sorted(rng.choice([0, rng.randint(0, 60)]) for _ in range(rng.randint(1, 3)))
    return tuple(Halt(tokens, rng.choice([1, 5, 40, 120])) for tokens in after)


def _terms(rng: random.Random, crash: bool) -> Terms:
    """Deadlines are in virtual seconds: there are none over a process, whose time is real."""
    wait, total = rng.choice([0.0] * 8 + [0.3, 3.0]), rng.choice([0.0] * 8 + [1.0, 10.0])
    if crash:
        wait = total = 0.0
    tenant, salt = rng.choice("aab"), rng.choice(["", "", "salt"])
    return Terms(tenant=tenant, salt=salt, priority=rng.randint(0, 2), wait_s=wait, total_s=total)


def _search(rng: random.Random) -> SamplingParams:
    """Beam search, with all that goes with it; about a third fill the pool to its last page."""
    length, beams = rng.choice([None, None, 1, 8, 40, 100]), rng.randint(2, 4)
    return SamplingParams(
        max_tokens=length,
        temperature=rng.choice([0.0, 1.0]),
        seed=0,
        n=rng.randint(1, beams),
        beams=beams,
        length_penalty=rng.choice([1.0, 0.0, 2.0, -1.0]),
        early_stopping=rng.choice([False, True, "never"]),
        stop_token_ids=(rng.randrange(_VOCAB),) if rng.random() < 0.2 else (),
        ignore_eos=rng.random() < 0.7,
        min_tokens=1 if length == 1 else rng.choice([0, 0, 5]),
        logprobs=rng.choice([None, None, 0, 5]),
    )


def _params(rng: random.Random) -> SamplingParams:
    """Sampling of every kind; about half are greedy or plain."""
    maybe = rng.random
    length, n = rng.choice([1, 8, 40, 150, 300]), rng.choice([1, 1, 1, 2, 3, 4])
    seeds = tuple(rng.randint(0, 1 << 40) for _ in range(n)) if maybe() < 0.2 else ()
    return SamplingParams(
        max_tokens=None if maybe() < 0.02 else length,
        temperature=rng.choice([0.0, 0.8, 1.0, 2.0]),
        top_k=rng.choice([0, 0, 0, 20]),
        top_p=rng.choice([1.0, 1.0, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.02]),
        typical_p=rng.choice([1.0, 1.0, 1.0, 0.9]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.3]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.0, 0.5]),
        presence_penalty=rng.choice([0.0, 0.0, 0.0, 0.5]),
        count_prompt=maybe() < 0.2,
        logit_bias={rng.randrange(_VOCAB): rng.uniform(-3, 3) for _ in range(5)} if maybe() < 0.1 else {},
        seed=None if seeds else rng.randint(0, 1 << 40),
        seeds=seeds,
        n=n,
        stop=tuple(chr(rng.randint(97, 122)) for _ in range(5)) if maybe() < 0.2 else (),
        include_stop=maybe() < 0.3,
        stop_token_ids=(rng.randrange(_VOCAB),) if maybe() < 0.2 else (),
        ignore_eos=maybe() < 0.7,
        min_tokens=1 if length == 1 else rng.choice([0, 0, 0, 5]),
        bad_words=((rng.randrange(_VOCAB),), (rng.randrange(_VOCAB), rng.randrange(_VOCAB))) if maybe() < 0.1 else (),
        forced=(rng.randrange(3, _VOCAB),) if maybe() < 0.1 else (),
        logprobs=rng.choice([None, None, 0, 5]),
        prompt_logprobs=maybe() < 0.1,
        processed_logprobs=maybe() < 0.1,
        watermark=Watermark(rng.choice(WATERMARKS)) if maybe() < 0.15 else None,
    )
