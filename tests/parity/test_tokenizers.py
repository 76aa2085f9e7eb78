"""Tokenizers against their references on more than 20,000 lines of mixed text: ids equal, bytes round trip.

SentencePiece vocabularies against sentencepiece itself, given the same pieces: Gemma 3's, one that sentencepiece has
trained here, and random ones full of ties. SmolLM2's byte-level BPE against GPT-2's published algorithm, run on the
`regex` package, and against transformers' own conversion of the file. Where each pre-tokenizer cuts, against the
family's published pattern on the same package.
"""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import texts
import vocabularies
from ridgeline.errors import RidgelineError
from ridgeline.text import bpe
from ridgeline.text.bpe import ALPHABET
from ridgeline.text.tokenizer import Tokenizer, from_gguf
from ridgeline.weights import hub
from ridgeline.weights.gguf import GGUFFile
from vocabularies import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece

pytestmark = pytest.mark.parity
LINES = texts.lines(21_000)
LINES += ["\n".join(LINES[start : start + 30]) for start in range(0, 21_000, 300)]
SPACE = "\u2581"
FIXED = ["<tool>", SPACE * 4, "\n"]


def model_metadata(alias: str) -> dict[str, Any]:
    try:
        return GGUFFile(hub.resolve(alias).path).metadata
    except RidgelineError as why:
        pytest.skip(f"the model {alias} cannot be had: {why}")


def compare(
    name: str,
    lines: list[str],
    ours: Callable[[str], list[int]],
    theirs: Callable[[str], list[int]],
    least: int = 20_000,
) -> None:
    count = tokens = 0
    for line in lines:
        expected = theirs(line)
        assert ours(line) == expected, (name, line)
        count += 1
        tokens += len(expected)
    print(f"{name}: {count} lines, {tokens} tokens, no mismatch")
    assert count >= least


def raw(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return functools.partial(tokenizer.encode, add_special=False, parse_special=False)


# --- sentencepiece ---


def field(number: int, value: bytes | float | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return (
        varint(number << 3 | 5) + struct.pack("<f", value)
        if isinstance(value, float)
        else varint(number << 3) + varint(value)
    )


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def sentencepiece_model(pieces: Iterable[Piece], prefix: bool) -> Any:
    """A processor over `pieces`: BPE, byte fallback, no normalisation but of spaces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    body = b"".join(
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, kind)) for text, score, kind in pieces
    )
    body += field(2, field(3, 2) + field(35, 1))
    body += field(3, field(1, b"identity") + field(3, int(prefix)) + field(4, 0) + field(5, 1))
    return sentencepiece.SentencePieceProcessor(model_proto=body)


def spells(tokenizer: Tokenizer, prefix: str) -> Callable[[str], None]:
    def check(line: str) -> None:
        """U+2581 is what SentencePiece writes for a space, so it comes back as one."""
        for parse_special in (True, False):
            data = b"".join(map(tokenizer.token_bytes, tokenizer.encode(line, False, parse_special)))
            if not parse_special:
                assert data.decode() == prefix + line.replace(SPACE, " "), line
        spans = tokenizer.encode_with_offsets(line)
        assert [token_id for token_id, _, _ in spans] == tokenizer.encode(line, add_special=False)
        assert not spans or (spans[0][1], spans[-1][2]) == (0, len(line))

    return check


@pytest.mark.model
def test_gemma_equals_sentencepiece():
    metadata = model_metadata("gemma3-270m")
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    kinds[metadata["tokenizer.ggml.unknown_token_id"]] = UNKNOWN  # the file calls it a control token
    columns = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"].tolist(), kinds, strict=True)
    pieces = [
        (text.replace(" ", SPACE) if kind == USER_DEFINED else text, score, kind) for text, score, kind in columns
    ]
    tokenizer = from_gguf(metadata)
    compare("Gemma 3", LINES, raw(tokenizer), sentencepiece_model(pieces, prefix=False).encode)
    check = spells(tokenizer, "")
    for line in LINES:
        check(line)


def trained() -> tuple[Any, list[Piece]]:
    """A Llama-like vocabulary that sentencepiece trains on the project's prose and a little code."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts.PROSE.read_text("utf-8").splitlines(), *LINES[:3000]]),
        model_writer=model, model_type="bpe", vocab_size=2500, byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98,
        allow_whitespace_only_pieces=True, user_defined_symbols=FIXED, control_symbols=["<|im_end|>"],
        max_sentence_length=100_000, num_threads=1, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tests = {
        CONTROL: processor.is_control,
        UNKNOWN: processor.is_unknown,
        BYTE: processor.is_byte,
        UNUSED: processor.is_unused,
    }
    pieces = []
    for i in range(processor.get_piece_size()):
        text = processor.id_to_piece(i)
        kind = next((kind for kind, test in tests.items() if test(i)), NORMAL)
        # The processor has no question for user-defined pieces; they have no score of their own.
        fixed = kind == NORMAL and text in FIXED
        pieces.append((text, processor.get_score(i), USER_DEFINED if fixed else kind))
    return processor, pieces


def test_a_trained_vocabulary_equals_sentencepiece():
    processor, pieces = trained()
    tokenizer = from_gguf(vocabularies.metadata(pieces))
    compare("trained", LINES, raw(tokenizer), processor.encode)
    check = spells(tokenizer, " ")
    for line in filter(None, LINES):
        check(line)


def test_adversarial_vocabularies_equal_sentencepiece():
    rng = random.Random(1)
    for _ in range(3000):
        pieces, prefix = vocabularies.random_pieces(rng), rng.random() < 0.5
        tokenizer = from_gguf(vocabularies.metadata(pieces, add_space_prefix=prefix))
        theirs = sentencepiece_model(pieces, prefix)
        for text in [vocabularies.random_text(rng) for _ in range(10)]:
            assert raw(tokenizer)(text) == theirs.encode(text), (pieces[259:], text, prefix)


# --- where byte-level families cut ---

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
BLOOM = r"(?V1) ?[^(\s|[.,!?…。，、।۔،])]+"  # one class inside another
# Each row: patterns that cut in turn (what one has cut, the next cuts further), then one on the spelled bytes.
PUBLISHED: dict[str, tuple[list[str], str]] = {
    **dict.fromkeys(["default", "gpt-2", "phi-2", "gpt-neox", "mpt", "olmo"], ([GPT2], "")),
    **dict.fromkeys(["smollm", "starcoder", "refact"], ([r"\p{N}", GPT2], "")),
    **dict.fromkeys(["llama-bpe", "llama3", "llama-v3", "dbrx"], ([LLAMA3], "")),
    "gpt-4o": ([O200K], ""),
    "qwen2": ([LLAMA3.replace("{1,3}", "")], ""),
    "tekken": ([TEKKEN], ""),
    "bloom": ([BLOOM], ""),
    "falcon": ([r"[\p{P}$+<=>^`|~]+", GPT2], r"[0-9]{3}|\p{N}+?(?=[0-9]{3})|\p{N}+"),
}
CASES = [
    "it'S we'LL 'ſ 'ſx I'ſ\u212a d'D", "ǅungla ʰaʰ Aʰ ªBº", "e\u0301E\u0301 \u0301x", "a/\n//\r\nb", "(a|b) [c]. d, e",
    "1234567 ½¾ 12½34567 ٣٤٥٦", "a\r\n\r\n  \n b \t", "x\xa0\xa0y\u2003 z", "$1,234.56+2=~`^|<b>", "м¼ €²³ Ø¹",
]  # fmt: skip


def cuts(pieces: list[str], pattern: Any) -> list[str]:
    """Each piece cut into the matches of `pattern` and what lies between them."""
    parts: list[str] = []
    for piece in pieces:
        at = 0
        for match in pattern.finditer(piece):
            parts += [piece[at : match.start()], match.group()]
            at = match.end()
        parts.append(piece[at:])
    return [part for part in parts if part]


def test_every_pre_tokenizer_has_its_published_pattern():
    assert PUBLISHED.keys() == bpe.PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_cuts_equal_the_published_pattern(name):
    regex = pytest.importorskip("regex")
    in_turn, on_bytes = PUBLISHED[name]
    patterns = [regex.compile(pattern) for pattern in in_turn]
    backend = bpe.build({char: i for i, char in enumerate(ALPHABET)}, [], bpe.PRE_TOKENIZERS[name], [])
    lines = [*CASES, *LINES[::10]]
    for line in lines:
        pieces = [line] if line else []
        for pattern in patterns:
            pieces = cuts(pieces, pattern)
        spelled = ["".join(ALPHABET[byte] for byte in piece.encode()) for piece in pieces]
        if on_bytes:
            spelled = cuts(spelled, regex.compile(on_bytes))
        ours = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(line)]
        assert ours == spelled, (name, line)
    assert len(lines) > 2_000


# --- byte-level BPE ---


def published_gpt2(metadata: dict[str, Any]) -> Callable[[str], list[int]]:
    """GPT-2's published pattern and merging, after each digit has been set apart as SmolLM2 does."""
    regex = pytest.importorskip("regex")
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    digit = regex.compile(r"(\p{N})")
    ids = {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}

    @functools.lru_cache(1 << 16)
    def merged(piece: str) -> list[int]:
        # A byte without a token is left out before merging, as `tokenizers` does where there is no unknown token.
        parts = [char for char in (ALPHABET[byte] for byte in piece.encode()) if char in ids]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:], strict=False), key=lambda pair: ranks.get(pair, 1 << 30))
            if best not in ranks:
                break
            joined, at = [], 0
            while at < len(parts):
                pair = tuple(parts[at : at + 2])
                joined.append("".join(pair) if pair == best else parts[at])
                at += 2 if pair == best else 1
            parts = joined
        return [ids[part] for part in parts]

    return lambda text: [i for part in digit.split(text) for piece in pattern.findall(part) for i in merged(piece)]


@pytest.mark.model
def test_smollm2_equals_the_published_algorithm():
    metadata = model_metadata(hub.DEFAULT_MODEL)
    tokenizer = from_gguf(metadata)
    compare("SmolLM2", LINES, raw(tokenizer), published_gpt2(metadata))
    for line in LINES:
        kept = "".join(char for char in line if not tokenizer.count_lost(char))
        assert tokenizer.decode(raw(tokenizer)(kept)) == kept


@pytest.mark.model
def test_smollm2_equals_transformers():
    """transformers gives a GGUF file of this kind GPT-2's own cuts, which hold where a line has no number in it; with
    the family's own step in front, each digit set apart, they hold for all."""
    transformers = pytest.importorskip("transformers")
    metadata = model_metadata(hub.DEFAULT_MODEL)
    path = hub.resolve(hub.DEFAULT_MODEL).path
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    lines = [line for line in LINES if not any(char.isnumeric() for char in line)]

    def encode(line: str) -> list[int]:
        return theirs(line, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    ours = raw(from_gguf(metadata))
    compare("SmolLM2, transformers, lines without numbers", lines, ours, encode, least=10_000)
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    pipeline = theirs.backend_tokenizer
    steps = [pre_tokenizers.Digits(individual_digits=True), pipeline.pre_tokenizer]
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(steps)
    compare("SmolLM2, transformers, digits apart", LINES, ours, encode)
