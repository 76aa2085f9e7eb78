"""What the scheduler is worth, on a real model: each `--work` plays traffic and prints what it is judged by.

    python benchmarks/engine.py --work long-prompt
    python benchmarks/engine.py smollm2-135m --work static --set format=int4 --json

Lengths of answers are drawn, log-normal, and ended by a stop, so that the engine does not know them. Variants of the
same traffic take turns; times are medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ridgeline.engine.lengths import Lengths
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import PAGE, Delta, Submit, Terms
from ridgeline.llm import LLM

Figures = dict[str, Any]


@dataclass
class Request:
    """One request: when it comes, what it asks, when its tokens came. `tokens`: where a stop ends it."""

    prompt: list[int]
    tokens: int
    at: float = 0.0  # seconds after the beginning
    tenant: str = ""
    told: bool = True  # whether `tokens` are asked for, and the engine knows
    times: list[float] = field(default_factory=list)
    cached: int = 0

    def __call__(self, delta: Delta) -> None:
        self.times += [time.perf_counter()] * len(delta.tokens)
        self.cached = max(self.cached, delta.cached)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=self.tokens if self.told else None, ignore_eos=True)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


class Stopped:
    """The text of an answer that a stop ends after so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def push(self, token: int) -> tuple[str, bool]:
        self.left -= 1
        return "", not self.left

    def flush(self) -> str:
        return ""


class Told(Lengths):
    """An oracle: knows how long each answer gets."""

    def __init__(self, lengths: dict[int, int]) -> None:
        super().__init__()
        self.lengths = lengths
        for tokens in lengths.values():
            self.observe(tokens)

    def left(self, s: Any) -> int:
        return self.lengths[s.id] - len(s.tokens) + s.prompt_len


class Bench:
    """A model, loaded anew where settings differ, and the traffic that is played on it."""

    def __init__(self, model: str, settings: dict[str, Any], seed: int) -> None:
        self.model, self.settings, self.rng = model, settings, random.Random(seed)

    def load(self, **settings: Any) -> LLM:
        llm = LLM(self.model, **{"context": 8192, "kv_memory": 2 << 30} | self.settings | settings)
        llm.generate([self.ids(300)] * 2, SamplingParams(max_tokens=8, ignore_eos=True))  # touches what it needs
        return llm

    def ids(self, count: int) -> list[int]:
        return [self.rng.randrange(100, 40_000) for _ in range(count)]

    def lengths(self, count: int, mean: float, spread: float = 1.0) -> list[int]:
        """Log-normal, of that mean."""
        return [
            min(2000, 1 + round(self.rng.lognormvariate(math.log(mean) - spread**2 / 2, spread))) for _ in range(count)
        ]

    def arrivals(self, count: int, rate: float) -> list[float]:
        """Poisson, so many a second."""
        now, found = 0.0, []
        for _ in range(count):
            now += self.rng.expovariate(rate)
            found.append(now)
        return found


def play(llm: LLM, requests: Sequence[Request], between: Callable[[], object] = lambda: None) -> float:
    """Submit each when its time has come, and run dry; seconds. `times` are from the beginning."""
    engine = llm.client.engine  # type: ignore[attr-defined]
    waiting, lengths, begin = sorted(requests, key=lambda r: r.at), {}, time.perf_counter()
    new_text, real = engine.new_text, lambda id: lengths[id]

    def text(request: Submit) -> Any:
        return Stopped(real(request.id)) if request.id in lengths else new_text(request)

    engine.new_text = text
    while waiting or not llm.client.idle:
        now = time.perf_counter() - begin
        while waiting and waiting[0].at <= now:
            r = waiting.pop(0)
            r.times.clear()
            id = llm.client.submit(r.prompt, r.params, r, Terms(tenant=r.tenant))
            if not r.told:
                lengths[id] = r.tokens
        if llm.client.idle:
            time.sleep(max(0.0, min(waiting[0].at - now, 0.001)))
        else:
            llm.client.pump(0.0)
            between()
    engine.new_text = new_text
    for r in requests:
        r.times = [t - begin for t in r.times]
    return time.perf_counter() - begin


def quantile(values: Iterable[float], part: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def long_prompt(bench: Bench, rounds: int) -> Figures:
    """A long prompt comes among 8 answers: their time between tokens until its first, and what the whole run takes."""
    variants = {"default": {}, "prefill-first": {"step_ms": 0, "step_tokens": 2048}}
    llms = {name: bench.load(**more) for name, more in variants.items()}
    p99: dict[str, list[float]] = {name: [] for name in variants}
    took: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, llm in llms.items():
            answers = [Request(bench.ids(20), 300) for _ in range(8)]
            late = Request(bench.ids(2000), 100, at=0.4)
            took[name].append(play(llm, [*answers, late]))
            during = [
                b - a
                for r in answers
                for a, b in zip(r.times, r.times[1:], strict=False)
                if b > late.at and a < late.times[0]
            ]
            p99[name].append(quantile(during, 0.99))
    gap, total = ({k: median(v) for k, v in x.items()} for x in (p99, took))
    return {
        "p99_ms": {k: v * 1e3 for k, v in gap.items()},
        "seconds": total,
        "p99_times_lower": gap["prefill-first"] / gap["default"],
        "throughput_lost": 1 - total["prefill-first"] / total["default"],
    }


def static(bench: Bench, rounds: int) -> Figures:
    """Mixed lengths: 32 at a time as they come, against batches of 32 that wait for their longest answer.

    "padded": whose ended rows are computed on until then, as static batching does; "shrinking": whose batches shrink.
    """
    llm = bench.load(max_requests=32)
    rates: dict[str, list[float]] = {"continuous": [], "padded": [], "shrinking": []}
    p99: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(rounds):
        drawn = [(bench.ids(32), n) for n in bench.lengths(64, 48)]
        for name in rates:
            size = len(drawn) if name == "continuous" else 32
            took, gaps = 0.0, []
            for i in range(0, len(drawn), size):
                part = drawn[i : i + size]
                longest = max(n for _, n in part)
                batch = [Request(prompt, longest if name == "padded" else n, told=False) for prompt, n in part]
                took += play(llm, batch)
                gaps += [gap for r, (_, n) in zip(batch, part, strict=True) for gap in r.gaps[: n - 1]]
            rates[name] += [sum(n for _, n in drawn) / took]
            p99[name] += [quantile(gaps, 0.99)]
    rate, gap = ({k: median(v) for k, v in x.items()} for x in (rates, p99))
    times = {name: rate["continuous"] / rate[name] for name in ("padded", "shrinking")}
    return {"tok_s": rate, "p99_ms": {k: v * 1e3 for k, v in gap.items()}, "times": times}


def unknown(bench: Bench, rounds: int) -> Figures:
    """64 requests without max_tokens in a pool of 4 contexts, against an engine that is told their lengths."""
    probe = bench.load()
    pages = 4 * 8192 // PAGE
    llm = bench.load(kv_memory=pages * probe.info.page_bytes * len(probe.info.groups), max_requests=64)
    engine: Any = llm._loaded.engine
    rates: dict[str, list[float]] = {"learned": [], "told": []}
    again: dict[str, list[float]] = {"learned": [], "told": []}
    for _ in range(rounds):
        drawn = [(bench.ids(64), n) for n in bench.lengths(64, 150)]
        for name, rate in rates.items():
            requests = [Request(prompt, n, told=False) for prompt, n in drawn]
            first = llm.client.submit([1], SamplingParams(max_tokens=1), lambda delta: None)
            play(llm, [])
            told = {first + 1 + i: r.tokens for i, r in enumerate(requests)}
            engine.scheduler.lengths = Told(told) if name == "told" else Lengths()
            before = engine.scheduler.counters.recomputed_tokens
            took = play(llm, requests)
            rate.append(sum(n for _, n in drawn) / took)
            lost = engine.scheduler.counters.recomputed_tokens - before
            again[name].append(lost / sum(len(p) + n for p, n in drawn))
    found = {k: median(v) for k, v in rates.items()}
    return {"tok_s": found, "of_told": found["learned"] / found["told"], "recomputed": max(again["learned"])}


def feedback(bench: Bench, rounds: int) -> Figures:
    """Nine short answers to one long one at 0.9 of what is served one at a time: mean and longest completion."""
    llms = {name: bench.load(policy=name, max_requests=1) for name in ("fcfs", "mlfq")}
    one = [Request(bench.ids(12), n) for n in (8, 8, 8, 200)]
    took = [play(llms["fcfs"], [r]) for r in one]
    mean = 0.9 * median(took[:3]) + 0.1 * took[3]
    means: dict[str, list[float]] = {name: [] for name in llms}
    longest: dict[str, list[float]] = {name: [] for name in llms}
    for _ in range(rounds):
        lengths = [200] * 10 + [8] * 90
        bench.rng.shuffle(lengths)
        traffic = [(bench.ids(12), n, at) for n, at in zip(lengths, bench.arrivals(100, 0.9 / mean), strict=True)]
        for name, llm in llms.items():
            requests = [Request(prompt, n, at) for prompt, n, at in traffic]
            play(llm, requests)
            done = [r.times[-1] - r.at for r in requests]
            means[name].append(statistics.mean(done))
            longest[name].append(max(done))
    mean_s, max_s = ({k: median(v) for k, v in x.items()} for x in (means, longest))
    return {"mean_s": mean_s, "longest_s": max_s, "times_better": mean_s["fcfs"] / mean_s["mlfq"]}


def fair(bench: Bench, rounds: int) -> Figures:
    """A tenant's time to its first token, alone and beside one that sends ten times as much."""
    llm = bench.load(policy="fair")
    requests = [Request(bench.ids(256), 32) for _ in range(32)]
    capacity = len(requests) / play(llm, requests)
    p95: dict[str, list[float]] = {"alone": [], "beside": []}
    for _ in range(rounds):
        count, rate = 20, 0.3 * capacity
        calm = [(bench.ids(256), at) for at in bench.arrivals(count, rate)]
        end = calm[-1][1]
        crowd = [(bench.ids(256), at) for at in bench.arrivals(10 * count, 10 * rate) if at < end]
        for name, values in p95.items():
            mine = [Request(p, 32, at, "calm") for p, at in calm]
            others = [] if name == "alone" else [Request(p, 32, at, "greedy") for p, at in crowd]
            play_while(llm, mine, others)
            values.append(quantile((r.times[0] - r.at for r in mine), 0.95))
    found = {k: median(v) for k, v in p95.items()}
    return {"capacity_s": capacity, "p95_s": found, "times": found["beside"] / found["alone"]}


def play_while(llm: LLM, mine: Sequence[Request], others: Sequence[Request]) -> None:
    """Play both; what is left of `others` when `mine` have ended is cancelled."""
    ids: list[int] = []
    submit = llm.client.submit

    def noted(*args: Any) -> int:
        id = submit(*args)
        if args[2] not in mine:
            ids.append(id)
        return id

    def over() -> None:
        if all(len(r.times) == r.tokens for r in mine):
            for id in ids:
                llm.client.cancel(id)

    llm.client.submit = noted  # type: ignore[method-assign]
    play(llm, [*mine, *others], over)
    llm.client.submit = submit  # type: ignore[method-assign]


def waste(bench: Bench, rounds: int) -> Figures:
    """Slots of KV pages that were taken and not used, at contexts of a thousand tokens and more."""
    llm = bench.load()
    scheduler: Any = llm._loaded.engine.scheduler
    taken, used, most = 0, 0, 0

    def count() -> None:
        nonlocal taken, used, most
        for s in scheduler.running:
            slots = (sum(map(len, s.tables)) - sum(s.freed)) * PAGE
            if s.computed >= 1000:
                taken, used = taken + slots, used + s.computed * len(s.groups)
                most = max(most, slots - s.computed * len(s.groups))

    play(llm, [Request(bench.ids(bench.rng.randrange(1000, 3000)), 60) for _ in range(8 * rounds)], count)
    return {"wasted": 1 - used / taken, "most_slots_of_a_sequence": most, "page": PAGE}


def unique(bench: Bench, rounds: int) -> Figures:
    """Prompts that share nothing: the part of the time that goes into looking for prefixes and keeping them."""
    llm = bench.load()
    cache: Any = llm._loaded.engine.cache
    spent = [0.0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args)
            finally:
                spent[0] += time.perf_counter() - begin

        return timed

    for name in ("match", "publish", "touch", "make_room"):
        setattr(cache, name, counted(getattr(cache, name)))
    took = play(llm, [Request(bench.ids(600), 32) for _ in range(24 * rounds)])
    return {"cache_s": spent[0], "seconds": took, "paid": spent[0] / took}


def overhead(bench: Bench, rounds: int) -> Figures:
    """Milliseconds of a decode step outside the native call: schedule, build, commit, detokenise."""
    llm = bench.load()
    found = {}
    for rows in (1, 16, 32):
        each = []
        for _ in range(rounds):
            steps, native, begin = llm._loaded.engine.step_number, llm.step.native_s, time.perf_counter()
            params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
            llm.generate([bench.ids(8) for _ in range(rows)], params)
            spent = time.perf_counter() - begin - (llm.step.native_s - native)
            each.append(spent / (llm._loaded.engine.step_number - steps) * 1e3)
        found[str(rows)] = median(each)
    return {"ms_by_rows": found}


WORKS: dict[str, Callable[[Bench, int], Figures]] = {
    "unknown": unknown,
    "feedback": feedback,
    "fair": fair,
    "long-prompt": long_prompt,
    "static": static,
    "waste": waste,
    "unique": unique,
    "overhead": overhead,
}


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--work", choices=sorted(WORKS), required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any engine setting")
    parser.add_argument("--json", action="store_true", help="a last line of JSON")
    args = parser.parse_args(argv)
    settings = {k: int(v) if v.isdigit() else v for k, v in (word.split("=", 1) for word in args.set)}
    figures = WORKS[args.work](Bench(args.model, settings, args.seed), args.rounds)
    print(f"{args.work}: {WORKS[args.work].__doc__}")
    for name, value in figures.items():
        print(f"  {name}: {shown(value)}")
    if args.json:
        print(json.dumps({"work": args.work, "model": args.model, "settings": settings, **figures}))


if __name__ == "__main__":
    main()
