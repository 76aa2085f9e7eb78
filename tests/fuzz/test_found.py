"""What the fuzzers have found, each in its smallest form: a typed error where there was another, or a large cost."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_bytes import Key, Tensor, write
from target_tokenizer import Fuzz

import tiny
from ridgeline.errors import InvalidRequest, ModelFileError, RidgelineError, TemplateError
from ridgeline.models import build
from ridgeline.models.hf import from_hf
from ridgeline.text.template import ChatTemplate
from ridgeline.text.tokenizer import from_dir, from_gguf
from ridgeline.weights.load import open_checkpoint
from ridgeline.weights.safetensors import SafetensorsFile, read_index


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"head_dim": 1 << 24}),
        ("falconrw", {"num_attention_heads": 1 << 20, "hidden_size": 1 << 21, "num_hidden_layers": 100}),
    ],
)
def test_heads_in_millions_are_refused(family, changes):
    began = time.process_time()
    with pytest.raises(RidgelineError):
        build(from_hf({**tiny.CONFIGS[family], **changes}))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("dtype", ["f32", "Q4_0", "q8_0"])
def test_names_of_our_formats_are_no_dtypes(tmp_path, dtype):
    header = json.dumps({"a": {"dtype": dtype, "shape": [9, 9, 32], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelFileError, match="dtype"):
        SafetensorsFile(path)


@pytest.mark.parametrize("letter", ["a", "é"])
def test_a_shard_name_longer_than_a_file_name_is_refused(tmp_path, letter):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": letter * 250 + ".safetensors"}}))
    with pytest.raises(ModelFileError, match="names the shard"):
        read_index(path)


@pytest.mark.parametrize("key", ["falcon.tensor_data_layout", "llama.block_count", "llama.expert_count"])
@pytest.mark.parametrize("entries", [[], [1, 2]])
def test_an_array_where_gguf_should_say_one_value(tmp_path, key, entries):
    keys = [Key("general.architecture", 8, key.split(".", maxsplit=1)[0]), Key(key, 9, (4, entries))]
    header, _, size = write(keys, [Tensor("token_embd.weight", (4, 4), 0, 64)])
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(header.out).ljust(size, b"\0"))
    with pytest.raises(RidgelineError):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("key", ["model", "pre", "add_bos_token", "add_eos_token", "bos_token_id"])
def test_an_array_where_a_vocabulary_should_say_one_value(seeds, key):
    for metadata in seeds.metadata:
        for wrong in (np.array([1, 2]), np.array([]), [1, 2]):
            with contextlib.suppress(RidgelineError):  # not every kind of vocabulary reads every key
                from_gguf({**metadata, f"tokenizer.ggml.{key}": wrong})


def folder(tmp_path: Path, files: dict[str, Any], **changes: Any) -> Path:
    """A tokenizer's folder with top-level parts of tokenizer.json replaced."""
    files = {**files, "tokenizer.json": {**files["tokenizer.json"], **changes}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_a_template_whose_name_is_no_text(seeds, tmp_path):
    _, files = seeds.folders[0]
    config = {**files["tokenizer_config.json"], "chat_template": [{"name": {}, "template": "x"}]}
    with contextlib.suppress(RidgelineError):
        from_dir(folder(tmp_path, {**files, "tokenizer_config.json": config}))


@pytest.mark.parametrize("token_id", [54, 1 << 27], ids=["another's", "in millions"])
def test_an_id_that_a_second_token_has_or_that_leaves_gaps(seeds, tmp_path, token_id):
    """The package cannot read back what it writes of the one, and allocates a place for each id below the other."""
    _, files = seeds.folders[0]
    model = files["tokenizer.json"]["model"]
    changed = {**model, "vocab": {**model["vocab"], "2": token_id}}
    with pytest.raises(RidgelineError):
        from_dir(folder(tmp_path, files, model=changed))


def test_merges_that_panic(seeds, tmp_path):
    _, files = seeds.folders[0]
    model = {**files["tokenizer.json"]["model"], "continuing_subword_prefix": "true"}
    with contextlib.suppress(RidgelineError):
        from_dir(folder(tmp_path, files, model=model)).encode("x", True)


def test_a_post_processor_that_panics(seeds, tmp_path):
    _, files = seeds.folders[1]
    processor = {**files["tokenizer.json"]["post_processor"], "special_tokens": {}}
    with pytest.raises(RidgelineError):
        from_dir(folder(tmp_path, files, post_processor=processor)).encode("x", True)


def test_a_filter_block_that_makes_a_list():
    with pytest.raises(TemplateError, match="writes a list"):
        ChatTemplate("{% filter list %}a{% endfilter %}").render([])


@pytest.mark.parametrize("part", [None, "text", ["text"], 1])
def test_a_last_message_with_odd_parts(part):
    template = ChatTemplate("{{ messages[0].content[0].text }}")
    text = [{"type": "text", "text": "So"}, part]
    assert template.render([{"content": text}], continue_final_message=True) == "So"
    with pytest.raises(InvalidRequest, match="a last message with text"):
        template.render([{"content": [part]}], continue_final_message=True)


@pytest.mark.parametrize("name", ["min", "max"])
def test_the_smallest_of_millions_of_letters(name):
    began = time.process_time()
    with pytest.raises(TemplateError, match="larger than"):
        ChatTemplate("{{ ('ab' * 1999999) | " + name + " }}").render([])
    assert time.process_time() - began < 0.5
