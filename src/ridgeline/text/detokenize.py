"""Token ids to text, one token at a time.

Owns the bytes of an unfinished character and nothing else. The pieces always join to `Tokenizer.decode` of
all ids, because both are the same UTF-8 decoding of the same bytes; so nothing is ever decoded twice.
"""

from __future__ import annotations

from codecs import utf_8_decode

from ridgeline.text.tokenizer import Tokenizer


class Detokenizer:
    """Incremental `Tokenizer.decode`. O(1) per token; holds at most three bytes.

    Bytes that can no longer become valid UTF-8 come out as U+FFFD; bytes that still can are held back.
    """

    __slots__ = ("_held", "_skipped", "_token_bytes")

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special if skip_special else frozenset()
        self._held = b""

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "", never part of a character."""
        if token_id in self._skipped:
            return ""
        data = self._held + self._token_bytes(token_id)
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def flush(self) -> str:
        """What is left at the end of the stream: "" or one U+FFFD."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")
