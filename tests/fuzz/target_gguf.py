"""Fuzz target: a GGUF file's bytes through the reader, every tensor read, the config, the program and its weights.

Bounds: reading allocates at most 16 MiB + 16 x the file's bytes, building the program at most 64 MiB more.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gguf_bytes import SCALARS, STRING, Header, Key, Tensor, keys_of, write
from meter import MIB, Check, declare
from mutate import ODD, blob, edge_bytes, text

import tiny
from ridgeline.quant.format import FORMATS
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.load import open_checkpoint
from ridgeline.weights.source import GGUFSource

_VALUES = [x for x in ODD if isinstance(x, bool | int | float | str) and (not isinstance(x, str) or len(x) < 1000)]


@dataclass(frozen=True)
class Seed:
    keys: list[Key]
    tensors: list[Tensor]
    header: Header
    data: bytes
    size: int


@dataclass(frozen=True)
class Case:
    """`start` are the file's first bytes; zeros follow up to `size`."""

    start: bytes
    size: int


class Fuzz:
    """Files are a header on a sparse memory file, so that a case costs its header only."""

    def __init__(self, scratch: Path) -> None:
        self.seeds = [_seed(*model) for model in _models()] + [_formats()]
        self._fd = os.memfd_create("case.gguf")
        self.path = Path(f"/proc/self/fd/{self._fd}")

    def mutate(self, rng: Random) -> Case:
        seed = rng.choice(self.seeds)
        if rng.random() < 0.35:
            return _meaning(rng, seed)
        start, size = bytes(seed.header.out) + seed.data, seed.size
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            pick = rng.random()
            if pick < 0.6:
                at, width = rng.choice(seed.header.fields)
                old = int.from_bytes(start[at : at + width], "little")
                start = start[:at] + edge_bytes(rng, width, old) + start[at + width :]
            elif pick < 0.75:
                start = _moved_record(rng, seed.header, start)
            elif pick < 0.9:
                start = blob(rng, start, bytes(rng.choice(self.seeds).header.out))
            else:
                size = rng.choice((0, 3, 23, 24, len(start) // 2, len(start), size - 1, size - 32, size + 1, size // 2))
        return Case(start, max(size, 0))

    def parse(self, data: bytes) -> Case:
        """The bytes, followed by a model's worth of zeros or, where their sum is odd, by none."""
        return Case(data, len(data) if sum(data) % 2 else len(data) + 2 * MIB)

    def corpus(self) -> list[bytes]:
        whole = [bytes(seed.header.out) + seed.data for seed in self.seeds]
        return [data + bytes([sum(data) % 2]) for data in whole]

    def run(self, case: Case, check: Check) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, case.start[: case.size], 0)
        os.ftruncate(self._fd, case.size)
        reading = 16 * MIB + 16 * case.size
        source = GGUFSource(GGUFFile(self.path))
        try:
            for name in source.names():
                _read(source, name)
        finally:
            check("reading", reading)
        checkpoint = open_checkpoint(self.path)
        check("opening", reading)
        declare(checkpoint)
        check("building", reading + 64 * MIB)


def _read(source: GGUFSource, name: str) -> None:
    if source.info(name).format in FORMATS:
        raw = source.read(name)
        if raw.data.nbytes < 20_000:
            raw.float32()


def _models() -> list[tuple[list[Key], list[Tensor]]]:
    models = []
    for config in map(tiny.CONFIGS.get, tiny.GGUF_CONFIGS):
        arrays = tiny.gguf_tensors(config, tiny.weights(config))
        tensors = [Tensor(name, x.shape, 0, x.nbytes, x.tobytes()) for name, x in arrays.items() if "freqs" in name]
        tensors += [Tensor(name, x.shape, 0, x.nbytes) for name, x in arrays.items() if "freqs" not in name]
        models.append((keys_of(tiny.gguf_metadata(config)), tensors))
    vocabulary = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "é", "<s>"], "tokenizer.ggml.scores": [0.5, -1.],
        "tokenizer.ggml.token_type": [1, 1, 3], "general.alignment": 64, "tokenizer.chat_template": "{{ messages }}",
        "general.quantization_version": 2, "tokenizer.ggml.add_bos_token": True, "general.tags": [],
    }  # fmt: skip
    keys, tensors = models[0]
    nested = Key("general.nested", 9, (9, [(8, ["x"]), (5, [1, -1])]))
    models.append(([*keys, *keys_of(vocabulary), nested], tensors))
    return models


def _seed(keys: list[Key], tensors: list[Tensor]) -> Seed:
    return Seed(keys, tensors, *write(keys, tensors))


def _formats() -> Seed:
    """One tensor of each stored format, without a model around them."""
    tensors = [
        Tensor(f"t.{f.name}", (2, 2 * f.block), f.ggml_type, 4 * f.block_bytes, bytes(range(17)))
        for f in FORMATS.values()
        if f.ggml_type is not None
    ]
    return _seed(keys_of({"general.architecture": "none"}), tensors)


def _meaning(rng: Random, seed: Seed) -> Case:
    """A well-formed header that says something odd."""
    keys, tensors = list(seed.keys), list(seed.tensors)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(keys))
        key = keys[at]
        match rng.randrange(8):
            case 0:
                del keys[at]
                keys = keys or [key]
            case 1:
                keys.insert(rng.randrange(len(keys) + 1), key)
            case 2:
                keys[at] = Key(text(rng, key.name), key.type, key.value)
            case 3 | 4 | 5:
                keys[at] = Key(key.name, *_typed(rng))
            case _:
                tensors = _odd_tensors(rng, tensors)
    header, data, size = write(keys, tensors)
    return Case(bytes(header.out) + data, min(size, 1 << 26))


def _typed(rng: Random) -> tuple[int, object]:
    """A GGUF value of any type."""
    value = rng.choice(_VALUES)
    if rng.random() < 0.2:
        entries = [value] * rng.choice((0, 1, 3, 1000))
        kind = STRING if isinstance(value, str) else 12
        return 9, (kind, entries if kind == STRING else [_fit(12, value) for _ in entries])
    if isinstance(value, str):
        return STRING, value
    kind = rng.choice(list(SCALARS))
    return kind, _fit(kind, value)


def _fit(kind: int, value: int | float) -> int | float:
    code = SCALARS[kind]
    if code in "fd":
        fits = isinstance(value, float) and (code == "d" or not 1e38 < abs(value) < math.inf)
        return value if fits else 1e38
    bits = {"b": 8, "h": 16, "i": 32, "q": 64}.get(code.lower(), 8)
    whole = int(value) if abs(value) < 1e300 else 0
    whole &= (1 << bits) - 1
    return whole - (1 << bits) if code.islower() and whole >> (bits - 1) else whole


def _odd_tensors(rng: Random, tensors: list[Tensor]) -> list[Tensor]:
    at = rng.randrange(len(tensors))
    t = tensors[at]
    match rng.randrange(5):
        case 0:
            return tensors[:at] + tensors[at + 1 :] or tensors
        case 1:
            return [*tensors, Tensor(text(rng, t.name), t.shape, t.type, t.nbytes)]
        case 2:
            changed = Tensor(t.name, t.shape, rng.randrange(45), t.nbytes)
        case 3:
            changed = Tensor(t.name, t.shape[::-1] if rng.random() < 0.5 else (1, *t.shape)[-4:], t.type, t.nbytes)
        case _:
            shape = tuple(rng.choice((n, n + 1, n - 1, 2 * n, 32 * n)) for n in t.shape)
            changed = Tensor(t.name, shape, t.type, 4 * max(1, _product(shape)))
    return [*tensors[:at], changed, *tensors[at + 1 :]]


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n


def _moved_record(rng: Random, header: Header, start: bytes) -> bytes:
    """A whole record repeated, dropped or put elsewhere."""
    cuts = [*header.starts, len(header.out)]
    i = rng.randrange(len(cuts) - 1)
    record = start[cuts[i] : cuts[i + 1]]
    to = rng.choice(cuts[:-1])
    without = start[: cuts[i]] + start[cuts[i + 1] :] if rng.random() < 0.5 else start
    return without[:to] + record + without[to:]
