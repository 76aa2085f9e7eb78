"""SentencePiece vocabularies: ids against the merging written out, exact bytes, offsets, hostile files."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InvalidRequest, ModelFileError, Unsupported
from ridgeline.text.detokenize import Detokenizer
from ridgeline.text.tokenizer import Tokenizer, from_gguf
from vocabularies import BASE, BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Piece, metadata, random_pieces, random_text

SPACE = "\u2581"
WORDS = [
    "▁h",
    "he",
    "ll",
    "▁he",
    "llo",
    "▁hello",
    "▁w",
    "or",
    "ld",
    "▁wor",
    "▁world",
    "an",
    "▁an",
    "<0",
    "<0x",
    "41",
    "世界",
]
PIECES: list[Piece] = [
    *BASE,
    *((char, -100.0, NORMAL) for char in [*"abcdefghijklmnopqrstuvwxyz<>/|_0123456789.,\n", SPACE, "世", "界", "é"]),
    *((word, -float(rank), NORMAL) for rank, word in enumerate(WORDS)),
    *((name, 0.0, CONTROL) for name in ("<|im_end|>", "<end_of_turn>", "<q>")),
    *((text, 0.0, USER_DEFINED) for text in ("  ", "    ", "\n\n", "<tool>")),
]
IDS = {text: token_id for token_id, (text, _, _) in enumerate(PIECES)}


def tiny(**changes: Any) -> Tokenizer:
    return from_gguf(metadata(PIECES, **changes))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny(add_space_prefix=False)


def shown(tokenizer: Tokenizer, text: str, **more: Any) -> list[str]:
    return [PIECES[token_id][0] for token_id in tokenizer.encode(text, add_special=False, **more)]


# --- the algorithm written out: the best union of two neighbours, leftmost first, again and again ---


def written_out(text: str, pieces: list[Piece], prefix: bool) -> list[int]:
    known = {piece: (score, kind) for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED, UNUSED)}
    ids = {piece: token_id for token_id, (piece, _, kind) in enumerate(pieces) if kind in (NORMAL, USER_DEFINED)}
    parts, frozen = split((SPACE if prefix and text else "") + text.replace(" ", SPACE), known)
    taken_apart: dict[str, tuple[str, str]] = {}

    def propose(at: int) -> None:
        """An unused piece will be taken apart as it was last seen to form."""
        if 0 <= at < len(parts) - 1 and not frozen[at] and not frozen[at + 1]:
            union = parts[at] + parts[at + 1]
            if known.get(union, (0, 0))[1] == UNUSED:
                taken_apart[union] = (parts[at], parts[at + 1])

    for at in range(len(parts) - 1):
        propose(at)
    while True:
        unions = [
            (-known[parts[at] + parts[at + 1]][0], at)
            for at in range(len(parts) - 1)
            if parts[at] + parts[at + 1] in known and not frozen[at] and not frozen[at + 1]
        ]
        if not unions:
            break
        _, at = min(unions)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del frozen[at]
        propose(at - 1)
        propose(at)

    def emit(part: str) -> list[int]:
        if part in taken_apart:
            return [token_id for half in taken_apart[part] for token_id in emit(half)]
        return [ids[part]] if part in ids else [3 + byte for byte in part.encode()]

    return [token_id for part in parts for token_id in emit(part)]


def split(text: str, known: dict[str, tuple[float, int]]) -> tuple[list[str], list[bool]]:
    """Characters, and user-defined pieces (the longest at each place) as one frozen part."""
    fixed = sorted((piece for piece, (_, kind) in known.items() if kind == USER_DEFINED), key=len, reverse=True)
    parts, frozen = [], []
    while text:
        found = next((piece for piece in fixed if text.startswith(piece)), "")
        parts.append(found or text[0])
        frozen.append(bool(found))
        text = text[len(parts[-1]) :]
    return parts, frozen


def test_ids_equal_the_algorithm_written_out():
    rng = random.Random(0)
    for _ in range(1500):
        pieces, prefix = random_pieces(rng), rng.random() < 0.5
        tokenizer = from_gguf(metadata(pieces, add_space_prefix=prefix))
        for text in [random_text(rng) for _ in range(6)]:
            ids = tokenizer.encode(text, add_special=False, parse_special=False)
            assert ids == written_out(text, pieces, prefix), (pieces[259:], text, prefix)
            spelled = b"".join(map(tokenizer.token_bytes, ids)).decode()
            assert spelled == (" " if prefix and text else "") + text.replace(SPACE, " ")


@given(st.text(st.sampled_from("helowrdan <>0x41.世界é😀\n\t|_"), max_size=40), st.booleans())
def test_words_equal_the_algorithm_written_out(text, prefix):
    pieces = [(piece.replace(" ", SPACE), score, kind) for piece, score, kind in PIECES]
    ids = tiny(add_space_prefix=prefix).encode(text, add_special=False, parse_special=False)
    assert ids == written_out(text, pieces, prefix)


def test_two_ways_to_one_piece_tie_and_the_leftmost_wins():
    """No ranking of pairs gives both lines: (a, aaa) has to go before (aaa, a), and after it."""
    pieces = [*BASE, (SPACE, -9.0, NORMAL), ("a", -9.0, NORMAL), ("aaaa", -5.0, NORMAL)]
    pieces += [("aaa", -1.0, NORMAL), ("aa", -1.0, NORMAL), ("b", -9.0, NORMAL)]
    tokenizer = from_gguf(metadata(pieces, add_space_prefix=False))
    for count in range(1, 30):
        text = "a" * count + "b" + "a" * (30 - count)
        assert tokenizer.encode(text, add_special=False) == written_out(text, pieces, False)


def test_an_unused_piece_helps_others_form_but_is_taken_apart_itself():
    pieces = [*BASE, (SPACE, 0.0, NORMAL), *((char, 0.0, NORMAL) for char in "abc")]
    pieces += [("ab", 5.0, UNUSED), ("abc", 4.0, NORMAL), ("zz", 0.0, UNUSED)]
    tokenizer = from_gguf(metadata(pieces, add_space_prefix=False))
    spelled = [tokenizer.token_text(token_id) for token_id in tokenizer.encode("abc ab zz", add_special=False)]
    assert spelled == ["abc", " ", "a", "b", " ", "z", "z"]


# --- what text becomes ---


def test_spaces(tokenizer):
    assert shown(tokenizer, "hello world") == ["he", "llo", "▁world"]
    assert shown(tiny(), "hello world") == ["▁hello", "▁world"]
    assert shown(tiny(), " hello") == ["  ", "he", "llo"]  # the prefix counts: two spaces are a user-defined piece
    assert tiny().encode("", add_special=False) == []
    assert tokenizer.encode("a\u2581b", add_special=False) == tokenizer.encode("a b", add_special=False)
    assert shown(tokenizer, "a" + " " * 7 + "\n\n\nb") == ["a", "    ", "  ", "▁", "\n\n", "\n", "b"]


def test_the_prefix_stays_in_the_bytes():
    ids = tiny().encode("hello", add_special=False)
    assert b"".join(map(tiny().token_bytes, ids)) == b" hello" and tiny().decode(ids) == " hello"


def test_text_that_looks_like_a_byte_piece_is_text(tokenizer):
    assert shown(tokenizer, "<0x41>") == ["<0x", "41", ">"]
    assert tokenizer.decode(tokenizer.encode("<0x41>", add_special=False)) == "<0x41>"
    assert shown(tokenizer, "A") == ["<0x41>"] and tokenizer.token_bytes(3 + 0x41) == b"A"


@pytest.mark.parametrize("text", ["😀", "\x00", "A\u0301", "\U000e0041", "\ufeffQ"])
def test_unknown_characters_fall_back_to_bytes(tokenizer, text):
    ids = tokenizer.encode(text, add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert not tokenizer.lost_bytes and tokenizer.count_lost(text) == 0


def test_token_bytes(tokenizer):
    assert tokenizer.token_bytes(IDS["▁hello"]) == b" hello"
    assert tokenizer.token_bytes(IDS["    "]) == b"    "
    assert tokenizer.token_bytes(IDS["<|im_end|>"]) == b"<|im_end|>"
    assert tokenizer.token_bytes(IDS["<0x0A>"]) == b"\n" and tokenizer.token_text(IDS["<0xFF>"]) == "\ufffd"
    assert tokenizer.token_bytes(len(PIECES)) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.vocab_size == len(PIECES)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), st.booleans())
def test_round_trip_and_streaming(text, parse_special):
    tokenizer = tiny(add_space_prefix=False)
    ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
    assert tokenizer.decode(ids, skip_special=False) == text.replace(SPACE, " ")
    detokenizer = Detokenizer(tokenizer, skip_special=False)
    pieces = [*map(detokenizer.push, ids), detokenizer.flush()]
    assert "".join(pieces) == text.replace(SPACE, " ") and pieces.count("\ufffd") == text.count("\ufffd")


# --- special tokens and BOS ---


def test_special_text_is_read_only_when_asked(tokenizer):
    text = "hello<|im_end|><|im_end|><unk> x<q><tool>"
    assert shown(tokenizer, text) == ["he", "llo", "<|im_end|>", "<|im_end|>", "<unk>", "▁", "x", "<q>", "<tool>"]
    raw = tokenizer.encode(text, add_special=False, parse_special=False)
    assert not any(map(tokenizer.is_special, raw)) and tokenizer.decode(raw) == text
    assert raw[-1] == IDS["<tool>"]  # a user-defined piece is ordinary vocabulary


def test_a_control_token_of_one_character_is_not_reached_from_text():
    pieces = [*PIECES, ("Q", 0.0, CONTROL)]
    tokenizer = from_gguf(metadata(pieces, add_space_prefix=False))
    assert tokenizer.encode("Q", add_special=False, parse_special=False) == [3 + ord("Q")]
    assert tokenizer.encode("Q", add_special=False) == [len(pieces) - 1]


def test_each_stretch_between_special_tokens_gets_the_prefix():
    assert shown(tiny(), "hello</s>hello</s></s>") == ["▁hello", "</s>", "▁hello", "</s>", "</s>"]


@pytest.mark.parametrize(
    ("changes", "starts_with_bos"),
    [({}, True), ({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({"bos_token_id": None}, False)],
)
def test_bos(changes, starts_with_bos):
    tokenizer = tiny(**changes)
    plain = tokenizer.encode("hello", add_special=False)
    assert tokenizer.encode("hello", add_special=True) == [1] * starts_with_bos + plain
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>" if "bos_token_id" not in changes else "", "</s>")


def test_ends_of_a_turn():
    template = {"tokenizer.chat_template": "{{ messages }}"}
    ends = {IDS[name] for name in ("</s>", "<|im_end|>", "<end_of_turn>")}
    assert tiny().eos_ids == {2}
    assert from_gguf(metadata(PIECES) | template).eos_ids == ends
    pieces = [(text, score, USER_DEFINED if text == "<end_of_turn>" else kind) for text, score, kind in PIECES]
    assert from_gguf(metadata(pieces) | template).eos_ids == ends
    # In Gemma's vocabulary </s> is the end of an HTML element.
    pieces = [(text, score, USER_DEFINED if text == "</s>" else kind) for text, score, kind in PIECES]
    assert from_gguf(metadata(pieces, eos_token_id=None) | template).eos_ids == ends - {2}


# --- offsets ---


@given(
    st.lists(
        st.sampled_from(["hello", " world", " ", "  ", "\n\n", "😀", "世界", "</s>", "<q>", "<tool>", "A", "é\u0301"])
    ),
    st.booleans(),
)
def test_offsets_tile_the_text(parts, prefix):
    text, tokenizer = "".join(parts), tiny(add_space_prefix=prefix)
    spans = tokenizer.encode_with_offsets(text, add_special=True)
    assert spans.pop(0) == (1, 0, 0)
    assert [token_id for token_id, _, _ in spans] == tokenizer.encode(text, add_special=False)
    at, places = 0, []
    for token_id, start, stop in spans:
        assert (start == at <= stop) or (start, stop) == places[-1]
        at = stop
        places.append((start, stop))
        spelled = tokenizer.token_bytes(token_id).decode("utf-8", "replace")
        assert spelled.strip(" ") == text[start:stop].strip(" ") or "\ufffd" in spelled or token_id in range(3, 259)
    assert at == len(text)


def test_offsets_of_the_prefix_and_of_bytes():
    assert tiny().encode_with_offsets("hello😀") == [(IDS["▁hello"], 0, 5), *((3 + b, 5, 6) for b in "😀".encode())]
    assert tiny().encode_with_offsets("A") == [(IDS[SPACE], 0, 0), (3 + ord("A"), 0, 1)]


# --- hostile input ---


def changed(which: str, text: str | None = None, score: float = 0.0, kind: int = NORMAL) -> dict[str, Any]:
    """The tiny vocabulary with one piece changed."""
    piece = (which if text is None else text, score, kind)
    return metadata([piece if old[0] == which else old for old in PIECES])


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (metadata(PIECES, scores=None), ModelFileError, "tokenizer.ggml.scores"),
        (metadata(PIECES, scores=[0.0]), ModelFileError, "tokenizer.ggml.scores has 1"),
        (metadata(PIECES, scores=["0"] * len(PIECES)), ModelFileError, "tokenizer.ggml.scores"),
        (changed("a", score=float("nan")), ModelFileError, "tokenizer.ggml.scores"),
        (changed("a", score=float("inf")), ModelFileError, "tokenizer.ggml.scores"),
        (changed("a", score=1e300), ModelFileError, "tokenizer.ggml.scores"),
        (metadata(PIECES, token_type=None), Unsupported, "token_type"),
        (metadata(PIECES, token_type=[1]), ModelFileError, "token_type"),
        (changed("<0x41>", kind=NORMAL), Unsupported, "255 of the 256 byte tokens"),
        (changed("<0x41>", text="<0xZZ>", kind=BYTE), Unsupported, "255 of the 256 byte tokens"),
        (changed("a", kind=BYTE), Unsupported, "byte tokens"),
        (changed(SPACE, text="no-space"), Unsupported, "U\\+2581"),
        (changed(SPACE, kind=CONTROL), Unsupported, "U\\+2581"),
        (changed("a", text="b"), ModelFileError, "twice"),
        (changed("a", text=SPACE * 2), ModelFileError, "twice"),
        (changed("a", text="\ud800"), ModelFileError, "tokens .* not valid Unicode"),
        (metadata([*PIECES, *(("x" * 8000 + str(i), 0.0, NORMAL) for i in range(2200))]), ModelFileError, "characters"),
        (changed("a", text="x" * 10_000), ModelFileError, r"tokens\[259\]"),
        (metadata(PIECES, add_space_prefix="no"), ModelFileError, "add_space_prefix"),
        (metadata(PIECES, add_space_prefix=np.array([1, 1])), ModelFileError, "add_space_prefix"),
        (metadata(PIECES, remove_extra_whitespaces=True), Unsupported, "remove_extra_whitespaces"),
        (metadata(PIECES, treat_whitespace_as_suffix=True), Unsupported, "treat_whitespace_as_suffix"),
        (metadata(PIECES, precompiled_charsmap=[1, 2]), Unsupported, "precompiled_charsmap"),
        (metadata(PIECES, precompiled_charsmap=7), Unsupported, "precompiled_charsmap"),
        (metadata(PIECES, add_eos_token=True), Unsupported, "add_eos_token"),
        (metadata(PIECES, eos_token_id=10**6), ModelFileError, "eos_token_id"),
    ],
)  # fmt: skip
def test_hostile_metadata_is_refused_by_name(given, error, says):
    with pytest.raises(error, match=says):
        from_gguf(given)


def test_numpy_arrays_are_taken():
    kinds, scores = (np.array(column) for column in ([p[2] for p in PIECES], [p[1] for p in PIECES]))
    tokenizer = tiny(token_type=kinds.astype(np.int32), scores=scores.astype(np.float32))
    assert tokenizer.encode("hello", add_special=False) == tiny().encode("hello", add_special=False)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(tokenizer, text):
    for parse_special in (True, False):
        with pytest.raises(InvalidRequest):
            tokenizer.encode(text, add_special=False, parse_special=parse_special)
    with pytest.raises(InvalidRequest):
        tokenizer.encode_with_offsets(text)


@pytest.mark.parametrize("unit", ["l", "he", "hell", " ", "\n", "😀", "<", "<q>", "<|im_end|"])
def test_time_does_not_explode_with_the_length_of_a_text(tokenizer, unit):
    """Quadratic work on this many characters would take hours."""
    text = unit * (200_000 // len(unit))
    start = time.perf_counter()
    ids = tokenizer.encode(text, add_special=False)
    assert time.perf_counter() - start < 20
    assert tokenizer.decode(ids, skip_special=False) == text


def test_time_does_not_explode_with_the_length_of_pieces():
    long = [
        ("ab" * 4000 + f"{i:03}", float(i), kind)
        for i in range(200)
        for kind in [(NORMAL, UNUSED, USER_DEFINED)[i % 3]]
    ]
    start = time.perf_counter()
    tokenizer = from_gguf(metadata([*PIECES, *long], add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode("ab" * 20_000, add_special=False)) == "ab" * 20_000
    assert time.perf_counter() - start < 20
