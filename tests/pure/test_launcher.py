"""`text-generation-launcher`: every flag of TGI's, and its environment variable, is mapped, noted or refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from commands import refused
from ridgeline.cli import launch
from ridgeline.cli.launcher import FLAGS
from ridgeline.server import app

TGI = """model-id revision validation-workers sharded
num-shard quantize speculate dtype kv-cache-dtype trust-remote-code
max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens max-input-tokens max-input-length
max-total-tokens waiting-served-ratio max-batch-prefill-tokens max-batch-total-tokens max-waiting-tokens max-batch-size
cuda-graphs hostname port prometheus-port shard-uds-path master-addr master-port huggingface-hub-cache
weights-cache-override disable-custom-kernels cuda-memory-fraction rope-scaling rope-factor json-output otlp-endpoint
otlp-service-name cors-allow-origin api-key watermark-gamma watermark-delta ngrok ngrok-authtoken ngrok-edge
tokenizer-config-path disable-grammar-support env max-client-batch-size lora-adapters usage-stats payload-limit
enable-prefill-logprobs graceful-termination-timeout""".split()


@pytest.fixture
def launcher(cache, capsys, monkeypatch, tmp_path):
    """Run it up to the server's start: exit status, what it said, and the server's settings."""
    seen = []
    monkeypatch.setattr(app, "serve", seen.append)
    monkeypatch.setattr("ridgeline.cli.session.fetch", lambda model: None)
    for name in ("PORT", "HOSTNAME", "DTYPE"):
        monkeypatch.delenv(name, raising=False)

    def call(*args):
        with pytest.raises(SystemExit) as end:
            launch([str(a) for a in args])
        said = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=said.out, err=said.err, config=seen[-1] if seen else None)

    return call


def test_every_flag_of_tgi_has_its_line():
    assert {*FLAGS, *(flag.alias for flag in FLAGS.values())} >= set(TGI)
    for name, flag in FLAGS.items():
        assert name == "model-id" or flag.to or flag.note or flag.refused, name


def test_it_keeps_tgis_defaults_and_warns_without_keys(launcher):
    done = launcher()
    assert done.code == 0 and (done.config.hostname, done.config.port) == ("0.0.0.0", 3000)
    assert done.config.engine.model == "bigscience/bloom-560m"
    assert done.config.max_best_of == 16


def test_flags_and_variables_are_mapped(launcher, monkeypatch):
    variables = {"MODEL_ID": "some/model", "MAX_INPUT_LENGTH": 90, "MAX_TOTAL_TOKENS": 95, "PORT": 81}
    variables |= {"HOSTNAME": "3f2a9c", "JSON_OUTPUT": "false", "AIP_HTTP_PORT": 8085, "AIP_PREDICT_ROUTE": "/p"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    words = ["--max-best-of", 3, "--max-total-tokens", 100, "--max-batch-size", 5, "--max-concurrent-requests", 9]
    words += ["--dtype", "bfloat16", "--max-batch-prefill-tokens", 512, "--", "--kv-format", "int8"]
    config = launcher(*words).config
    assert (config.hostname, config.port, config.predict_route) == ("0.0.0.0", 8085, "/p")
    assert (config.max_input_tokens, config.max_best_of) == (90, 3)
    engine = config.engine
    assert (engine.model, engine.context, engine.format) == ("some/model", 100, "bf16")
    assert (engine.max_requests, engine.queue, engine.step_tokens, engine.kv_format) == (5, 4, 512, "int8")


def test_an_address_in_the_environment_counts(launcher, monkeypatch):
    monkeypatch.setenv("HOSTNAME", "127.0.0.1")
    assert launcher("-p", 4000).config.hostname == "127.0.0.1"
    assert launcher("--hostname", "::1").config.hostname == "::1"


@pytest.mark.parametrize(
    "words",
    [
        ["--waiting-served-ratio", "1.2"],
        ["--max-waiting-tokens", "20"],
        ["--max-batch-total-tokens", "1000"],
        ["--validation-workers", "2"],
        ["--master-port", "1"],
        ["--cuda-memory-fraction", "0.5"],
        ["--enable-prefill-logprobs"],
        ["--trust-remote-code"],
        ["--usage-stats", "on"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_obsolete_is_noted_and_served(launcher, words):
    done = launcher(*words)
    assert done.code == 0 and f"{words[0]} has no effect here: " in done.err


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--quantize", "gptq"], "--format int4"),
        (["--quantize", "eetq"], "--format int8"),
        (["--lora-adapters", "some/adapter"], "merge"),
        (["--speculate", "2"], "leave it out"),
        (["--num-shard", "2"], "start more servers"),
        (["--sharded", "true"], "one process"),
        (["--dtype", "float16"], "bfloat16"),
        (["--kv-cache-dtype", "fp8_e5m2"], "--kv-format int8"),
        (["--rope-scaling", "linear"], "config.json"),
        (["--revision", "abc"], "directory"),
        (["--ngrok"], "tunnel"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_would_change_answers_is_refused_with_an_alternative(launcher, words, instead):
    done = launcher(*words)
    refused(done, words[0], "not built")
    assert done.config is None and instead in done.err


def test_neutral_values_say_nothing(launcher):
    loud = launcher().err
    neutral = ["--num-shard", 1, "--speculate", 0, "--sharded", "false", "--revision", "main", "--cuda-graphs", 0]
    assert launcher(*neutral, "--usage-stats", "off").err == loud


def test_usage_errors_and_help(launcher):
    assert launcher("--nosuch").code == 2
    done = launcher("--help")
    assert done.code == 0 and done.out.startswith("usage: text-generation-launcher")
    assert "no effect" in done.out and "not built" in done.out
