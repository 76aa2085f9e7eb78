"""`ridgeline batch`: answers as the server gives them, bad lines, resuming, and runs that are killed."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import toy
from commands import refused
from ridgeline.cli import batch

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def request(custom_id, url=COMPLETIONS, method="POST", **body):
    body = {"max_tokens": 4, "ignore_eos": True, **({"prompt": "x"} if url == COMPLETIONS else {}), **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def talk(custom_id, content, **body):
    return request(custom_id, CHAT, messages=[{"role": "user", "content": content}], **body)


def mixed(count):
    """Requests of all shapes and lengths, most without a seed."""
    rng = random.Random(5)
    for i in range(count):
        tokens, text = rng.randint(1, 40), "x" * rng.randint(1, 90)
        if i % 3 == 0:
            yield talk(f"chat {i}", text, max_tokens=tokens, n=1 + i % 2)
        elif i % 3 == 1:
            yield request(f"text {i}", prompt=[text, "b"], max_tokens=tokens, logprobs=2, echo=True)
        else:
            yield request(f"seed {i}", prompt=text, max_tokens=tokens, seed=i, stop=["a"])


class Files:
    """An input and an output, and the command over them."""

    def __init__(self, folder, model):
        self.source, self.out, self.model = folder / "in.jsonl", folder / "out.jsonl", model

    def ask(self, *lines):
        text = (x if isinstance(x, str) else json.dumps(x) for x in lines)
        self.source.write_text("".join(x + "\n" for x in text))
        return self

    def words(self, *options):
        return ["batch", self.model, self.source, "-o", self.out, *toy.REFERENCE, "--threads", 1, *options]

    def start(self):
        command = [sys.executable, "-m", "ridgeline", *map(str, self.words())]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def answers(self):
        """The output by custom_id, without what is of the moment: ids, times, and what the prefix cache had."""
        found = {}
        for line in self.out.read_text().splitlines():
            answer = json.loads(line)
            assert answer["custom_id"] not in found
            found[answer["custom_id"]] = answer
            if answer["response"] is not None:
                body = answer["response"]["body"]
                del body["id"], body["created"], body["usage"]["prompt_tokens_details"]
        return found


@pytest.fixture
def files(tmp_path, model, cache):
    return Files(tmp_path, model)


def test_answers_are_those_of_the_server(cli, files):
    done = cli(*files.ask(talk("a", "hi", n=2), request("b", prompt=["p", "q"], echo=True, logprobs=1)).words())
    assert done.code == 0 and done.out == ""
    assert done.err.startswith("2 requests, 0 errors, 21 prompt tokens, 16 generated | ") and "tok/s" in done.err
    a, b = files.answers["a"], files.answers["b"]
    assert a["error"] is None and a["response"]["status_code"] == 200
    assert a["id"] == "batch_req_" + a["response"]["request_id"]
    body = a["response"]["body"]
    assert body["object"] == "chat.completion" and body["model"] == "toy" and len(body["choices"]) == 2
    assert body["usage"]["completion_tokens"] == 8
    assert all(c["finish_reason"] == "length" for c in body["choices"])
    first, second = b["response"]["body"]["choices"]
    assert first["text"].startswith("p") and second["text"].startswith("q")
    assert len(first["logprobs"]["tokens"]) == 5 and first["text"][1:] != second["text"][1:]


def test_bad_lines_are_answered_with_errors(cli, files):
    bad = {
        "url": request("url", "/v1/embeddings"),
        "method": request("method", method="GET"),
        "stream": talk("stream", "hi", stream=True),
        "temperature": request("temperature", temperature=1000),
        "max_tokens": request("max_tokens", max_tokens=1000),
        "prompt": request("prompt", prompt=[5, 260]),
        "tools": talk("tools", "hi", tools=[{"type": "function"}]),
        "messages": request("messages", CHAT),
        "n": request("n", n=17),
        "model": request("model", model="gpt-4o"),
    }
    files.ask(*bad.values(), "", "{", request("fine", n=4, stream=False, model=files.model), request("fine"))
    done = cli(*files.words("--max-requests", 1))
    assert done.code == 1 and "Traceback" not in done.err
    assert "13 requests, 12 errors, 1 prompt tokens, 16 generated" in done.err and "12 of 13 lines have err" in done.err
    lines = [json.loads(line) for line in files.out.read_text().splitlines()]
    assert len(lines) == 13 and all((x["response"] is None) != (x["error"] is None) for x in lines)
    wrong = {x["custom_id"]: x["error"] for x in lines if x["error"]}
    assert set(wrong) == {*bad, None, "fine"}
    assert {name: e["param"] for name, e in wrong.items() if name in bad} == {name: name for name in bad}
    assert wrong[None]["message"].startswith("line 12: it is no JSON object")
    assert wrong["fine"]["message"] == "line 14: custom_id 'fine' was given to a line before"
    kept = files.out.read_bytes()
    done = cli(*files.words())  # nothing is left to do, and the errors are still there
    assert done.code == 1 and "13 of 13 lines are done already" in done.err and files.out.read_bytes() == kept


def test_ignored_fields_are_told_once(cli, files):
    done = cli(*files.ask(request("a", foo=1), request("b", foo=2), request("c", bar=2)).words())
    assert done.err.count("ignored fields") == 2 and "line 1: ignored fields: foo\n" in done.err


def test_an_answer_does_not_depend_on_the_run(cli, files):
    some = [request(f"q{i}", prompt="same", max_tokens=20) for i in range(10)]
    cli(*files.ask(*some).words())
    whole = files.answers
    assert len({x["response"]["body"]["choices"][0]["text"] for x in whole.values()}) == 10  # seeds of their own
    assert cli(*files.ask(*some[::-1]).words("--max-requests", 2, "--fresh")).code == 0
    assert files.answers == whole
    cli(*files.ask(some[3]).words("--fresh"))
    assert files.answers == {"q3": whole["q3"]}
    cli(*files.ask(*some, request("more")).words())
    assert set(files.answers) == {*whole, "more"} and whole.items() <= files.answers.items()


def test_progress_is_spoken_or_drawn(cli, files, monkeypatch):
    monkeypatch.setattr(batch, "_SAY_S", 0.0)
    files.ask(*(request(f"q{i}") for i in range(40)))
    said = cli(*files.words("--max-requests", 4)).err.splitlines()
    assert re.fullmatch(r"\d+ of 40 lines \| [\d.]+ tok/s \| (\d+ s left|time left unknown)", said[-2])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    drawn = cli(*files.words("--max-requests", 4, "--fresh")).err
    assert "/40" in drawn and "tok/s" in drawn and "of 40 lines" not in drawn


def test_the_output_of_another_input_is_refused(cli, files):
    cli(*files.ask(request("a"), request("b")).words())
    kept = files.out.read_bytes()
    refused(cli(*files.ask(request("a")).words()), "custom_id 'b'", "another input", "--fresh")
    refused(cli(*files.ask(request("a"), request("b", seed=1)).words()), "custom_id 'b'", "in other words")
    assert files.out.read_bytes() == kept
    assert cli(*files.words("--fresh")).code == 0
    assert files.answers["b"] != kept


def test_files_are_checked_before_the_model_is_loaded(cli, files, tmp_path):
    files.model = "nosuch"
    refused(cli(*files.words()), "in.jsonl is no file")
    files.ask(request("a"))
    files.out = tmp_path / "no" / "out"
    refused(cli(*files.words()), "cannot be written")
    files.out = files.source
    refused(cli(*files.words()), "is the input")
    files.out = tmp_path / "out.jsonl"
    refused(cli(*files.words()), "nosuch")
    assert cli(*files.ask().words()).code == 0  # nothing to answer


def test_a_damaged_model_gives_errors(cli, files, tmp_path):
    folder = toy.write(tmp_path / "broken")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)
    file.write_bytes(data)
    files.model = str(folder)
    assert cli(*files.ask(request("a")).words()).code == 1
    assert files.answers["a"]["error"]["type"] == "server_error"


# --- killed


def grown(process, out, size):
    """Wait until the output has so many bytes; False where the run ended before."""
    while process.poll() is None:
        if out.exists() and out.stat().st_size >= size:
            return True
        time.sleep(0.001)
    return False


def test_killed_runs_add_up_to_a_whole_one(cli, files, tmp_path):
    """kill -9 at random moments, and now and then a write torn as well: nothing is lost, nothing is there twice."""
    files.ask(*mixed(90), "{", request("bad", n=0))
    assert cli(*files.words()).code == 1
    whole, size = files.answers, files.out.stat().st_size
    files.out = tmp_path / "killed.jsonl"
    rng = random.Random(11)
    kills = 0
    for part in (0, 0.1, 0.3, 0.5, 0.8):
        process = files.start()
        if grown(process, files.out, part * size):
            time.sleep(rng.random() / 10)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        held = files.out.read_bytes() if files.out.exists() else b""
        if held and rng.random() < 0.5:
            files.out.write_bytes(held[: -rng.randint(1, 40)])
    done = cli(*files.words())
    assert kills >= 3 and done.code == 1 and "lines are done already" in done.err
    assert files.answers == whole
    assert files.out.read_bytes().endswith(b"\n") and len(whole) == 92


def test_ctrl_c_keeps_what_is_done(cli, files, heard):
    process = files.ask(*mixed(120)).start()
    assert grown(process, files.out, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    assert cli(*files.words()).code == 0 and len(files.answers) == 120
