"""Requests of a kind that has not been seen yet may come several at once: each is read in a thread."""

from __future__ import annotations

import subprocess
import sys

MEET = """
import sys, threading
from msgspec import defstruct
from ridgeline.server.schema import convert
sys.setswitchinterval(1e-5)
kinds = []
for i in range(300):
    inner = [defstruct(f"Inner{i}_{j}", [(f"x{k}", int, 0) for k in range(20)]) for j in range(5)]
    kinds.append(defstruct(f"Outer{i}", [(f"y{j}", one | None, None) for j, one in enumerate(inner)]))
together, read = threading.Barrier(4), []

def meet():
    for kind in kinds:
        together.wait()
        read.append(convert({"y4": {"x19": 7}}, kind).y4.x19)

threads = [threading.Thread(target=meet) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(read == [7] * 1200)
"""


def test_several_threads_may_meet_a_kind_at_once():
    """msgspec alone crashes the process."""
    done = subprocess.run([sys.executable, "-c", MEET], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
