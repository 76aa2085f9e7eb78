"""Tokenizers: text to ids and back, for every kind of vocabulary.

Owns the face that engines and servers see: BOS, decoding, which ids are special and which end a turn. What encodes
is a `Backend`; `gguf_vocab` and `hf_vocab` read one from a model's files. It must not know those files, nor models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.text import gguf_vocab, hf_vocab
from ridgeline.text.pipeline import Pipeline
from ridgeline.text.vocab import Backend, Span, SpecialTokens

if TYPE_CHECKING:
    import tokenizers

__all__ = ["SpecialTokens", "Tokenizer", "from_dir", "from_gguf"]


class Tokenizer:
    """Text to ids and back. Immutable. Every id has exact bytes, so decoding is joining bytes.

    A bare `tokenizers.Tokenizer` is taken for byte-level BPE.
    """

    def __init__(self, backend: Backend | tokenizers.Tokenizer, special: SpecialTokens) -> None:
        import tokenizers

        self._backend: Backend = Pipeline(backend) if isinstance(backend, tokenizers.Tokenizer) else backend
        self.special = self._backend.special
        self.vocab_size: int = self._backend.size
        self.bos_id = special.bos_id
        self.eos_ids, self.tail = special.eos_ids, special.tail
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
        return bos + self._backend.encode(text, parse_special)

    def encode_with_offsets(self, text: str, add_special: bool = False) -> list[Span]:
        """(id, start, stop) in characters of `text`; BOS at (0, 0). Parts of one character share its place."""
        bos = [(self.bos_id, 0, 0)] if add_special and self.add_bos and self.bos_id is not None else []
        return bos + self._backend.spans(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        kept = (token_id for token_id in ids if not (skip_special and token_id in self.special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; a special token's are its text.

        Empty for an id without a token, which an output head padded beyond the vocabulary can produce.
        """
        return self._backend.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """One token alone, for log-probability tables: lossy where it holds part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token, hidden from decoded text by default."""
        return token_id in self.special

    @property
    def lost_bytes(self) -> frozenset[int]:
        """Bytes no token can spell. `encode` drops them, as the model's own tokenizer does; callers warn."""
        return self._backend.lost_bytes

    def count_lost(self, text: str) -> int:
        """How many bytes of `text` encoding would drop."""
        if not self.lost_bytes:
            return 0
        data = text.encode()
        return len(data) - len(data.translate(None, bytes(self.lost_bytes)))


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build from GGUF key -> value (arrays as lists or numpy arrays).

    Raises Unsupported for a vocabulary or pre-tokenizer that is not built, ModelFileError for metadata that
    contradicts itself; both name the key.
    """
    return Tokenizer(*gguf_vocab.read(metadata))


def from_dir(path: str | Path) -> Tokenizer:
    """Build from `path`'s tokenizer.json and, if there, tokenizer_config.json, chat_template.jinja and
    generation_config.json.

    Raises ModelFileError for a missing or broken file, Unsupported for a kind of vocabulary that is not built.
    """
    return Tokenizer(*hf_vocab.read(Path(path)))
