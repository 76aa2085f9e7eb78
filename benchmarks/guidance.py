"""What grammars cost and keep: complete answers in few tokens, the time of moves, forced tokens, and hostile grammars.

    python benchmarks/guidance.py [--schemas 240] [--model smollm2-135m]

Prints a line per part; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

import jsonschema

from ridgeline import LLM, SamplingParams
from ridgeline.engine.params import Grammar
from ridgeline.errors import InvalidRequest
from schemas import varied

WORDS = ("a person", "an order", "a device", "a plan", "a place", "a bug report", "a recipe")
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
HOSTILE = ("(a|b|ab|ba)*.*a.{200}b", "(.*x.*y){20}z", "([a-z]{1,40} ){1,60}!")


def complete(llm: LLM, count: int, seed: int) -> dict[str, Any]:
    """Answers to varied schemas at temperature 1, in 1.0 to 1.5 times the fewest tokens that they may have, and again
    in ten times as many: the moves of guides that are far from their ends."""
    found: dict[str, Any] = {"schemas": 0, "refused": 0, "tokens": 0}
    far, near = list[float](), list[float]()
    draw = random.Random(seed)
    for i, asked in enumerate(varied(count, seed)):
        found["schemas"] += 1
        grammar = Grammar("json_schema", json.dumps(asked))
        try:
            llm.client.compiler.compile(grammar).result()
            llm.client.compiler.check(grammar, 1 << 20)
        except InvalidRequest as wrong:
            found["refused"] += 1
            print(f"refused: {grammar.value}: {wrong}")
            continue
        least = len(llm.client.compiler.compile(grammar).result().closing or ())
        prompt = llm.chat_prompt([{"role": "user", "content": f"An example of {draw.choice(WORDS)}, in JSON."}])
        for name, times, limit in (("valid", near, int(least * draw.uniform(1, 1.5))), ("valid_far", far, 10 * least)):
            params = SamplingParams(
                max_tokens=min(limit, 900), temperature=1, seed=i, grammar=grammar, logprobs=None if i % 4 else 0
            )
            llm._loaded.engine.guides.times = times
            answer = llm.generate([prompt], params)[0].completions[0]
            found["tokens"] += len(answer.tokens)
            found[name] = found.get(name, 0) + (answer.finish_reason == "eos_token" and valid(answer.text, asked))
    return {**found, "move_ms": quantiles(far), "close_ms": quantiles(near)}


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {name: 1e3 * ordered[int(part * len(ordered))] for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def valid(text: str, asked: dict[str, Any]) -> bool:
    try:
        jsonschema.Draft202012Validator(asked, format_checker=FORMATS).validate(json.loads(text))
        return True
    except (ValueError, jsonschema.ValidationError) as wrong:
        print(f"invalid: {text!r}: {wrong}")
        return False


def rigid(llm: LLM, logprobs: int | None = None) -> dict[str, Any]:
    """A schema of which little is free, against the same text without it: its tokens given one by one. With `logprobs`,
    which are compared, as TGI's routes ask for.
    """
    names = ("identification_number", "registered_office_city", "is_currently_active", "annual_report_available")
    properties = {name: {"type": "boolean"} for name in names} | {"currency": {"enum": ["EUR", "USD"]}}
    asked = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    grammar = Grammar("json_schema", json.dumps(asked))
    prompt = llm.chat_prompt([{"role": "user", "content": "Describe a company in JSON."}])
    guided = SamplingParams(max_tokens=200, temperature=0, grammar=grammar, logprobs=logprobs)
    made = llm.generate([prompt], guided)[0].completions[0]
    given = tuple(token.id for token in made.tokens)
    free = SamplingParams(max_tokens=200, temperature=0, forced=given, logprobs=logprobs)
    alike = llm.generate([prompt], free)[0].completions[0]
    assert alike.text == made.text and (logprobs is None or alike.tokens == made.tokens)
    times: dict[str, list[float]] = {"guided": [], "free": []}
    for _ in range(15):
        for name, params in (("guided", guided), ("free", free)):
            begin = time.perf_counter()
            llm.generate([prompt], params)
            times[name].append(time.perf_counter() - begin)
    guided_s, free_s = statistics.median(times["guided"]), statistics.median(times["free"])
    return {"tokens": len(made.tokens), "guided_s": guided_s, "free_s": free_s, "faster": free_s / guided_s}


def hostile(llm: LLM, rounds: int = 4) -> dict[str, Any]:
    """Steps of a plain answer alone, beside three plain ones, and beside three with grammars that are slow to follow
    and one that is slow to compile."""
    steps: dict[str, list[float]] = {"alone": [], "plain": [], "hostile": []}
    for at in range(rounds):
        for name in steps:
            steps[name] += _steps(llm, name, at)
    median = {name: 1e3 * statistics.median(seconds) for name, seconds in steps.items()}
    p99 = {name: 1e3 * sorted(seconds)[int(0.99 * len(seconds))] for name, seconds in steps.items()}
    return {"step_ms": median, "p99_ms": p99, "slower": median["hostile"] / median["plain"]}


def _steps(llm: LLM, beside: str, round: int) -> list[float]:
    """Seconds of each step behind the first ones. The grammars of each round are new ones."""
    prompt = llm.chat_prompt([{"role": "user", "content": "Tell me a long story."}])
    plain = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)
    params = [plain]
    if beside == "plain":
        params += [plain] * 3
    elif beside == "hostile":
        grammars = [Grammar("lark", f"start: /{text}{round}/") for text in HOSTILE]
        params += [SamplingParams(max_tokens=400, grammar=grammar) for grammar in grammars]
        many = {"type": "object", "properties": {f"p{round}_{i}": {"type": "string"} for i in range(2500)}}
        llm._loaded.engine.compiler.compile(Grammar("json_schema", json.dumps(many)))
    ids = [llm.client.submit(prompt, p, lambda delta: None) for p in params]
    seconds = []
    for at in range(120):
        begin = time.perf_counter()
        llm.client.pump(0)
        if at >= 20:  # prompts are read by then
            seconds.append(time.perf_counter() - begin)
    for id in ids:
        llm.client.cancel(id)
    while not llm.client.idle:
        llm.client.pump(0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", choices=("complete", "rigid", "scored", "hostile"))
    args = parser.parse_args()
    llm = LLM(args.model)
    parts = {
        "complete": lambda: complete(llm, args.schemas, args.seed),
        "rigid": lambda: rigid(llm),
        "scored": lambda: rigid(llm, logprobs=0),
        "hostile": lambda: hostile(llm),
    }
    result = {}
    for name, part in parts.items():
        if args.only in (None, name):
            result[name] = part()
            print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
