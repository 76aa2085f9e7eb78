"""Live comparison with transformers on every tiny config: logits of whole and chunked prompts, and greedy text.

Then LongRoPE on both sides of its original context, and configs as transformers itself writes them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

import make_parity
import tiny
from families.phi3 import BOTH_FACTORS
from ridgeline.models.config import for_context
from ridgeline.models.hf import from_hf
from ridgeline.weights.load import open_checkpoint

pytestmark = pytest.mark.parity
BOUND = 1e-4


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def model(request, tmp_path_factory):
    """(transformers' logits of ids, our checkpoint) of a tiny config, with weights the stored values do not use."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[request.param]
    tensors = tiny.weights(c, seed=1)
    folder = tiny.write_hf(tmp_path_factory.mktemp(request.param), c, tensors)
    theirs = make_parity.transformers_model(c, tensors)
    logits = functools.cache(lambda ids: make_parity.transformers_logits(theirs, ids))  # each backend asks for the same
    return lambda ids: logits(tuple(ids)), open_checkpoint(folder)


@pytest.mark.parametrize("length", [1, 2, 17, 63, 64, 65, 200])
def test_logits(model, backend, length):
    theirs, checkpoint = model
    ids = tiny.prompt(length, seed=length)
    expected = theirs(ids)
    step = tiny.compile_model(checkpoint, backend)
    for chunks in ((), (1, 16, 50), (64,)):
        got = tiny.run_step(step, step.layout, ids, chunks)
        assert np.abs(got - expected).max() <= BOUND, chunks


def test_batched_logits(model, backend):
    """Two sequences in one step, ragged: one whole beside the other's pieces."""
    theirs, checkpoint = model
    prompts = [tiny.prompt(90, seed=5), tiny.prompt(140, seed=6)]
    step = tiny.compile_model(checkpoint, backend)
    runners = [tiny.Runner(step, step.layout, half=i) for i in (0, 1)]
    got: list[list[np.ndarray]] = [[], []]
    for cuts in (((0, 1), (0, 70)), ((1, 66), (70, 71)), ((66, 90), (71, 140))):
        logits = tiny.feed_together(runners, [p[a:b] for p, (a, b) in zip(prompts, cuts, strict=True)]).logits
        first = cuts[0][1] - cuts[0][0]
        got[0].append(np.array(logits[:first]))
        got[1].append(np.array(logits[first:]))
    for ids, rows in zip(prompts, got, strict=True):
        assert np.abs(np.concatenate(rows) - theirs(ids)).max() <= BOUND


def test_greedy_text(model, backend):
    theirs, checkpoint = model
    ids = tiny.prompt(20, seed=3)
    step = tiny.compile_model(checkpoint, backend)
    ours, expected = tiny.greedy(step, step.layout, ids, 64), list(ids)
    for _ in range(64):
        expected.append(int(theirs(expected)[-1].argmax()))
    assert ours == expected[20:]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_stored_values_are_what_transformers_gives(name):
    """parity.npz is up to date: make_parity.py would write the same again. It was written on a processor with AVX-512;
    others add up in different orders, which moves logits of 100 by 2e-5."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[name]
    theirs = make_parity.transformers_model(c, tiny.weights(c))
    alike = torch.backends.cpu.get_cpu_capability() == "AVX512"
    with np.load(make_parity.STORED) as stored:
        for length in make_parity.LENGTHS:
            logits = make_parity.transformers_logits(theirs, tiny.prompt(length))[make_parity.POSITIONS[length]]
            there = stored[f"{name}/{length}"]
            rounding = 0.0 if alike else 2 * np.finfo(np.float32).eps * np.abs(there).max()
            assert np.abs(logits - there).max() <= BOUND / 10 + rounding


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("context", [tiny.CONTEXT, 64], ids=["long", "short"])
def test_longrope_by_the_context(tmp_path, backend, context, kind):
    """A context of at most the original 64 takes the short factors, as transformers does for prompts that short."""
    pytest.importorskip("transformers")
    c, tensors = BOTH_FACTORS, tiny.weights(BOTH_FACTORS)
    assert c["original_max_position_embeddings"] == 64 and c["max_position_embeddings"] == tiny.CONTEXT
    if kind == "hf":
        path = tiny.write_hf(tmp_path / "m", c, tensors)
    else:
        pytest.importorskip("gguf")
        path = tiny.write_gguf(tmp_path / "m.gguf", tiny.gguf_metadata(c), tiny.gguf_tensors(c, tensors))
    checkpoint = open_checkpoint(path)
    asked = replace(checkpoint, config=for_context(checkpoint.config, context))
    assert (asked.config == checkpoint.config) == (context > 64)
    theirs = make_parity.transformers_model(c, tensors)
    step = tiny.compile_model(asked, backend)
    for length in (65, 200) if context > 64 else (2, 17, 64):
        ids = tiny.prompt(length, seed=length)
        expected = make_parity.transformers_logits(theirs, ids)
        for chunks in ((), (16, 40)):
            got = tiny.run_step(step, step.layout, ids, chunks)
            assert np.abs(got - expected).max() <= BOUND, (length, chunks)


def test_the_two_sets_of_factors_differ():
    """The test above would notice the wrong set: transformers' first rows of a long text are not those of a short."""
    pytest.importorskip("transformers")
    theirs = make_parity.transformers_model(BOTH_FACTORS, tiny.weights(BOTH_FACTORS))
    short, long = (make_parity.transformers_logits(theirs, tiny.prompt(n))[:64] for n in (64, 65))
    assert np.abs(short - long).max() > 100 * BOUND


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_configs_that_transformers_writes(tmp_path, name):
    """What is read from a config.json does not change when transformers reads it and saves it in its own spelling."""
    pytest.importorskip("transformers")
    c = tiny.CONFIGS[name]
    make_parity.transformers_config(c).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved != c and from_hf(saved) == from_hf(c)
