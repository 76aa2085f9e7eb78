"""Byte-level BPE tokenizers, from a Hugging Face folder or from GGUF metadata.

Owns the mapping between text, ids and bytes, which ids are special, and which of them end a turn. The merging
itself is the `tokenizers` package. It must not know where the files came from, nor anything of models.
Metadata is hostile input: counted, typed and resolved before use.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InvalidRequest, ModelFileError, Unsupported
from ridgeline.text import bpe

if TYPE_CHECKING:
    import tokenizers

_MAX_TOKENS = 1 << 20
_MAX_MERGES = 1 << 21
_MAX_TOKEN_CHARS = 1 << 13
_MAX_FILE_BYTES = 256 << 20
_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types

# A chat model may end its turn with any of these, whatever single id its file declares.
_TURN_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")


@dataclass(frozen=True)
class SpecialTokens:
    """What a model's files say beside the vocabulary. `*_token` are texts for templates, "" if none."""

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    bos_token: str = ""
    eos_token: str = ""
    chat_template: str | None = None


class Tokenizer:
    """Text to ids and back. Immutable. Every id has exact bytes, so decoding is joining bytes."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = max(backend.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids
        self.add_bos = special.add_bos and special.bos_id is not None
        self.bos_token = special.bos_token
        self.eos_token = special.eos_token
        self.chat_template = special.chat_template

    def encode(self, text: str, add_special: bool, parse_special: bool = True) -> list[int]:
        """Ids of `text`. `add_special` puts the model's BOS in front, if it has that habit.

        `parse_special` reads the texts of special tokens as those tokens: for prompts that a chat template
        rendered, and for raw prompts as peers take them. Without it the result holds none, except that BOS.
        Raises InvalidRequest for text that is not valid Unicode.
        """
        bos = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        if parse_special:
            return bos + list(_run(self._backend, text).ids)
        ids: list[int] = []
        for token_id in _run(self._plain, text).ids:
            ids += self._spelled(token_id) if token_id in self._special else [token_id]
        return bos + ids

    def encode_with_offsets(self, text: str, add_special: bool = False) -> list[tuple[int, int, int]]:
        """(id, start, stop) in characters of `text`; BOS at (0, 0). Parts of one character share its place."""
        encoding = _run(self._backend, text)
        bos = [(self.bos_id, 0, 0)] if add_special and self.add_bos and self.bos_id is not None else []
        return bos + [(token_id, *span) for token_id, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        kept = (token_id for token_id in ids if not (skip_special and token_id in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; a special token's are its text.

        Empty for an id without a token, which an output head padded beyond the vocabulary can produce.
        """
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else bpe.bytes_of(token)

    def token_text(self, token_id: int) -> str:
        """One token alone, for log-probability tables: lossy where it holds part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, hidden from decoded text by default."""
        return token_id in self._special

    @cached_property
    def lost_bytes(self) -> frozenset[int]:
        """Bytes no token can spell. `encode` drops them, as the model's own tokenizer does; callers warn."""
        return frozenset(range(256)) - self._byte_ids.keys()

    def count_lost(self, text: str) -> int:
        """How many bytes of `text` encoding would drop."""
        if not self.lost_bytes:
            return 0
        data = text.encode()
        return len(data) - len(data.translate(None, bytes(self.lost_bytes)))

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        found = ((byte, self._backend.token_to_id(char)) for byte, char in enumerate(bpe.ALPHABET))
        return {byte: token_id for byte, token_id in found if token_id is not None and token_id not in self._special}

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Leaves special tokens' texts unread. A copy, because other threads would see the switch."""
        plain = type(self._backend).from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def _spelled(self, token_id: int) -> list[int]:
        """A special token's text in single-byte tokens: the way out where ordinary merging arrives at it."""
        return [self._byte_ids[byte] for byte in self.token_bytes(token_id) if byte in self._byte_ids]


def _run(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        return backend.encode(text, add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidRequest("the text is not valid Unicode (a lone surrogate); send well-formed text") from error


def _turn_ends(declared: Iterable[int | None], special: Mapping[str, int], is_chat: bool) -> frozenset[int]:
    ends = {token_id for token_id in declared if token_id is not None}
    if is_chat:
        # In the harmony format <|end|> closes a message, not the turn; <|return|> gives that format away.
        harmony = "<|return|>" in special
        ends |= {special[name] for name in _TURN_ENDS if name in special and not (harmony and name == "<|end|>")}
    return frozenset(ends)


# --- from GGUF metadata ---


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build from GGUF key -> value (arrays as lists or numpy arrays).

    Raises Unsupported for a vocabulary or pre-tokenizer that is not built, ModelFileError for metadata that
    contradicts itself; both name the key.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise Unsupported(
            f"tokenizer.ggml.model = {model!r:.80} is not built; byte-level BPE ('gpt2') is. "
            "For a SentencePiece model use a Hugging Face folder with a byte-level tokenizer.json"
        )
    pre = _pre_tokenizer(metadata)
    tokens = _strings(metadata, "tokenizer.ggml.tokens", _MAX_TOKENS)
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ModelFileError("tokenizer.ggml.tokens: the same token appears twice")
    types = _token_types(metadata, len(tokens))
    merges = _merges(metadata, vocab)
    added = [token_id for token_id, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    control = {tokens[token_id]: token_id for token_id in added if types[token_id] == _CONTROL}
    backend = bpe.build(vocab, merges, pre, [(tokens[token_id], tokens[token_id] in control) for token_id in added])
    return Tokenizer(backend, _gguf_special(metadata, pre, tokens, control))


def _pre_tokenizer(metadata: Mapping[str, Any]) -> bpe.PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in bpe.PRE_TOKENIZERS:
        known = ", ".join(bpe.PRE_TOKENIZERS)
        raise Unsupported(f"tokenizer.ggml.pre = {name!r:.80} is not a known pre-tokenizer; built: {known}")
    return bpe.PRE_TOKENIZERS[name]


def _gguf_special(
    metadata: Mapping[str, Any], pre: bpe.PreTokenizer, tokens: Sequence[str], control: Mapping[str, int]
) -> SpecialTokens:
    key = "tokenizer.ggml.{}_token_id"
    bos, eos, eot, eom = (_token_id(metadata, key.format(name), len(tokens)) for name in ("bos", "eos", "eot", "eom"))
    if _flag(metadata, "tokenizer.ggml.add_eos_token", False):
        raise Unsupported("tokenizer.ggml.add_eos_token = true: ending every prompt with EOS is not built")
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelFileError("tokenizer.chat_template is not a string")
    return SpecialTokens(
        bos_id=bos,
        eos_ids=_turn_ends((eos, eot, eom), control, template is not None),
        add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", pre.add_bos),
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
    for index, value in enumerate(values):
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TOKEN_CHARS:
            raise ModelFileError(f"{key}[{index}] is not a string of 1 to {_MAX_TOKEN_CHARS} characters")
    return values


def _token_types(metadata: Mapping[str, Any], size: int) -> list[int]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return [1] * size
    types = _array(metadata, key, _MAX_TOKENS)
    if len(types) != size:
        raise ModelFileError(f"{key} has {len(types)} entries for {size} tokens")
    if not all(isinstance(kind, int) and 0 <= kind <= 6 for kind in types):
        raise ModelFileError(f"{key} holds a value that is not a token type (0 to 6)")
    return types


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    key = "tokenizer.ggml.merges"
    merges = []
    for index, merge in enumerate(_strings(metadata, key, _MAX_MERGES)):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelFileError(f"{key}[{index}] = {merge!r:.80} does not join two tokens into a third")
        merges.append((left, right))
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
    if value not in (True, False):
        raise ModelFileError(f"{key} is not a boolean")
    return bool(value)


# --- from a Hugging Face folder ---


def from_dir(path: str | Path) -> Tokenizer:
    """Build from `path`'s tokenizer.json and, if there, tokenizer_config.json, chat_template.jinja and
    generation_config.json.

    Raises ModelFileError for a missing or broken file, Unsupported for a vocabulary that is not byte-level BPE.
    """
    import tokenizers

    folder = Path(path)
    source = _read(folder / "tokenizer.json")
    if source is None:
        raise ModelFileError(f"{folder.name} has no tokenizer.json")
    try:
        backend = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the package raises bare Exception
        raise ModelFileError(f"tokenizer.json cannot be read: {error}") from error
    if type(backend.decoder) is not tokenizers.decoders.ByteLevel:
        raise Unsupported(f"tokenizer.json: decoder {type(backend.decoder).__name__} is not built; ByteLevel is")
    backend.no_truncation()
    backend.no_padding()
    config = _json(folder / "tokenizer_config.json")
    special = _folder_special(backend, config, _json(folder / "generation_config.json"), _template(folder, config))
    # BOS is added above this layer and offsets must tile the text, so nothing is left for a post-processor.
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return Tokenizer(backend, special)


def _folder_special(
    backend: tokenizers.Tokenizer, config: dict[str, Any], generation: dict[str, Any], template: str | None
) -> SpecialTokens:
    bos_token, eos_token = (_content(config.get(name)) for name in ("bos_token", "eos_token"))
    bos_id = backend.token_to_id(bos_token) if bos_token else None
    declared = generation.get("eos_token_id")
    declared = declared if isinstance(declared, list) else [declared]
    size = backend.get_vocab_size()
    if not all(token_id is None or (isinstance(token_id, int) and 0 <= token_id < size) for token_id in declared):
        raise ModelFileError(f"generation_config.json: eos_token_id is not in the vocabulary of {size}")
    if eos_token:
        declared = [*declared, backend.token_to_id(eos_token)]
    habit = backend.encode("", add_special_tokens=True).ids
    if habit not in ([], [bos_id]):
        raise Unsupported(f"tokenizer.json: post_processor adds tokens {habit[:8]} beyond a BOS")
    named = {token.content: key for key, token in backend.get_added_tokens_decoder().items() if token.special}
    return SpecialTokens(
        bos_id=bos_id,
        eos_ids=_turn_ends(declared, named, template is not None),
        add_bos=_flag(config, "add_bos_token", habit != []),
        bos_token=bos_token,
        eos_token=eos_token,
        chat_template=template,
    )


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    separate = _read(folder / "chat_template.jinja")
    template = config.get("chat_template") if separate is None else separate
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise ModelFileError("tokenizer_config.json: chat_template is not a string or a list of named strings")
    return template


def _content(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ModelFileError(f"{path.name} is larger than {_MAX_FILE_BYTES >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path.name} is not UTF-8") from error


def _json(path: Path) -> dict[str, Any]:
    source = _read(path)
    try:
        value = {} if source is None else json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path.name} is not a JSON object")
    return value
