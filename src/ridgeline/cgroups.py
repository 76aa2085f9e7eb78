"""Cgroups: the groups that this process is in, from its own up to the mounted root, in both versions.

`root` is where the system's files are read; only tests give another. Files that are missing or say nothing are "".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of the groups that a controller ("cpu", "memory") may limit us by, and whether they are of version 2."""
    ours = {}  # names of controllers, "" for version 2 -> our group
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        ours.update(dict.fromkeys(controllers.split(","), path))
    for line in text(root / "proc/self/mountinfo").splitlines():
        mount, _, kind = line.partition(" - ")
        mounted, point = mount.split()[3:5]
        name, *_, options = kind.split()
        v2 = name == "cgroup2"
        if v2 or (name == "cgroup" and controller in options.split(",")):
            top = root / point.lstrip("/")
            folder = _inside(ours.get("" if v2 else controller, "/"), mounted)
            for group in (top / folder, *(top / parent for parent in folder.parents)):
                yield group, v2


def _inside(path: str, mounted: str) -> Path:
    """Our group below the mount point, which shows the hierarchy from `mounted` on; the point itself if not there."""
    parts = Path(path).parts
    within = Path(path).is_relative_to(mounted) and ".." not in parts
    return Path(path).relative_to(mounted) if within else Path()


def text(path: Path) -> str:
    """What a file says, without blanks around it."""
    try:
        return path.read_text(errors="replace").strip()  # mount points may be any bytes
    except OSError:
        return ""
