"""Byte-level BPE that is ready at once: short texts are merged here, by the tables as they lie in the file.

The pipeline of the `tokenizers` package gives the same ids and is faster on long texts, but takes a tenth of a second
and tens of megabytes to build: it is made when something asks for it. Must not know file formats; its inputs are
already validated.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from ridgeline.errors import InvalidRequest
from ridgeline.text import bpe
from ridgeline.text.pipeline import Pipeline, raising
from ridgeline.text.spm import Literals
from ridgeline.text.vocab import Span

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import Sequence as PreTokenizers

_SHORT_TEXT, _SHORT_PIECE = 2048, 64  # characters; merging here is quadratic in a piece
_CACHED_PIECES = 1 << 14
_NO_MERGE = 1 << 30


class Tables(msgspec.Struct, frozen=True):
    """A byte-level vocabulary: `ids` of all `tokens`; `merges` as "left right", best first; added tokens by text."""

    tokens: Sequence[str]
    ids: Mapping[str, int]
    merges: Sequence[str]
    pre: bpe.PreTokenizer
    control: Mapping[str, int]
    user_defined: Mapping[str, int]


class ByteLevel:
    """Immutable, but for what is made at first use."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.size = len(tables.tokens)
        self.special = frozenset(tables.control.values())
        self._user_defined = frozenset(tables.user_defined.values())
        self._merged = functools.lru_cache(_CACHED_PIECES)(self._merge)
        self.token_bytes = functools.lru_cache(_CACHED_PIECES)(self._token_bytes)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`; special tokens' texts are read as those tokens if `parse_special`."""
        if "pipeline" not in self.__dict__ and len(text) <= _SHORT_TEXT:
            found = self._encode(text)
            if found is not None and (parse_special or self.special.isdisjoint(found)):
                return found
        return self.pipeline.encode(text, parse_special)

    def spans(self, text: str) -> list[Span]:
        """(id, start, stop) in characters of `text`; parts of one character share its place."""
        return self.pipeline.spans(text)

    @cached_property
    def lost_bytes(self) -> frozenset[int]:
        """Bytes no token can spell. `encode` drops them, as the model's own tokenizer does; callers warn."""
        found = (self._tables.ids.get(text, -1) for text in bpe.ALPHABET)
        return frozenset(byte for byte, id in enumerate(found) if id < 0 or id in self.special)

    @cached_property
    def pipeline(self) -> Pipeline:
        """The same vocabulary in the `tokenizers` package."""
        t = self._tables
        pairs = (merge.partition(" ") for merge in t.merges)
        merges = [(left, right) for left, _, right in pairs if left in t.ids and right in t.ids]
        added = {**dict.fromkeys(t.control, True), **dict.fromkeys(t.user_defined, False)}
        in_order = sorted(added.items(), key=lambda text: t.ids[text[0]])
        return Pipeline(bpe.build(dict(t.ids), merges, t.pre, in_order))

    def _encode(self, text: str) -> list[int] | None:
        """Ids of a short text with special tokens read, or None where the pipeline must see to it."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text is not valid Unicode (a lone surrogate); send well-formed text") from error
        if self._tables.pre.normalize_nfc and not text.isascii():
            return None
        ids: list[int] = []
        at = 0
        for token_id, start, stop in [*self._find_added(text), (-1, len(text), len(text))]:
            for piece in self._cut(text[at:start]):
                if len(piece) > _SHORT_PIECE:
                    return None
                ids += self._merged(piece)
            if token_id >= 0:
                ids.append(token_id)
            at = stop
        return ids

    def _cut(self, text: str) -> list[str]:
        """Text between added tokens in the pieces that are merged apart, in the alphabet of bytes."""
        if not text:
            return []
        with raising(InvalidRequest, "the model's own tokenizer gives up on this text"):
            return [piece for piece, _ in self._pre_tokenizer.pre_tokenize_str(text)]

    def _merge(self, piece: str) -> list[int]:
        """Join the two neighbours of the best merge, leftmost first, until none is left."""
        ids, ranks = self._tables.ids, self._ranks
        if self._tables.pre.ignore_merges and piece in ids:
            return [ids[piece]]
        parts = [char for char in piece if char in ids]  # the others are lost bytes
        while len(parts) > 1:
            rank, at = min((ranks.get(f"{a} {b}", _NO_MERGE), i) for i, (a, b) in enumerate(pairwise(parts)))
            if rank == _NO_MERGE:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [ids[part] for part in parts]

    def _token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
        if not 0 <= token_id < self.size:
            return b""
        text = self._tables.tokens[token_id]
        return text.encode() if token_id in self.special or token_id in self._user_defined else bpe.bytes_of(text)

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(self._tables.merges, range(len(self._tables.merges)), strict=True))

    @cached_property
    def _find_added(self) -> Literals:
        return Literals({**self._tables.control, **self._tables.user_defined})

    @cached_property
    def _pre_tokenizer(self) -> PreTokenizers:
        return bpe.pre_tokenizer(self._tables.pre)
