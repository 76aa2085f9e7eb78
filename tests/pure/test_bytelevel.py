"""Byte-level BPE as it is merged here, against the pipeline of the `tokenizers` package that it stands in for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InvalidRequest
from ridgeline.text.bpe import ALPHABET, PRE_TOKENIZERS
from ridgeline.text.bytelevel import ByteLevel, Tables

WORDS = "hello held help low lower 12 123 don't we'll \n\n   tab\t é世 <s> <tool> ,.!? aaaaaaa ++ --".split(" ")
LOST = b"\x04%"
SPECIAL, OURS = ("<s>", "<|end|>", "hel"), ("<tool>", "  ", "<s><")


def tables(pre: str, seed: int = 0) -> Tables:
    """A vocabulary of random merges, in which some special texts can also be reached by merging."""
    rng = random.Random(seed)
    tokens, merges = [char for byte, char in enumerate(ALPHABET) if byte not in LOST], []
    words = ["".join(ALPHABET[b] for b in (" " * rng.randrange(2) + w).encode()) for w in WORDS if w]
    for word in [w for w in words for _ in range(3)]:
        parts = list(word)
        while len(parts) > 1:
            i = rng.randrange(len(parts) - 1)
            merge, union = f"{parts[i]} {parts[i + 1]}", parts[i] + parts[i + 1]
            if union not in tokens:
                tokens.append(union)
            if merge not in merges:
                merges.insert(rng.randrange(len(merges) + 1), merge)
            parts[i : i + 2] = [union]
    tokens += [text for text in SPECIAL + OURS if text not in tokens]
    ids = {token: i for i, token in enumerate(tokens)}
    control, ours = ({text: ids[text] for text in texts} for texts in (SPECIAL, OURS))
    return Tables(tokens, ids, merges, PRE_TOKENIZERS[pre], control, ours)


PRES = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "falcon", "bloom", "gpt-neox")
BACKENDS = {pre: ByteLevel(tables(pre, seed)) for seed, pre in enumerate(PRES)}
TEXTS = st.one_of(
    st.lists(
        st.sampled_from([*WORDS, *SPECIAL, *OURS, " ", "", "hel" * 9, "\x04", "%", "he%ld", "e\u0301"]), max_size=12
    ).map("".join),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
)


@pytest.mark.parametrize("pre", PRES)
@settings(deadline=None, max_examples=150)
@given(text=TEXTS, parse_special=st.booleans())
def test_ids_equal_the_pipeline(pre, text, parse_special):
    made = BACKENDS[pre]
    assert ByteLevel(made._tables).encode(text, parse_special) == made.pipeline.encode(text, parse_special)


@pytest.mark.parametrize("pre", PRES)
def test_tokens_equal_the_pipeline(pre):
    made = BACKENDS[pre]
    assert made.size == made.pipeline.size and made.special == made.pipeline.special
    assert made.lost_bytes == made.pipeline.lost_bytes == frozenset(LOST)
    for token_id in range(-1, made.size + 2):
        if token_id >= 0:
            assert made.token_bytes(token_id) == made.pipeline.token_bytes(token_id)
    assert made.token_bytes(-1) == b""


def test_a_short_text_builds_no_pipeline_and_a_long_one_does():
    made = ByteLevel(tables("smollm"))
    made.encode("hello <s> world", True)
    assert "pipeline" not in vars(made)
    made.encode("hello world " * 1000, True)
    assert "pipeline" in vars(made)


def test_a_long_piece_is_left_to_the_pipeline():
    made = ByteLevel(tables("smollm"))
    assert made.encode("a" * 1000, True) == made.pipeline.encode("a" * 1000, True)


def test_lone_surrogates_are_refused():
    with pytest.raises(InvalidRequest):
        ByteLevel(tables("smollm")).encode("a\ud800", True)
