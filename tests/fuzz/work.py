"""The child of a fuzz run: mutates, runs, judges and counts, in a process that may be lost.

It writes the number of each mutation into a shared file before trying it, so that whoever waits knows which one
crashed or hangs. Memory is limited by the system above what the process holds when it starts.
"""

from __future__ import annotations

import importlib
import mmap
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("fuzz", "", "pure")]

from meter import MIB, Meter, Target, TooMuch, unchecked  # noqa: E402

from ridgeline.errors import RidgelineError  # noqa: E402

STATUS = struct.Struct("<Qd")  # number of the mutation that runs, when it began (monotonic seconds)
SECONDS = 1.0  # of processor time that a mutation may take
MEASURED_EVERY = 10
KEPT = 3  # failures kept of each kind
ENOUGH = 100  # failures after which a child stops
# Private memory of the whole process above its start: each target's bound with room for the interpreter's own.
ROOM = {"gguf": 256 * MIB, "safetensors": 256 * MIB, "config": 192 * MIB, "tokenizer": 256 * MIB, "template": 448 * MIB}
_SLOWER = {"template": 2.0}  # its own limit is 1 s of the clock for the rendering alone


@dataclass
class Report:
    """Counts of one run. `outcomes`: by exception type, "accepted" for none. `failures`: what must not be."""

    target: str
    mutations: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    peak_phase: str = ""
    worst_seconds: float = 0.0
    worst_number: int = -1
    seconds: float = 0.0

    @property
    def enough(self) -> bool:
        """Whether so much has failed that going on would tell nothing new."""
        return sum(self.failed.values()) >= ENOUGH

    def fail(self, number: int, kind: str, what: str) -> None:
        self.failed[kind] += 1
        if self.failed[kind] <= KEPT:
            self.failures.append({"number": number, "kind": kind, "what": what[:300]})

    def add(self, other: Report) -> None:
        self.mutations += other.mutations
        self.outcomes.update(other.outcomes)
        self.failures += other.failures
        self.failed.update(other.failed)
        self.seconds += other.seconds
        if other.peak_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_phase = other.peak_bytes, other.peak_phase
        if other.worst_seconds > self.worst_seconds:
            self.worst_seconds, self.worst_number = other.worst_seconds, other.worst_number

    def record(self) -> dict[str, Any]:
        return dict(vars(self))


def load(name: str, scratch: Path) -> Target:
    """Target `name`, with its seeds made in `scratch`."""
    made: Target = importlib.import_module(f"target_{name}").Fuzz(scratch)
    return made


def random_of(seed: int, number: int) -> Random:
    return Random(seed << 40 | number)


def work(name: str, seed: int, start: int, count: int, status: Path) -> Report:
    """Mutations start .. start + count of target `name`."""
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as scratch, status.open("r+b") as file:
        target, board = load(name, Path(scratch)), mmap.mmap(file.fileno(), STATUS.size)
        for data in target.corpus():  # what is imported late is imported before memory is limited
            try:
                target.run(target.parse(data), unchecked)
            except RidgelineError:
                continue
        _limit_memory(ROOM[name])
        report, meter, began = Report(name), Meter(), time.monotonic()
        for number in range(start, start + count):
            STATUS.pack_into(board, 0, number, time.monotonic())
            _one(target, name, random_of(seed, number), number, meter, report)
            if report.enough:
                break
        report.peak_bytes, report.peak_phase = meter.peak, meter.phase
        report.seconds = time.monotonic() - began
        return report


def _one(target: Target, name: str, rng: Random, number: int, meter: Meter, report: Report) -> None:
    case = target.mutate(rng)
    measured = number % MEASURED_EVERY == 0
    report.mutations += 1
    if measured:
        meter.start()
    began = time.process_time()
    try:
        target.run(case, meter.check if measured else unchecked)
        outcome = "accepted"
    except RidgelineError as error:
        outcome = type(error).__name__
        if hidden := _hidden(error):
            report.fail(number, f"{hidden} behind {outcome}", str(error))
    except TooMuch as error:
        outcome = "TooMuch"
        report.fail(number, "TooMuch", str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a native package is no Exception
        outcome = type(error).__name__
        report.fail(number, f"{outcome} at {place(error)}", str(error))
    finally:
        spent = time.process_time() - began
        if measured:
            meter.stop()
    report.outcomes[outcome] += 1
    if not measured and spent > report.worst_seconds:
        report.worst_seconds, report.worst_number = spent, number
    if not measured and spent > SECONDS * _SLOWER.get(name, 1.0):
        report.fail(number, "slow", f"{spent:.2f} s of processor time")


def place(error: BaseException) -> str:
    """The last line of ours that an exception came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "ridgeline" in Path(f.filename).parts]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no line of ours"


def _hidden(error: BaseException | None) -> str:
    """ "MemoryError" if a typed error was made of one, which the limit on memory raises; else ""."""
    while error is not None:
        if isinstance(error, MemoryError):
            return "MemoryError"
        error = error.__cause__ or error.__context__
    return ""


def _limit_memory(room: int) -> None:
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(data.split()[1]) + room,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
