"""SentencePiece vocabularies as GGUF metadata: a hand-made one, and random ones full of ties."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
Piece = tuple[str, float, int]  # text, score, kind
BASE: list[Piece] = [
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)),
]


def metadata(pieces: Sequence[Piece], **changes: Any) -> dict[str, Any]:
    """`changes` replace keys by their last part, None removes one."""
    values = {
        "model": "llama",
        "tokens": [text for text, _, _ in pieces],
        "scores": [score for _, score, _ in pieces],
        "token_type": [kind for _, _, kind in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def random_pieces(rng: random.Random) -> list[Piece]:
    """Pieces joined of earlier ones, so that they form and overlap in many ways; few scores or many, in no order;
    a character that pieces hold need not be a piece."""
    texts = list(rng.choice(["a", "ab", "ab\u2581", "a\u2581é", "abc\u2581é"]))
    for _ in range(rng.randint(3, 24)):
        texts.append(rng.choice(texts) + rng.choice(texts))
    scores = rng.choice([[0.0], [0.0, -1.0], [-float(rank) for rank in range(30)], [-1.0, 1.0, 2.0, 3.0]])
    other = rng.choices([UNUSED, USER_DEFINED, CONTROL], [6, 2, 1], k=rng.choice([0, 0, 1, 4]))
    kept = [text for text in dict.fromkeys(texts) if text != "\u2581" and len(text) <= 16 and rng.random() < 0.9]
    made = [(text, rng.choice(scores), rng.choice([*[NORMAL] * 6, *other])) for text in kept]
    return [*BASE, ("\u2581", rng.choice(scores), NORMAL), *made]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice("aaabbc \u2581é") for _ in range(rng.choice([3, 10, 30])))
