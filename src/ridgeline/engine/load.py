"""Load: model name to a ready engine. config -> capture -> passes -> memory -> pages -> weights -> compile."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ridgeline import __version__
from ridgeline.backends import get_backend
from ridgeline.backends.base import Backend, Step
from ridgeline.config import CacheConfig, EngineConfig
from ridgeline.cores import available_cores
from ridgeline.engine.calibrate import Calibrator, text_of
from ridgeline.engine.engine import Engine, Flight
from ridgeline.engine.executor import LocalExecutor
from ridgeline.engine.losses import notes
from ridgeline.engine.output import ChoiceText
from ridgeline.engine.params import MAX_ROW_BIAS
from ridgeline.engine.records import PAGE, EngineInfo, GroupInfo
from ridgeline.errors import ConfigError
from ridgeline.guidance.compiler import Compiler
from ridgeline.memory import available_memory
from ridgeline.models import build
from ridgeline.models.config import ModelConfig, for_context
from ridgeline.models.random import random_checkpoint
from ridgeline.program import cost
from ridgeline.program.approximations import row_types
from ridgeline.program.batch import BatchLayout, Limits, StepResult
from ridgeline.program.dump import program_hash
from ridgeline.program.ir import Program
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.repack import parse_formats
from ridgeline.program.passes.sparsify import sparsify
from ridgeline.text.tokenizer import Tokenizer, from_dir, from_gguf
from ridgeline.text.vocab import MAX_ENDS
from ridgeline.weights import hub
from ridgeline.weights.load import Checkpoint, open_checkpoint
from ridgeline.weights.packed import identity, packed_weights

if TYPE_CHECKING:
    from ridgeline.weights.fetch import Progress

log = logging.getLogger(__name__)
_SPARE = 64 << 20  # bytes that KV pages leave to all else
_PART = 8  # of what the system has left, so much is used before it is asked again

Observe = Callable[[Flight, StepResult], None]


class Opened(msgspec.Struct, frozen=True):
    """A model before any weight is read: enough for `roofline`, `inspect` and admission."""

    name: str
    checkpoint: Checkpoint
    program: Program
    tokenizer: Tokenizer
    backend: Backend

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config


class Loaded(msgspec.Struct, frozen=True):
    """A model that can run."""

    opened: Opened
    step: Step
    engine: Engine


def find(model: str, progress: Progress | None = None) -> hub.ResolvedModel:
    """The files of a model, fetched into the cache where they are missing."""
    return hub.resolve(model, cache=CacheConfig.from_env().path, progress=progress)


def tokenizer_of(found: hub.ResolvedModel, checkpoint: Checkpoint | None = None) -> Tokenizer:
    """The tokenizer beside or inside a model's files; pass the checkpoint if it is open already."""
    if found.kind == "dir":
        return from_dir(found.path)
    return from_gguf((checkpoint or open_checkpoint(found.path)).metadata)


def open_model(config: EngineConfig, progress: Progress | None = None) -> Opened:
    """Find the model's files, check its config, capture and transform its program; sparsity is calibrated here."""
    found = find(config.model, progress)
    if found.kind == "random":
        checkpoint = random_checkpoint(config.model, parse_formats(config.format).rest or "q4_1", config.seed)
        tokenizer = tokenizer_of(found)
    else:
        checkpoint = open_checkpoint(found.path)
        tokenizer = tokenizer_of(found, checkpoint)
    program, backend = program_of(checkpoint, config)
    if config.sparsity:
        calibrator = Calibrator(checkpoint, backend, tokenizer, text_of(config))
        thresholds = calibrator.thresholds(config.sparsity, CacheConfig.from_env().path)
        program = pipeline.run(program, [("sparsify", lambda p: sparsify(p, thresholds))])
    return Opened(config.model, checkpoint, program, tokenizer, backend)


def program_of(checkpoint: Checkpoint, config: EngineConfig) -> tuple[Program, Backend]:
    """The program as the config's backend will run it, and that backend; every tensor of the file is accounted for."""
    backend = get_backend(config)
    listed = pipeline.passes(
        checkpoint.format_of, config.kv_format, held_as=backend.held_as, multiplies=backend.multiplies,
        activations=config.activations, formats=parse_formats(config.format), smoothing=smoothing_label(config),
    )  # fmt: skip
    program = build(for_context(checkpoint.config, config.context))
    checkpoint.check_all_used(program.weights.values())
    return pipeline.run(program, listed), backend


def batch_limits(c: ModelConfig, config: EngineConfig) -> Limits:
    """Capacities of a step."""
    context = config.context or c.context
    if context > c.context:
        named = f"--context {context} (--max-total-tokens of a server)"
        raise ConfigError(f"{named} is over the model's own limit of {c.context}")
    return Limits(
        tokens=config.step_tokens,
        requests=config.max_requests,
        rows=max(config.max_requests, min(config.step_tokens, 64)),
        pages=-(-context // PAGE),
        vocab=c.vocab,
        hidden=c.hidden,
        bias=config.max_requests * (MAX_ROW_BIAS + MAX_ENDS),
        history=config.max_requests * min(context, c.vocab),
        masks=config.max_requests,
        copies=max(64, 2 * config.max_requests),  # a page per sequence in each of two groups; more wait a step
    )


def resident_bytes(program: Program, backend: Backend) -> int:
    """Bytes of memory that the backend's compiled weights take."""
    if not backend.unpacks_to:
        return cost.weight_bytes(program)
    return sum(cost.weight_nbytes(replace(w, format=backend.unpacks_to)) for w in program.weights.values())


def page_count(program: Program, backend: Backend, limits: Limits, config: EngineConfig) -> int:
    """KV pages: --kv-memory, or a quarter of what is available beside the weights; never more than can be used."""
    page = program.states[0].page_bytes
    usable = limits.requests * limits.pages * len(program.states)
    held = resident_bytes(program, backend)
    room = config.kv_memory or max(available_memory() - held, 0) // 4
    pages = min(room // page, usable)
    if pages < len(program.states):
        need = page * len(program.states)
        source = "" if config.kv_memory else f" (a quarter of what weights of {held} bytes leave)"
        raise ConfigError(
            f"KV memory of {room} bytes{source} holds no page of {page} bytes per group; give at least {need}"
        )
    return int(pages)


def committed(page_bytes: int, available: Callable[[], int] = available_memory) -> Callable[[int], bool]:
    """Whether the system has memory for so many more pages, of which something is left for all else; said when not.

    It is asked again when a part of what it had is used up: an answer takes a millisecond.
    """
    told: list[int] = []
    granted = 0

    def commit(pages: int) -> bool:
        nonlocal granted
        granted -= pages * page_bytes
        if granted >= 0:
            return True
        left = available()
        granted = (left - pages * page_bytes - _SPARE) // _PART
        if granted >= 0:
            return True
        if not told:
            told.append(left)
            log.warning(
                "ridgeline: the KV pool grows no further for now: the system has %d MiB left; free some, or lower "
                "--kv-memory to what it can have",
                left >> 20,
            )
        return False

    return commit


def load(config: EngineConfig, progress: Progress | None = None, observe: Observe | None = None) -> Loaded:
    """A ready engine. Raises typed errors naming the file, key, setting or limit at fault."""
    begin = time.perf_counter()
    opened = open_model(config, progress)
    limits = batch_limits(opened.config, config)
    layout = BatchLayout.of(limits, opened.program.states)
    pages = page_count(opened.program, opened.backend, limits, config)
    checkpoint = smoothed_checkpoint(opened, config)
    packed = packed_weights(checkpoint, CacheConfig.from_env().path, config.packed_cache)
    step = opened.backend.compile(opened.program, checkpoint.read, layout, pages, packed)
    info = engine_info(opened, limits, pages, config, time.perf_counter() - begin)
    if packed is not None:
        info = msgspec.structs.replace(info, notes=(*info.notes, *packed.notes))
    tokenizer = opened.tokenizer
    engine = Engine(
        LocalExecutor(step),
        layout,
        info,
        tokenizer.eos_ids,
        lambda r: ChoiceText(tokenizer, r.params),
        observe,
        commit=committed(info.page_bytes),
        compiler=Compiler(tokenizer, info.vocab),
    )
    keep_prefixes(engine, config, checkpoint)
    return Loaded(opened, step, engine)


def keep_prefixes(engine: Engine, config: EngineConfig, checkpoint: Checkpoint) -> None:
    """Read the prefix cache that the last run kept, and let this one keep its own, where the config names a file."""
    if not config.prefix_cache_file:
        return
    from ridgeline.engine.kept import Kept  # what few ask for should cost nobody else a start
    from ridgeline.engine.kept_header import identity_of

    path, pages = Path(config.prefix_cache_file), engine.executor.pages
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"prefix_cache_file {config.prefix_cache_file!r} must name a file in a folder that exists")
    if pages is None:
        raise ConfigError(f"backend {config.backend} keeps no pages between runs; leave prefix_cache_file out")
    same = identity_of(engine.info, identity(checkpoint), pages.layout, __version__)
    engine.kept = Kept(path, config.prefix_cache_size, same, pages)
    note = engine.kept.load(engine.cache)
    if note:
        engine.info = msgspec.structs.replace(engine.info, notes=(*engine.info.notes, note))


def smoothing_label(config: EngineConfig) -> str:
    """What tells the scales of a config's smoothing from others; "" where it asks for none."""
    if not config.smoothing:
        return ""
    return f"{config.smoothing:g}-{hashlib.sha256(text_of(config).encode()).hexdigest()[:8]}"


def smoothed_checkpoint(opened: Opened, config: EngineConfig) -> Checkpoint:
    """The checkpoint with the scales that the program names, calibrated if they are not in the cache."""
    if not config.smoothing:
        return opened.checkpoint
    calibrator = Calibrator(opened.checkpoint, opened.backend, opened.tokenizer, text_of(config))
    scales = calibrator.scales(opened.program, config.smoothing, CacheConfig.from_env().path)
    return replace(opened.checkpoint, scales=scales)


def engine_info(opened: Opened, limits: Limits, pages: int, config: EngineConfig, seconds: float) -> EngineInfo:
    """What clients need to know of a loaded model."""
    program, matrices = opened.program, [w for w in opened.program.weights.values() if len(w.shape) > 1]
    formats = {w.format: 0 for w in matrices}
    for w in matrices:
        formats[w.format] += w.shape[0] * w.shape[1]
    return EngineInfo(
        model=opened.name,
        vocab=opened.config.vocab,
        context=config.context or opened.config.context,
        pages=pages,
        page_bytes=opened.program.states[0].page_bytes,
        groups=tuple(GroupInfo(s.name, s.window) for s in program.states),
        step_tokens=limits.tokens,
        step_ms=config.step_ms,
        max_requests=limits.requests,
        queue=config.queue,
        depth=1,
        admission=config.admission,
        policy=config.policy,
        backend=opened.backend.name,
        format=max(formats, key=lambda f: formats[f]),
        activations=row_types(program),
        kv_format=config.kv_format,
        threads=config.threads or available_cores(),
        weight_bytes=cost.weight_bytes(program),
        program=program_hash(program),
        load_seconds=seconds,
        prefix_sharing=config.prefix_sharing,
        notes=notes(CacheConfig.from_env().path, opened.checkpoint, program),
    )
