"""--log-format json: every line of a server's log is JSON, whoever writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from ridgeline.config import EngineConfig
from ridgeline.engine import worker

HERE = Path(__file__).parent
SAYS = r"""
import logging, sys, threading, warnings
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import msgspec
from serving import FakeClient, byte_tokenizer
from types import SimpleNamespace
from pathlib import Path
from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.errors import EngineFailed
from ridgeline.server import app

class Client(FakeClient):
    def __init__(self, config):
        assert config.log_json
        super().__init__(byte_tokenizer())
        self.info = msgspec.structs.replace(self.info, notes=("a note",))

def run(server, sockets):
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("ridgeline.server.keys").error("ridgeline: the keys stay")
    logging.getLogger("ridgeline").debug("below the level")
    warnings.warn("a warning of Python's")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    try:
        {}["gone"]
    except KeyError:
        logging.getLogger("ridgeline").exception("POST %s failed", "/x\ud800")
    if sys.argv[2] == "typed":
        raise EngineFailed("it is gone")
    if sys.argv[2] == "other":
        raise RuntimeError("unforeseen")

app.ProcessClient = Client
app.uvicorn.Server.run = run
found = SimpleNamespace(path=Path("/x"), alias="m", kind="dir", sha256="0")
app._open = lambda config, progress: (found, byte_tokenizer(), "")
app.serve(ServerConfig(EngineConfig("fake", backend="reference"), port=0, hostname="0.0.0.0", log_format="json",
                       access=app.AccessConfig(open=True)))
"""


@pytest.mark.parametrize(("end", "status"), [("well", 0), ("typed", 2), ("other", 1)])
def test_all_that_is_logged_is_json(end, status):
    done = subprocess.run(
        [sys.executable, "-c", SAYS, str(HERE), end], capture_output=True, text=True, timeout=60, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == status
    assert all(line["event"] == "log" and datetime.fromisoformat(line["time"]) for line in lines)
    said = [(line["level"], line["message"].partition(" at /")[0]) for line in lines]
    assert said[:4] == [
        ("warn", "warning: without API keys everybody who reaches 0.0.0.0 is served"), ("info", "a note"),
        ("warn", "Invalid HTTP request received."), ("error", "the keys stay"),
    ]  # fmt: skip
    assert said[4][0] == "warn" and "a warning of Python's" in said[4][1]
    assert said[5] == ("error", "an exception that nobody caught: ZeroDivisionError")
    assert said[6] == ("error", "POST /x\ud800 failed")
    for line, fault in ((lines[5], "ZeroDivisionError: division by zero"), (lines[6], "KeyError: 'gone'")):
        assert line["traceback"].startswith("Traceback") and line["traceback"].endswith(fault)
    last = {
        "well": [],
        "typed": [("error", "it is gone")],
        "other": [("error", "an exception that nobody caught: RuntimeError")],
    }
    assert said[7:] == last[end]
    assert [json.loads(line).keys() for line in done.stdout.splitlines()] == [{"event", "model", "url"}]


def test_what_the_engines_process_logs_is_json():
    command = worker.command(999, 998, EngineConfig("fake", backend="reference", log_json=True))  # no socket is there
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (line,) = (json.loads(line) for line in done.stderr.splitlines())
    assert done.returncode == 1 and line["message"].endswith("OSError") and "Bad file descriptor" in line["traceback"]
