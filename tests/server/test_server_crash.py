"""The engine process killed, stopped and broken under 32 streams of the default model: texts as those of each alone.

How soon is measured by the same code, `benchmarks/crash.py`; the bounds here are for machines that have other work.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.model, pytest.mark.soak]

STREAMS = 32
_PATH = Path(__file__).parents[2] / "benchmarks" / "crash.py"
_SPEC = importlib.util.spec_from_file_location("benchmarks_crash", _PATH)
assert _SPEC and _SPEC.loader
crash = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crash)


@pytest.fixture(scope="module")
def alone(live) -> list[str]:
    port = urlsplit(live.url).port
    return [crash.Stream(port, body).run().text for body in crash.requests(STREAMS, 24)]


@pytest.mark.parametrize("number", crash.SIGNALS)
def test_no_text_changes_and_health_tells(live, alone, number):
    pid = live.client.pid
    seen = crash.together(urlsplit(live.url).port, crash.requests(STREAMS, 24), number, pid, after=4)
    assert seen["texts"] == alone and len(set(alone)) == STREAMS
    assert live.client.pid != pid and live.client.unhealthy() is None
    assert seen["red_s"] < 20 and seen["serving_s"] < 60
