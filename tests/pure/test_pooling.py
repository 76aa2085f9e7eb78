"""How vectors are pooled, told by sentence-transformers' folders and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.weights.pooling import pooling_of_folder, pooling_of_gguf

KINDS = ("Transformer", "Pooling", "Normalize")


def write(folder: Path, config: object, kinds=KINDS, path: str = "1_Pooling") -> Path:
    modules = [
        {"idx": i, "path": path if kind == "Pooling" else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_that_says_nothing(tmp_path):
    assert pooling_of_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 8, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_a_folder_says_how(tmp_path, config, pooling):
    assert pooling_of_folder(write(tmp_path, config)) == pooling


@pytest.mark.parametrize(
    ("config", "kinds", "path", "error", "says"),
    [
        ({"pooling_mode_cls_token": True}, KINDS, "1_Pooling", Unsupported, "cls_token.*--pooling"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, KINDS, "1_Pooling", Unsupported, "and"),
        ({}, KINDS, "1_Pooling", Unsupported, "None"),
        ([], KINDS, "1_Pooling", ModelFileError, "config.json"),
        ({"pooling_mode": "mean"}, (*KINDS, "Dense"), "1_Pooling", Unsupported, "Dense"),
        ({"pooling_mode": "mean"}, ("Transformer",), "1_Pooling", ModelFileError, "Pooling"),
        ({"pooling_mode": "mean"}, KINDS, "../1_Pooling", ModelFileError, "Pooling"),
        ({"pooling_mode": "mean"}, KINDS, "2_Pooling", ModelFileError, "not there"),
    ],
)
def test_what_is_not_built_or_broken_is_named(tmp_path, config, kinds, path, error, says):
    with pytest.raises(error, match=says):
        pooling_of_folder(write(tmp_path, config, kinds, path))


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "[" * 100_000])
def test_modules_that_are_none(tmp_path, content):
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises((ModelFileError, Unsupported), match="modules.json"):
        pooling_of_folder(tmp_path)


def test_gguf():
    assert pooling_of_gguf({"general.architecture": "qwen3"}) is None
    assert pooling_of_gguf({"general.architecture": "qwen3", "qwen3.pooling_type": 3}) == "last"
    assert pooling_of_gguf({"general.architecture": "qwen3", "qwen3.pooling_type": 1}) == "mean"
    for kind in (2, "x", [1]):
        with pytest.raises(Unsupported, match=r"qwen3.pooling_type"):
            pooling_of_gguf({"general.architecture": "qwen3", "qwen3.pooling_type": kind})
