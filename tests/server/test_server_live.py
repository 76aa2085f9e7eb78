"""The default model over real HTTP: the engine killed under running streams, disconnects, and `serve` as a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

pytestmark = pytest.mark.model

JSON = {"content-type": "application/json"}
SERVE = """
import sys, msgspec
from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.server.app import serve
serve(ServerConfig(EngineConfig(**msgspec.json.decode(sys.argv[1])), port=0))
"""


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    connection = connect(url)
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), JSON)
    response = connection.getresponse()
    data = response.read()
    return response.status, json.loads(data) if data else None


def streamed_text(url: str, body: dict[str, Any], begun: threading.Semaphore | None = None) -> str:
    """The joined text of a streamed completion; `begun` is released at the third token."""
    connection = connect(url)
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), JSON)
    text, events, done = "", 0, False
    for line in connection.getresponse():
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            text += event["choices"][0]["text"]
            events += 1
            if events == 3 and begun is not None:
                begun.release()
    assert done
    return text


def test_it_knows_paris(live):
    body = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}
    status, answer = ask(live.url, "/v1/chat/completions", body | {"max_tokens": 12})
    assert status == 200 and "Paris" in answer["choices"][0]["message"]["content"]


def test_killing_the_engine_under_eight_streams_changes_no_text(live):
    requests = [
        {"prompt": f"Story number {i}: once upon a time", "max_tokens": 40, "seed": i, "temperature": 0.8,
         "ignore_eos": True}
        for i in range(8)
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as threads:
        undisturbed = list(threads.map(lambda r: streamed_text(live.url, r), requests))
        begun = threading.Semaphore(0)
        running = [threads.submit(streamed_text, live.url, r, begun) for r in requests]
        for _ in requests:
            assert begun.acquire(timeout=60)
        killed = live.client.pid
        os.kill(killed, signal.SIGKILL)
        disturbed = [r.result() for r in running]
    assert live.client.pid != killed
    assert disturbed == undisturbed and len(set(disturbed)) == 8


def test_streams_say_what_whole_answers_say(live):
    """Emoji, CJK and combining marks in real tokens, and stop strings that begin in the middle of one."""
    prompt = {
        "prompt": "👩‍👩‍👧 你好, 世界! e\u0301te\u0301 नमस्ते 🇫🇷 👩‍👩‍👧 你好, 世界! e\u0301te\u0301",
        "max_tokens": 48,
    }
    for seed in range(6):
        body = prompt | {"seed": seed, "temperature": 1.2, "ignore_eos": True}
        text = ask(live.url, "/v1/completions", body)[1]["choices"][0]["text"]
        assert streamed_text(live.url, body) == text
        at = len(text) // 2
        body["stop"] = [text[at : at + 3]]
        cut = ask(live.url, "/v1/completions", body)[1]["choices"][0]["text"]
        assert streamed_text(live.url, body) == cut == text[: text.index(body["stop"][0])]


def test_a_client_that_leaves_frees_the_engine(live):
    connection = connect(live.url)
    body = {"prompt": "Count: one, two,", "max_tokens": 450, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    response.readline()
    assert not live.client.idle
    response.close()
    connection.close()
    end = time.monotonic() + 10
    while not live.client.idle:
        assert time.monotonic() < end, "the request went on"
        time.sleep(0.01)


def test_what_the_engine_decided_is_told(live):
    _, answer = ask(live.url, "/v1/completions", {"prompt": "One, two,", "max_tokens": 3, "ignore_eos": True})
    status, told = ask(live.url, f"/debug/requests/{answer['id']}")
    (request,) = told["requests"]
    assert (
        status == 200
        and "starts:" in request["why"][0]
        and request["why"][-1] == "choice 0 ends (length) with 3 tokens"
    )
    status, engine = ask(live.url, "/debug/engine")
    pages = engine["pages"]
    assert status == 200 and pages["free"] + pages["cached"] + pages["used"] + pages["withheld"] == pages["total"]


def test_echo_logprobs_agree_with_those_of_generation(live):
    body = {"prompt": "The capital of France is", "max_tokens": 5, "temperature": 0, "logprobs": 1}
    _, made = ask(live.url, "/v1/completions", body)
    whole = body["prompt"] + made["choices"][0]["text"]
    _, scored = ask(live.url, "/v1/completions", {**body, "prompt": whole, "echo": True, "max_tokens": 0})
    tokens, lists = made["choices"][0]["logprobs"], scored["choices"][0]["logprobs"]
    assert lists["tokens"][-5:] == tokens["tokens"]
    assert lists["token_logprobs"][-5:] == pytest.approx(tokens["token_logprobs"], abs=1e-4)


def test_a_refused_body_is_answered_and_the_connection_recovers(live):
    for body in (b'{"prompt": "' + b"x" * 3_000_000 + b'"}', b"{", b'{"prompt": "\xff"}'):
        connection = connect(live.url)
        connection.request("POST", "/v1/completions", body, JSON)
        response = connection.getresponse()
        assert response.status == (413 if len(body) > 2_000_000 else 400)
        assert json.loads(response.read())["error"]["message"]
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_prints_its_url_answers_and_stops_cleanly(model_file, number):

    from serving import engine_config

    command = [sys.executable, "-c", SERVE, msgspec.json.encode(engine_config()).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        url = line.split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert ask(url, "/health") == (200, None)
        assert ask(url, "/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": 3}})[0] == 200
        assert ask(url, "/generate", {"inputs": ""})[0] == 422
        (engine,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert b"RAYON_NUM_THREADS=1" in Path(f"/proc/{engine}/environ").read_bytes().split(b"\0")
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and rest == "" and errors == ""
    finally:
        process.kill()


def test_a_second_signal_ends_running_streams_with_an_error(model_file):
    from serving import engine_config

    command = [sys.executable, "-c", SERVE, msgspec.json.encode(engine_config()).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[-1]
        body = {"prompt": "Once", "stream": True, "max_tokens": 400, "ignore_eos": True, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            assert reply.readline().startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            lines = [line for line in reply.read().split(b"\n\n") if line]
        assert lines[-1] == b"data: [DONE]" and b"shutting down" in lines[-2]
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0 and errors == ""
    finally:
        process.kill()
