"""Fuzz target: a Hugging Face folder (config.json, one file or an index and shards) through the same steps as GGUF.

Bounds: reading allocates at most 16 MiB + 36 x the bytes of JSON, building the program at most 64 MiB more.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from meter import MIB, Check, declare
from mutate import EDGES, blob, chain, document, dump, edge_bytes, value

import tiny
from ridgeline.quant.format import FORMATS
from ridgeline.weights.load import open_checkpoint
from ridgeline.weights.source import SafetensorsSource

_DTYPES = ("F32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "I64", "f32", "")
_KEYS = ("dtype", "shape", "data_offsets", "__metadata__", "weight_map", "metadata")


@dataclass(frozen=True)
class File:
    """What one file of a folder holds: JSON, a binary length before it or not, and zeros up to `size`."""

    name: str
    json: Any
    size: int = 0

    @cached_property
    def data(self) -> bytes:
        text = dump(self.json)
        return len(text).to_bytes(8, "little") + text if self.size else text


@dataclass(frozen=True)
class Case:
    """File `name` of `folder` replaced by `start` and zeros up to `size`."""

    folder: Path
    name: str
    start: bytes
    size: int

    @property
    def header(self) -> int:
        """Bytes of JSON as the file itself claims, as far as it has them."""
        return min(int.from_bytes(self.start[:8], "little"), self.size) if self.size else len(self.start)


class Fuzz:
    """Folders with their valid files stay; a case replaces one file and puts it back."""

    def __init__(self, scratch: Path) -> None:
        self.folders = {}
        for name, config in tiny.CONFIGS.items():
            for shards in (1, 2):
                folder = scratch / f"{name}-{shards}"
                folder.mkdir()
                self.folders[folder] = _files(config, shards)
                for file in self.folders[folder]:
                    _write(folder / file.name, file.data, file.size)
        self._all = [(folder, file) for folder, files in self.folders.items() for file in files]

    def mutate(self, rng: Random) -> Case:
        folder, file = rng.choice(self._all)
        if not file.size:
            return Case(folder, file.name, document(rng, file.json, _KEYS), 0)
        pick = rng.random()
        if pick < 0.5:
            text = dump(chain(rng, file.json, _odd_record))
        elif pick < 0.8:
            text = document(rng, file.json, _KEYS)
        else:
            text = file.data[8:]
        data = len(text).to_bytes(8, "little") + text
        size = file.size + len(data) - len(file.data)
        if rng.random() < 0.15:
            data = edge_bytes(rng, 8, len(text)) + text
        if pick > 0.9:
            data = blob(rng, data, rng.choice(self._all)[1].data)
        if rng.random() < 0.15:
            size = rng.choice((0, 1, 7, 8, 9, len(data) // 2, len(data), size - 1, size + 1, size // 2))
        return Case(folder, file.name, data, max(size, 0))

    def parse(self, data: bytes) -> Case:
        """The first byte picks folder and file, the rest is its start."""
        folder, file = self._all[(data[0] if data else 0) % len(self._all)]
        return Case(folder, file.name, data[1:], max(file.size, len(data)) if file.size else 0)

    def corpus(self) -> list[bytes]:
        return [bytes([i]) + file.data for i, (_, file) in enumerate(self._all[:256])]

    def run(self, case: Case, check: Check) -> None:
        path = case.folder / case.name
        _write(path, case.start, case.size)
        try:
            text = sum(len(file.data) for file in self.folders[case.folder])
            _open(case.folder, check, 36 * (text + case.header))
        finally:
            file = next(f for f in self.folders[case.folder] if f.name == case.name)
            _write(path, file.data, file.size)


def _open(folder: Path, check: Check, room: int) -> None:
    reading = 16 * MIB + room
    try:
        source = SafetensorsSource(folder)
        for name in source.names():
            if source.info(name).format in FORMATS:
                raw = source.read(name)
                if raw.data.nbytes < 20_000:
                    raw.float32()
        checkpoint = open_checkpoint(folder)
    finally:
        check("reading", reading)
    declare(checkpoint)
    check("building", reading + 64 * MIB)


def _files(config: dict[str, Any], shards: int) -> list[File]:
    shapes = tiny.shapes(config)
    if shards == 1:
        return [File("config.json", config), _tensors("model.safetensors", shapes)]
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    parts = [{k: shapes[k] for k in list(shapes)[i::shards]} for i in range(shards)]
    index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    files = [_tensors(name, part) for name, part in zip(names, parts, strict=True)]
    return [
        File("config.json", config),
        File("model.safetensors.index.json", {"metadata": {}, "weight_map": index}),
        *files,
    ]


def _tensors(name: str, shapes: dict[str, tuple[int, ...]]) -> File:
    header, at = {}, 0
    for key, shape in shapes.items():
        nbytes = 4
        for n in shape:
            nbytes *= n
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    return File(name, header, 8 + len(json.dumps(header)) + at)


def _odd_record(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """One tensor's record changed in a way that only this format can take."""
    key = rng.choice(list(header))
    record = header[key]
    if not isinstance(record, dict) or not {"shape", "data_offsets"} <= record.keys():
        return value(rng, header, _KEYS)
    match rng.randrange(6):
        case 0:
            record = {**record, "dtype": rng.choice(_DTYPES)}
        case 1:
            record = {**record, "shape": [rng.choice(EDGES) for _ in range(rng.choice((0, 1, 2, 3, 60)))]}
        case 2:
            record = {**record, "data_offsets": [rng.choice(EDGES), rng.choice(EDGES)]}
        case 3:
            record = {**record, "data_offsets": header[rng.choice(list(header))]}
        case 4:
            return {**header, key + rng.choice("abc"): record}
        case _:
            record = value(rng, record, _KEYS)
    return {**header, key: record}


def _write(path: Path, start: bytes, size: int) -> None:
    """`start`, then zeros up to `size`; cut there where size is not 0."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, start)
        if size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)
