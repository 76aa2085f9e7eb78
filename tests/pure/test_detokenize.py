"""Incremental detokenising: the pieces join to `decode` of everything, and no piece holds part of a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.text.bpe import ALPHABET
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.tokenizer import Tokenizer, from_gguf


def spell(data: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in data)


WHOLE = ["é".encode(), "世界".encode(), b"\x80\x80", b"\xf0\x9f", b"\x98\x80 a", b"\xe4\xb8", b"the ", b"\xff\xfe"]
TOKENS = [*ALPHABET, *map(spell, WHOLE), "<|end|>", "<tool>", "é!"]
SPECIAL, TOOL, RAW = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": [1] * SPECIAL + [3, 4, 4],
            "tokenizer.ggml.merges": [],
        }
    )


def pieces_of(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


ids_of_anything = st.lists(st.integers(0, len(TOKENS) + 3), max_size=30)


@given(ids_of_anything, st.booleans())
def test_pieces_join_to_decode(tokenizer, ids, skip_special):
    assert "".join(pieces_of(tokenizer, ids, skip_special)) == tokenizer.decode(ids, skip_special)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_valid_text_never_shows_a_replacement(tokenizer, text):
    ids = [TOKENS.index(ALPHABET[byte]) for byte in text.encode()]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text
    assert pieces.count("�") == text.count("�")


@pytest.mark.parametrize("skip_special", [True, False])
def test_special_tokens(tokenizer, skip_special):
    ids = [TOKENS.index("a"), SPECIAL, TOOL, RAW]
    assert "".join(pieces_of(tokenizer, ids, skip_special)) == ("a<tool>é!" if skip_special else "a<|end|><tool>é!")


def test_a_character_cut_by_a_skipped_special_token_is_whole(tokenizer):
    first, second = (TOKENS.index(ALPHABET[byte]) for byte in "é".encode())
    assert pieces_of(tokenizer, [first, SPECIAL, second]) == ["", "", "é", ""]


@pytest.mark.parametrize(
    ("data", "pieces"),
    [
        ("😀".encode(), ["", "", "", "😀", ""]),
        (b"\xf0\x9fA", ["", "", "�A", ""]),  # can no longer become a character
        (b"\xff", ["�", ""]),  # never could
        (b"\xe4\xb8", ["", "", "�"]),  # could have: one mark for the unfinished character
        (b"\xed\xa0\x80", ["", "", "���", ""]),  # a surrogate is not UTF-8
        (b"\xc0\xaf", ["�", "�", ""]),  # nor is an overlong form
    ],
)
def test_bytes_one_by_one(tokenizer, data, pieces):
    assert pieces_of(tokenizer, list(data_ids(data))) == pieces


def data_ids(data: bytes) -> list[int]:
    return [TOKENS.index(ALPHABET[byte]) for byte in data]


def test_ids_without_a_token_are_empty(tokenizer):
    assert pieces_of(tokenizer, [10**6, TOKENS.index("a")]) == ["", "a", ""]
