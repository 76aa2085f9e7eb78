"""Green lists, the watermark of Kirchenbauer et al. (2023): which tokens are green behind which others, under a key.

The one definition, for sampling and for detection. A token is green iff a 32-bit hash of (seed, token) is below
gamma * 2^32: no permutation of the vocabulary, so a token's colour costs the same whatever the vocabulary. The seed is
that of the tokens before:
- LEFT_HASH: a hash of the token before (TGI's scheme; "simple_1" in the paper's code);
- MIN_HASH: the least of the hashes of the 4 tokens before, so that an edit of one seldom changes it;
- SELF_HASH: the least of the hashes of 3 tokens before and the token itself, each together with the token itself (the
  anchored min-hash of Kirchenbauer et al. 2024, window 4): every candidate has a seed of its own.
Schemes hash under different keys, so a text that one of them marks is unmarked for the others.
"""

from __future__ import annotations

import numpy as np

from ridgeline.ops.noise import GOLDEN, mix, mix_with
from ridgeline.ops.spec import Array

LEFT_HASH, MIN_HASH, SELF_HASH = range(3)
WIDTH = {LEFT_HASH: 1, MIN_HASH: 4, SELF_HASH: 3}  # tokens before that the colour hangs on
MOST = 4  # of these


def seeds(scheme: int, key: int, past: Array, ids: Array) -> Array:
    """uint64 seeds of ids [n] behind past [n or 1, WIDTH]."""
    own = mix(mix(key + GOLDEN) + (scheme + 1) * GOLDEN)
    hashes = mix_with(own, past)
    if scheme == SELF_HASH:
        among = [*hashes.T, mix_with(own, ids)]
        hashes = np.stack([mix_with(np.broadcast_to(x, ids.shape), ids) for x in among], axis=1)
    least: Array = hashes.min(axis=1)
    return least


def colours(seed: Array, ids: Array) -> Array:
    """uint32 hashes of ids [n] under seeds [n or 1]: green below gamma * 2^32. Wellons' lowbias32 with a key."""
    with np.errstate(over="ignore"):
        low, high = seed.astype(np.uint32), (seed >> np.uint64(32)).astype(np.uint32)
        x = (ids.astype(np.uint32) + np.uint32(1)) * np.uint32(0x9E3779B9) ^ low
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = ((x ^ (x >> np.uint32(15))) + high) * np.uint32(0x846CA68B)
        coloured: Array = x ^ (x >> np.uint32(16))
    return coloured
