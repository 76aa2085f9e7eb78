"""A tiny config made wrong must be refused by a typed error that says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from ridgeline.models.hf import from_hf

Refusal = tuple[str, dict[str, Any], type[Exception], str]  # base config, changes, error, words in its message


def check_refused(refusal: Refusal) -> None:
    """Exactly that error, not a kind of it."""
    base, changes, error, words = refusal
    with pytest.raises(error, match=words) as raised:
        from_hf(tiny.changed(tiny.CONFIGS[base], **changes), "dir/config.json")
    assert type(raised.value) is error
