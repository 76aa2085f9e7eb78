"""Open a model for a command that runs it here, and say what an answer took."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ridgeline.cli.output import download_bar, percent, say
from ridgeline.config import CacheConfig, EngineConfig

if TYPE_CHECKING:
    from ridgeline.analysis.roofline import Roofline
    from ridgeline.engine.params import SamplingParams
    from ridgeline.llm import LLM
    from ridgeline.tools.timing import Timing

DEFAULT_ANSWER = 512


def fetch(model: str) -> None:
    """Bring a model's files into the cache, with a bar; says nothing when they are there."""
    from ridgeline.weights import hub

    with download_bar(model) as progress:
        hub.resolve(model, cache=CacheConfig.from_env().path, progress=progress)


def open_llm(config: EngineConfig, notes: bool = True) -> LLM:
    """The model, loaded in this process; says on stderr what is approximate, unless told not to."""
    from ridgeline.llm import LLM

    fetch(config.model)
    settings = asdict(config)
    llm = LLM(settings.pop("model"), **settings)
    for note in llm.info.notes if notes else ():
        say(note)
    return llm


def roofline_of(llm: LLM) -> Roofline:
    """The loaded program on the peaks that are known for this machine."""
    from ridgeline.analysis import hardware
    from ridgeline.analysis.roofline import Roofline

    return Roofline(llm.program, hardware.peaks(llm.config.threads, CacheConfig.from_env().path))


def fitted(llm: LLM, prompt_tokens: int, params: SamplingParams) -> SamplingParams:
    """`params` with a length: the one asked for, else 512 or what the context and the KV pool leave."""
    import msgspec

    from ridgeline.engine.records import most_tokens

    if params.max_tokens is not None:
        return params
    room = max(1, most_tokens(llm.info, params.n) - prompt_tokens)
    return msgspec.structs.replace(params, max_tokens=min(DEFAULT_ANSWER, room))


def report(llm: LLM, timing: Timing, load_s: float) -> None:
    """One line on stderr: tokens, speed, waiting times, and attainment of measured peaks."""
    from ridgeline.tools.timing import attainment

    roofline = roofline_of(llm)
    reached, source = attainment(roofline, timing), roofline.peaks.source
    near = f"attainment: prefill {percent(reached['prefill'])}, decode {percent(reached['decode'])} ({source})"
    if source == "assumed":  # a part of a guess says nothing
        near = "run `ridgeline hardware --measure` for attainment"
    say(
        f"{timing.prompt_tokens} prompt tokens, {timing.tokens} generated | prefill {timing.prefill_tok_s:.1f} tok/s, "
        f"decode {timing.decode_tok_s:.1f} tok/s | first token {timing.prefill_s:.2f} s, load {load_s:.2f} s | {near}"
    )
