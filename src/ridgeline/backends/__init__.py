"""Backends by name; each is imported only when chosen."""

from __future__ import annotations

from ridgeline.backends.base import Backend
from ridgeline.config import EngineConfig, available_cores


def get_backend(config: EngineConfig) -> Backend:
    """The backend a config asks for, with its threads and instruction set."""
    if config.backend == "reference":
        from ridgeline.backends.reference import Reference

        return Reference()
    from ridgeline.backends.cpu.backend import CPU

    return CPU(threads=config.threads or available_cores(), isa=config.isa)
