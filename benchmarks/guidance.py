"""What grammars cost and keep: complete answers in few tokens, the time of masks, forced tokens, and hostile grammars.

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
from ridgeline.guidance.compiler import Compiled

WORDS = "name age city tags price total status email items score notes active owner kind size".split()
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^[0-9a-f]{8,16}$", "^(small|medium|large)( [a-z]+)?$", "^\\+[1-9][0-9]{6,12}$")
HOSTILE = ("(a|b|ab|ba)*.*a.{200}b", "(.*x.*y){20}z", "([a-z]{1,40} ){1,60}!")


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema, at the top an object."""
    kinds = ["string", "integer", "number", "boolean", "enum", "format", "pattern", "long", "either"]
    kind = draw.choice([*kinds, "array", "object", "map"] if depth < 3 else kinds) if depth else "object"
    if kind == "object":
        names = draw.sample(WORDS, draw.randint(1, 5 - depth))
        required = draw.sample(names, draw.randint(0 if depth else 1, len(names)))
        properties = {name: schema(draw, depth + 1) for name in names}
        return {"type": kind, "properties": properties, "required": required, "additionalProperties": False}
    least = draw.randint(0, 3)
    return {
        "string": {"type": "string", "minLength": least, "maxLength": least + draw.randint(1, 60)},
        "long": {"type": "string", "minLength": draw.randint(20, 90)},
        "integer": {"type": "integer", "minimum": draw.randint(-50, 500)},
        "number": {"type": "number", "minimum": 0, "maximum": draw.choice([1, 99.5])},
        "boolean": {"type": "boolean"},
        "enum": {"enum": draw.sample([*WORDS, 1, 2.5, None, True], draw.randint(1, 6))},
        "format": {"type": "string", "format": draw.choice(FORMATS)},
        "pattern": {"type": "string", "pattern": draw.choice(PATTERNS)},
        "either": {"anyOf": [{"type": "null"}, {"type": "string"}, {"type": "integer"}]},
        "array": {"type": "array", "items": schema(draw, depth + 1) if depth < 3 else {}, "minItems": least},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    }[kind]


def complete(llm: LLM, count: int) -> dict[str, Any]:
    """Answers to random schemas at temperature 1, in 1.0 to 1.5 times the fewest tokens that they may have."""
    draw, good, tokens = random.Random(6), 0, 0
    refused, masks = 0, list[float]()
    guides = llm._loaded.engine.guides
    guides.times = []
    for i in range(count):
        asked = schema(draw)
        grammar = Grammar("json_schema", json.dumps(asked))
        compiled = llm.client.compiler.compile(grammar).result()
        closing = compiled.closing
        if closing is None:
            refused += 1
            print(f"refused: {grammar.value}")
            continue
        limit = int(len(closing) * draw.uniform(1, 1.5))
        prompt = llm.chat_prompt([{"role": "user", "content": f"An example of {draw.choice(WORDS)}, in JSON."}])
        params = SamplingParams(max_tokens=limit, temperature=1, seed=i, grammar=grammar, logprobs=None if i % 4 else 0)
        answer = llm.generate([prompt], params)[0].completions[0]
        tokens += len(answer.tokens)
        masks += mask_times(compiled, [t.id for t in answer.tokens])
        good += answer.finish_reason == "eos_token" and valid(answer.text, asked)
    guided, guides.times = guides.times, None
    return {
        "schemas": count, "valid": good, "refused": refused, "tokens": tokens,
        "mask_ms": quantiles(masks), "guide_ms": quantiles(guided),
    }  # fmt: skip


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {name: 1e3 * ordered[int(part * len(ordered))] for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def mask_times(compiled: Compiled, tokens: list[int]) -> list[float]:
    """Seconds for the mask behind each of an answer's tokens."""
    matcher, seconds = compiled._matcher.deep_copy(), []
    for token in tokens:
        matcher.consume_token(token)
        begin = time.perf_counter()
        matcher.compute_bitmask()
        seconds.append(time.perf_counter() - begin)
    return seconds


def valid(text: str, asked: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), asked)
        return True
    except (ValueError, jsonschema.ValidationError) as wrong:
        print(f"invalid: {text!r}: {wrong}")
        return False


def rigid(llm: LLM) -> dict[str, Any]:
    """A schema of which little is free, against the same text without it: its tokens given one by one."""
    names = ("identification_number", "registered_office_city", "is_currently_active", "annual_report_available")
    properties = {name: {"type": "boolean"} for name in names} | {"currency": {"enum": ["EUR", "USD"]}}
    asked = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    grammar = Grammar("json_schema", json.dumps(asked))
    prompt = llm.chat_prompt([{"role": "user", "content": "Describe a company in JSON."}])
    guided = SamplingParams(max_tokens=200, temperature=0, grammar=grammar)
    made = llm.generate([prompt], guided)[0].completions[0]
    free = SamplingParams(max_tokens=200, temperature=0, forced=tuple(token.id for token in made.tokens))
    assert llm.generate([prompt], free)[0].completions[0].text == made.text
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
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", choices=("complete", "rigid", "hostile"))
    args = parser.parse_args()
    llm = LLM(args.model)
    parts = {
        "complete": lambda: complete(llm, args.schemas), "rigid": lambda: rigid(llm), "hostile": lambda: hostile(llm),
    }  # fmt: skip
    result = {}
    for name, part in parts.items():
        if args.only in (None, name):
            result[name] = part()
            print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
