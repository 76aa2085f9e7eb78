"""The command line: what it prints where, how it ends, and what it says of bad input."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

import tiny
import toy
from commands import only_json, refused, write
from ridgeline.analysis import hardware
from ridgeline.cli import main
from ridgeline.cli.options import parse_bytes
from ridgeline.errors import ModelNotFound
from ridgeline.weights import hub


def feed(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


@pytest.fixture(scope="module")
def smollm2():
    """The default model's file, where the cache has it."""
    try:
        return hub.resolve(hub.DEFAULT_MODEL, offline=True).path
    except ModelNotFound as why:
        pytest.skip(str(why))


# --- help, version, process


def test_help_loads_no_engine():
    code = (
        "import sys\nfrom ridgeline.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'jinja2', 'starlette', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_ridgeline():
    command = [sys.executable, "-m", "ridgeline", "run", "nosuch", "hi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    refused(SimpleNamespace(code=2, err=done.stderr), "nosuch", "smollm2-135m")


def test_version(cli):
    assert cli("--version").out.startswith("ridgeline 0.")


@pytest.mark.parametrize(
    "command", ["run", "chat", "serve", "keys", "batch", "pull", "models", "roofline", "bench", "hardware", "eval"]
)
def test_every_command_has_help(cli, command):
    done = cli(command, "--help")
    assert done.code == 0 and done.out.startswith(f"usage: ridgeline {command}")


@pytest.mark.parametrize(
    "args", [["nosuch"], ["run"], ["run", "m", "p", "--nosuch"], ["run", "m", "p", "--top-k", "x"]]
)
def test_usage_errors(cli, args):
    assert cli(*args).code == 2


# --- sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2gib", 2 << 30),
        ("1.5K", 1536),
        (" 1 MB", 1 << 20),
    ],
)
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "M", "5X", "-1", "1e9", "1 2"])
def test_a_bad_size_is_a_usage_error(cli, text):
    done = cli("run", "m", "p", "--kv-memory", text)
    assert done.code == 2 and "Traceback" not in done.err


# --- run and chat


def test_run_streams_to_stdout_and_reports_on_stderr(cli, model):
    done = cli("run", model, "hello", "--max-tokens", 5, *toy.REFERENCE)
    assert done.code == 0 and done.out.endswith("\n")
    assert done.err.count("\n") == 1
    for word in ("prompt tokens", "5 generated", "prefill", "decode", "first token", "load", "attainment"):
        assert word in done.err


def test_run_is_greedy_and_sampling_follows_its_seed(cli, model):
    def answer(*options):
        return cli("run", model, "hello", "--max-tokens", 20, *options, *toy.REFERENCE).out

    assert answer() == answer() == answer("--temperature", 0, "--seed", 3)
    hot = [answer("--temperature", 2, "--seed", seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_raw_leaves_the_template_out(cli, model):
    plain = cli("run", model, "hello", "--raw", "--max-tokens", 1, *toy.REFERENCE).err
    templated = cli("run", model, "hello", "--max-tokens", 1, *toy.REFERENCE).err
    system = cli("run", model, "hello", "--system", "Be kind.", "--max-tokens", 1, *toy.REFERENCE).err
    counts = [int(err.split()[0]) for err in (plain, templated, system)]
    assert counts == [5, len("user: hello\nassistant:"), len("system: Be kind.\nuser: hello\nassistant:")]


def test_a_model_without_a_template_continues_the_text(cli, tmp_path):
    bare = toy.write(tmp_path / "bare", template=None)
    said = cli("run", bare, "hello", "--max-tokens", 1, *toy.REFERENCE).err.splitlines()
    assert said[0] == "no chat template: the text is continued as it is" and said[1].startswith("5 prompt tokens")
    assert "template" not in cli("run", bare, "hello", "--raw", "--max-tokens", 1, *toy.REFERENCE).err


def test_a_system_message_needs_a_template_in_use(cli, model, tmp_path):
    refused(cli("run", "nosuch", "hi", "--raw", "--system", "x", *toy.REFERENCE), "--system", "--raw")
    bare = toy.write(tmp_path / "bare", template=None)
    refused(cli("run", bare, "hi", "--system", "x", *toy.REFERENCE), "--system", "template")


def test_prompt_from_standard_input(cli, model, monkeypatch):
    feed(monkeypatch, "héllo".encode())
    done = cli("run", model, "-", "--raw", "--max-tokens", 1, *toy.REFERENCE)
    assert done.err.startswith("6 prompt tokens")


def test_standard_input_that_is_not_utf8(cli, model, monkeypatch):
    feed(monkeypatch, b"ab\xff")
    refused(cli("run", model, "-", *toy.REFERENCE), "UTF-8", "byte 2")


def test_the_default_length_is_what_the_context_leaves(cli, model):
    done = cli("run", model, "x" * 250, "--raw", *toy.REFERENCE)
    assert done.code == 0 and int(done.err.split(", ")[1].split()[0]) <= toy.CONTEXT - 250


def test_measured_peaks_are_used_and_named(cli, model):
    cli("hardware", "--measure")
    done = cli("run", model, "hello", "--max-tokens", 3, *toy.REFERENCE)
    assert "measured 2026-01-01" in done.err and "%" in done.err


def test_no_part_of_assumed_peaks_is_printed(cli, model):
    done = cli("run", model, "hello", "--max-tokens", 3, *toy.REFERENCE)
    assert "%" not in done.err and "run `ridgeline hardware --measure` for attainment" in done.err


def test_chat_keeps_and_resets_the_conversation(cli, model, monkeypatch):
    feed(monkeypatch, b"one\n\ntwo\n/reset\none\n/exit\nnever\n")
    done = cli("chat", model, "--max-tokens", 3, *toy.REFERENCE)
    assert done.code == 0 and done.err == ""
    answers = done.out.split("\n")
    assert answers[0] == answers[-2]  # the third conversation is the first again


def test_chat_ends_with_its_input_and_survives_a_long_message(cli, model, monkeypatch):
    feed(monkeypatch, b"x" * 500 + b"\nhi\n")
    done = cli("chat", model, "--max-tokens", 3, *toy.REFERENCE)
    assert done.code == 0 and done.out
    assert done.err.startswith("ridgeline: the prompt has") and "256" in done.err


def test_chat_without_a_template(cli, tmp_path):
    bare = toy.write(tmp_path / "bare", template=None)
    refused(cli("chat", bare, *toy.REFERENCE), f"ridgeline: `ridgeline run --raw {bare}", "no chat template")


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], ["temperature", "-1"]),
        (["--top-p", "1.5"], ["top_p", "1.5"]),
        (["--top-p", "nan"], ["top_p"]),
        (["--top-k", "-2"], ["top_k"]),
        (["--min-p", "2"], ["min_p"]),
        (["--max-tokens", "0"], ["max_tokens"]),
        (["--repetition-penalty", "0"], ["repetition_penalty"]),
        (["--seed", "-1"], ["seed"]),
        (["--stop", ""], ["stop"]),
        (["--backend", "gpu"], ["backend", "gpu", "reference"]),
        (["--activations", "int3"], ["activations", "float32"]),
        (["--kv-format", "f8"], ["kv_format", "bf16"]),
        (["--threads", "-1"], ["threads"]),
    ],
)
def test_bad_values_are_refused_before_a_model_is_looked_for(cli, options, words):
    refused(cli("run", "nosuch", "hi", *options), *words)


def test_values_that_need_the_model(cli, model):
    refused(cli("run", model, "x" * 300, "--raw", *toy.REFERENCE), "300", "256")
    refused(cli("run", model, "hi", "--raw", "--max-tokens", 500, *toy.REFERENCE), "500", "254")
    refused(cli("run", model, "hi", "--context", 512, *toy.REFERENCE), "--context", "512", "256")
    refused(cli("run", model, "hi", "--kv-memory", "1K", *toy.REFERENCE), "1024")
    refused(cli("run", model, "", "--raw", *toy.REFERENCE), "empty")


@pytest.mark.parametrize("command", [["run", "{}", "hi"], ["roofline", "{}"], ["bench", "{}"], ["pull", "{}"]])
@pytest.mark.parametrize("name", ["nosuch", "./no/such.gguf", "a b"])
def test_unknown_models(cli, command, name):
    done = cli(*(word.format(name) for word in command))
    refused(done, name.removeprefix("./"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"not a model at all",
    ],
)
def test_lying_gguf(cli, tmp_path, data):
    refused(cli("roofline", write(tmp_path / "lying.gguf", data), "--backend", "reference"), "lying.gguf")


def test_broken_folders(cli, tmp_path):
    refused(cli("run", tmp_path, "hi", *toy.REFERENCE), "config.json")
    for key, value in (("model_type", "nosuch"), ("num_attention_heads", 7), ("hidden_act", "tanh")):
        folder = toy.write(tmp_path / key)
        (folder / "config.json").write_text(json.dumps(tiny.changed(toy.CONFIG, **{key: value})))
        refused(cli("run", folder, "hi", *toy.REFERENCE))
    (folder / "config.json").write_text("{")
    refused(cli("run", folder, "hi", *toy.REFERENCE), "config.json")


def test_files_that_are_nearly_a_model(cli, tmp_path):
    folder = toy.write(tmp_path / "m")
    weights = folder / "model.safetensors"
    refused(cli("run", weights, "hi", *toy.REFERENCE), "not a .gguf file; give its directory")
    weights.rename(folder / "pytorch_model.bin")
    refused(cli("run", folder, "hi", *toy.REFERENCE), "pickle", "convert to safetensors")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(cli("run", folder, "hi", *toy.REFERENCE), "shard model-1.safetensors is missing; fetch the model again")
    lone = write(tmp_path / "x.gguf", b"")
    refused(cli("run", tmp_path, "hi", *toy.REFERENCE), f"give the file {lone}")


@pytest.mark.parametrize("command", [["run", "", "hi"], ["inspect", ""], ["serve", ""], ["pull", ""]])
def test_an_empty_name_is_refused(cli, model, monkeypatch, command):
    monkeypatch.chdir(model)  # whose "" would be the current directory
    refused(cli(*command), "name is empty")


def test_truncated_weights(cli, tmp_path):
    folder = toy.write(tmp_path / "cut")
    weights = folder / "model.safetensors"
    write(weights, weights.read_bytes()[:-1000])
    refused(cli("run", folder, "hi", *toy.REFERENCE), "model.safetensors")


def test_a_bug_of_ours_shows_its_trace(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("ours")

    monkeypatch.setattr(hub, "resolve", fail)
    with pytest.raises(AssertionError, match="ours"):
        main(["pull", "smollm2-135m"])


# --- pull, models, serve


def test_pull_prints_where_the_model_is(cli, model):
    assert cli("pull", model).out.startswith(model + " (")


def test_models(cli, cache):
    record = only_json(cli("models", "--json"))
    assert record["cache"] == str(cache)
    by_name = {m["name"]: m for m in record["models"]}
    assert by_name["smollm2-135m"]["kind"] == "alias" and not by_name["smollm2-135m"]["cached"]
    assert by_name["random:1b"]["kind"] == "random"
    assert "smollm2-135m" in cli("models").out


def test_cached_models_are_listed(cli, monkeypatch, tmp_path):
    found = [hub.CachedModel("some/model", tmp_path / "x", 5000), hub.CachedModel("smollm2-135m", tmp_path / "y", 7)]
    monkeypatch.setattr(hub, "cached", lambda cache: found)
    by_name = {m["name"]: m for m in only_json(cli("models", "--json"))["models"]}
    assert by_name["some/model"] == {
        "name": "some/model", "kind": "hub", "cached": True, "bytes": 5000, "path": str(tmp_path / "x"),
    }  # fmt: skip
    assert by_name["smollm2-135m"]["bytes"] == 7
    assert "5.0 kB" in cli("models").out


def test_serve_builds_its_settings(cli, model, monkeypatch):
    from ridgeline.server import app

    seen = []
    monkeypatch.setattr(app, "serve", seen.append)
    options = ["--port", 4000, "--hostname", "0.0.0.0", "--max-requests", 3, "--kv-memory", "2G"]
    cli("serve", model, *options, *toy.REFERENCE)
    (config,) = seen
    assert (config.hostname, config.port) == ("0.0.0.0", 4000)
    engine = config.engine
    assert (engine.model, engine.backend, engine.max_requests, engine.kv_memory) == (model, "reference", 3, 2 << 30)


# --- roofline, hardware


def test_roofline_json(cli, model):
    options = ["--prefill", 10, "--decode-context", 20, "--by", "layer", *toy.REFERENCE]
    record = only_json(cli("roofline", model, "--json", *options))
    assert record["prefill"]["tokens"] == 10 and record["decode"]["context"] == 20
    assert [x["name"] for x in record["decode"]["lines"]] == ["in", "layers.0", "layers.1", "out", "sample"]
    assert record["peaks"]["source"] == "assumed"
    for step in (record["prefill"], record["decode"]):
        assert sum(x["seconds"] for x in step["lines"]) == pytest.approx(step["seconds"])
        assert step["tok_s"] == pytest.approx(step["tokens"] / step["seconds"])


@pytest.mark.parametrize("by", ["op", "layer", "instr"])
def test_roofline_table(cli, model, by):
    done = cli("roofline", model, "--by", by, *toy.REFERENCE)
    assert done.code == 0 and "prefill: 512 tokens" in done.out and "decode: 1 token" in done.out
    assert "total" in done.out and "assumed" in done.out


def test_roofline_refuses_an_unknown_grouping(cli, model):
    refused(cli("roofline", model, "--by", "colour", *toy.REFERENCE), "colour", "layer")


def test_hardware(cli, cache):
    assert "assumed" in cli("hardware").out
    record = only_json(cli("hardware", "--measure", "--json"))
    assert record["cpu"] and record["cores"] >= 1 and record["peaks"][0]["dram_gb_s"] == 30
    assert record["peaks"][0]["state"] == "together"
    assert (cache / hardware.FILE).exists()
    said = cli("hardware").out
    assert "measured 2026-01-01" in said and "1.0 MB 60.0, 268.4 MB 30.0" in said


# --- the default model's own file


@pytest.mark.model
def test_smollm2_names_the_capital(cli, smollm2):
    done = cli("run", smollm2, "Name the capital of France.", "--max-tokens", 8, *toy.REFERENCE)
    assert done.out == "The capital of France is Paris.\n"
    assert "36 prompt tokens, 8 generated" in done.err


@pytest.mark.model
def test_smollm2_by_hand(cli, smollm2):
    record = only_json(cli("roofline", smollm2, "--backend", "reference", "--activations", "int8", "--json"))
    matrices = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)
    assert record["parameters"] == 49152 * 576 + matrices + 61 * 576
    # Q8_0 holds 32 weights in 34 bytes (the embedding), Q4_1 in 20; norms and rotary frequencies are float32
    assert record["weight_bytes"] == 49152 * 576 * 34 // 32 + matrices * 20 // 32 + 4 * (61 * 576 + 32)
    assert record["kv_token_bytes"] == 23_040
    linear = next(x for x in record["prefill"]["lines"] if x["name"] == "linear")
    assert linear["flops"] == 2 * 512 * matrices + 2 * 49152 * 576
