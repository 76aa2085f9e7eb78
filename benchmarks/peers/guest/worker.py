"""A Python engine in a process of its own: loads a model, gives one token, then does one piece of work per line.

`python worker.py ENGINE MODEL THREADS SETTINGS`. Answers go, a JSON object a line, to what was stdout; what the
engine itself prints goes to stderr. Before the first token it imports nothing that an engine could do without.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], list[float]]  # as loaders.py has it
LOW_ID, HIGH_ID = 1000, 40000  # random prompts keep away from special tokens, and fit every vocabulary compared
WARM_UP = ((512, 1), (16, 8))  # (prompt, new tokens), not measured


def main() -> None:
    """Serve lines of work until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine, model, threads, settings = sys.argv[1:5]
    try:
        from loaders import LOADERS  # beside this script

        generate, weights = LOADERS[engine](model, int(threads), json.loads(settings))
        generate([list(range(LOW_ID, LOW_ID + 16))], 1)
    except Exception as wrong:
        return _say(answers, {"error": _words(wrong)})
    _say(answers, {"bytes": weights})
    for line in sys.stdin:
        try:
            _say(answers, do(generate, json.loads(line)))
        except Exception as wrong:
            _say(answers, {"error": _words(wrong)})


def do(generate: Generate, work: dict[str, Any]) -> dict[str, float]:
    """Figures of one piece of work (the fields of `Work`, and a seed)."""
    import random
    import time

    rng = random.Random(f"{work['name']} {work['seed']}")  # no two prompts of a run begin alike

    def prompt(length: int) -> list[int]:
        return [rng.randrange(LOW_ID, HIGH_ID) for _ in range(length)]

    kind, new = work["kind"], work["new"]
    if kind == "warm":
        for length, tokens in WARM_UP:
            generate([prompt(length)], tokens)
        return {}
    if kind == "batch":
        prompts = [prompt(work["prompt"]) for _ in range(work["count"])]
        begin = time.perf_counter()
        generate(prompts, new)
        return {"output": work["count"] * new / (time.perf_counter() - begin)}
    if kind == "long":
        return {"decode": _decode(generate([prompt(work["prompt"])], new + 1), new)}
    first = generate([prompt(work["prompt"])], 1)[0]
    return {"prefill": work["prompt"] / first, "decode": _decode(generate([prompt(work["short"])], new + 1), new)}


def _decode(times: list[float], new: int) -> float:
    if len(times) != new + 1:
        raise ValueError(f"{len(times)} tokens came where {new + 1} were asked for")
    return new / (times[-1] - times[0])


def _words(wrong: Exception) -> str:
    lines = str(wrong).strip().splitlines() or [""]
    return f"{type(wrong).__name__}: {lines[-1]}"[:200]


def _say(answers: Any, record: dict[str, Any]) -> None:
    answers.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
