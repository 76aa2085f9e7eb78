"""What a model's name may be: paths, Hub ids, aliases; anything else is refused without a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from ridgeline.errors import ModelNotFound
from ridgeline.weights.hub import Sources, resolve


def forbidden(*args):
    raise AssertionError("must not be asked")


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
