"""The prefix cache between runs: the same answers sooner, sizes bounded, and files that are not good cost a note."""

from __future__ import annotations

import hashlib
import importlib.util
import os

import msgspec
import numpy as np
import pytest
from collected import Collected, drain, greedy, prompt_of, run
from fake import FakeStep, fake_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toy
from ridgeline.config import EngineConfig
from ridgeline.engine.client import LocalClient
from ridgeline.engine.kept import Kept
from ridgeline.engine.kept_header import Header, identity_of
from ridgeline.engine.process import ProcessClient
from ridgeline.engine.records import PAGE, Terms
from ridgeline.errors import ConfigError
from ridgeline.llm import LLM

NATIVE = importlib.util.find_spec("ridgeline.backends.cpu._native") is not None
native = pytest.mark.skipif(not NATIVE, reason="the cpu backend is not built")
LENGTHS = (3, 200, 330, 70)


class FakePages:
    layout = "fake"

    def __init__(self, step: FakeStep) -> None:
        self.stores = [memory.reshape(-1, PAGE) for memory in step.memory.values()]
        self.nbytes = len(self.stores) * PAGE * 8

    def read(self, page: int) -> bytes:
        return b"".join(store[page].tobytes() for store in self.stores)

    def write(self, page: int, data: bytes) -> None:
        for store, row in zip(self.stores, np.frombuffer(data, np.int64).reshape(-1, PAGE), strict=True):
            store[page] = row


def engine_with(path, limit=1 << 30, weights="w", **more):
    engine = fake_engine(**{"pages": 64} | more)
    pages = FakePages(engine.executor.step)
    engine.kept = Kept(path, limit, identity_of(engine.info, weights, pages.layout, "1"), pages)
    return engine, engine.kept.load(engine.cache)


def answers(engine, tenant=""):
    """Tokens of some requests, and how many of their prompts' tokens were cached."""
    client, sinks = LocalClient(engine), [Collected() for _ in LENGTHS]
    for n, sink in zip(LENGTHS, sinks, strict=True):
        client.submit(prompt_of(n, n), greedy(30), sink, Terms(tenant=tenant))
    drain(client)
    return [s.tokens[0] for s in sinks], sum(s.cached[0] for s in sinks)


@pytest.mark.parametrize("windows", [(0,), (0, 100), (130,)])
def test_answers_are_the_same_after_a_restart(tmp_path, windows):
    path = tmp_path / "prefixes"
    engine, note = engine_with(path, windows=windows)
    assert note == ""
    expected, cached = answers(engine)
    assert cached == 0
    LocalClient(engine).close()
    assert (os.stat(path).st_mode & 0o777, os.listdir(tmp_path)) == (0o600, ["prefixes"])
    again, note = engine_with(path, windows=windows)
    assert "begins with" in note
    again.scheduler.audit()
    assert again.pool.cached > 0 and again.pool.used == 0
    found, cached = answers(again)
    assert found == expected and cached >= 64 + 3 * 64
    assert answers(engine_with(path, windows=windows)[0], tenant="other") == (expected, 0)


def test_a_close_ends_what_runs_first(tmp_path):
    engine, _ = engine_with(tmp_path / "prefixes", depth=2)
    client, sink = LocalClient(engine), Collected()
    client.submit(prompt_of(200), greedy(300), sink)
    for _ in range(12):
        client.pump()
    client.close()
    assert sink.finish[0] == ["cancelled"] and engine.idle and engine.pool.used == 0
    assert (tmp_path / "prefixes").exists()


def test_the_last_used_are_kept_within_the_size(tmp_path):
    path = tmp_path / "prefixes"
    engine, _ = engine_with(path, limit=5000)
    for salt in (1, 2, 3, 1):
        run(engine, [(prompt_of(200, salt), greedy(2))])
    engine.close()
    assert path.stat().st_size <= 5000
    again, _ = engine_with(path)
    cached = [run(again, [(prompt_of(200, salt), greedy(2))])[0].cached[0] for salt in (2, 3, 1)]
    assert cached[0] == 0 and cached[1] > 0 and cached[2] == 192


def test_the_order_of_use_is_kept(tmp_path):
    engine, _ = engine_with(tmp_path / "prefixes")
    for salt in (1, 2, 3, 1):
        run(engine, [(prompt_of(200, salt), greedy(2))])
    before = [(n.depth, n.tokens) for n in engine.cache.newest()]
    engine.close()
    again, _ = engine_with(tmp_path / "prefixes")
    assert [(n.depth, n.tokens) for n in again.cache.newest()] == before


def test_a_smaller_pool_takes_what_fits(tmp_path):
    engine, _ = engine_with(tmp_path / "prefixes")
    expected, _ = answers(engine)
    engine.close()
    again, note = engine_with(tmp_path / "prefixes", pages=8)
    assert again.pool.cached == 8 and "begins with 8 pages" in note
    found, cached = answers(again)
    assert found == expected and cached > 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "prefixes"
    engine, _ = engine_with(path, windows=(0, 100))
    expected, _ = answers(engine)
    engine.close()
    return path.read_bytes(), expected


def refused(path, why, expected=None, **more):
    engine, note = engine_with(path, **{"windows": (0, 100)} | more)
    assert "begins empty" in note and why in note, note
    engine.pool.audit()
    assert engine.pool.free == engine.pool.total
    if expected is not None:
        assert answers(engine) == (expected, 0)
        engine.close()
        assert "begins with" in engine_with(path, windows=(0, 100))[1]  # it was replaced


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"weights": "other"}, "another weights"),
        ({"windows": (0, 90)}, "another groups"),
        ({"prefix_sharing": "all"}, "another prefix_sharing"),
    ],
)
def test_another_engine_s_file_is_refused(written, tmp_path, more, what):
    (path := tmp_path / "prefixes").write_bytes(written[0])
    refused(path, what, **more)


@pytest.mark.parametrize("size", [0, 7, 16, 300, -17, -1])
def test_truncated(written, tmp_path, size):
    (path := tmp_path / "prefixes").write_bytes(written[0][:size])
    refused(path, "", written[1])


def test_too_long(written, tmp_path):
    (path := tmp_path / "prefixes").write_bytes(written[0] + b"\0")
    refused(path, "bytes")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_bits_flipped(written, tmp_path, data):
    at = data.draw(st.integers(0, 8 * len(written[0]) - 1))
    damaged = bytearray(written[0])
    damaged[at // 8] ^= 1 << at % 8
    (path := tmp_path / "prefixes").write_bytes(damaged)
    refused(path, "")


def forged(data: bytes, size: int | None = None, **changes) -> bytes:
    """The file with a node changed, or its header's size, and a good digest."""
    length = int.from_bytes(data[8:16], "little")
    header = msgspec.json.decode(data[16 : 16 + length], type=Header)
    nodes = [*header.nodes[:2], msgspec.structs.replace(header.nodes[2], **changes), *header.nodes[3:]]
    encoded = msgspec.json.encode(msgspec.structs.replace(header, nodes=nodes))
    made = data[:8] + (len(encoded) if size is None else size).to_bytes(8, "little") + encoded + data[16 + length : -16]
    return made + hashlib.blake2b(made, digest_size=16).digest()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"size": 1 << 63}, "header of"),
        ({"size": 0}, "header of"),
        ({"parent": 2}, "before its parent"),
        ({"parent": -1}, "before its parent"),
        ({"tokens": (1000,) * PAGE}, "vocabulary"),
        ({"tokens": (-1,) * PAGE}, "header that"),
        ({"tokens": (1,) * (PAGE + 1)}, "header that"),
        ({"held": (False, True)}, "lacks pages"),
        ({"held": (True,)}, "lacks pages"),
        ({"held": (True,) * 1000}, "lacks pages"),
    ],
)
def test_absurd(written, tmp_path, changes, why):
    (path := tmp_path / "prefixes").write_bytes(forged(written[0], **changes))
    refused(path, why)


def test_nodes_that_are_alike_become_one(written, tmp_path):
    (path := tmp_path / "prefixes").write_bytes(forged(written[0], key="someone"))
    engine, note = engine_with(path, windows=(0, 100))
    assert "begins with" in note
    engine.pool.audit()
    assert answers(engine)[0] == written[1]


def test_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no file")


def test_a_file_that_cannot_be_written_is_told(tmp_path, caplog):
    (folder := tmp_path / "gone").mkdir()
    engine, _ = engine_with(folder / "prefixes")
    answers(engine)
    folder.rmdir()
    engine.close()
    assert "was not kept" in caplog.text


def test_settings():
    with pytest.raises(ConfigError, match="backend cpu"):
        EngineConfig("m", backend="reference", prefix_cache_file="f")
    with pytest.raises(ConfigError, match="prefix_cache_file"):
        EngineConfig("m", prefix_cache_size=5)


# --- the cpu backend


@pytest.fixture(scope="module", params=["CONFIG", "WINDOWED"])
def model(request, tmp_path_factory) -> str:
    return str(toy.write(tmp_path_factory.mktemp("toy"), getattr(toy, request.param)))


PROMPT = [3 + i * 7 % 250 for i in range(140)]


def told(client):
    sink = Collected()
    logprobs = []
    client.submit(PROMPT, greedy(20, logprobs=3), lambda d: (logprobs.extend(d.tokens), sink(d)))
    while not client.idle:
        client.pump(0.05)
    return logprobs, sink.cached[0]


@native
@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
def test_pages_of_the_cpu_backend_are_the_same_again(model, tmp_path, kv_format):
    config = {"threads": 1, "kv_format": kv_format, "prefix_cache_file": str(tmp_path / "prefixes")}
    llm = LLM(model, **config)
    expected, cached = told(llm.client)
    assert cached == 0
    llm.close()
    again = LLM(model, **config)
    again_told = told(again.client)
    assert again_told == (expected, 128)
    other = LLM(model, **config | {"kv_format": "f32"})
    assert any("another" in note for note in other.info.notes)
    with pytest.raises(ConfigError, match="folder"):
        LLM(model, threads=1, prefix_cache_file=str(tmp_path / "no" / "prefixes"))


@native
def test_an_engine_process_keeps_them_on_close(model, tmp_path):
    config = EngineConfig(model, threads=1, prefix_cache_file=str(tmp_path / "prefixes"))
    client = ProcessClient(config)
    try:
        expected, _ = told(client)
        client.submit(PROMPT, greedy(100), Collected())  # it is cancelled
    finally:
        client.close()
    client = ProcessClient(config)
    try:
        assert told(client) == (expected, 128)
        assert any("begins with" in note for note in client.info.notes)
    finally:
        client.close()
