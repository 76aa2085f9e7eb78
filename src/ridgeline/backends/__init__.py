"""Backends by name; each is imported only when chosen."""

from __future__ import annotations

from ridgeline.backends.base import Backend
from ridgeline.config import EngineConfig
from ridgeline.cores import hardware_threads
from ridgeline.errors import ConfigError


def get_backend(config: EngineConfig) -> Backend:
    """The backend a config asks for, with its threads, instruction set and device."""
    if config.backend == "reference":
        from ridgeline.backends.reference import Reference

        return Reference()
    most = hardware_threads()
    if config.threads > most:
        raise ConfigError(
            f"threads {config.threads} are over the {most} hardware threads there are; they would wait in turn"
        )
    if config.backend == "torch":
        return _torch(config)
    from ridgeline.backends.cpu.backend import CPU

    return CPU(threads=config.threads, isa=config.isa, pin=config.pin)


def _torch(config: EngineConfig) -> Backend:
    try:
        from ridgeline.backends.torch_eager import Torch
    except ModuleNotFoundError as why:
        if why.name != "torch":
            raise
        raise ConfigError("backend torch needs PyTorch: pip install 'ridgeline-llm[torch]'") from why
    return Torch(device=config.device, threads=config.threads)
