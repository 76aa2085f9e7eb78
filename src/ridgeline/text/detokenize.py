"""Token ids to text, one token at a time.

Owns the bytes of an unfinished character and nothing else. The pieces always join to `Tokenizer.decode` of
all ids, because both are the same UTF-8 decoding of the same bytes; so nothing is ever decoded twice.
"""

from __future__ import annotations

import codecs

from ridgeline.text.tokenizer import Tokenizer

_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental `Tokenizer.decode`. O(1) per token; holds at most three bytes.

    Bytes that can no longer become valid UTF-8 come out as U+FFFD; bytes that still can are held back.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = _DECODER(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "", never part of a character."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end of the stream: "" or one U+FFFD."""
        return self._decoder.decode(b"", final=True)
