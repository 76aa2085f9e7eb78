"""What a tokenizer is made of: the backend that encodes and spells, and what the model's files say beside it.

Owns the records that pass from the readers (`gguf_vocab`, `hf_vocab`) to `Tokenizer`, and which tokens end a turn.
It must not know file formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from ridgeline.errors import ModelFileError

Span = tuple[int, int, int]  # id, start, stop (characters of the text)

# A chat model may end its turn with any of these, whatever single id its file declares.
_TURN_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")
MAX_ENDS = 256  # tokens that end a text


class SpecialTokens(msgspec.Struct, frozen=True):
    """What a model's files say beside the vocabulary. `*_token` are texts for templates, "" if none."""

    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    tail: tuple[int, ...] = ()  # ids that end a text which stands for itself, as for an embedding
    bos_token: str = ""
    eos_token: str = ""
    chat_template: str | None = None


class Backend(Protocol):
    """Text to ids, and ids to exact bytes. Immutable.

    `special` are control tokens; `lost_bytes` those that no token can spell. Text that is not valid Unicode is
    InvalidRequest.
    """

    size: int
    special: frozenset[int]

    @property
    def lost_bytes(self) -> frozenset[int]: ...

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, with no special token among them unless `parse_special`."""
        ...

    def spans(self, text: str) -> list[Span]:
        """Ids with special tokens parsed, and where each lies in `text`, which they tile."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, a special token's text; b"" for an id without a token."""
        ...


def turn_ends(
    declared: Iterable[int | None], special: Mapping[str, int], user_defined: Mapping[str, int], is_chat: bool
) -> frozenset[int]:
    """The ids that end a turn: those declared, and in a chat model those of well-known name.

    ModelFileError where there are more than MAX_ENDS.
    """
    ends = {token_id for token_id in declared if token_id is not None}
    if is_chat:
        # A user-defined </s> is the end of an HTML element (Gemma's vocabulary has both kinds).
        named = {name: token_id for name, token_id in user_defined.items() if name != "</s>"} | dict(special)
        # In the harmony format <|end|> closes a message, not the turn; <|return|> gives that format away.
        harmony = "<|return|>" in named
        ends |= {named[name] for name in _TURN_ENDS if name in named and not (harmony and name == "<|end|>")}
    if len(ends) > MAX_ENDS:
        raise ModelFileError(f"eos_token_id: {len(ends)} tokens that end a text; at most {MAX_ENDS}")
    return frozenset(ends)
