"""What watermarks are worth and what they cost, on a real model at temperature 1.

    python benchmarks/watermark.py --work found
    python benchmarks/watermark.py smollm2-135m --work speed --set format=int4 --json

`found`: of marked texts, how many have z > 4; of plain ones, how many are called marked where every scheme is tried, as
a server does; and the perplexity of each kind under the model itself, without a watermark. `speed`: marked and plain
batches take turns, and each pair is compared.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from importlib import resources
from typing import Any

from ridgeline.config import WATERMARKS
from ridgeline.engine.detection import detect
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Token
from ridgeline.engine.watermark import Watermark
from ridgeline.llm import LLM

Figures = dict[str, Any]
PROMPT = 32  # tokens
SCHEMES = (None, *WATERMARKS)


def params(scheme: str | None, tokens: int, seed: int, marks: Figures) -> SamplingParams:
    """`seed` may be any number; the model's own logprobs come with each token."""
    mark = None if scheme is None else Watermark(scheme, **marks)
    return SamplingParams(max_tokens=tokens, seed=seed, ignore_eos=True, logprobs=0, watermark=mark)


def prompts(llm: LLM, count: int) -> list[list[int]]:
    """Pieces of a text, from places of their own."""
    text = resources.files("ridgeline.engine").joinpath("calibration.txt").read_text()
    ids, rng = llm.tokenizer.encode(text, add_special=False), random.Random(0)
    return [ids[at : at + PROMPT] for at in (rng.randrange(len(ids) - PROMPT) for _ in range(count))]


def texts(llm: LLM, scheme: str | None, count: int, tokens: int, marks: Figures) -> list[list[Token]]:
    """Continuations of the same prompts for every scheme, each with a seed of its own."""
    found: list[list[Token]] = [[] for _ in range(count)]
    for i, prompt in enumerate(prompts(llm, count)):
        while not llm.client.idle and i % 32 == 0:
            llm.client.pump(0.0)
        sink = found[i]
        llm.client.submit(prompt, params(scheme, tokens, i, marks), lambda d, sink=sink: sink.extend(d.tokens))
    while not llm.client.idle:
        llm.client.pump(0.0)
    return found


def perplexity(found: list[list[Token]], tokens: int) -> float:
    """Over the first so many tokens of each."""
    scores = [t.logprob for text in found for t in text[:tokens]]
    return math.exp(-sum(scores) / len(scores))


def found(llm: LLM, args: argparse.Namespace) -> Figures:
    """Marked texts of each scheme, and plain ones."""
    marks = {"gamma": args.gamma, "delta": args.delta}
    tried = [Watermark(name, **marks) for name in WATERMARKS]
    plain = texts(llm, None, args.plain, args.plain_tokens, {})
    seen = [detect([t.id for t in c], tried) for c in plain]
    compared = min(args.tokens, args.plain_tokens)
    base = perplexity(plain[: args.marked], compared)
    alone = {w.scheme: sum(detect([t.id for t in c], [w]).z > 4 for c in plain) for w in tried}
    figures: Figures = {
        "plain": {"texts": len(plain), "flagged": sum(f.marked for f in seen), "z_over_4": alone, "perplexity": base}
    }
    for w in tried:
        kept = texts(llm, w.scheme, args.marked, args.tokens, marks)
        z = sorted(detect([t.id for t in c], [w]).z for c in kept)
        flagged = sum(detect([t.id for t in c], tried).marked for c in kept)
        own = perplexity(kept, compared)
        figures[w.scheme] = {
            "texts": len(kept), "z_over_4": sum(x > 4 for x in z) / len(z), "flagged": flagged / len(kept),
            "z_median": statistics.median(z), "z_5_percent": z[len(z) // 20],
            "perplexity": own, "rise": own / base - 1,
        }  # fmt: skip
    return figures


def speed(llm: LLM, args: argparse.Namespace) -> Figures:
    """Median over pairs of how much longer a marked batch takes than the plain one beside it."""
    figures: Figures = {}
    marks = {"gamma": args.gamma, "delta": args.delta}
    for batch, tokens in ((1, 64), (32, 24)):
        todo = prompts(llm, batch)
        took: dict[str | None, list[float]] = {scheme: [] for scheme in SCHEMES}
        for i in range(args.rounds + 1):
            for scheme in SCHEMES if i % 2 else SCHEMES[::-1]:
                begin = time.perf_counter()
                llm.generate(todo, params(scheme, tokens, i, marks))
                took[scheme].append(time.perf_counter() - begin)
        plain = took[None][1:]
        figures[f"batch {batch}"] = {"plain_s": statistics.median(plain)} | {
            scheme: statistics.median(a / b for a, b in zip(took[scheme][1:], plain, strict=True)) - 1
            for scheme in WATERMARKS
        }
    return figures


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
    parser.add_argument("--plain-tokens", type=int, default=64, help="tokens of these")
    parser.add_argument("--gamma", type=float, default=0.5)
    parser.add_argument("--delta", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=20)
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
