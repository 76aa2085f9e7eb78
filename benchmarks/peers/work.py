"""What is asked of every engine: pieces of work, each giving named figures, and the prompts they are made of.

Knows no engine. A figure is tokens per second (more is better) or seconds (less is better), see FIGURES.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SHORT = 16  # tokens of the prompt that plain decoding starts from
BATCHES = (1, 4, 16, 32)
FIGURES = {"prefill": "tok/s", "decode": "tok/s", "output": "tok/s", "first token": "s"}


@dataclass(frozen=True)
class Work:
    """One piece of work.

    kind: "stream" gives prefill (tokens of `prompt` over the time to the first token) and decode (`new` tokens after
    the first, over the time they took, after a prompt of SHORT tokens); "long" gives decode after a prompt of
    `prompt` tokens; "batch" gives output (all `new` tokens of `count` requests over all the time, prefill included);
    "cold" gives first token (from the start of a process, one token, short prompt).
    """

    name: str
    kind: str
    prompt: int = SHORT
    new: int = 1
    count: int = 1


def works() -> dict[str, Work]:
    """All pieces of work by name."""
    made = [
        Work("stream", "stream", 512, 128),
        *(Work(f"batch-{n}", "batch", 128, 128, n) for n in BATCHES),
        Work("long", "long", 4096, 64),
        Work("cold", "cold"),
    ]
    return {work.name: work for work in made}


def quick_works() -> dict[str, Work]:
    """The same, so small that their figures mean nothing: to see that everything runs."""
    small = {"stream": (64, 8), "batch": (16, 8), "long": (512, 8), "cold": (SHORT, 1)}
    return {
        name: replace(work, prompt=small[work.kind][0], new=small[work.kind][1])
        for name, work in works().items()
        if work.count <= BATCHES[1]
    }


def title(work: Work, figure: str) -> str:
    """What a figure of a piece of work is called in a table."""
    if work.kind == "batch":
        return f"{work.count} x ({work.prompt} + {work.new}), output"
    if work.kind == "long":
        return f"decode at {work.prompt}"
    if work.kind == "cold":
        return "start to first token"
    return f"{figure} {work.prompt if figure == 'prefill' else work.new}"


def ratio(figure: str, ours: float, theirs: float) -> float:
    """How many times better ours is: above 1 is in our favour, for rates and for times."""
    return theirs / ours if FIGURES[figure] == "s" else ours / theirs
