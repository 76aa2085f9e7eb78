"""`ridgeline inspect MODEL`: what a model's files hold, what running it takes, and what stands in its way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from ridgeline.cli.command import Exit, Option
from ridgeline.cli.options import ENGINE, AsJson, takes
from ridgeline.cli.output import emit_json, size, table, tell
from ridgeline.config import EngineConfig
from ridgeline.weights.aliases import DEFAULT_MODEL

if TYPE_CHECKING:
    from ridgeline.analysis.inspection import Inspection, Tensors

_NOT_RUNNABLE = 1


@takes(config=ENGINE)
def inspect(
    config: EngineConfig,
    at: Annotated[list[int] | None, Option("Context to show memory for; repeatable.", minimum=1)] = None,
    json: AsJson = False,
) -> None:
    """Describe a model: architecture, sizes, formats by layer, memory, template, and what is unsupported and why.

    Headers only: no weight is loaded. The exit status is 1 if the model cannot run with these settings.
    """
    from ridgeline.analysis.inspection import inspect as look
    from ridgeline.cli.session import fetch

    fetch(config.model)
    seen = look(config, at or ())
    if json:
        emit_json(asdict(seen))
    else:
        _print(seen)
    if seen.problems:
        raise Exit(_NOT_RUNNABLE)


def _print(seen: Inspection) -> None:
    tell(_heading(seen))
    if seen.config:
        tell("\n".join(_architecture(seen.config)))
    if seen.tensors:
        columns = ["name", "shape", "format", "layers", "parameters", "bytes"]
        table("stored tensors", columns, map(_row, seen.tensors), folds=(0, 3))
        table("formats", ["format", "parameters", "bytes"], _formats(seen.tensors))
    if seen.running:
        tell("\n".join(_running(seen.running)))
    if seen.memory:
        fits = {True: "yes", False: "no"}
        rows = [[str(m.context), size(m.kv_bytes), size(m.total_bytes), fits[m.fits]] for m in seen.memory]
        table("memory of one request", ["context", "KV", "in all", "fits the KV pool"], rows)
    if seen.tokenizer:
        t = seen.tokenizer
        ends = ", ".join(map(repr, t["ends"])) or "nothing"
        bos = f"put before each prompt: {t['bos']!r}" if t["adds_bos"] else "no BOS"
        tell(f"tokenizer: {t['tokens']} tokens, {bos}; a reply ends at {ends}")
        if seen.template:
            tell(_template(seen.template))
        elif not t["has_template"]:
            tell("chat template: none; prompts are taken as they are (`ridgeline run --raw`)")
    for warning in seen.warnings:
        tell(f"warning: {warning}")
    for problem in seen.problems:
        tell(f"cannot run ({problem.part}): {problem.why}")
    if not seen.problems:
        tell("runs with these settings")


def _heading(seen: Inspection) -> str:
    if seen.kind == "random":
        return f"{seen.model} (weights random; tokenizer of {DEFAULT_MODEL})"
    return f"{seen.model} ({seen.kind}): {seen.path}"


def _architecture(c: dict[str, Any]) -> Iterable[str]:
    heads = f"{c['n_heads']} query and {c['n_kv_heads']} KV heads of {c['head_dim']}"
    yield f"{c['family']}: {c['layers']} layers of {c['hidden']}, {heads}, FFN {c['ffn']}, vocabulary {c['vocab']}"
    gate = "gated " if c["gated"] else ""
    head = "tied to the embedding" if c["tied"] else "of its own"
    yield f"{c['norm']} norm, {c['residual']} residual, {gate}{c['activation']}, head {head}"
    places = [f"rope base {c['rope']['theta']:g} over {c['rope']['dims']} columns"] if c["rope"] else []
    places += [f"rope scaling {c['rope']['kind']}"] if c["rope"] and c["rope"]["kind"] != "default" else []
    places += [f"local rope base {c['local_rope']['theta']:g}"] if c["local_rope"] else []
    places += ["learned positions"] * c["learned_positions"] + ["ALiBi"] * (c["alibi"] > 0)
    yield f"context {c['context']}; {', '.join(places)}"
    local = [w for w in c["windows"] if w]
    if local:
        yield f"{len(local)} layers see the last {max(local)} tokens, {c['layers'] - len(local)} all of them"


def _running(r: dict[str, Any]) -> Iterable[str]:
    held = ", ".join(f"{size(n)} {name}" for name, n in sorted(r["held"].items(), key=lambda x: -x[1]))
    parameters, whole = f"{r['parameters'] / 1e6:.1f} M parameters", size(r["weight_bytes"])
    unpacked = f", unpacked to {size(r['resident_bytes'])} of {r['unpacked_to']}" if r["unpacked_to"] else ""
    yield f"on backend {r['backend']}: {parameters} held in {whole} ({held}){unpacked}"
    windows: dict[int, list[int]] = defaultdict(list)
    for group in r["groups"]:
        windows[group["window"]].append(group["layers"])
    kinds = (f"{sum(n)} layers of window {w or 'none'} in {len(n)} groups" for w, n in sorted(windows.items()))
    yield f"KV: {r['kv_token_bytes']:.0f} bytes a token in {r['groups'][0]['format']}; {', '.join(kinds)}"


def _template(found: dict[str, Any]) -> str:
    parts = [name if has else f"no {name}" for name, has in found["takes"].items()]
    return f"chat template: {found['characters']} characters, takes {', '.join(parts)}"


def _row(t: Tensors) -> list[str]:
    shape, nbytes = " x ".join(map(str, t.shape)), "?" if t.bytes is None else size(t.bytes)
    return [t.name, shape, t.format, _ranges([i for i in t.layers if i >= 0]), f"{t.parameters:,}", nbytes]


def _ranges(layers: Sequence[int]) -> str:
    """0-3, 7, 9-11."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(layers), key=lambda x: x[1] - x[0])]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) or "-"


def _formats(tensors: Sequence[Tensors]) -> list[list[str]]:
    count: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for t in tensors:
        count[t.format][0] += t.parameters
        count[t.format][1] += t.bytes or 0
    return [[name, f"{n:,}", size(b) if b else "?"] for name, (n, b) in sorted(count.items(), key=lambda x: -x[1][0])]
