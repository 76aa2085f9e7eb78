"""TGI's own Python client, `text-generation`, against the live server, in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.model, pytest.mark.parity]


@pytest.fixture(scope="module")
def made(live):
    """What the client got."""
    own = importlib.util.find_spec("text_generation") and sys.executable
    python = os.environ.get("TEXT_GENERATION_PYTHON") or own
    if not python:
        pytest.skip("text-generation is not installed; TEXT_GENERATION_PYTHON may name a Python that has it")
    script = Path(__file__).with_name("text_generation_client.py")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, str(script), live.url], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_generates(made):
    assert "Paris" in made["text"] and made["finish"] == "length"
    assert made["full"].startswith("The capital of France is") and made["stopped"] == "stop_sequence"
    assert made["sampled"][0] == made["sampled"][1] and made["others"] == 1


def test_it_has_logprobs_of_the_prompt_and_alternatives(made):
    first, *rest = made["prefill"]
    assert first is None and rest and all(x < 0 for x in rest)
    assert [row[0] for row in made["top"]] == made["ids"]


def test_its_streams_are_the_whole_text(made):
    assert made["streamed"] == made["final"] == made["whole"] and made["final_tokens"] == 6
    assert made["asynchronous"] == made["text"]


def test_it_chats(made):
    assert "Paris" in made["chat"]


def test_its_tools_are_called(made):
    finish, (call,) = made["called"]
    assert finish == "tool_calls" and call["function"]["name"] == "get_weather"
    arguments = call["function"]["arguments"]
    assert list(json.loads(arguments) if isinstance(arguments, str) else arguments) == ["city"]


def test_its_chats_have_logprobs(made):
    assert 1 <= len(made["scored"]["content"]) <= 3
    assert all(len(token["top_logprobs"]) == 2 for token in made["scored"]["content"])


def test_its_grammars_are_obeyed(made):
    assert isinstance(json.loads(made["structured"])["city"], str)


def test_it_tells_validation_errors_apart(made):
    for kind, words in made["errors"]:
        assert kind == "ValidationError" and "inputs" in words and "511" in words


def test_a_stream_it_leaves_ends(made, live):
    assert made["left"] == 2
    end = time.monotonic() + 60
    while not live.client.idle:
        assert time.monotonic() < end, "the request went on"
        time.sleep(0.01)
