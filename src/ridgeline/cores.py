"""Cores this process may use: its affinity, the machine's physical cores, and the cgroup's share of processor time.

`root` is where the system's files are read, and `cpus` the affinity; only tests give them. Files that are missing or
say nothing limit nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ridgeline.cgroups import groups, text

_ROOT = Path("/")
_Cpus = Collection[int] | None


def available_cores(root: Path = _ROOT, cpus: _Cpus = None) -> int:
    """Threads that each find a core of their own: physical cores within the affinity, capped by the cgroup's quota.

    A second thread on a physical core gains nothing for kernels that keep its ports or its loads busy.
    """
    return _capped(len(physical_cores(root, cpus)), root)


def hardware_threads(root: Path = _ROOT, cpus: _Cpus = None) -> int:
    """Threads that run side by side at all: the affinity, capped by the cgroup's quota."""
    return _capped(len(_affinity() if cpus is None else cpus), root)


def physical_cores(root: Path = _ROOT, cpus: _Cpus = None) -> tuple[int, ...]:
    """One cpu of the affinity for each physical core it reaches, the lowest, in ascending order."""
    first: dict[str, int] = {}
    for cpu in sorted(_affinity() if cpus is None else cpus):
        siblings = text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings or str(cpu), cpu)
    return tuple(first.values())


def _affinity() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _capped(cores: int, root: Path) -> int:
    """Whole cores only: a thread that is stopped in the middle of a step is waited for by all others."""
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The quota in cores of each cgroup from ours up to the mounted root."""
    for group, v2 in groups("cpu", root):
        yield _quota_v2(group) if v2 else _quota_v1(group)


def _quota_v2(group: Path) -> float:
    limit, _, period = text(group / "cpu.max").partition(" ")
    return _quota(limit, period)


def _quota_v1(group: Path) -> float:
    return _quota(text(group / "cpu.cfs_quota_us"), text(group / "cpu.cfs_period_us"))


def _quota(limit: str, period: str) -> float:
    """Cores' worth of time; infinite unless both are numbers above 0 ("max", -1 and no file say: no limit)."""
    numbers = limit.isdecimal() and period.isdecimal() and int(limit) > 0 and int(period) > 0
    return int(limit) / int(period) if numbers else math.inf
