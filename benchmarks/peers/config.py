"""The user's configuration file: which engines are where, and which models they run in which case.

One JSON object; every path in it is relative to the file. Unknown keys are refused. Nothing here is about a machine
of ours: without the file's engines a peer is looked for among the packages of this interpreter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class EngineSettings(msgspec.Struct, forbid_unknown_fields=True):
    """Where an engine is. python: interpreter that has the package. directory: folder of the binaries.

    options: extra arguments of the binaries, or keyword settings of the package's loader. env: variables set for it.
    version: shown instead of what the engine says of itself, for a build without one.
    """

    python: str = ""
    directory: str = ""
    options: list[str] = msgspec.field(default_factory=list)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    version: str = ""


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One model of one engine in a case. format: what its weights and activations are, for the table.

    works: only these pieces of work (empty: all). settings and options are added to the engine's.
    """

    engine: str
    model: str
    format: str
    label: str = ""
    works: list[str] = msgspec.field(default_factory=list)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    options: list[str] = msgspec.field(default_factory=list)

    @property
    def title(self) -> str:
        """How the entry is named in tables: unique within a case."""
        return self.label or f"{self.engine} {self.format}"


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """A comparison: one entry of ours against those of peers. kl: whether its weights are a real model's."""

    name: str
    ours: Entry
    peers: list[Entry]
    works: list[str] = msgspec.field(default_factory=list)
    kl: bool = True


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file. text: a UTF-8 text for the KL figures. limit_s: most seconds for one piece of work."""

    cases: list[Case]
    engines: dict[str, EngineSettings] = msgspec.field(default_factory=dict)
    threads: int = 2
    text: str = ""
    limit_s: float = 1200.0


def load(path: Path) -> Config:
    """The configuration with absolute paths. ValueError, naming the key, if it is not one."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
    except (OSError, msgspec.DecodeError) as wrong:
        raise ValueError(f"{path}: {wrong}") from wrong
    base = path.absolute().parent
    for engine in config.engines.values():
        engine.python = _absolute(base, engine.python) if "/" in engine.python else engine.python
        engine.directory = _absolute(base, engine.directory)
    config.text = _absolute(base, config.text)
    for case in config.cases:
        for entry in (case.ours, *case.peers):
            entry.model = _absolute(base, entry.model) if (base / entry.model).exists() else entry.model
        titles = [entry.title for entry in (case.ours, *case.peers)]
        if len(set(titles)) < len(titles):
            raise ValueError(f"{path}: case {case.name!r} has two entries of one name; give them a label")
    return config


def _absolute(base: Path, text: str) -> str:
    return str(base / Path(text).expanduser()) if text else ""
