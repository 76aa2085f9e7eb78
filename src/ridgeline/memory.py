"""Memory this process may still use: what the machine has available, and no more than any cgroup above leaves.

`root` is where the system's files are read; only tests give another. Files that are missing or say nothing limit
nothing.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from ridgeline.cgroups import groups, text

_ROOT = Path("/")


def available_memory(root: Path = _ROOT) -> int:
    """Bytes; 0 where a limit is exceeded already."""
    rests = [_rest_v2(group) if v2 else _rest_v1(group) for group, v2 in groups("memory", root)]
    return max(int(min([_of_machine(root), *rests])), 0)


def _of_machine(root: Path) -> int:
    kib = _fields(root / "proc/meminfo").get("MemAvailable")
    return kib * 1024 if kib is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _rest_v2(group: Path) -> float:
    """Below `memory.high` too: beyond it a group is slowed down until it hardly moves."""
    limit = min(_number(group / "memory.max"), _number(group / "memory.high"))
    return _rest(limit, group / "memory.current", group / "memory.stat", "inactive_file")


def _rest_v1(group: Path) -> float:
    limit = _number(group / "memory.limit_in_bytes")
    return _rest(limit, group / "memory.usage_in_bytes", group / "memory.stat", "total_inactive_file")


def _rest(limit: float, used: Path, stat: Path, inactive: str) -> float:
    """What a group is charged for files that nobody reads now is given back before the limit is felt."""
    if limit == math.inf:
        return limit
    charged = _number(used)
    return limit if charged == math.inf else limit - charged + min(_fields(stat).get(inactive, 0), charged)


def _number(path: Path) -> float:
    """Infinite unless it is a number ("max" and no file say: no limit)."""
    said = text(path)
    return int(said) if said.isdecimal() else math.inf


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
