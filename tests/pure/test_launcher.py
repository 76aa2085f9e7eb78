"""`text-generation-launcher`: every flag of TGI's, and its environment variable, is mapped, noted or refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from commands import refused
from ridgeline.cli import launch
from ridgeline.cli.launcher import FLAGS, VARIABLES
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
    for name in ("PORT", "HOSTNAME", "DTYPE", "HF_TOKEN", "HF_HUB_OFFLINE", "LOG_LEVEL", "HUGGINGFACE_HUB_CACHE"):
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


# --- the whole table: what each flag is with a value of TGI's own, as flag and as variable

HONOURED = {  # value, attribute of the settings, what it is then
    "model-id": ("some/model", "engine.model", "some/model"),
    "dtype": ("bfloat16", "engine.format", "bf16"),
    "max-concurrent-requests": ("40", "engine.queue", 8),
    "max-best-of": ("3", "max_best_of", 3),
    "max-stop-sequences": ("5", "max_stop_sequences", 5),
    "max-top-n-tokens": ("6", "max_top_n_tokens", 6),
    "max-input-tokens": ("70", "max_input_tokens", 70),
    "max-input-length": ("70", "max_input_tokens", 70),
    "max-total-tokens": ("80", "engine.context", 80),
    "max-client-batch-size": ("7", "max_client_batch_size", 7),
    "payload-limit": ("3000000", "payload_limit", 3_000_000),
    "disable-grammar-support": ("true", "disable_grammar_support", True),
    "max-batch-prefill-tokens": ("512", "engine.step_tokens", 512),
    "max-batch-size": ("9", "engine.max_requests", 9),
    "hostname": ("127.0.0.1", "hostname", "127.0.0.1"),
    "port": ("4000", "port", 4000),
    "cors-allow-origin": ("https://a.example", "access.cors_allow_origin", ("https://a.example",)),
    "api-key": ("secret", "access.api_key", "secret"),
    "graceful-termination-timeout": ("7", "drain_timeout", 7.0),
    "json-output": ("true", "log_format", "json"),
    "otlp-endpoint": ("http://localhost:4318", "otlp_endpoint", "http://localhost:4318"),
    "otlp-service-name": ("tgi", "otlp_service_name", "tgi"),
    "watermark-gamma": ("0.25", "watermark_gamma", 0.25),
    "watermark-delta": ("1.5", "watermark_delta", 1.5),
    "AIP_HTTP_PORT": ("4001", "port", 4001),
    "AIP_PREDICT_ROUTE": ("/p", "predict_route", "/p"),
    "AIP_HEALTH_ROUTE": ("/h", "health_route", "/h"),
    "LOG_LEVEL": ("WARN", "log_level", "warn"),
}
NOTED = {
    "trust-remote-code": "true", "cuda-graphs": "1,2,4", "disable-custom-kernels": "true", "master-addr": "localhost",
    "master-port": "29500", "shard-uds-path": "/tmp/x", "cuda-memory-fraction": "0.9",
    "enable-prefill-logprobs": "true", "max-batch-total-tokens": "1000", "waiting-served-ratio": "0.3",
    "max-waiting-tokens": "20", "prometheus-port": "9000", "usage-stats": "on", "huggingface-hub-cache": "/data",
    "weights-cache-override": "/data", "validation-workers": "2", "max-image-fetch-size": "1000", "env": "true",
    "ATTENTION": "paged", "PREFIX_CACHING": "0", "PREFILL_CHUNKING": "0", "TGI_WIGGLE_ROOM": "0.9",
    "REQUEST_LOGPROBS": "1", "USE_FLASH_ATTENTION": "1", "EXLLAMA_VERSION": "2", "COMPUTE_TYPE": "gpu+optimized",
    "HF_HUB_OFFLINE": "1", "ROCM_USE_SKINNY_GEMM": "1", "PYTORCH_TUNABLEOP_ENABLED": "1",
}  # fmt: skip
REFUSED = {
    "revision": "abc", "tokenizer-config-path": "x.json", "kv-cache-dtype": "fp8_e4m3fn", "lora-adapters": "a/b",
    "rope-scaling": "linear", "rope-factor": "2.0", "sharded": "true", "num-shard": "2", "speculate": "3",
    "quantize": "awq", "ngrok": "true", "ngrok-authtoken": "x", "ngrok-edge": "x",
}  # fmt: skip


def given(launcher, monkeypatch, name: str, value: str) -> list:
    """What came of it, given as a flag and as a variable."""
    found, variable = [], name.replace("-", "_").upper()
    if name != variable:
        switch = name in FLAGS and FLAGS[name].switch
        found.append(launcher(f"--{name}", *([] if switch else [value])))
    if name != "env":  # whose variable other programs use too
        monkeypatch.setenv(variable, value)
        found.append(launcher())
    return found


def test_the_table_is_whole():
    assert {*HONOURED, *NOTED, *REFUSED} >= {*TGI}
    assert {name for name in {*HONOURED, *NOTED} if name.isupper()} <= {*VARIABLES}


@pytest.mark.parametrize("name", HONOURED)
def test_what_is_honoured(launcher, monkeypatch, name):
    value, attribute, meant = HONOURED[name]
    for done in given(launcher, monkeypatch, name, value):
        assert done.code == 0, done.err
        found = done.config
        for part in attribute.split("."):
            found = getattr(found, part)
        assert found == meant and "no effect" not in done.err


@pytest.mark.parametrize("name", NOTED)
def test_what_is_noted_says_what_there_is_instead(launcher, monkeypatch, name):
    for done in given(launcher, monkeypatch, name, NOTED[name]):
        (note,) = (line for line in done.err.splitlines() if "no effect here: " in line)
        assert done.code == 0 and len(note.partition("here: ")[2]) > 10
        assert f"{name} has" in note


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_alternative(launcher, monkeypatch, name):
    for done in given(launcher, monkeypatch, name, REFUSED[name]):
        refused(done, f"--{name}", "not built: ")
        assert done.config is None


def test_a_switch_may_be_any_word_for_yes(launcher, monkeypatch):
    for word, format in (("1", "json"), ("yes", "json"), ("0", "none"), ("n", "none")):
        monkeypatch.setenv("JSON_OUTPUT", word)
        assert launcher().config.log_format == format


def test_origins_may_be_several(launcher):
    both = ["https://a.example", "https://b.example"]
    words = [word for origin in both for word in ("--cors-allow-origin", origin)]
    assert launcher(*words).config.access.cors_allow_origin == tuple(both)
    assert launcher("--port", 1, "--port", 2).config.port == 2


def test_a_log_level_asks_for_a_log(launcher, monkeypatch):
    assert launcher().config.log_format == "none"
    for level, meant in (("trace", "debug"), ("off", "error"), ("info", "info")):
        monkeypatch.setenv("LOG_LEVEL", level)
        config = launcher().config
        assert (config.log_level, config.log_format) == (meant, "text")
    assert launcher("--json-output").config.log_format == "json"
    monkeypatch.setenv("LOG_LEVEL", "text_generation_router=debug")  # other programs' words do not stop it
    done = launcher()
    assert done.config.log_level == "info" and "LOG_LEVEL has no effect here: it is one of debug, info" in done.err
