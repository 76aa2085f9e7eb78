"""Special tokens that take the whitespace beside them: Phi-3's, and added tokens of tokenizer.json."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import test_tokenizer
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from test_hf_vocab import LLAMA2, MERGES, PIECES, SHAPES, write_pieces
from tokenizers import AddedToken, models

from ridgeline.text.tokenizer import Tokenizer, from_dir, from_gguf
from vocabularies import BASE, CONTROL, NORMAL, USER_DEFINED, Piece, metadata

SPACE = "\u2581"

# --- Phi-3, whose special tokens take the whitespace after them ---

PHI3: list[Piece] = [
    *((text, score, USER_DEFINED if text == "</s>" else kind) for text, score, kind in BASE),
    *((char, -100.0, NORMAL) for char in [*"Hiabc\n", SPACE]),
    ("Hi", -1.0, NORMAL),
    ("▁Hi", -2.0, NORMAL),
    *((name, 0.0, CONTROL) for name in ("<|endoftext|>", "<|user|>", "<|end|>")),
    ("<tool>", 0.0, USER_DEFINED),
]


def phi3(name: Any = "Phi-3-mini-4k-instruct") -> Tokenizer:
    return from_gguf(metadata(PHI3) | {"general.name": name})


def phi3_pieces(text: str, name: Any = "phi3", **more: Any) -> list[str]:
    return [PHI3[token_id][0] for token_id in phi3(name).encode(text, add_special=False, **more)]


@pytest.mark.parametrize("name", ["Phi-3-mini-4k-instruct", "Phi3", "microsoft_PHI-3.5"])
def test_special_tokens_of_phi3_take_the_whitespace_after_them(name):
    assert phi3_pieces("<|user|>\nHi<|end|>\n", name) == ["<|user|>", "▁Hi", "<|end|>"]
    assert phi3_pieces("<|user|> \t\u3000\x85 <|end|>", name) == ["<|user|>", "<|end|>"]
    # A separator of ASCII is no white space of Unicode's.
    assert phi3_pieces("<|end|>\x1cHi", name) == ["<|end|>", SPACE, "<0x1C>", "Hi"]
    assert phi3_pieces("Hi </s> \nHi<tool>\n", name) == ["▁Hi", SPACE, "</s>", "▁Hi", "<tool>"]


@pytest.mark.parametrize("token", ["<unk>", "<s>", "<|endoftext|>"])
def test_some_special_tokens_of_phi3_do_not(token):
    assert phi3_pieces(f"{token}\nHi") == [token, SPACE, "\n", "Hi"]


@pytest.mark.parametrize("name", [None, "Phi 4", "Llama-2", "", 3, ["phi3"], np.array([3, 4])])
def test_special_tokens_of_other_models_do_not(name):
    pieces = phi3_pieces("<|user|>\nHi<|end|>\n", name)
    assert pieces == ["<|user|>", SPACE, "\n", "Hi", "<|end|>", SPACE, "\n"]


def test_raw_text_for_phi3_keeps_its_whitespace_but_after_user_defined_tokens():
    ids = phi3().encode("<|end|>\nHi</s>\nHi", add_special=False, parse_special=False)
    assert not any(map(phi3().is_special, ids)) and phi3().decode(ids) == " <|end|>\nHi</s> Hi"


@given(st.lists(st.sampled_from(["Hi", " ", "\n", "\u3000", "</s>", "<s>", "<|end|>", "<tool>", "😀", SPACE])))
def test_offsets_tile_the_text_for_phi3(parts):
    text, tokenizer = "".join(parts), phi3()
    spans = tokenizer.encode_with_offsets(text)
    assert [token_id for token_id, _, _ in spans] == tokenizer.encode(text, add_special=False)
    at, place = 0, (0, 0)
    for token_id, start, stop in spans:
        assert start == at <= stop or (start, stop) == place
        at, place = stop, (start, stop)
        if PHI3[token_id][0] in ("</s>", "<|end|>", "<tool>"):
            assert (
                text[start:stop].rstrip() == PHI3[token_id][0]
                and text[stop : stop + 1].strip() == text[stop : stop + 1]
            )
    assert at == len(text)


def test_a_piece_that_begins_with_blanks_does_not_take_them_back():
    pieces = [*PHI3, ("\nx", 0.0, CONTROL), ("\n", 0.0, CONTROL)]
    pieces = [piece for i, piece in enumerate(pieces) if piece[0] != "\n" or i == len(pieces) - 1]
    tokenizer = from_gguf(metadata(pieces) | {"general.name": "phi3"})
    spans = tokenizer.encode_with_offsets("<|end|>\n\nx")
    assert [(pieces[token_id][0], start, stop) for token_id, start, stop in spans] == [
        ("<|end|>", 0, 9),
        (SPACE, 9, 9),
        ("<0x78>", 9, 10),
    ]


# --- added tokens that strip blanks ---

STRIPPING = [
    AddedToken("<r>", rstrip=True, special=True, normalized=False),
    AddedToken("<l>", lstrip=True, special=True, normalized=False),
    AddedToken("<b>", lstrip=True, rstrip=True, special=True, normalized=False),
    AddedToken("<u>", rstrip=True, normalized=False),
    AddedToken("<n>", lstrip=True, rstrip=True, normalized=True),
    AddedToken("  y", normalized=False),
]


@pytest.mark.parametrize("shape", ["byte-level", *SHAPES])
def test_offsets_tile_where_added_tokens_strip_blanks(tmp_path, shape):
    if shape == "byte-level":
        backend, config = from_gguf(test_tokenizer.tiny())._backend.pipeline._backend, {}
    else:
        backend, config = write_pieces(tmp_path, SHAPES[shape]), {"bos_token": "<s>"}
    backend.add_tokens(STRIPPING)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer, rng = from_dir(tmp_path), random.Random(0)
    added = {tokenizer.encode(token.content, add_special=False)[-1] for token in STRIPPING}
    for _ in range(500):
        text = "".join(
            rng.choice(["<r>", "<l>", "<b>", "<u>", "<n>", "  y", " ", "\n", "\u3000", "he", "é"]) for _ in range(6)
        )
        spans = tokenizer.encode_with_offsets(text)
        assert [token_id for token_id, _, _ in spans] == tokenizer.encode(text, add_special=False)
        at = before = 0
        for token_id, start, stop in spans:
            # The package lets the prefix share the place of a space behind it.
            assert before <= start and at <= stop and (start == at or (start == before and token_id not in added)), text
            at, before = stop, start
        assert at == len(text), text


def test_a_phi3_folder_equals_its_gguf(tmp_path):
    scores = {left + right: -float(rank) for rank, (left, right) in enumerate(MERGES)}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 4, **dict.fromkeys(PIECES[3:259], 6)}
    names = ["<|endoftext|>", "<|user|>", "<|end|>"]
    pieces = [
        (piece, scores.get(piece, -99.0), kinds.get(piece, 1)) for piece in PIECES if piece not in ("<tool>", "▁▁▁")
    ]
    theirs = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, (piece, _, _) in enumerate(pieces)},
            MERGES,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    theirs.normalizer, theirs.decoder = LLAMA2["normalizer"], LLAMA2["decoder"]
    plain = [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "<|endoftext|>")]
    strip = [
        AddedToken(text, special=text != "</s>", normalized=False, rstrip=True)
        for text in ("</s>", "<|user|>", "<|end|>")
    ]
    theirs.add_tokens([*plain, *strip])
    (tmp_path / "tokenizer.json").write_text(theirs.to_str(), encoding="utf-8")
    pieces += [(name, 0.0, 3) for name in names]
    gguf, folder = from_gguf(metadata(pieces) | {"general.name": "Phi-3"}), from_dir(tmp_path)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(
            rng.choice([*names, "<s>", "</s>", "<unk>", " ", "\n", "\u3000", "\x1c", "he", "x"]) for _ in range(8)
        )
        for parse_special in (True, False):
            ids = gguf.encode(text, add_special=False, parse_special=parse_special)
            assert ids == folder.encode(text, add_special=False, parse_special=parse_special), text
