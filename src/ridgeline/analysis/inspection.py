"""What a model's files hold and what running them would take, read from headers.

Each part is looked at by itself, so that a file that cannot be run is still described, with every reason why. It
must not load weights, nor print.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ridgeline.backends.base import Backend
from ridgeline.config import EngineConfig
from ridgeline.engine.load import (
    Opened,
    batch_limits,
    engine_info,
    find,
    page_count,
    program_of,
    resident_bytes,
    tokenizer_of,
)
from ridgeline.engine.records import pages_needed
from ridgeline.errors import ConfigError, RidgelineError
from ridgeline.models.random import random_checkpoint
from ridgeline.program import cost
from ridgeline.program.ir import Program
from ridgeline.program.memory import plan_memory
from ridgeline.program.passes.repack import parse_formats
from ridgeline.quant.format import FORMATS, row_bytes
from ridgeline.text.template import require_template
from ridgeline.text.tokenizer import Tokenizer, from_gguf
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.hub import ResolvedModel
from ridgeline.weights.load import Checkpoint, open_checkpoint
from ridgeline.weights.source import GGUFSource, SafetensorsSource, WeightSource

_LAYER = re.compile(r"\.(\d+)\.")
_WORD = "look_up_7361"  # put where a template should show it


@dataclass(frozen=True)
class Problem:
    """Why a part of the model cannot be used."""

    part: str
    error: str
    why: str


@dataclass(frozen=True)
class Tensors:
    """Stored tensors of one name pattern and shape: how many, in which format, in which layers (-1: in none)."""

    name: str
    shape: tuple[int, ...]
    format: str
    layers: tuple[int, ...]
    parameters: int
    bytes: int | None  # None: the format's size is not known


@dataclass(frozen=True)
class Memory:
    """Bytes at one context: KV of a single request, and everything together; whether that KV fits the pool."""

    context: int
    kv_bytes: int
    total_bytes: int
    fits: bool


@dataclass
class Inspection:
    """All that could be found out. `problems` empty: the model runs with these settings, as `warnings` say."""

    model: str
    path: str
    kind: str
    tensors: list[Tensors] = field(default_factory=list)
    config: dict[str, Any] | None = None
    running: dict[str, Any] | None = None
    memory: list[Memory] = field(default_factory=list)
    tokenizer: dict[str, Any] | None = None
    template: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, part: str, look: Callable[[], Any]) -> Any:
        """The result of `look`, or None and a problem of `part`. The same reason is told once."""
        try:
            return look()
        except RidgelineError as why:
            if str(why) not in [p.why for p in self.problems]:
                self.problems.append(Problem(part, type(why).__name__, str(why)))
            return None


def inspect(config: EngineConfig, contexts: Sequence[int] = ()) -> Inspection:
    """Look at every part of `config.model`. Raises ModelNotFound where there is nothing of that name."""
    found = find(config.model)
    seen = Inspection(config.model, str(found.path), found.kind)
    checkpoint: Checkpoint | None = seen.attempt("config", lambda: _checkpoint(found, config))
    source = checkpoint.source if checkpoint else seen.attempt("files", lambda: _source(found))
    seen.tensors = _tensors(source) if source else []
    seen.config = asdict(checkpoint.config) if checkpoint else None
    tokenizer = seen.attempt("tokenizer", lambda: _tokenizer(found, checkpoint))
    if tokenizer:
        seen.tokenizer = _vocabulary(tokenizer)
        if tokenizer.chat_template is not None:
            seen.template = seen.attempt("template", lambda: _template(tokenizer))
    built = seen.attempt("program", lambda: program_of(checkpoint, config)) if checkpoint else None
    if checkpoint and built:
        program, backend = built
        seen.running = _running(program, backend)
        if tokenizer:
            seen.warnings += _spare_tokens(tokenizer, checkpoint)
            opened = Opened(config.model, checkpoint, program, tokenizer, backend)
            pages = seen.attempt("memory", lambda: _pages(opened, config)) or 0
            seen.memory = seen.attempt("memory", lambda: _memory(opened, config, contexts, pages)) or []
    return seen


def _checkpoint(found: ResolvedModel, config: EngineConfig) -> Checkpoint:
    if found.kind == "random":
        return random_checkpoint(config.model, parse_formats(config.format).rest or "q4_1", config.seed)
    return open_checkpoint(found.path)


def _source(found: ResolvedModel) -> WeightSource:
    return SafetensorsSource(found.path) if found.kind == "dir" else GGUFSource(GGUFFile(found.path))


def _tokenizer(found: ResolvedModel, checkpoint: Checkpoint | None) -> Tokenizer:
    if found.kind == "gguf" and checkpoint is None:
        return from_gguf(GGUFFile(found.path).metadata)
    return tokenizer_of(found, checkpoint if found.kind == "gguf" else None)


def _tensors(source: WeightSource) -> list[Tensors]:
    """Tensors by name pattern, in the file's order, then by shape and format."""
    patterns: dict[str, dict[tuple[tuple[int, ...], str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in source.names():
        info, layer = source.info(name), _LAYER.search(name)
        pattern = _LAYER.sub(".{i}.", name, count=1)
        patterns[pattern][info.shape, info.format].append(int(layer[1]) if layer else -1)
    return [
        Tensors(name, shape, fmt, tuple(sorted(layers)), len(layers) * math.prod(shape), _stored(shape, fmt, layers))
        for name, kinds in patterns.items()
        for (shape, fmt), layers in kinds.items()
    ]


def _stored(shape: tuple[int, ...], format: str, layers: Sequence[int]) -> int | None:
    if format not in FORMATS or not shape:
        return None
    return len(layers) * math.prod(shape[:-1]) * row_bytes(FORMATS[format], shape[-1])


def _running(program: Program, backend: Backend) -> dict[str, Any]:
    """What the program takes on its backend: parameters, held bytes by format, KV of a token."""
    held: dict[str, int] = defaultdict(int)
    for w in program.weights.values():
        held[w.format] += cost.weight_nbytes(w)
    return {
        "backend": backend.name,
        "parameters": cost.parameters(program),
        "weight_bytes": cost.weight_bytes(program),
        "held": dict(held),
        "unpacked_to": backend.unpacks_to,
        "resident_bytes": resident_bytes(program, backend),
        "kv_token_bytes": cost.kv_token_bytes(program),
        "groups": [
            {"name": s.name, "layers": s.layers, "window": s.window, "format": s.format} for s in program.states
        ],
    }


def _usual_contexts(most: int) -> list[int]:
    """Powers of four from 2048, and the model's own limit."""
    steps = [c for c in (2048 << (2 * i) for i in range(8)) if c < most]
    return [*steps, most]


def _spare_tokens(tokenizer: Tokenizer, checkpoint: Checkpoint) -> list[str]:
    tokens, vocab = tokenizer.vocab_size, checkpoint.config.vocab
    if tokens <= vocab:
        return []
    return [f"the tokenizer has {tokens} tokens, the model {vocab}; a prompt with an id from {vocab} on is refused"]


def _pages(opened: Opened, config: EngineConfig) -> int:
    """Pages of the KV pool a load would make."""
    return page_count(opened.program, opened.backend, batch_limits(opened.config, config), config)


def _memory(opened: Opened, config: EngineConfig, contexts: Sequence[int], pages: int) -> list[Memory]:
    """KV as admission books it: whole pages, and for windows the step's tokens beside the window."""
    limits, most = batch_limits(opened.config, config), config.context or opened.config.context
    if max(contexts, default=0) > most:
        raise ConfigError(f"--at {max(contexts)} is over the context of {most}")
    info = engine_info(opened, limits, pages, config, 0.0)
    buffers = sum(plan_memory(e, limits).nbytes for e in opened.program.entries.values())
    fixed = resident_bytes(opened.program, opened.backend) + buffers
    needed = [(c, pages_needed(info, c)) for c in contexts or _usual_contexts(most)]
    return [Memory(c, n * info.page_bytes, fixed + n * info.page_bytes, n <= pages) for c, n in needed]


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": tokenizer.vocab_size,
        "bos": tokenizer.bos_token,
        "adds_bos": tokenizer.add_bos,
        "has_template": tokenizer.chat_template is not None,
        "ends": [tokenizer.token_text(i) for i in sorted(tokenizer.eos_ids)],
    }


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the chat template takes, found by rendering: a plain question must work, the rest may not."""
    template = require_template(tokenizer)
    question = [{"role": "user", "content": "Which tools do you see?"}]
    plain = template.render(question)
    tool = {"type": "function", "function": {"name": _WORD, "description": "Find.", "parameters": {}}}
    trials: dict[str, Callable[[], str]] = {
        "system": lambda: template.render([{"role": "system", "content": _WORD}, *question]),
        "tools": lambda: template.render(question, tools=[tool]),
        "history": lambda: template.render([*question, {"role": "assistant", "content": _WORD}, *question]),
    }
    takes = {name: _shows(trial) for name, trial in trials.items()}
    return {"characters": len(template.source), "example": plain, "takes": takes}


def _shows(render: Callable[[], str]) -> bool:
    try:
        return _WORD in render()
    except RidgelineError:
        return False
