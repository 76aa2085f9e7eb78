"""Watermark: what of it a request asks for. Kept free of numpy for clients; ops/green.py says what is green."""

from __future__ import annotations

import msgspec

from ridgeline.config import WATERMARKS
from ridgeline.errors import InvalidRequest

PUBLIC_KEY = 15485863  # the one that TGI and the paper's code have
CANDIDATES = 40  # likeliest tokens that selfhash looks at
MAX_DELTA = 100.0


class Watermark(msgspec.Struct, frozen=True):
    """Green-list watermark: `gamma` of all tokens are green at each place, and their logits gain `delta`.

    scheme: "lefthash" (a list for each token before: TGI's), "minhash" (for the 4 before) or "selfhash" (for 3 before
    and the candidate itself; only the CANDIDATES likeliest tokens are looked at). Whoever has the key can tell, and
    forge.
    """

    scheme: str = "lefthash"
    gamma: float = 0.5
    delta: float = 2.0
    key: int = PUBLIC_KEY

    @property
    def number(self) -> int:
        """The scheme as ops/green.py counts them."""
        return WATERMARKS.index(self.scheme)

    @property
    def below(self) -> int:
        """Colours below this are green."""
        return min(max(round(self.gamma * 2**32), 1), 2**32 - 1)


def check_watermark(w: Watermark) -> None:
    """InvalidRequest naming the field, its value and what is allowed."""
    if w.scheme not in WATERMARKS:
        raise InvalidRequest(
            f"watermark scheme {w.scheme[:40]!r} is not known; choose one of {', '.join(WATERMARKS)}", "watermark"
        )
    if not 0 < w.gamma < 1:
        raise InvalidRequest(f"watermark gamma must be above 0 and below 1, is {w.gamma}", "watermark")
    if not 0 < w.delta <= MAX_DELTA:
        raise InvalidRequest(f"watermark delta must be above 0 and at most {MAX_DELTA:g}, is {w.delta}", "watermark")
    if not 0 <= w.key < 1 << 64:
        raise InvalidRequest("a watermark key is a number of 64 bits", "watermark")
