"""Prompts for models that fill in the middle: what stands before a gap and behind it, between a vocabulary's own marks.

Which marks a vocabulary has is found by asking it. It must not know requests.
"""

from __future__ import annotations

import msgspec

from ridgeline.text.tokenizer import Tokenizer


class Marks(msgspec.Struct, frozen=True):
    """A prompt is `before`, what precedes a gap, `between`, what follows the gap, `after`; an answer fills the gap."""

    before: str
    between: str
    after: str


KNOWN = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite code
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)


def infill(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int] | None:
    """Ids of the prompt, or None where the vocabulary has no such marks. Marks within the texts are text."""
    for marks in KNOWN:
        ids = [_single(tokenizer, mark) for mark in (marks.before, marks.between, marks.after)]
        if None not in ids:
            before, between, after = (id for id in ids if id is not None)
            bos = tokenizer.encode("", add_special=True)
            texts = [tokenizer.encode(text, add_special=False, parse_special=False) for text in (prefix, suffix)]
            return [*bos, before, *texts[0], between, *texts[1], after]
    return None


def _single(tokenizer: Tokenizer, mark: str) -> int | None:
    """The token that a mark is, or None where it is text of several."""
    ids = tokenizer.encode(mark, add_special=False)
    return ids[0] if len(ids) == 1 else None
