"""Fuzz target: tokenizers from GGUF metadata and from a Hugging Face folder, which then encode and decode.

Bound: 32 MiB + 100 x the bytes of the input written as JSON (the `tokenizers` package keeps several copies).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from meter import MIB, Check
from mutate import chain, document, dump, value

from ridgeline.errors import RidgelineError
from ridgeline.text.bpe import ALPHABET, PRE_TOKENIZERS
from ridgeline.text.tokenizer import Tokenizer, from_dir, from_gguf

_TEXTS = ("Hello hello, it's 1234!", " é\U0001f600\n\n\t  x", "<s><|im_start|>user\n<tool>", "", "▁he\0\x80", "\ud800")
_MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġ Ġ", "1 2", "Ã ©")
_CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_PREFIX = "tokenizer.ggml."
_NESTED = ("type", "pretokenizers", "normalizers", "decoders", "processors", "pattern", "Regex", "String", "behavior")
_NESTED += ("model", "vocab", "merges", "added_tokens", "content", "id", "special", "unk_token", "byte_fallback")
_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Case:
    """GGUF metadata, or the changed bytes of one file of folder number `folder`."""

    metadata: dict[str, Any] | None
    folder: int = 0
    file: str = ""
    data: bytes = b""


class Fuzz:
    """Folders with their valid files stay; a case replaces one file and puts it back."""

    def __init__(self, scratch: Path) -> None:
        self.metadata = [_byte_level(pre) for pre in ("smollm", "llama-bpe", "qwen2", "tekken")] + [_sentencepiece()]
        self.keys = sorted({key for m in self.metadata for key in m})
        self.folders: list[tuple[Path, dict[str, Any]]] = []
        for i, files in enumerate(_folders()):
            folder = scratch / f"tokenizer-{i}"
            folder.mkdir()
            self.folders.append((folder, files))
            for name, content in files.items():
                (folder / name).write_bytes(dump(content))

    def mutate(self, rng: Random) -> Case:
        if rng.random() < 0.5:
            changed = chain(rng, rng.choice(self.metadata), lambda r, m: value(r, m, self.keys))
            as_array = rng.random() < 0.5
            return Case({k: _array(v) if as_array else v for k, v in _fitting(changed).items()})
        at = rng.randrange(len(self.folders))
        files = self.folders[at][1]
        name = rng.choice((_FILES[0], *files))
        if rng.random() < 0.4 and name == _FILES[0]:  # the small parts: a vocabulary would take most changes
            changed = chain(rng, {k: v for k, v in files[name].items() if k != "model"}, _change)
            return Case(None, at, name, dump({**changed, "model": files[name]["model"]}))
        return Case(None, at, name, document(rng, files[name], _NESTED))

    def parse(self, data: bytes) -> Case:
        """The first byte picks a file of a folder, or metadata given as JSON; the rest is the text."""
        pick, data = (data[0] if data else 0), data[1:]
        if pick < 128:
            at, name = pick % len(self.folders), _FILES[pick // 32 % len(_FILES)]
            return Case(None, at, name, data)
        try:
            read = json.loads(data)
        except (ValueError, RecursionError):
            read = {}
        return Case({k: _array(v) for k, v in read.items()} if isinstance(read, dict) else {})

    def corpus(self) -> list[bytes]:
        folders = [bytes([i]) + dump(files[_FILES[0]]) for i, (_, files) in enumerate(self.folders)]
        return folders + [b"\xff" + dump(metadata) for metadata in self.metadata]

    def run(self, case: Case, check: Check) -> None:
        if case.metadata is not None:
            return _use(lambda: from_gguf(case.metadata), check, _size(case.metadata))
        folder, files = self.folders[case.folder]
        path = folder / case.file
        path.write_bytes(case.data)
        try:
            _use(lambda: from_dir(folder), check, 2 * len(case.data) + 20_000)
        finally:
            if case.file in files:
                path.write_bytes(dump(files[case.file]))
            else:
                path.unlink()


def _use(make: Any, check: Check, size: int) -> None:
    try:
        tokenizer = make()
        for text in _TEXTS:
            _round_trip(tokenizer, text)
        tokenizer.decode(range(min(tokenizer.vocab_size + 3, 400)), skip_special=False)
    finally:
        check("building", 32 * MIB + 100 * size)


def _round_trip(tokenizer: Tokenizer, text: str) -> None:
    try:
        for parse_special in (True, False):
            tokenizer.decode(tokenizer.encode(text, add_special=True, parse_special=parse_special))
        tokenizer.encode_with_offsets(text)
        tokenizer.count_lost(text)
    except RidgelineError:
        if text.isprintable() and text.isascii():
            raise


def _size(metadata: dict[str, Any]) -> int:
    return sum(len(str(x)) for x in metadata.values()) + 1000


def _change(rng: Random, x: Any) -> Any:
    return value(rng, x, _NESTED)


def _fitting(x: Any) -> Any:
    """Integers beyond 64 bits cut down to what a file can say."""
    if isinstance(x, dict):
        return {k: _fitting(v) for k, v in x.items()}
    if isinstance(x, list):
        return [_fitting(v) for v in x]
    return max(-(1 << 63), min(x, (1 << 64) - 1)) if type(x) is int else x


def _array(x: Any) -> Any:
    """Numbers in a list as the GGUF reader gives them."""
    if isinstance(x, list) and x and all(type(n) in (int, bool, float) for n in x):
        try:
            return np.array(x)
        except (OverflowError, ValueError):
            return x
    return x


def _byte_level(pre: str) -> dict[str, Any]:
    tokens = [*_CONTROL, *ALPHABET, *(merge.replace(" ", "") for merge in _MERGES), "<tool>"]
    return {
        _PREFIX + "model": "gpt2", _PREFIX + "pre": pre, _PREFIX + "tokens": tokens, _PREFIX + "merges": [*_MERGES],
        _PREFIX + "token_type": [3] * len(_CONTROL) + [1] * (len(tokens) - len(_CONTROL) - 1) + [4],
        _PREFIX + "bos_token_id": 1, _PREFIX + "eos_token_id": 2, _PREFIX + "add_bos_token": True,
        _PREFIX + "eot_token_id": 4, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip


def _sentencepiece() -> dict[str, Any]:
    pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "▁▁", "é", "1", "2", ",", "!", "▁w"]
    tokens = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<tool>"]
    types = [2, *[3] * (len(_CONTROL) - 1), *[6] * 256, *[1] * len(pieces), 4]
    return {
        _PREFIX + "model": "llama", _PREFIX + "pre": "default", _PREFIX + "tokens": tokens,
        _PREFIX + "scores": [float(-i) for i in range(len(tokens))], _PREFIX + "token_type": types,
        _PREFIX + "bos_token_id": 1, _PREFIX + "eos_token_id": 2, _PREFIX + "unknown_token_id": 0,
        _PREFIX + "padding_token_id": 0, _PREFIX + "add_bos_token": True, _PREFIX + "add_eos_token": False,
        _PREFIX + "add_space_prefix": False,
    }  # fmt: skip


def _folders() -> list[dict[str, Any]]:
    """A GPT-2 line, one that adds BOS in a template and has other parts, and a SentencePiece one."""
    small = {"add_bos_token": False, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ 1 }}"}
    generation = {"eos_token_id": [2, 4], "bos_token_id": 1}
    return [
        {_FILES[0]: _gpt2_json({}), _FILES[1]: small, _FILES[2]: generation},
        {_FILES[0]: _gpt2_json(_other_parts()), _FILES[1]: {**small, "chat_template": [{"name": "default"}]}},
        {_FILES[0]: _sentencepiece_json(), _FILES[1]: small, _FILES[2]: generation},
    ]


def _gpt2_json(more: dict[str, Any]) -> dict[str, Any]:
    tokens = [*_CONTROL, *ALPHABET, *(merge.replace(" ", "") for merge in _MERGES)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(), "normalizer": None,
        "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [*_MERGES],
        },
        **more,
    }  # fmt: skip


def _added() -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": token, **flags} for i, token in enumerate(_CONTROL)]


def _other_parts() -> dict[str, Any]:
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    split = PRE_TOKENIZERS["llama-bpe"].split
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<unk>",
        },
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}, level,
        ]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
    }  # fmt: skip


def _sentencepiece_json() -> dict[str, Any]:
    tokens = _sentencepiece()[_PREFIX + "tokens"]
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return _gpt2_json({
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [["h", "e"], ["l", "l"], ["he", "ll"]],
        },
    })  # fmt: skip
