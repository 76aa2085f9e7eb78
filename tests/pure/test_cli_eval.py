"""`ridgeline eval`: what it prints, what its windows are, and what it refuses."""

from __future__ import annotations

import json

import pytest

import tiny
import toy
from commands import only_json, refused, write
from ridgeline.cli import evaluate as cli_evaluate

TEXT = b"The quick brown fox jumps over the lazy dog. " * 5


def test_eval_json(cli, model, tmp_path):
    text = write(tmp_path / "t.txt", b"The quick brown fox jumps over the lazy dog. " * 5)
    options = ["--text", text, "--window", 50, "--tokens", 120, *toy.REFERENCE]
    record = only_json(cli("eval", model, "--json", *options))
    assert record["tokens"] == 49 + 49 + 19 and record["perplexity"] > 1 and "kl" not in record
    same = only_json(cli("eval", model, "--json", "--against", model, *options))
    assert (same["kl"], same["top1_agreement"], same["perplexity_ratio"]) == (0, 1, 1)
    other = only_json(cli("eval", model, "--json", "--against-kv-format", "bf16", *options))
    assert 0 < other["kl"] < 0.1 and other["against"] == {"kv_format": "bf16"}
    assert "top-1 agreement" in cli("eval", model, "--against-kv-format", "bf16", *options).out


def test_eval_refuses(cli, model, tmp_path):
    text = write(tmp_path / "t.txt", b"hello")
    refused(cli("eval", model, "--text", tmp_path / "none", *toy.REFERENCE), "none", "No such file")
    refused(cli("eval", model, "--text", tmp_path, *toy.REFERENCE), "cannot be read")
    refused(cli("eval", model, "--text", write(tmp_path / "b", b"a\xff"), *toy.REFERENCE), "UTF-8", "byte 1")
    refused(cli("eval", model, "--text", write(tmp_path / "e", b""), "--window", 9, *toy.REFERENCE), "0 tokens")
    refused(cli("eval", model, "--text", text, "--window", 999, *toy.REFERENCE), "--window 999", "256")
    refused(cli("eval", model, "--text", text, "--against-backend", "gpu", *toy.REFERENCE), "gpu")


def test_a_long_text_is_cut_between_characters(tmp_path, monkeypatch):
    assert cli_evaluate.read_text(write(tmp_path / "t", "aéé".encode()), 4) == "aé"


def test_eval_needs_one_vocabulary(cli, model, tmp_path):
    other = toy.write(tmp_path / "other", tiny.changed(toy.CONFIG, vocab_size=300))
    text = write(tmp_path / "t.txt", b"hello there")
    done = cli("eval", model, "--against", other, "--text", text, "--window", 8, *toy.REFERENCE)
    refused(done, "260", "300")


INT8 = ("--backend", "reference", "--format", "int8")


def test_a_loss_is_kept_and_shown_at_load(cli, model, tmp_path):
    text = write(tmp_path / "t.txt", TEXT)
    options = ["--text", text, "--window", 50, "--tokens", 120, *INT8]
    unknown = cli("run", model, "hi", "--max-tokens", 1, *INT8)
    assert (
        "approximate: weights rounded again to int8, activations two int8 terms in groups of 32, int8 in groups of 32\n"
        in unknown.err
    )
    assert "loss not measured: `ridgeline eval" in unknown.err
    done = only_json(cli("eval", model, "--json", "--against-activations", "float32", *options))
    assert done["kept"] and done["kl"] > 0 and (done["format"], done["against"]) == ("int8", {"activations": "float32"})
    known = cli("run", model, "hi", "--max-tokens", 1, *INT8)
    assert f"loss: KL {done['kl']:.4f} nats" in known.err and "(117 tokens of text" in known.err
    assert "not measured" in cli("run", model, "hi", "--max-tokens", 1, *INT8, "--kv-format", "f32").err
    exact = cli("run", model, "hi", "--max-tokens", 1, *toy.REFERENCE)
    assert "approximate" not in exact.err and "loss" not in exact.err


def test_only_losses_against_the_exact_model_are_kept(cli, model, tmp_path):
    options = ["--json", "--text", write(tmp_path / "t.txt", TEXT), "--window", 50, "--tokens", 120]
    for against in (["--against-format", "int8", "--against-activations", "float32"], ["--against-kv-format", "f32"]):
        assert not only_json(cli("eval", model, *options, *INT8, *against))["kept"]
    assert not only_json(cli("eval", model, *options, *toy.REFERENCE, "--against-format", "int8"))["kept"]
    assert not only_json(cli("eval", model, *options, *INT8))["kept"]


def test_a_smoothed_model_is_compared_with_the_stored_one(cli, model, tmp_path):
    options = ["--json", "--text", write(tmp_path / "t.txt", TEXT), "--window", 50, "--tokens", 120, *INT8]
    smoothed = only_json(cli("eval", model, *options, "--smoothing", 0.5, "--against-activations", "float32"))
    assert smoothed["kept"] and smoothed["smoothing"] == 0.5 and 0 < smoothed["kl"] < 1


@pytest.fixture
def starts(tmp_path):
    """A model whose tokenizer puts BOS before each text."""
    folder = toy.write(tmp_path / "starts")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "add_bos_token": True}))
    return folder


def test_every_window_starts_with_bos(cli, starts, tmp_path):
    text = write(tmp_path / "t.txt", TEXT)
    record = only_json(cli("eval", starts, "--json", "--text", text, "--window", 50, "--tokens", 120, *toy.REFERENCE))
    assert record["bos"] == "<s>" and record["tokens"] == 120  # each is predicted: nothing of the text is only given
    said = cli("eval", starts, "--text", text, "--window", 50, "--tokens", 120, *toy.REFERENCE).out
    assert "in windows of 50, each after <s>" in said


def test_the_record_names_what_ran_and_the_window_fits_the_context(cli, model, tmp_path):
    text = write(tmp_path / "t.txt", TEXT)
    record = only_json(cli("eval", model, "--json", "--text", text, *toy.REFERENCE))
    expected = {"backend": "reference", "activations": "float32", "kv_format": "f32", "window": 256, "bos": None}
    assert expected.items() <= record.items()
    short = only_json(cli("eval", model, "--json", "--text", text, "--context", 128, *toy.REFERENCE))
    assert short["window"] == 128
    refused(cli("eval", model, "--text", text, "--context", 512, *toy.REFERENCE), "--context 512", "256")
