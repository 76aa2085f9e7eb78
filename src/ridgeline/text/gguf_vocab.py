"""Vocabularies from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

Owns the tokenizer.ggml.* keys: every value is counted, typed and resolved here before use, for the metadata of a
public file is hostile input. It must not know how text is encoded.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.text import bpe, spm
from ridgeline.text.bytelevel import ByteLevel, Tables
from ridgeline.text.vocab import Backend, SpecialTokens, turn_ends

_MAX_TOKENS = 1 << 20
_MAX_MERGES = 1 << 21
_MAX_TOKEN_CHARS = 1 << 13
_MAX_CHARS = 1 << 24  # of a whole list: working memory is some thirty bytes for each
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


def read(metadata: Mapping[str, Any]) -> tuple[Backend, SpecialTokens]:
    """Backend and special tokens from GGUF key -> value. Errors as `tokenizer.from_gguf` says."""
    model = metadata.get("tokenizer.ggml.model")
    readers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if isinstance(model, str) and model in readers:
        return readers[model](metadata)
    raise Unsupported(
        f"tokenizer.ggml.model = {model!r:.80} is not built; byte-level BPE ('gpt2') and SentencePiece BPE "
        "('llama') are. For another kind use a Hugging Face folder with a BPE tokenizer.json"
    )


def _byte_level(metadata: Mapping[str, Any]) -> tuple[Backend, SpecialTokens]:
    pre = _pre_tokenizer(metadata)
    tokens = _strings(metadata, "tokenizer.ggml.tokens", _MAX_TOKENS)
    vocab = _by_text(tokens)
    kinds = _token_types(metadata, len(tokens))
    control, user_defined = (_of_kind(tokens, kinds, kind) for kind in (spm.CONTROL, spm.USER_DEFINED))
    backend = ByteLevel(Tables(tokens, vocab, _merges(metadata, vocab), pre, control, user_defined))
    return backend, _special(metadata, tokens, (control, user_defined), pre.add_bos)


def _sentencepiece(metadata: Mapping[str, Any]) -> tuple[Backend, SpecialTokens]:
    """tokenizer.ggml.pre is not looked at: this kind of vocabulary has no pre-tokenizer."""
    for key in ("remove_extra_whitespaces", "treat_whitespace_as_suffix"):
        if _flag(metadata, f"tokenizer.ggml.{key}", False):
            raise Unsupported(f"tokenizer.ggml.{key} = true is not built")
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None and not (hasattr(charsmap, "__len__") and len(charsmap) == 0):
        raise Unsupported("tokenizer.ggml.precompiled_charsmap: a normalisation table is not built")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", _MAX_TOKENS)
    kinds = _token_types(metadata, len(tokens))
    # Files hold user-defined pieces with plain spaces; they are matched on text whose spaces are replaced.
    texts = [
        text.replace(" ", spm.SPACE) if kind == spm.USER_DEFINED else text
        for text, kind in zip(tokens, kinds, strict=True)
    ]
    vocab = _by_text(texts)
    _check_pieces(vocab, kinds)
    prefix = _flag(metadata, "tokenizer.ggml.add_space_prefix", True)
    pieces = spm.Pieces(texts, _scores(metadata, len(tokens)), kinds, prefix, _right_strip(metadata, tokens, kinds))
    backend = spm.SentencePiece(pieces)
    control = _of_kind(tokens, kinds, spm.CONTROL) | _of_kind(tokens, kinds, spm.UNKNOWN)
    return backend, _special(metadata, tokens, (control, _of_kind(tokens, kinds, spm.USER_DEFINED)), True)


def _right_strip(metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> frozenset[int]:
    """The tokens that take the whitespace after them. A GGUF file cannot say so; Phi-3, whose tokenizer.json does, is
    known by its architecture, or by its name, as other readers of these files know it."""
    name, architecture = metadata.get("general.name"), metadata.get("general.architecture")
    named_so = isinstance(name, str) and any(part in name.lower() for part in _PHI3_NAMES)
    if not named_so and not (isinstance(architecture, str) and architecture == "phi3"):
        return frozenset()
    named = [token_id for token_id, kind in enumerate(kinds) if kind in (spm.CONTROL, spm.USER_DEFINED)]
    return frozenset(token_id for token_id in named if tokens[token_id] not in _PHI3_PLAIN)


def _check_pieces(vocab: Mapping[str, int], kinds: Sequence[int]) -> None:
    single = {text for text in spm.BYTE_PIECES if text in vocab and kinds[vocab[text]] == spm.BYTE}
    if len(single) != 256 or kinds.count(spm.BYTE) != 256:
        raise Unsupported(
            f"tokenizer.ggml.token_type: {len(single)} of the 256 byte tokens <0x00> to <0xFF> are there; "
            "a SentencePiece vocabulary without byte fallback is not built"
        )
    if spm.SPACE not in vocab or kinds[vocab[spm.SPACE]] not in (spm.NORMAL, spm.USER_DEFINED):
        raise Unsupported("tokenizer.ggml.tokens has no ordinary U+2581: a vocabulary without a space is not built")


def _scores(metadata: Mapping[str, Any], size: int) -> np.ndarray:
    key = "tokenizer.ggml.scores"
    values = _array(metadata, key, _MAX_TOKENS)
    if len(values) != size:
        raise ModelFileError(f"{key} has {len(values)} entries for {size} tokens")
    if not all(isinstance(value, float | int) for value in values):
        raise ModelFileError(f"{key} holds a value that is not a number")
    with np.errstate(over="ignore"):
        scores = np.array(values, np.float32)
    if not np.isfinite(scores).all():
        raise ModelFileError(f"{key} holds a value that is not finite")
    return scores


def _by_text(tokens: Sequence[str]) -> dict[str, int]:
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        raise ModelFileError("tokenizer.ggml.tokens: the same token appears twice")
    return vocab


def _of_kind(tokens: Sequence[str], kinds: Sequence[int], wanted: int) -> dict[str, int]:
    return {tokens[token_id]: token_id for token_id in np.flatnonzero(np.array(kinds, np.int8) == wanted).tolist()}


def _pre_tokenizer(metadata: Mapping[str, Any]) -> bpe.PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in bpe.PRE_TOKENIZERS:
        known = ", ".join(bpe.PRE_TOKENIZERS)
        raise Unsupported(f"tokenizer.ggml.pre = {name!r:.80} is not a known pre-tokenizer; built: {known}")
    return bpe.PRE_TOKENIZERS[name]


def _special(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    added: tuple[Mapping[str, int], Mapping[str, int]],
    add_bos: bool,
) -> SpecialTokens:
    """`added`: control and user-defined tokens; `add_bos`: the habit where the file does not say."""
    key = "tokenizer.ggml.{}_token_id"
    bos, eos, eot, eom = (_token_id(metadata, key.format(name), len(tokens)) for name in ("bos", "eos", "eot", "eom"))
    if _flag(metadata, "tokenizer.ggml.add_eos_token", False):
        raise Unsupported("tokenizer.ggml.add_eos_token = true: ending every prompt with EOS is not built")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelFileError("tokenizer.chat_template is not a string")
    return SpecialTokens(
        bos_id=bos,
        eos_ids=turn_ends((eos, eot, eom), *added, template is not None),
        add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", add_bos),
        bos_token="" if bos is None else tokens[bos],
        eos_token="" if eos is None else tokens[eos],
        chat_template=template,
    )


def _array(metadata: Mapping[str, Any], key: str, limit: int) -> list[Any]:
    value = metadata.get(key)
    if value is None or isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise ModelFileError(f"{key} is missing or not an array")
    if len(value) > limit:
        raise ModelFileError(f"{key} has {len(value)} entries; at most {limit} are accepted")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _strings(metadata: Mapping[str, Any], key: str, limit: int) -> list[str]:
    values = _array(metadata, key, limit)
    if set(map(type, values)) != {str} or not all(0 < n <= _MAX_TOKEN_CHARS for n in set(map(len, values))):
        for index, value in enumerate(values):
            if not isinstance(value, str) or not 0 < len(value) <= _MAX_TOKEN_CHARS:
                raise ModelFileError(f"{key}[{index}] is not a string of 1 to {_MAX_TOKEN_CHARS} characters")
    text = "".join(values)
    if len(text) > _MAX_CHARS:
        raise ModelFileError(f"{key} holds {len(text)} characters; at most {_MAX_CHARS} are accepted")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{key} holds a string that is not valid Unicode") from error
    return values


def _token_types(metadata: Mapping[str, Any], size: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return [1] * size
    types = _array(metadata, key, _MAX_TOKENS)
    if len(types) != size:
        raise ModelFileError(f"{key} has {len(types)} entries for {size} tokens")
    if not set(map(type, types)) <= {int, bool} or not set(types) <= set(range(7)):
        raise ModelFileError(f"{key} holds a value that is not a token type (0 to 6)")
    return types


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[str]:
    """The merges as they are stored: "left right". Vocabularies hold 10^5 of them, so they are checked as a whole.

    One whose left or right is no token is let pass: it can never come up.
    """
    key = "tokenizer.ggml.merges"
    merges = _strings(metadata, key, _MAX_MERGES)
    text = "\n".join(merges)
    cuts = np.frombuffer(text.encode(), np.uint8)
    cuts = cuts[(cuts == ord(" ")) | (cuts == ord("\n"))]  # of each merge one space, and a new line but for the last
    one_space = len(cuts) == 2 * len(merges) - 1 and bool((cuts[::2] == ord(" ")).all())
    if one_space and text.count("\n") == len(merges) - 1:
        unions = text.replace(" ", "")
        # Most files hold the unions in order at the end of the vocabulary: then nothing has to be looked up. As many
        # tokens as merges, and as many new lines, leave none that a token itself could hold.
        last = list(vocab)[-len(merges) :]
        if (len(last) == len(merges) and unions == "\n".join(last)) or all(map(vocab.__contains__, unions.split("\n"))):
            return merges
    for index, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not space or " " in right or left + right not in vocab:
            raise ModelFileError(f"{key}[{index}] = {merge!r:.80} does not join two tokens into a third")
    return merges


def _token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    if key not in metadata:
        return None
    try:
        token_id = operator.index(metadata[key])
    except TypeError:
        raise ModelFileError(f"{key} is not an integer") from None
    if not 0 <= token_id < size:
        raise ModelFileError(f"{key} = {token_id} is outside the vocabulary of {size}")
    return token_id


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool | np.bool_):
        raise ModelFileError(f"{key} is not a boolean")
    return bool(value)
