"""Live comparison with transformers on every tiny config: logits of whole and chunked prompts, and greedy text."""

from __future__ import annotations

import numpy as np
import pytest

import make_parity
import tiny
from ridgeline.weights.load import open_checkpoint

pytestmark = pytest.mark.parity
BOUND = 1e-4


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def model(request, tmp_path_factory):
    """(transformers' model, our checkpoint) of one tiny config, with weights the stored values do not use."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[request.param]
    tensors = tiny.weights(c, seed=1)
    folder = tiny.write_hf(tmp_path_factory.mktemp(request.param), c, tensors)
    return make_parity.transformers_model(c, tensors), open_checkpoint(folder)


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65, 200])
def test_logits(model, backend, length):
    theirs, checkpoint = model
    ids = tiny.prompt(length, seed=length)
    expected = make_parity.transformers_logits(theirs, ids)
    step = tiny.compile_model(checkpoint, backend)
    for chunks in ((), (1, 16, 50), (64,)):
        got = tiny.run_step(step, step.layout, ids, chunks)
        assert np.abs(got - expected).max() <= BOUND, chunks


def test_greedy_text(model, backend):
    theirs, checkpoint = model
    ids = tiny.prompt(20, seed=3)
    step = tiny.compile_model(checkpoint, backend)
    ours, expected = tiny.greedy(step, step.layout, ids, 32), list(ids)
    for _ in range(32):
        expected.append(int(make_parity.transformers_logits(theirs, expected)[-1].argmax()))
    assert ours == expected[20:]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_stored_values_are_what_transformers_gives(name):
    """parity.npz is up to date: make_parity.py would write the same again."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[name]
    theirs = make_parity.transformers_model(c, tiny.weights(c))
    with np.load(make_parity.STORED) as stored:
        for length in make_parity.LENGTHS:
            logits = make_parity.transformers_logits(theirs, tiny.prompt(length))[make_parity.POSITIONS[length]]
            assert np.abs(logits - stored[f"{name}/{length}"]).max() <= BOUND / 10
