"""What watermarks are worth and what they cost, on a real model at temperature 1.

    python benchmarks/watermark.py --work found
    python benchmarks/watermark.py smollm2-135m --work speed --batch 4 --set format=int4 --json

`found`: of marked texts, how many have z > 4; of plain ones, how many are called marked where every scheme is tried, as
a server does; of each kind the perplexity under the model itself, without a watermark, and the part of its runs of four
tokens that it has had before. Prompts are pieces of a text, other ones with another --seed. `speed`: marked and plain
batches take turns, step by step, and what their steps take is compared in each round.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from importlib import resources
from pathlib import Path
from typing import Any

from ridgeline.config import WATERMARKS
from ridgeline.engine.client import LocalClient
from ridgeline.engine.detection import detect
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Token
from ridgeline.engine.watermark import Watermark
from ridgeline.llm import LLM

Figures = dict[str, Any]
GRAM = 4
SPARE = 200  # tokens of those that have read their prompts first, meanwhile
PROMPT = 32  # tokens
SCHEMES = (None, *WATERMARKS)


def params(args: argparse.Namespace, scheme: str | None, tokens: int, seed: int) -> SamplingParams:
    """`seed` may be any number; the model's own logprobs come with each token."""
    mark = None if scheme is None else Watermark(scheme, args.gamma, args.delta)
    return SamplingParams(max_tokens=tokens, seed=seed, ignore_eos=True, logprobs=0, watermark=mark, top_k=args.top_k)


def prompts(llm: LLM, args: argparse.Namespace, count: int) -> list[list[int]]:
    """Pieces of a text, from places of their own."""
    given = resources.files("ridgeline.engine").joinpath("calibration.txt")
    text = (Path(args.text) if args.text else given).read_text()
    ids, rng = llm.tokenizer.encode(text, add_special=False), random.Random(args.seed)
    return [ids[at : at + PROMPT] for at in (rng.randrange(len(ids) - PROMPT) for _ in range(count))]


def texts(llm: LLM, args: argparse.Namespace, scheme: str | None, count: int) -> list[list[Token]]:
    """Continuations of the same prompts for every scheme, each with a seed of its own."""
    found: list[list[Token]] = [[] for _ in range(count)]
    for i, prompt in enumerate(prompts(llm, args, count)):
        while not llm.client.idle and i % 32 == 0:
            llm.client.pump(0.0)
        asked = params(args, scheme, args.tokens, 1_000_000 * args.seed + i)
        llm.client.submit(prompt, asked, lambda d, sink=found[i]: sink.extend(d.tokens))
    while not llm.client.idle:
        llm.client.pump(0.0)
    return found


def perplexity(found: list[list[Token]]) -> float:
    scores = [t.logprob for text in found for t in text]
    return math.exp(-sum(scores) / len(scores))


def repeated(found: list[list[Token]]) -> float:
    """The part of all runs of GRAM tokens that their text has had before."""
    runs = new = 0
    for text in found:
        grams = [tuple(t.id for t in text[i : i + GRAM]) for i in range(len(text) - GRAM + 1)]
        runs, new = runs + len(grams), new + len(set(grams))
    return 1 - new / runs


def found(llm: LLM, args: argparse.Namespace) -> Figures:
    """Plain texts, and marked ones of each scheme, which go on from the first prompts of those."""
    tried = [Watermark(name, args.gamma, args.delta) for name in WATERMARKS]
    plain = texts(llm, args, None, args.plain)
    seen = [[detect([t.id for t in c], [w]) for w in tried] for c in plain]
    figures: Figures = {"plain": {
        "texts": len(plain), "perplexity": perplexity(plain), "repeated": repeated(plain),
        "flagged": sum(detect([t.id for t in c], tried).marked for c in plain),
        "z_over_4": {w.scheme: sum(f[i].z > 4 for f in seen) for i, w in enumerate(tried)},
    }}  # fmt: skip
    for w in tried if args.marked else ():
        kept = texts(llm, args, w.scheme, args.marked)
        alone = [detect([t.id for t in c], [w]) for c in kept]
        z = sorted(f.z for f in alone)
        figures[w.scheme] = {
            "texts": len(kept), "z_over_4": sum(x > 4 for x in z) / len(z),
            "flagged": sum(detect([t.id for t in c], tried).marked for c in kept) / len(kept),
            "z_median": statistics.median(z), "z_5_percent": z[len(z) // 20],
            "scored": statistics.median(f.tokens_scored for f in alone), "repeated": repeated(kept),
            "perplexity": perplexity(kept), "rise": perplexity(kept) / perplexity(plain[: args.marked]) - 1,
        }  # fmt: skip
    return figures


def begun(llm: LLM, args: argparse.Namespace, scheme: str | None) -> list[int]:
    """Requests for a batch of texts that have read their prompts and wait for their turn."""
    seen: set[int] = set()
    ids = [
        llm.client.submit(prompt, params(args, scheme, args.rounds + SPARE, i), lambda d: seen.add(d.id))
        for i, prompt in enumerate(prompts(llm, args, args.batch))
    ]
    while len(seen) < len(ids):
        llm.client.pump(0.0)
    turn(llm, ids, False)
    return ids


def turn(llm: LLM, ids: list[int], theirs: bool) -> None:
    assert isinstance(llm.client, LocalClient)
    for id in ids:
        (llm.client.engine.resume if theirs else llm.client.engine.pause)(id)


def speed(llm: LLM, args: argparse.Namespace) -> Figures:
    """Of each scheme, the median over rounds of how much longer a step takes than the plain batch's in the same one."""
    batches = {scheme: begun(llm, args, scheme) for scheme in SCHEMES}
    took: dict[str | None, list[float]] = {scheme: [] for scheme in SCHEMES}
    for i in range(args.rounds):
        first = i % len(SCHEMES)
        for scheme in SCHEMES[first:] + SCHEMES[:first]:
            turn(llm, batches[scheme], True)
            begin = time.perf_counter()
            llm.client.pump(0.0)
            took[scheme].append(time.perf_counter() - begin)
            turn(llm, batches[scheme], False)
    for ids in batches.values():
        for id in ids:
            llm.client.cancel(id)
    while not llm.client.idle:
        llm.client.pump(0.0)
    plain = took[None]
    return {"batch": args.batch, "plain_s": statistics.median(plain)} | {
        scheme: statistics.median(a / b for a, b in zip(took[scheme], plain, strict=True)) - 1 for scheme in WATERMARKS
    }


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--work", choices=("found", "speed"), default="found")
    parser.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--marked", type=int, default=100, help="texts of each scheme")
    parser.add_argument("--plain", type=int, default=1000, help="texts without a watermark")
    parser.add_argument("--text", metavar="FILE", help="prompts are pieces of it, instead of what comes along")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and of what is sampled")
    parser.add_argument("--batch", type=int, default=1, help="texts at once")
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--delta", type=float, default=2.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    llm = LLM(args.model, **dict(args.settings))
    figures = {"found": found, "speed": speed}[args.work](llm, args)
    figures = {"model": args.model, "settings": dict(args.settings), "gamma": args.gamma, "delta": args.delta} | figures
    if args.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
