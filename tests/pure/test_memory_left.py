"""How much memory this process may still use: the machine's, and no more than any cgroup above leaves."""

from __future__ import annotations

import pytest
from test_cores import V1, V2, tree

from ridgeline.memory import available_memory

GIB = 1 << 30
MACHINE = {"proc/meminfo": f"MemTotal: {16 * GIB >> 10} kB\nMemAvailable: {8 * GIB >> 10} kB\nHugePages_Total: 0\n"}


def v2(group, most, used, **more):
    at = f"sys/fs/cgroup/{group}/memory."
    files = {at + "max": f"{most}\n", at + "current": f"{used}\n"}
    return files | {at + name: f"{said}\n" for name, said in more.items()}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 8 * GIB),
        (v2("a/b", "max", GIB), 8 * GIB),
        (v2("a/b", GIB, 300), GIB - 300),
        (v2("a/b", GIB, 2 * GIB), 0),
        (v2("a/b", 9 * GIB, GIB // 2), 8 * GIB),
        (v2("a/b", GIB, 300, stat="anon 100\ninactive_file 200\nactive_file 100"), GIB - 100),
        (v2("a/b", GIB, 300, stat="inactive_file 400"), GIB),
        (v2("a/b", GIB, 300, high=str(GIB // 2)), GIB // 2 - 300),
        (v2("a/b", "max", GIB) | v2("a", 2 * GIB, GIB), GIB),
        (v2("a/b", 3 * GIB, GIB) | v2("a", 2 * GIB, GIB), GIB),
        (v2("other", 100, 50), 8 * GIB),
        ({"sys/fs/cgroup/a/b/memory.max": "1000"}, 1000),
        ({"sys/fs/cgroup/a/b/memory.max": "no number"}, 8 * GIB),
    ],
)
def test_what_our_cgroup_and_those_above_leave(tmp_path, files, left):
    root = tree(tmp_path, {**MACHINE, **files, "proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2})
    assert available_memory(root) == left


@pytest.mark.parametrize(
    ("group", "limit", "left"), [("m", GIB, GIB - 200), (".", GIB, GIB - 200), ("m", 0x7FFFFFFFFFFFF000, 8 * GIB)]
)
def test_a_cgroup_of_version_1(tmp_path, group, limit, left):
    at = f"sys/fs/cgroup/memory/{group}/memory."
    files = {at + "limit_in_bytes": f"{limit}\n", at + "usage_in_bytes": "500\n", "proc/self/mountinfo": V1}
    files[at + "stat"] = "inactive_file 7\ntotal_inactive_file 300\n"
    root = tree(tmp_path, {**MACHINE, **files, "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n"})
    assert available_memory(root) == left


def test_a_machine_that_does_not_say(tmp_path):
    assert available_memory(tmp_path) > 0 and available_memory() > 0
