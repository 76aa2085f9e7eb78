"""Byte-level BPE: the byte alphabet, the table of pre-tokenizers, and the making of a `tokenizers` pipeline.

Owns what is common to the GPT-2 line of vocabularies. Adding a family is one row in `PRE_TOKENIZERS`. It must
not know file formats; its inputs are already validated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import tokenizers


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte: itself if visible Latin-1, else U+0100 upwards in order."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in visible)
    moved = {byte: chr(0x100 + rank) for rank, byte in enumerate(hidden)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


ALPHABET = _byte_alphabet()
# Latin-1 characters outside the alphabet go to U+FFFF, so that a token holding one fails to encode.
_TO_LATIN1 = dict.fromkeys(range(256), "\uffff") | {ord(char): byte for byte, char in enumerate(ALPHABET)}


def bytes_of(token: str) -> bytes:
    """The bytes a vocabulary entry stands for; an entry outside the alphabet stands for its own UTF-8."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


class PreTokenizer(msgspec.Struct, frozen=True):
    """How text is cut before merging. `split`: a regex, or None for GPT-2's own, built into `ByteLevel`."""

    split: str | None = None
    single_digits: bool = False
    normalize_nfc: bool = False
    ignore_merges: bool = False  # a piece that is a token as it stands is not merged
    falcon: bool = False  # runs of punctuation apart; digits in threes, told by the characters that stand for bytes
    add_bos: bool = False  # where the file does not say


_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(single_digits=True)
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = PreTokenizer(
    split=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL, ignore_merges=True, add_bos=True
)
_QWEN2 = PreTokenizer(split=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL, normalize_nfc=True)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = PreTokenizer(
    split=rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NEOX = PreTokenizer(normalize_nfc=True)
_BLOOM = PreTokenizer(split=r" ?[^(\s|[.,!?…。，、।۔،])]+")
_TEKKEN = PreTokenizer(
    split=rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ignore_merges=True,
    add_bos=True,
)

# Values of tokenizer.ggml.pre. Each row restates the pre_tokenizer of that family's own tokenizer.json.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": PreTokenizer(split=_LLAMA3.split),  # Phi-4 is stored under this name
    "gpt-4o": _O200K,  # and Phi-4-mini under this one
    "qwen2": _QWEN2,
    "tekken": _TEKKEN,
    "falcon": PreTokenizer(falcon=True),
    "bloom": _BLOOM,
    "gpt-neox": _NEOX,
    "mpt": _NEOX,
    "olmo": _NEOX,
}


def build(
    vocab: dict[str, int], merges: list[tuple[str, str]], pre: PreTokenizer, added: Iterable[tuple[str, bool]]
) -> tokenizers.Tokenizer:
    """A pipeline over `vocab` and `merges`; `added`: (text, is special), matched before any cutting."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre.ignore_merges))
    if pre.normalize_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added])
    return backend


def pre_tokenizer(pre: PreTokenizer) -> tokenizers.pre_tokenizers.Sequence:
    """What cuts text into the pieces that are merged apart, and spells them in the alphabet of bytes."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.single_digits else []
    if pre.falcon:
        steps.append(pre_tokenizers.Punctuation("contiguous"))
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    if pre.falcon:
        triples = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
        steps += [pre_tokenizers.Digits(individual_digits=False), triples]
    return pre_tokenizers.Sequence(steps)
