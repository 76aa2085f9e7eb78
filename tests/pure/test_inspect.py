"""`ridgeline inspect`: what files hold, what running them takes, and every reason why one cannot run."""

from __future__ import annotations

import json

import pytest

import tiny
import toy
from ridgeline.analysis.inspection import Inspection, inspect
from ridgeline.cli import main
from ridgeline.cli.inspect import _heading
from ridgeline.config import EngineConfig
from ridgeline.engine import load
from ridgeline.engine.records import PAGE
from ridgeline.errors import ConfigError, ModelNotFound

gguf = pytest.importorskip("gguf")


def write(folder, name, format="F32", also=None, **metadata):
    """A tiny GGUF without a tokenizer, unless `metadata` brings one."""
    c = tiny.CONFIGS[name]
    keys = {**tiny.gguf_metadata(c), **metadata}
    tensors = tiny.gguf_tensors(c, tiny.weights(c))
    return tiny.write_gguf(
        folder / f"{name}.gguf", {k: v for k, v in keys.items() if v is not ...}, tensors, format, also
    )


def look(path, at=(), **settings):
    return inspect(EngineConfig(str(path), backend="reference", activations="float32", **settings), at)


def test_a_file_without_a_tokenizer_is_described_all_the_same(tmp_path):
    seen = look(write(tmp_path, "gemma3"))
    assert [p.part for p in seen.problems] == ["tokenizer"]
    assert seen.config["layers"] == 7 and seen.config["windows"] == (24, 24, 24, 24, 24, 0, 24)
    assert seen.running["parameters"] == sum(t.parameters for t in seen.tensors)
    assert {g["window"] for g in seen.running["groups"]} == {0, 24}


def test_formats_by_layer(tmp_path):
    seen = look(write(tmp_path, "qwen3", "Q8_0", also={"blk.1.attn_q": "Q5_0"}))
    q = [t for t in seen.tensors if t.name == "blk.{i}.attn_q.weight"]
    assert [(t.format, t.layers) for t in q] == [("q8_0", (0, 2)), ("q5_0", (1,))]
    assert q[1].bytes == 480 * 96 // 32 * 22 and q[1].parameters == 480 * 96
    assert next(t for t in seen.tensors if t.name == "token_embd.weight").layers == (-1,)


def test_everything_that_stands_in_the_way_is_told(tmp_path, cli):
    path = write(tmp_path, "llama", **{"general.architecture": "mamba", "tokenizer.ggml.model": "bert"})
    seen = look(path)
    assert seen.config is None and seen.tensors
    assert [(p.part, p.error) for p in seen.problems] == [("config", "Unsupported"), ("tokenizer", "Unsupported")]
    done = cli("inspect", path)
    assert done.code == 1 and "mamba" in done.out and "bert" in done.out


def test_a_broken_file_says_so_once(tmp_path, cli):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 40)
    seen = look(path)
    assert not seen.tensors and len(seen.problems) == 1
    said = cli("inspect", path).out
    assert "template" not in said and "cannot run (config): " in said


def test_a_folder_and_its_unknown_tensor(tmp_path):
    c = tiny.CONFIGS["llama"]
    folder = tiny.write_hf(
        tmp_path / "m", c, {**tiny.weights(c), "model.extra.weight": tiny.weights(c)["lm_head.weight"]}
    )
    seen = look(folder)
    assert [p.part for p in seen.problems] == ["tokenizer", "program"]
    assert "model.extra.weight" in seen.problems[1].why


def test_a_missing_model_is_an_error():
    with pytest.raises(ModelNotFound):
        look("./nowhere.gguf")


def test_a_pool_without_a_page_is_the_problem_that_a_load_has(model):
    seen = look(model, kv_memory=1000)
    with pytest.raises(ConfigError) as refused:
        load.load(EngineConfig(model, backend="reference", activations="float32", kv_memory=1000))
    assert [(p.part, p.error, p.why) for p in seen.problems] == [("memory", "ConfigError", str(refused.value))]
    assert [m.fits for m in seen.memory] == [False]


def test_contexts_that_the_pool_does_not_hold_are_marked(model, cli):
    token = look(model).running["kv_token_bytes"]
    seen = look(model, at=(PAGE, 2 * PAGE, 2 * PAGE + 1), kv_memory=int(2 * PAGE * token))
    assert not seen.problems and [m.fits for m in seen.memory] == [True, True, False]
    done = cli("inspect", model, "--kv-memory", int(2 * PAGE * token), "--at", 64, "--at", 256, *toy.REFERENCE[:4])
    assert [row.split()[-1] for row in done.out.splitlines() if row.startswith(("64 ", "256 "))] == ["yes", "no"]


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_unpacked_weights_are_counted_as_they_lie_in_memory(tmp_path, monkeypatch, name):
    if name == "torch":
        pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    path = write(tmp_path, "qwen3", "Q8_0")
    config = EngineConfig(str(path), backend=name, activations="float32", max_requests=1)
    running = inspect(config).running
    floats = 4 * running["parameters"]
    assert running["weight_bytes"] < floats / 3 and floats <= running["resident_bytes"] < floats + 1000  # rope's own
    program, backend = load.program_of(load.open_checkpoint(path), config)
    monkeypatch.setattr(load, "available_memory", lambda: running["weight_bytes"] + (1 << 20))
    limits = load.batch_limits(load.open_checkpoint(path).config, config)
    with pytest.raises(ConfigError, match=f"weights of {running['resident_bytes']} bytes"):
        load.page_count(program, backend, limits, config)


def test_a_tokenizer_beyond_the_vocabulary_is_warned_of(tmp_path, cli):
    done = cli("inspect", toy.write(tmp_path / "m", tiny.changed(toy.CONFIG, vocab_size=200)), *toy.REFERENCE)
    assert done.code == 0 and "warning: the tokenizer has 259 tokens, the model 200" in done.out


def test_a_template_that_fails_is_not_called_none(tmp_path, cli):
    done = cli("inspect", toy.write(tmp_path / "m", template="{{ nosuch.x.y }}"), *toy.REFERENCE)
    assert done.code == 1 and "chat template: none" not in done.out and "cannot run (template): " in done.out
    assert "chat template: none" in cli("inspect", toy.write(tmp_path / "n", template=None), *toy.REFERENCE).out


def test_the_heading_of_a_random_model_names_no_file():
    seen = Inspection("random:1b", "/somewhere/x.gguf", "random")
    assert _heading(seen) == "random:1b (weights random; tokenizer of smollm2-135m)"


@pytest.mark.model
def test_the_default_model(capsys):
    def called(*args):
        with pytest.raises(SystemExit) as end:
            main(["inspect", "smollm2-135m", *args])
        return end.value.code, capsys.readouterr()

    code, said = called("--at", "100", "--at", "8192", "--json")
    if "could not be fetched" in said.err:
        pytest.skip("the default model cannot be had")
    seen = json.loads(said.out.splitlines()[-1])
    assert not code and seen["problems"] == []
    assert seen["running"]["parameters"] == 134_515_008
    assert [m["context"] for m in seen["memory"]] == [100, 8192]
    assert seen["memory"][0]["kv_bytes"] == 2 * PAGE * seen["running"]["kv_token_bytes"]
    assert seen["memory"][1]["kv_bytes"] == 8192 * seen["running"]["kv_token_bytes"]
    assert seen["template"]["takes"] == {"system": True, "tools": False, "history": True}
    text = called()[1].out
    assert "30 layers of 576" in text and "q4_1" in text and "runs with these settings" in text
