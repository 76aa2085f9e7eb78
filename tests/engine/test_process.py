"""The engine in a child process: the same answers as in-thread, and the same answers when the child is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from collected import Collected, start

import tiny
from ridgeline.config import EngineConfig
from ridgeline.engine.client import LocalClient
from ridgeline.engine.load import load
from ridgeline.engine.params import SamplingParams
from ridgeline.engine.process import ProcessClient
from ridgeline.errors import InvalidRequest, ModelNotFound, Unsupported

BACKEND = "cpu" if importlib.util.find_spec("ridgeline.backends.cpu._native") else "reference"


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level tokenizer without merges: 256 bytes, then <|endoftext|>, then fillers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"<fill{i}>" for i in range(vocab - len(letters)))]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[len(letters) :]])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> EngineConfig:
    c = tiny.changed(next(iter(tiny.CONFIGS.values())), vocab_size=300)
    folder = tiny.write_hf(tmp_path_factory.mktemp("tiny"), c, tiny.weights(c))
    write_tokenizer(folder, 300)
    return EngineConfig(str(folder), backend=BACKEND, threads=1, step_tokens=24, kv_memory=64 << 20)


REQUESTS = [
    (list(range(20 + 9 * i)), SamplingParams(max_tokens=60 + 10 * i, seed=i, temperature=0.9, ignore_eos=True))
    for i in range(8)
]


def finish(client, sinks, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not client.idle:
        client.pump(0.05)
        assert time.monotonic() < end, "requests did not end"
    assert all(len(s.finish[0]) == 1 for s in sinks)


@pytest.fixture(scope="module")
def undisturbed(config):
    client = LocalClient(load(config).engine)
    sinks = start(client, REQUESTS)
    finish(client, sinks)
    return [(s.tokens[0], s.text[0]) for s in sinks]


def test_the_child_gives_the_same_answers(config, undisturbed):
    client = ProcessClient(config)
    try:
        sinks = start(client, REQUESTS)
        finish(client, sinks)
        assert [(s.tokens[0], s.text[0]) for s in sinks] == undisturbed
        with pytest.raises(InvalidRequest, match="empty"):
            client.submit([], SamplingParams(), Collected())
        cancelled = Collected()
        client.cancel(client.submit([1, 2], SamplingParams(max_tokens=400, ignore_eos=True), cancelled))
        finish(client, [cancelled])
    finally:
        client.close()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSEGV])
def test_killing_the_child_mid_stream_changes_no_text(config, undisturbed, sig):
    client = ProcessClient(config)
    try:
        sinks = start(client, REQUESTS)
        for kills in (10, 40):
            while min(len(s.tokens[0]) for s in sinks) < kills:
                client.pump(0.05)
            child = client.pid
            os.kill(child, sig)
            while client.pid == child:
                client.pump(0.05)
        assert not all(s.finish[0] for s in sinks), "the kill came after the end"
        finish(client, sinks)
        assert [(s.tokens[0], s.text[0]) for s in sinks] == undisturbed
        assert client.unhealthy() is None
    finally:
        client.close()


def test_load_errors_cross_the_process_boundary(config, tmp_path):
    with pytest.raises(ModelNotFound):
        ProcessClient(EngineConfig("no-such-model"))
    c = tiny.changed(next(iter(tiny.CONFIGS.values())), model_type="mamba")
    with pytest.raises(Unsupported, match="mamba"):
        ProcessClient(EngineConfig(str(tiny.write_hf(tmp_path, c, {})), backend=BACKEND))


def test_a_stopped_child_is_noticed_and_replaced(config, undisturbed):
    """SIGSTOP: it neither ends nor says anything, but its count stands still."""
    client = ProcessClient(config)
    try:
        sinks = start(client, REQUESTS)
        while min(len(s.tokens[0]) for s in sinks) < 10:
            client.pump(0.05)
        assert client._child.counts
        stopped, begin = client.pid, time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        while client.unhealthy() is None:
            client.pump(0.05)
        red = time.monotonic() - begin
        assert "did nothing for" in client.unhealthy() and client.gone() is None
        late = Collected()
        client.submit([1, 2], SamplingParams(max_tokens=3, ignore_eos=True), late)  # accepted, and waits
        finish(client, [*sinks, late])
        assert client.unhealthy() is None and client.pid != stopped
        assert [(s.tokens[0], s.text[0]) for s in sinks] == undisturbed
        assert red < 10, "the bar of 2 s is measured apart; this machine may be busy"
    finally:
        client.close()
