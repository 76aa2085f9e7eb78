"""Cores this process may use: its affinity, the machine's physical cores, and the cgroup's share of processor time.

`root` is where the system's files are read, and `cpus` the affinity; only tests give them. Files that are missing or
say nothing limit nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path

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
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings or str(cpu), cpu)
    return tuple(first.values())


def _affinity() -> Collection[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _capped(cores: int, root: Path) -> int:
    """Whole cores only: a thread that is stopped in the middle of a step is waited for by all others."""
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The quota in cores of each cgroup from ours up to the mounted root, in both versions of cgroups."""
    groups = {}  # names of controllers, "" for version 2 -> our group
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        mounted, point = mount.split()[3:5]
        name, *_, options = kind.split()
        v2 = name == "cgroup2"
        if v2 or (name == "cgroup" and "cpu" in options.split(",")):
            top = root / point.lstrip("/")
            folder = _inside(groups.get("" if v2 else "cpu", "/"), mounted)
            for group in (top / folder, *(top / parent for parent in folder.parents)):
                yield _quota_v2(group) if v2 else _quota_v1(group)


def _inside(path: str, mounted: str) -> Path:
    """Our group below the mount point, which shows the hierarchy from `mounted` on; the point itself if not there."""
    parts = Path(path).parts
    within = Path(path).is_relative_to(mounted) and ".." not in parts
    return Path(path).relative_to(mounted) if within else Path()


def _quota_v2(group: Path) -> float:
    limit, _, period = _text(group / "cpu.max").partition(" ")
    return _quota(limit, period)


def _quota_v1(group: Path) -> float:
    return _quota(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _quota(limit: str, period: str) -> float:
    """Cores' worth of time; infinite unless both are numbers above 0 ("max", -1 and no file say: no limit)."""
    numbers = limit.isdecimal() and period.isdecimal() and int(limit) > 0 and int(period) > 0
    return int(limit) / int(period) if numbers else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()  # mount points may be any bytes
    except OSError:
        return ""
