"""How many cores this process may use: physical ones, within its affinity, and no more than any cgroup above allows."""

from __future__ import annotations

import pytest

from ridgeline.cores import available_cores, hardware_threads, physical_cores

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def siblings(*lists):
    """Topology files of the cpus that are listed as siblings, such as (0, 4)."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": ",".join(map(str, cpus)) + "\n"
        for cpus in lists
        for cpu in cpus
    }


SMT = siblings((0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("files", "cpus", "first"),
    [
        (SMT, range(8), (0, 1, 2, 3)),
        (SMT, (1, 2, 5), (1, 2)),
        (SMT, (6, 4), (4, 6)),
        (siblings((0, 1), (2, 3)), range(4), (0, 2)),
        (siblings((0,), (1,)), range(2), (0, 1)),
        ({}, range(3), (0, 1, 2)),
    ],
    ids=["two threads a core", "part of them", "only second ones", "neighbours", "one thread a core", "no files"],
)
def test_one_cpu_for_each_physical_core(tmp_path, files, cpus, first):
    root = tree(tmp_path, files)
    assert physical_cores(root, cpus) == first
    assert available_cores(root, cpus) == len(first) and hardware_threads(root, cpus) == len(cpus)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ({"sys/fs/cgroup/cpu.max": "900000 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "250000 100000"}, 2),
        ({"sys/fs/cgroup/a/b/cpu.max": "100000 100000", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 1),
        ({"sys/fs/cgroup/other/cpu.max": "100000 100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "100000"}, 4),
        ({"sys/fs/cgroup/cpu.max": "0 0"}, 4),
    ],
)
def test_the_quota_of_our_cgroup_and_of_those_above(tmp_path, files, cores):
    root = tree(tmp_path, {**files, **SMT, "proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2})
    assert available_cores(root, range(8)) == cores


@pytest.mark.parametrize(
    ("group", "quota", "cores"),
    [
        ("a", "150000", 1),
        ("a", "-1", 4),
        (".", "200000", 2),
        ("b", "100000", 4),
    ],
)
def test_the_quota_of_a_cgroup_of_version_1(tmp_path, group, quota, cores):
    at = f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_"
    files = {at + "quota_us": quota + "\n", at + "period_us": "100000\n", "proc/self/mountinfo": V1}
    root = tree(tmp_path, {**files, "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n"})
    assert available_cores(root, range(4)) == cores


def test_a_container_sees_its_own_part_of_the_hierarchy(tmp_path):
    """Mounted from our group on, or from one outside it whose path says nothing here."""
    quota = {"sys/fs/cgroup/cpu.max": "200000 100000"}
    for number, (mounted, group) in enumerate((("/pod/a", "/pod/a"), ("/../..", "/"), ("/pod/a", "/../b"))):
        mount = V2.replace(" / ", f" {mounted} ", 1)
        files = {**quota, "proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": mount}
        assert available_cores(tree(tmp_path / str(number), files), range(4)) == 2


def test_a_mount_point_of_any_bytes(tmp_path):
    files = {"sys/fs/cgroup/cpu.max": "100000 100000", "proc/self/cgroup": "0::/\n", **SMT}
    root = tree(tmp_path, files)
    odd = b"40 24 8:1 / /media/caf\xe9 rw - ext4 /dev/sda1 rw\n"
    (root / "proc/self/mountinfo").write_bytes(odd + V2.encode())
    assert available_cores(root, range(8)) == 1


def test_here():
    assert 1 <= available_cores() <= hardware_threads() and len(physical_cores()) >= available_cores()
