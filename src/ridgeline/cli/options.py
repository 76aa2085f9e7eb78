"""Options that several subcommands share, each defined once, and the records they are turned into.

`@takes(config=ENGINE)` replaces a handler's parameter `config` by the engine's options on the command line.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from ridgeline.cli.command import Argument, BadParameter, Option
from ridgeline.config import ACTIVATIONS, BACKENDS, KV_FORMATS, EngineConfig, one_blas_thread
from ridgeline.engine.params import SamplingParams, check_params

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str) -> int:
    """Bytes of "512M", "2G", "1.5GiB" or a plain number; units are powers of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    if found is None:
        raise BadParameter(f"{text!r} is not a size; write bytes, or a number with K, M or G such as 512M")
    return int(float(found[1]) * _UNITS[found[2].upper()])


class Group(msgspec.Struct, frozen=True):
    """Options that make one record: name -> (annotation, default), and the record of their values."""

    options: Mapping[str, tuple[Any, Any]]
    build: Callable[..., Any]


def _choice(values: tuple[str, ...], what: str) -> str:
    return f"{what}: {', '.join(values)}."


_REQUIRED = inspect.Parameter.empty
_Model = Annotated[
    str, Argument(metavar="MODEL", help="An alias, a .gguf file, a model directory, a Hub id, or random:1b.")
]
_Size = Option("KV pool, such as 512M.", metavar="SIZE", parser=parse_bytes, default="a quarter of the free memory")
_FORMAT = "Pack weights anew: int8, int4, bf16, q8_0, ..., or by part: int4,head=int8,embedding=int8."
_SPARSITY = "Part of what linears read that becomes 0, such as 0.4; 0 = none."
_SMOOTHING = "SmoothQuant folding into per-channel int8 weights, such as 0.5; 0 = none."
ENGINE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (_Model, _REQUIRED),
    "backend": (Annotated[str, Option(_choice(BACKENDS, "What runs the program"))], EngineConfig.backend),
    "device": (
        Annotated[str, Option("Where backend torch runs: cpu, cuda or cuda:N.")],
        EngineConfig.device,
    ),
    "threads": (Annotated[int, Option("Threads.", default="all physical cores")], 0),
    "pin": (Annotated[bool, Option("Keep each thread to a physical core of its own.", flag="--pin")], False),
    "activations": (
        Annotated[str, Option(_choice(ACTIVATIONS, "Rows of linears"))],
        EngineConfig.activations,
    ),
    "kv_format": (Annotated[str, Option(_choice(KV_FORMATS, "KV format"))], EngineConfig.kv_format),
    "context": (Annotated[int, Option("Longest context.", default="the model's own limit")], 0),
    "kv_memory": (Annotated[int, _Size], "0"),
    "format": (Annotated[str, Option(_FORMAT, default="as stored")], EngineConfig.format),
    "smoothing": (Annotated[float, Option(_SMOOTHING)], EngineConfig.smoothing),
    "sparsity": (Annotated[float, Option(_SPARSITY)], EngineConfig.sparsity),
    "calibration": (
        Annotated[str, Option("What both calibrate on.", metavar="FILE", default="one of ours")],
        EngineConfig.calibration,
    ),
    "packed_cache": (
        Annotated[int, Option("Packed weights kept on disk; 0 = none.", metavar="SIZE", parser=parse_bytes)],
        "20G",
    ),
    "isa": (Annotated[str, Option("Instruction set of the CPU kernels.", default="the best")], ""),
    "model_seed": (Annotated[int, Option("Seed of random: models.")], EngineConfig.seed),
}


def _config(**values: Any) -> EngineConfig:
    config = EngineConfig(seed=values.pop("model_seed"), **values)
    if config.backend == "cpu":
        one_blas_thread()
    from ridgeline.program.passes.repack import parse_formats  # which loads numpy

    parse_formats(config.format)  # before anything is fetched
    return config


SAMPLING_OPTIONS: dict[str, tuple[Any, Any]] = {
    "max_tokens": (Annotated[int | None, Option("Longest answer.", default="512 or what fits")], None),
    "temperature": (Annotated[float, Option("0 takes the likeliest token.")], 0.0),
    "top_p": (Annotated[float, Option("Sample from the likeliest tokens of this total probability.")], 1.0),
    "top_k": (Annotated[int, Option("Sample from the k likeliest tokens; 0 = all.")], 0),
    "min_p": (Annotated[float, Option("Drop tokens below this part of the likeliest one.")], 0.0),
    "typical_p": (Annotated[float, Option("Sample from the most typical tokens of this total probability.")], 1.0),
    "repetition_penalty": (Annotated[float, Option("Above 1 discourages repeating; 1 = off.")], 1.0),
    "seed": (Annotated[int | None, Option("Seed of sampling.", default="a new one each time")], None),
    "stop": (Annotated[list[str] | None, Option("End the answer before this text; repeatable.")], None),
}


def _sampling(**values: Any) -> SamplingParams:
    params = SamplingParams(stop=tuple(values.pop("stop") or ()), **values)
    check_params(params, 1 << 31)  # before a model is loaded; none of these options depends on its vocabulary
    return params


ENGINE = Group(ENGINE_OPTIONS, _config)
SAMPLING = Group(SAMPLING_OPTIONS, _sampling)


def takes(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a handler: each parameter named in `groups` becomes that group's options, in its place."""

    def decorate(handler: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(handler)
        def wrapper(**values: Any) -> None:
            for name, group in groups.items():
                values[name] = group.build(**{option: values.pop(option) for option in group.options})
            handler(**values)

        parameters = _expanded(inspect.signature(handler, eval_str=True).parameters, groups)
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _expanded(own: Mapping[str, inspect.Parameter], groups: Mapping[str, Group]) -> list[inspect.Parameter]:
    """Parameters with the groups in place; keyword-only, since options come in any order."""
    found = []
    for name, parameter in own.items():
        options = groups[name].options if name in groups else {name: (parameter.annotation, parameter.default)}
        for option, (annotation, default) in options.items():
            found.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            )
    return found


AsJson = Annotated[bool, Option("Print one JSON object, on one line, and nothing else.", flag="--json")]
