"""SentencePiece BPE: pieces with scores and byte fallback, merged exactly as sentencepiece merges them.

Owns normalisation, user-defined pieces, merging, and the bytes behind pieces; its inputs are already validated.
It must not know file formats. The `tokenizers` package finds the literal pieces but cannot do the merging: it ranks
each *pair* apart, where SentencePiece compares the *merged* pieces, so that two ways to make one piece (or two pieces
of equal score) tie and the leftmost goes first. No order of pairs says that: `a aaa a` under the piece `aaaa` wants
the left one of (a, aaa) and (aaa, a), `aaa a aaa` again the left one, which is the other pair.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from ridgeline.errors import InvalidRequest
from ridgeline.text.vocab import Span

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_OF = {piece: bytes([byte]) for byte, piece in enumerate(BYTE_PIECES)}
_END = -1  # no token: the end of the text
_BLANKS = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")  # Unicode White_Space
_CACHED_CHUNKS = 1 << 15
_MAX_CACHED_CHARS = 48


def bytes_of(piece: str) -> bytes:
    """The bytes that an ordinary or byte piece stands for."""
    return _BYTE_OF.get(piece) or piece.replace(SPACE, " ").encode()


class Pieces(msgspec.Struct, frozen=True):
    """A vocabulary in id order. `kinds` are SentencePiece's (GGUF's token types); user-defined texts are normalised:
    U+2581 for each space. All 256 byte pieces are there, and no text twice. `right_strip`: ids of control and
    user-defined tokens that take the whitespace after them; they cut the text even where special tokens stay unread."""

    texts: Sequence[str]
    scores: np.ndarray  # [vocab] float32, finite
    kinds: Sequence[int]
    space_prefix: bool
    right_strip: frozenset[int] = frozenset()


class SentencePiece:
    """Text to ids and back over `Pieces`. Immutable but for a cache.

    Each stretch of text between special tokens is encoded as sentencepiece encodes a whole text, so it gets a
    space in front of it where the vocabulary asks for one. Time is O(n log n) in the text's length.
    """

    lost_bytes: frozenset[int] = frozenset()

    def __init__(self, pieces: Pieces) -> None:
        texts, kinds = pieces.texts, pieces.kinds
        self._texts, self._kinds = texts, kinds
        self.size = len(texts)
        special = {text: i for i, text in enumerate(texts) if kinds[i] in (CONTROL, UNKNOWN)}
        self.special = frozenset(special.values())
        user = {text: i for i, text in enumerate(texts) if kinds[i] == USER_DEFINED}
        self._right_strip = pieces.right_strip
        apart = {text.replace(SPACE, " "): i for text, i in user.items() if i in self._right_strip}
        self._find_special, self._find_apart = Literals(special | apart), Literals(apart)
        self._find_user = Literals({text: i for text, i in user.items() if i not in self._right_strip})
        # Control, unknown and byte pieces are beyond the reach of merging, whatever the text says.
        self._ids = {text: i for i, text in enumerate(texts) if kinds[i] not in (CONTROL, UNKNOWN, BYTE)}
        found = {text: i for i, text in enumerate(texts) if kinds[i] == BYTE}
        self._byte_ids = [found[piece] for piece in BYTE_PIECES]
        order = np.unique(-np.asarray(pieces.scores, np.float32), return_inverse=True)[1].tolist()
        self._rank = {text: order[i] for text, i in self._ids.items() if len(text) > 1}
        self._joined = _bigrams(list(self._rank))
        self._unused = frozenset(text for text, i in self._ids.items() if kinds[i] == UNUSED and len(text) > 1)
        self._prefix = SPACE if pieces.space_prefix else ""
        self._cached = functools.lru_cache(_CACHED_CHUNKS)(self._chunk_spans)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`; special tokens' texts are read as those tokens if `parse_special`."""
        return [token_id for token_id, _, _ in self.spans(text, parse_special)]

    def spans(self, text: str, parse_special: bool = True) -> list[Span]:
        """(id, start, stop) in characters of `text`, tiling it; the bytes of one character share its place.

        Raises InvalidRequest for text that is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the text is not valid Unicode (a lone surrogate); send well-formed text") from error
        spans: list[Span] = []
        at = 0
        found = self._find_special(text) if parse_special else self._find_apart(text)
        for token_id, start, stop in [*found, (_END, len(text), len(text))]:
            if start < at:  # it begins with blanks that the token before has taken
                continue
            if start > at:
                spans += self._plain(text[at:start], at)
            blanks = _BLANKS.match(text, stop) if token_id in self._right_strip else None
            at = blanks.end() if blanks else stop
            if token_id != _END:
                spans.append((token_id, start, at))
        return spans

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one piece (a special token's are its text), b"" for an id beyond the vocabulary."""
        if not 0 <= token_id < self.size:
            return b""
        text = self._texts[token_id]
        return text.encode() if token_id in self.special else bytes_of(text)

    def _plain(self, text: str, offset: int) -> Iterator[Span]:
        """Spans of text without special tokens, shifted by `offset`. User-defined pieces never merge."""
        normal = self._prefix + text.replace(" ", SPACE)
        shift, at = offset - len(self._prefix), 0
        for user_id, start, stop in [*self._find_user(normal), (_END, len(normal), len(normal))]:
            for chunk in self._chunks(normal[at:start]):
                for token_id, first, last in self._chunk(chunk):
                    yield token_id, max(shift + at + first, offset), max(shift + at + last, offset)
                at += len(chunk)
            if user_id != _END:
                yield user_id, max(shift + start, offset), max(shift + stop, offset)
            at = stop

    def _chunks(self, text: str) -> Iterator[str]:
        """`text` cut wherever no piece spans the cut: merging on one side cannot touch the other."""
        joined, start = self._joined, 0
        for at in range(1, len(text)):
            if text[at - 1 : at + 1] not in joined:
                yield text[start:at]
                start = at
        if text:
            yield text[start:]

    def _chunk(self, chunk: str) -> tuple[Span, ...]:
        return self._cached(chunk) if len(chunk) <= _MAX_CACHED_CHARS else self._chunk_spans(chunk)

    def _chunk_spans(self, chunk: str) -> tuple[Span, ...]:
        """Spans within `chunk`."""
        spans: list[Span] = []
        at = 0
        for part in self._merge(chunk):
            stop = at + len(part)
            token_id = self._ids.get(part)
            if token_id is None or self._kinds[token_id] == UNUSED:
                spans += [(self._byte_ids[byte], at, stop) for byte in part.encode()]
            else:
                spans.append((token_id, at, stop))
            at = stop
        return tuple(spans)

    def _merge(self, text: str) -> list[str]:
        """Join the neighbours whose union has the best score, leftmost first, until no union is a piece."""
        n, rank, unused = len(text), self._rank.get, self._unused
        bits, mask = n.bit_length(), (1 << n.bit_length()) - 1
        # ends[i]: where the symbol that starts at i stops; n where none starts. ends[n] makes an empty union.
        ends, before = [*range(1, n + 1), 0], [*range(-1, n)]
        splits: dict[str, int] = {}
        agenda: list[int] = []  # rank of the union, then its start
        for i in range(n - 1):
            if (found := rank(text[i : i + 2])) is not None:
                agenda.append(found << bits | i)
                if text[i : i + 2] in unused:
                    splits[text[i : i + 2]] = 1
        heapq.heapify(agenda)
        while agenda:
            entry = heapq.heappop(agenda)
            left = entry & mask
            middle = ends[left]
            right = ends[middle]
            # A stale entry finds no union of its rank here. If it finds another of the same rank, that one is as good.
            if rank(text[left:right]) != entry >> bits:
                continue
            ends[left], ends[middle] = right, n
            if left:
                start = before[left]
                union = text[start:right]
                if (found := rank(union)) is not None:
                    heapq.heappush(agenda, found << bits | start)
                    if union in unused:
                        splits[union] = left - start
            if right < n:
                before[right] = left
                union = text[left : ends[right]]
                if (found := rank(union)) is not None:
                    heapq.heappush(agenda, found << bits | left)
                    if union in unused:
                        splits[union] = right - left
        parts, at = [], 0
        while at < n:
            parts += self._resegment(text[at : ends[at]], splits)
            at = ends[at]
        return parts

    def _resegment(self, part: str, splits: Mapping[str, int]) -> list[str]:
        """Unused pieces help others to form but are never emitted: take them apart as they formed.

        A piece forms in the same way wherever it stands, for until then nothing around it has touched it; so it
        does not matter that sentencepiece remembers the last way seen in the whole text, and we that in the chunk.
        """
        if part not in self._unused:
            return [part]
        parts, pending = [], [part]
        while pending:
            part = pending.pop()
            if part in self._unused and part in splits:
                pending += [part[splits[part] :], part[: splits[part]]]
            else:
                parts.append(part)
        return parts


class Literals:
    """Finds given texts in a text: leftmost, then longest; linear in the text whatever the texts are."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        from tokenizers import AddedToken, Tokenizer, models

        self._other = max(ids.values(), default=0) + 1
        # Of the package only its matching is used: what is no literal comes back as one unknown word.
        self._matcher = Tokenizer(models.WordLevel({**ids, "": self._other}, unk_token=""))
        self._matcher.add_tokens([AddedToken(text, normalized=False) for text in ids])
        self._empty = not ids

    def __call__(self, text: str) -> list[Span]:
        if self._empty:
            return []
        found = self._matcher.encode(text, add_special_tokens=False)
        pairs = zip(found.ids, found.offsets, strict=True)
        return [(token_id, *span) for token_id, span in pairs if token_id != self._other]


def _bigrams(texts: Sequence[str]) -> frozenset[str]:
    """All pairs of neighbouring characters in `texts`."""
    codes = np.frombuffer("\0".join(texts).encode("utf-32-le"), "<u4").astype(np.uint64)
    keys = np.unique(codes[:-1] << np.uint64(32) | codes[1:]) if len(codes) else codes
    raw = keys.astype(">u8").tobytes().decode("utf-32-be")
    return frozenset(raw[i : i + 2] for i in range(0, len(raw), 2))
