"""Random requests of the OpenAPI document against a live server, by schemathesis: all its checks.

It is found as the command `schemathesis`, or where the variable SCHEMATHESIS says; it wants an environment of its own
(pip install schemathesis). By hand, against any server:

    schemathesis --config-file tests/server/schemathesis.toml run http://127.0.0.1:3000/openapi.json \
        --checks all --request-timeout 300 --max-response-time 300
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from serving import MODEL, Server, engine_config, listening

from ridgeline.config import ServerConfig
from ridgeline.engine.process import ProcessClient
from ridgeline.server.app import create_app
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights.load import open_checkpoint

COMMAND = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")
pytestmark = pytest.mark.skipif(not COMMAND, reason="schemathesis is not installed (pip install schemathesis)")


@pytest.fixture
def fake() -> Iterator[str]:
    with listening(Server.new().app) as url:
        yield url


@pytest.fixture
def real(model_file) -> Iterator[str]:
    config = replace(engine_config(), context=128)
    client = ProcessClient(config)
    tokenizer = from_gguf(open_checkpoint(model_file.path).metadata)
    with listening(create_app(client, tokenizer, ServerConfig(config), MODEL)) as url:
        yield url
    client.close()


def run(url: str, folder: Path, *options: str) -> int:
    """How many requests were made; all of them must be in order."""
    settings = Path(__file__).with_name("schemathesis.toml")
    command = [COMMAND, "--config-file", str(settings), "run", f"{url}/openapi.json", "--checks", "all", "--no-color"]
    done = subprocess.run(
        [*command, "--request-timeout", "300", "--max-response-time", "300", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return int(re.search(r"(\d+) generated", done.stdout)[1])


def test_a_few_requests_over_the_fake(fake, tmp_path):
    assert run(fake, tmp_path, "--phases", "fuzzing", "--max-examples", "5", "--seed", "1") >= 50


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(3600)
def test_thousands_of_requests_over_the_default_model(real, tmp_path):
    assert run(real, tmp_path, "--max-examples", "40") >= 2000
