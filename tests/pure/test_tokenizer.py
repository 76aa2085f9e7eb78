"""Tokenizers: ids against an independent BPE, exact bytes, special tokens, and hostile metadata."""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import InvalidRequest, ModelFileError, ModelNotFound, Unsupported
from ridgeline.text.bpe import ALPHABET, PRE_TOKENIZERS
from ridgeline.text.tokenizer import Tokenizer, from_gguf

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġ Ġ", "1 2", "Ã ©", "ä ¸", "ä¸ ĸ", "Ġ hell", "i m", "Ċ Ċ"]


def tiny(**changes: Any) -> dict[str, Any]:
    """Metadata of a small byte-level vocabulary; `changes` replace keys by their last part, None removes one."""
    tokens = [*CONTROL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "<tool>"]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 4) + [4],
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": False,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return from_gguf(tiny())


# --- an independent tokenizer: GPT-2's pattern by hand, then the lowest-ranked merge again and again ---

WHITE = set("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | set(map(chr, range(0x2000, 0x200B)))


def kind(char: str) -> str:
    if char in WHITE:
        return "white"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(char)[0], "other")


def run_end(text: str, start: int) -> int:
    end = start
    while end < len(text) and kind(text[end]) == kind(text[start]):
        end += 1
    return end


def gpt2_pieces(text: str) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        contraction = next((c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c, at)), "")
        after_space = at + (text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != "white")
        if contraction:
            end = at + len(contraction)
        elif kind(text[after_space]) != "white":
            end = run_end(text, after_space)
        else:
            end = run_end(text, at)
            end -= end < len(text) and end - at > 1  # the last blank goes with the word
        pieces.append(text[at:end])
        at = end
    return pieces


def smollm_pieces(text: str) -> list[str]:
    pieces, plain = [], ""
    for char in text:
        if kind(char) == "number":
            pieces += [*gpt2_pieces(plain), char]
            plain = ""
        else:
            plain += char
    return pieces + gpt2_pieces(plain)


def bpe(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = [ALPHABET[byte] for byte in piece.encode()]
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, 1 << 30), at) for at, pair in enumerate(zip(parts, parts[1:], strict=False)))
        if rank == 1 << 30:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def independent(text: str, metadata: dict[str, Any]) -> list[int]:
    ids = {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    return [ids[part] for piece in smollm_pieces(text) for part in bpe(piece, ranks) if part in ids]


TEXTS = [
    "",
    " ",
    "hello world",
    "hello  hello   12 345",
    "def f(x):\n    return x ** 2  # it's\n\n\n",
    "don't we'll I'm they've he'd 'S 'x",
    "tab\tand\r\nreturn \n \n ",
    "世界、你好。 日本語 한국어",
    "שלום עולם مرحبا 123٤٥",
    "😀👩‍👩‍👧 e\u0301 é ½ Ⅷ ²",
    "\x00\x01\x1f\x7f\x85\xa0\u2028\u200b\ufeff\ufffe",
    "𝕳𐍈 \U0001f1e6 \U000e0041",
    "a" * 300,
    " " * 37 + "x" + " " * 5,
    "<|im_end|",
]
any_text = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
common_text = st.text(st.sampled_from("he low 12 \n\t'stdl.,é世😀½\u3000"), max_size=40)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_equal_an_independent_bpe(tokenizer, text):
    assert tokenizer.encode(text, add_special=False) == independent(text, tiny())


@given(common_text)
def test_ids_equal_an_independent_bpe_on_any_mixture(tokenizer, text):
    assert tokenizer.encode(text, add_special=False) == independent(text, tiny())


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_all_text(pre):
    tokenizer = from_gguf(tiny(pre=pre))
    for text in TEXTS:
        expected = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[pre].normalize_nfc else text
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == expected


@given(any_text)
def test_round_trip(tokenizer, text):
    for parse_special in (True, False):
        ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
        assert tokenizer.decode(ids, skip_special=False) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "x 123 don'T", ["x", " 123", " don", "'", "T"]),
        ("smollm", "x 123 don'T", ["x", " ", "1", "2", "3", " don", "'", "T"]),
        ("llama-bpe", "x 12345 don'T", ["x", " ", "123", "45", " don", "'T"]),
        ("qwen2", "x 123 don'T", ["x", " ", "1", "2", "3", " don", "'T"]),
        ("tekken", "someCamelCase 12/\n", ["some", "Camel", "Case", " ", "1", "2", "/\n"]),
        ("llama-bpe", "a\n\n  b", ["a", "\n\n", " ", " b"]),
        ("falcon", "a.. it's 1234567", ["a", "..", " it", "'", "s", " ", "123", "456", "7"]),
        ("bloom", "It's 2 (or 3), yes!\n ok", ["It's", " 2", " (", "or", " 3", "),", " yes", "!\n", " ok"]),
        ("gpt-neox", "x 123 don'T", ["x", " 123", " don", "'", "T"]),
        ("dbrx", "x 12345 don'T\n\n y", ["x", " ", "123", "45", " don", "'T", "\n\n", " y"]),
        ("gpt-4o", "someCamelCase's 12345/\n", ["some", "Camel", "Case's", " ", "123", "45", "/\n"]),
    ],
)
def test_where_text_is_cut(pre, text, pieces):
    """With each piece a token and no merge but those making it, the tokens are the pieces."""
    tokens, merges = [*ALPHABET], []
    for piece in pieces:
        spelled = "".join(ALPHABET[byte] for byte in piece.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in tokens:
                tokens.append(spelled[:end])
                merges.append(f"{spelled[: end - 1]} {spelled[end - 1]}")
    # Merges across the cuts, first in rank: they would show in the result if the text were not cut there.
    for left, right in zip(pieces, pieces[1:], strict=False):
        across = "".join(ALPHABET[byte] for byte in (left[-1] + right[0]).encode())
        if across not in tokens:
            tokens.append(across)
            merges.insert(0, f"{across[0]} {across[1]}")
    tokenizer = from_gguf(tiny(pre=pre, tokens=tokens, merges=merges, token_type=None))
    shown = [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text, add_special=False)]
    assert shown == pieces


def test_falcon_takes_characters_that_stand_for_bytes_for_digits():
    """The second byte of м is spelled as the number ¼, so it is cut off; other families merge it."""
    for pre, count in (("falcon", 2), ("gpt-2", 1)):
        tokenizer = from_gguf(tiny(pre=pre, tokens=[*ALPHABET, "Ð¼"], merges=["Ð ¼"], token_type=None))
        assert len(tokenizer.encode("м", add_special=False)) == count


def test_offsets_tile_the_text(tokenizer):
    text = "hello  <|im_end|>世界😀 12"
    spans = tokenizer.encode_with_offsets(text)
    assert [token_id for token_id, _, _ in spans] == tokenizer.encode(text, add_special=False)
    assert spans[0][1] == 0 and spans[-1][2] == len(text)
    for (_, start, stop), (_, after, _) in zip(spans, spans[1:], strict=False):
        assert start < stop and after in (start, stop)


# --- special tokens ---


def test_special_text_is_read_only_when_asked(tokenizer):
    text = "<|im_start|>hello<|im_end|><tool>"
    assert tokenizer.encode(text, add_special=False)[0] == 1
    raw = tokenizer.encode(text, add_special=False, parse_special=False)
    assert not any(map(tokenizer.is_special, raw))
    assert tokenizer.decode(raw) == text
    assert raw[-1] == tokenizer.vocab_size - 1  # a user-defined token is ordinary vocabulary


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_raw_text_cannot_reach_a_special_token_even_through_merges(pre):
    tokens = [*ALPHABET, "he", "hey"]
    metadata = tiny(pre=pre, tokens=tokens, merges=["h e", "he y"], token_type=[1] * (len(tokens) - 1) + [3])
    tokenizer = from_gguf(metadata)
    assert tokenizer.encode("hey", add_special=False) == [len(tokens) - 1]
    raw = tokenizer.encode("hey you", add_special=False, parse_special=False)
    assert not any(map(tokenizer.is_special, raw)) and tokenizer.decode(raw) == "hey you"


def test_decode_skips_special_tokens_unless_told(tokenizer):
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>", add_special=False)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.token_bytes(2) == b"<|im_end|>" and tokenizer.token_text(2) == "<|im_end|>"


@pytest.mark.parametrize(
    ("changes", "starts_with_bos"),
    [
        ({"add_bos_token": True}, True),
        ({"add_bos_token": False}, False),
        ({"add_bos_token": np.bool_(True)}, True),
        ({"add_bos_token": None, "pre": "smollm"}, False),
        ({"add_bos_token": None, "pre": "llama-bpe"}, True),
        ({"add_bos_token": True, "bos_token_id": None}, False),
    ],
)
def test_bos(changes, starts_with_bos):
    tokenizer = from_gguf(tiny(**changes))
    plain = tokenizer.encode("hello", add_special=False)
    assert tokenizer.encode("hello", add_special=True) == [1] * starts_with_bos + plain
    spans = tokenizer.encode_with_offsets("hello", add_special=True)
    assert [token_id for token_id, _, _ in spans] == [1] * starts_with_bos + plain


def test_ends_of_a_chat_model_include_its_named_turn_ends():
    assert from_gguf(tiny()).eos_ids == {2}
    chat = from_gguf(tiny() | {"tokenizer.chat_template": "{{ messages }}"})
    assert chat.eos_ids == {0, 2}
    assert (chat.bos_id, chat.bos_token, chat.eos_token) == (1, "<|im_start|>", "<|im_end|>")
    assert from_gguf(tiny(eot_token_id=5, eom_token_id=6)).eos_ids == {2, 5, 6}


def test_harmony_end_of_message_is_not_an_end_of_turn():
    names = ["<|end|>", "<|return|>"]
    tokens = [*names, *ALPHABET]
    for present, ends in ((2, {1}), (1, {0})):
        kept = tokens[:present] + tokens[2:]
        metadata = tiny(tokens=kept, merges=[], token_type=[3] * present + [1] * 256, eos_token_id=present - 1)
        assert from_gguf(metadata | {"tokenizer.chat_template": ""}).eos_ids == ends


def test_lost_bytes_are_counted():
    tokens = [char for byte, char in enumerate(ALPHABET) if byte not in (0x04, 0xF1)]
    tokenizer = from_gguf(tiny(tokens=tokens, merges=[], token_type=None))
    assert tokenizer.lost_bytes == {0x04, 0xF1}
    assert tokenizer.count_lost("a\x04b\x04 é") == 2
    assert tokenizer.decode(tokenizer.encode("a\x04b", add_special=False)) == "ab"
    assert from_gguf(tiny()).count_lost("a\x04") == 0


def test_tokens_outside_the_alphabet_are_their_own_text():
    tokens = [*ALPHABET, "世 界", "a b"]
    tokenizer = from_gguf(tiny(tokens=tokens, merges=[], token_type=None))
    assert [tokenizer.token_text(token_id) for token_id in (256, 257)] == ["世 界", "a b"]
    assert tokenizer.token_bytes(999) == b"" and not tokenizer.is_special(999)


# --- hostile input ---


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(tokenizer, text):
    for parse_special in (True, False):
        with pytest.raises(InvalidRequest):
            tokenizer.encode(text, add_special=False, parse_special=parse_special)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "t5"}, Unsupported, "tokenizer.ggml.model = 't5'"),
        ({"model": None}, Unsupported, "tokenizer.ggml.model = None"),
        ({"model": np.array([1, 2])}, Unsupported, "tokenizer.ggml.model"),
        ({"model": np.array(["gpt2", "llama"])}, Unsupported, "tokenizer.ggml.model"),
        ({"model": ["gpt2"]}, Unsupported, "tokenizer.ggml.model"),
        ({"pre": "no-such"}, Unsupported, "tokenizer.ggml.pre = 'no-such'"),
        ({"pre": None}, Unsupported, "tokenizer.ggml.pre"),
        ({"pre": ["smollm"]}, Unsupported, "tokenizer.ggml.pre"),
        ({"add_eos_token": True}, Unsupported, "add_eos_token"),
        ({"tokens": None}, ModelFileError, "tokenizer.ggml.tokens"),
        ({"tokens": 7}, ModelFileError, "tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, ModelFileError, "tokenizer.ggml.tokens"),
        ({"tokens": ["a", 3]}, ModelFileError, r"tokens\[1\]"),
        ({"tokens": ["a", ""]}, ModelFileError, r"tokens\[1\]"),
        ({"tokens": ["a" * 10_000]}, ModelFileError, r"tokens\[0\]"),
        ({"tokens": ["a", "b", "a"], "merges": []}, ModelFileError, "twice"),
        ({"tokens": range((1 << 20) + 1)}, ModelFileError, "entries"),
        ({"token_type": [1]}, ModelFileError, "token_type"),
        ({"token_type": [9] * 274}, ModelFileError, "token_type"),
        ({"merges": None}, ModelFileError, "tokenizer.ggml.merges"),
        ({"merges": ["h zz"]}, ModelFileError, r"merges\[0\]"),
        ({"merges": ["h e", "nospace"]}, ModelFileError, r"merges\[1\]"),
        ({"merges": ["x y"]}, ModelFileError, r"merges\[0\]"),
        # more merges than tokens, whose new lines make the joined unions look like the vocabulary
        (
            {"tokens": ["a", "b", "ab\nq"], "token_type": [1] * 3, "merges": ["a ", "b ", "a b", "q "]},
            ModelFileError,
            r"merges\[2\]",
        ),
        ({"bos_token_id": 10**6}, ModelFileError, "bos_token_id"),
        ({"eos_token_id": -1}, ModelFileError, "eos_token_id"),
        ({"eos_token_id": "2"}, ModelFileError, "eos_token_id"),
        ({"add_bos_token": "yes"}, ModelFileError, "add_bos_token"),
        ({"add_bos_token": 1}, ModelFileError, "add_bos_token"),
        ({"add_bos_token": np.array([1, 0])}, ModelFileError, "add_bos_token"),
        ({"add_eos_token": np.array([True, False])}, ModelFileError, "add_eos_token"),
    ],
)
def test_hostile_metadata_is_refused_by_name(changes, error, says):
    with pytest.raises(error, match=says):
        from_gguf(tiny(**changes))


def test_numpy_arrays_are_taken():
    kinds = np.array(tiny()["tokenizer.ggml.token_type"], dtype=np.int32)
    metadata = tiny(token_type=kinds, tokens=np.array(tiny()["tokenizer.ggml.tokens"]), bos_token_id=np.uint32(1))
    assert from_gguf(metadata).encode("hello<|im_end|>", add_special=False)[-1] == 2


# --- on the default model ---


@pytest.fixture(scope="module")
def model_metadata() -> dict[str, Any]:
    from ridgeline.weights.gguf import GGUFFile
    from ridgeline.weights.hub import DEFAULT_MODEL, resolve

    try:
        path = resolve(DEFAULT_MODEL, offline=True).path
    except ModelNotFound as error:
        pytest.skip(f"the default model is not in the cache: {error}")
    return GGUFFile(path).metadata


@pytest.mark.model
def test_the_default_model(model_metadata):
    start = time.perf_counter()
    tokenizer = from_gguf(model_metadata)
    assert time.perf_counter() - start < 0.4
    assert tokenizer.vocab_size == 49152 and tokenizer.eos_ids == {0, 2} and not tokenizer.add_bos
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special=True)
        assert ids == independent(text, model_metadata)
        lossless = "".join(char for char in text if not tokenizer.count_lost(char))
        assert tokenizer.decode(ids) == lossless
    chat = tokenizer.encode("<|im_start|>user\nhello<|im_end|>\n", add_special=False)
    assert chat[0] == 1 and chat[-2] == 2 and len(chat) == 6


@pytest.mark.model
@settings(max_examples=50)
@given(text=any_text)
def test_round_trip_on_the_default_model(model_tokenizer, text):
    kept = "".join(char for char in text if not model_tokenizer.count_lost(char))
    assert model_tokenizer.decode(model_tokenizer.encode(kept, add_special=False), skip_special=False) == kept


@pytest.fixture(scope="module")
def model_tokenizer(model_metadata) -> Tokenizer:
    tokenizer = from_gguf(model_metadata)
    tokenizer.encode_with_offsets("a")  # what is made at first use is there before a test's clock starts
    return tokenizer
