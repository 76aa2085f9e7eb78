"""A pipeline of the `tokenizers` package as a backend, and how such a vocabulary spells bytes.

Owns what the package leaves open: exact bytes of each token, and text in which special tokens stay unread.
It must not know where the pipeline came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import msgspec

from ridgeline.errors import InvalidRequest, RidgelineError
from ridgeline.text import bpe, spm
from ridgeline.text.vocab import Span

if TYPE_CHECKING:
    import tokenizers


class Spelling(msgspec.Struct, frozen=True):
    """How tokens stand for bytes. `of`: an entry of the model's vocabulary; `of_added`: an added token that is not
    special; `single`: the 256 tokens of one byte each."""

    of: Callable[[str], bytes]
    of_added: Callable[[str], bytes]
    single: Sequence[str]


_CACHED_TOKENS = 1 << 14

BYTE_LEVEL = Spelling(bpe.bytes_of, str.encode, bpe.ALPHABET)
BYTE_FALLBACK = Spelling(spm.bytes_of, spm.bytes_of, spm.BYTE_PIECES)


class Pipeline:
    """A `tokenizers.Tokenizer` whose post-processor adds nothing. Immutable."""

    def __init__(self, backend: tokenizers.Tokenizer, spelling: Spelling = BYTE_LEVEL) -> None:
        self._backend = backend
        self._spelling = spelling
        self._added = backend.get_added_tokens_decoder()
        self.special = frozenset(token_id for token_id, token in self._added.items() if token.special)
        self.token_bytes = lru_cache(_CACHED_TOKENS)(self._token_bytes)
        self.size: int = max(backend.get_vocab_size(with_added_tokens=True), max(self._added, default=-1) + 1)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`; special tokens' texts are read as those tokens if `parse_special`."""
        if parse_special:
            return list(_run(self._backend, text).ids)
        ids: list[int] = []
        for token_id in _run(self._plain, text).ids:
            ids += self._spelled(token_id) if token_id in self.special else [token_id]
        return ids

    def spans(self, text: str) -> list[Span]:
        """(id, start, stop) in characters of `text`; parts of one character share its place.

        The blanks that an added token strips are part of its place; where the package reads them, or another token
        that begins with them, a second time, they stay with the first.
        """
        encoding = _run(self._backend, text)
        spans: list[Span] = []
        at, floor, place = 0, 0, (0, 0)
        after_added = False
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            is_added = token_id in self._added
            if after_added or (is_added and (start, stop) != place):
                floor = at
            at = max(stop, floor)
            spans.append((token_id, max(start, floor), at))
            place, after_added = (start, stop), is_added
        return spans

    def _token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
        if token_id in self._added:
            token = self._added[token_id]
            return token.content.encode() if token.special else self._spelling.of_added(token.content)
        text = self._backend.id_to_token(token_id)
        return b"" if text is None else self._spelling.of(text)

    @cached_property
    def lost_bytes(self) -> frozenset[int]:
        """Bytes no token can spell. `encode` drops them, as the model's own tokenizer does; callers warn."""
        return frozenset(range(256)) - self._byte_ids.keys()

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        found = ((byte, self._backend.token_to_id(text)) for byte, text in enumerate(self._spelling.single))
        return {byte: token_id for byte, token_id in found if token_id is not None and token_id not in self.special}

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
    with raising(InvalidRequest, "the model's own tokenizer gives up on this text"):
        try:
            return backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text is not valid Unicode (a lone surrogate); send well-formed text") from error


@contextmanager
def raising(kind: type[RidgelineError], message: str) -> Iterator[None]:
    """Whatever the `tokenizers` package raises, as `kind`; our own errors as they are."""
    try:
        yield
    except BaseException as error:
        # The package raises bare Exception, and where its native code panics (a pattern that runs into its retry
        # limit) a class that derives from BaseException alone and cannot be imported: its name is all there is.
        is_theirs = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if isinstance(error, RidgelineError) or not is_theirs:
            raise
        raise kind(f"{message}: {error!s:.200}") from error
