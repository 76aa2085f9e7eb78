"""typical_p against the warper of transformers, on what other cuts leave."""

from __future__ import annotations

import numpy as np
import pytest

from ridgeline.ops.sample import _truncate

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("digits", [1, 7])
@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9, 0.99])
def test_the_same_tokens_survive(p: float, digits: int) -> None:
    """Also with -inf among the logits, and with ties (one digit)."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    process = pytest.importorskip("transformers.generation.logits_process", reason="transformers is not installed")
    rng = np.random.default_rng(int(1000 * p) + digits)
    for vocab, scale in ((1, 1.0), (2, 1.0), (50, 2.0), (1000, 0.5), (1000, 3.0), (5000, 6.0)):
        x = np.round(scale * rng.standard_normal(vocab), digits).astype(np.float32)
        x[rng.random(vocab) < 0.3] = -np.inf
        x[0] = 0
        # In double, so that sums round alike.
        theirs = process.TypicalLogitsWarper(p)(None, torch.from_numpy(x.astype(np.float64))[None])[0].numpy()
        assert _truncate(x, 0, 1.0, 0.0, p).tolist() == np.flatnonzero(theirs > -np.inf).tolist()
