"""Packed weights between runs: the same bits, no byte of the model's own read, and nothing damaged ever used."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import toy
from ridgeline.backends.cpu import _native
from ridgeline.backends.cpu.backend import CPU
from ridgeline.backends.cpu.panels import Panels
from ridgeline.cli import main
from ridgeline.engine.params import SamplingParams
from ridgeline.llm import LLM
from ridgeline.program.ir import Weight
from ridgeline.quant.format import FORMATS
from ridgeline.weights import packed
from ridgeline.weights.load import open_checkpoint
from ridgeline.weights.packed import PackedWeights, packed_weights
from ridgeline.weights.source import Raw

SHAPES = {"q4_1": (70, 64), "q8_0": (33, 96), "f32": (40, 7), "bf16": (5, 9), "int8": (64, 40)}
LIMIT = 1 << 30


def forbidden(w):
    raise AssertionError(f"{w.name} is read")


def stored() -> dict[str, Raw]:
    rng = np.random.default_rng(0)
    made = {n: Raw(n, s, FORMATS[n].pack(rng.standard_normal(s, np.float32))) for n, s in SHAPES.items()}
    for name, n in (("norm", 50), ("bias", 3)):
        made[name] = Raw("f32", (n,), rng.standard_normal((1, n), np.float32).view(np.uint8))
    return made


RAWS = stored()
WEIGHTS = [Weight(n, s, ("", ""), n, parts=(n,)) for n, s in SHAPES.items()]
VECTORS = [
    Weight("norm", (50,), ("",), "f32", parts=("norm",)),
    Weight("turns", (2,), ("",), "f32", constant=(1.0, 2.0)),
    Weight("bias", (3,), ("",), "f32", parts=("bias",)),
]


@pytest.fixture
def kept(tmp_path) -> PackedWeights:
    (tmp_path / "model").touch()
    return PackedWeights(tmp_path / "cache" / "packed", LIMIT, "this model", str(tmp_path / "model"))


def load(kept, read=lambda w: RAWS[w.name], threads=2):
    """Every weight and vector as float32, by name."""
    held, vectors = Panels(_native.Pool(threads), CPU.held_as).load(WEIGHTS, VECTORS, read, kept)
    values = {}
    for w, h in zip(WEIGHTS, held, strict=True):
        values[w.name] = np.zeros(w.shape, np.float32)
        for row in range(w.shape[0]):
            h.unpack(row, values[w.name][row])
    return {**values, **{w.name: v.copy() for w, v in zip(VECTORS, vectors, strict=True)}}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def the_file(kept) -> Path:
    (path,) = kept.folder.iterdir()
    return path


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_was_kept_is_the_same_and_nothing_else_is_read(kept, threads):
    plain = load(None)
    assert same(load(kept), plain)
    assert same(load(kept, forbidden, threads), plain) and kept.notes == []
    for path, mode in ((the_file(kept), 0o600), (kept.folder, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert packed.verify(packed.listing(kept.folder)[0])


@pytest.mark.parametrize("at", [3, 20, 60, 4096, 5000, -1])
def test_damage_is_seen_told_and_mended(kept, at):
    plain, path = load(kept), the_file(kept)
    data = bytearray(path.read_bytes())
    if at > 0:
        data[at] ^= 1
    else:
        data[packed.listing(kept.folder)[0].start + 8] ^= 128
    path.write_bytes(data)
    assert all(not packed.verify(f) for f in packed.listing(kept.folder))
    assert same(load(kept), plain)
    assert [path.name in n and n.endswith("damaged and were made again") for n in kept.notes] == [True]
    assert same(load(kept, forbidden), plain)


@pytest.mark.parametrize("length", [0, 10, 30, 4096, -64])
def test_a_file_cut_short_is_not_used(kept, length):
    plain, path = load(kept), the_file(kept)
    data = path.read_bytes()
    path.write_bytes(data[:length])
    assert packed.listing(kept.folder) == []
    assert same(load(kept), plain) and len(kept.notes) == 1 and path.read_bytes()[4096:] == data[4096:]


def test_a_file_of_another_user_is_not_used(kept, monkeypatch):
    load(kept)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert packed.read_header(the_file(kept)) is None


def test_another_model_has_another_file(kept):
    load(kept)
    other = PackedWeights(kept.folder, LIMIT, "another model", kept.source)
    with pytest.raises(AssertionError, match="is read"):
        load(other, forbidden)
    load(other)
    assert len(list(kept.folder.iterdir())) == 2


def test_an_identity_follows_the_file(tmp_path):
    folder = toy.write(tmp_path / "m")

    def identity():
        return packed_weights(open_checkpoint(folder), tmp_path, LIMIT).identity

    first, weights = identity(), folder / "model.safetensors"
    assert identity() == first
    os.utime(weights, ns=(1, 1))
    later = identity()
    data = bytearray(weights.read_bytes())
    data[8 + data.index(b"embed") - 8] ^= 1  # the header, and neither size nor time
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    assert len({first, later, identity()}) == 3
    assert packed_weights(open_checkpoint(toy.write(tmp_path / "n")), tmp_path, 0) is None


def test_processes_that_pack_at_once_leave_one_good_file(kept):
    plain = load(None)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(values, plain) for values in pool.map(lambda _: load(kept), range(8)))
    assert the_file(kept).suffix == ".packed" and same(load(kept, forbidden), plain)


def test_where_nothing_can_be_written_nothing_is(kept, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    assert same(load(kept), load(None))


def test_the_longest_unused_go_first_and_those_without_a_model_before(kept, tmp_path):
    load(kept)
    (first,) = packed.listing(kept.folder)
    for i in range(3):
        load(PackedWeights(kept.folder, LIMIT, f"model {i}", kept.source))
    for i, f in enumerate(sorted(packed.listing(kept.folder), key=lambda f: f.header.identity)):
        os.utime(f.path, (i, i))
    os.utime(first.path, (2.5, 2.5))
    small = PackedWeights(kept.folder, 3 * first.nbytes, "the last", kept.source)
    load(small)
    assert [f.header.identity for f in packed.listing(kept.folder)] == ["model 2", "this model", "the last"]
    (kept.folder / "x.packed").write_bytes(b"not ours")
    orphan = PackedWeights(kept.folder, LIMIT, "orphan", str(tmp_path / "gone"))
    load(orphan)
    assert {f.header.identity for f in packed.listing(kept.folder)} == {"model 2", "this model", "the last"}
    packed.prune(kept.folder, 0)
    assert list(kept.folder.iterdir()) == []


def test_what_is_over_the_limit_is_not_kept(kept):
    load(PackedWeights(kept.folder, 100, "this model", kept.source))
    assert not kept.folder.exists() or not list(kept.folder.iterdir())


def test_a_model_answers_the_same_from_packed_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = toy.write(tmp_path / "m")
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    answers = [LLM(folder, threads=2, max_requests=1).generate("hello", params)[0].text for _ in range(2)]
    assert answers[0] == answers[1]
    (file,) = packed.listing(tmp_path / "ridgeline" / "packed")
    assert file.header.source == str(folder)


def test_models_lists_verifies_and_prunes(tmp_path, monkeypatch, capsys):
    def models(*words):
        with pytest.raises(SystemExit) as end:
            main(["models", *words])
        return end.value.code, capsys.readouterr().out

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    LLM(toy.write(tmp_path / "m"), threads=1, max_requests=1)
    code, said = models("--json", "--verify")
    (row,) = json.loads(said)["packed"]
    assert not code and row["damaged"] is False and row["source"] == str(tmp_path / "m")
    path = Path(row["path"])
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    code, said = models("--verify")
    assert "packed weights" in said and (code, "damaged" in said) == (0, False)  # padding: no weight's own
    data = bytearray(path.read_bytes())
    data[packed.listing(path.parent)[0].start] ^= 1
    path.write_bytes(data)
    code, said = models("--verify")
    assert code == 1 and "damaged" in said
    assert json.loads(models("--json", "--prune", "0")[1])["removed"] == [str(path)] and not path.exists()
