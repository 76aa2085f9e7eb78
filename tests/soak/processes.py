"""What the system says of a process and its children: memory that cannot be given back, and open files."""

from __future__ import annotations

import os
from pathlib import Path

from ridgeline.cgroups import text


def family(pid: int) -> list[int]:
    """A process and all that come of it."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").glob("*") for c in text(task / "children").split()]
    return [pid, *(member for child in children for member in family(child))]


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's; 0 if it has gone."""
    fields = text(Path(f"/proc/{pid}/statm")).split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 2 else 0


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
