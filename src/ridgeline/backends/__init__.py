"""Backends by name; each is imported only when chosen."""

from __future__ import annotations

from ridgeline.backends.base import Backend
from ridgeline.config import EngineConfig, available_cores
from ridgeline.errors import ConfigError


def get_backend(config: EngineConfig) -> Backend:
    """The backend a config asks for, with its threads and instruction set."""
    if config.backend == "reference":
        from ridgeline.backends.reference import Reference

        return Reference()
    from ridgeline.backends.cpu.backend import CPU

    cores = available_cores()
    if config.threads > cores:
        raise ConfigError(f"threads {config.threads} are over the {cores} cores there are; they would wait in turn")
    return CPU(threads=config.threads or cores, isa=config.isa)
