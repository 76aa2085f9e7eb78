"""Steps whose rows want hidden states alone: the same states, and no logits are computed."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import tiny
from ridgeline.engine.single import fill
from ridgeline.program.batch import WANT_HIDDEN, WANT_IDS, Batch
from ridgeline.weights.load import open_checkpoint

IDS = tiny.prompt(20)


@pytest.fixture
def step(backend, tmp_path):
    c = next(iter(tiny.CONFIGS.values()))
    return tiny.compile_model(open_checkpoint(tiny.write_hf(tmp_path, c, tiny.weights(c))), backend)


def batch_of(step, want: int) -> Batch:
    batch = Batch(step.layout)
    fill(batch, IDS, 0, want)
    return batch


def test_hidden_states_are_the_same_without_logits(step):
    both, alone = (step.run(batch_of(step, want)) for want in (WANT_HIDDEN | WANT_IDS, WANT_HIDDEN))
    assert np.array_equal(both.hidden, alone.hidden) and both.hidden.shape[0] == len(alone.ids) == len(IDS)


def test_one_row_that_is_sampled_from_is_enough(step):
    mixed, whole = batch_of(step, WANT_HIDDEN), batch_of(step, WANT_HIDDEN | WANT_IDS)
    mixed["want"][3] |= WANT_IDS
    for batch in (mixed, whole):
        batch["sampler"]["target"] = -1
    assert step.run(mixed).ids[3] == step.run(whole).ids[3]


def test_no_logits_are_computed(backend, step, monkeypatch):
    if backend.name == "cpu":
        for want, computed in ((WANT_HIDDEN | WANT_IDS, True), (WANT_HIDDEN, False)):
            *_, head = (work for instr, _, work in step.profile(batch_of(step, want)) if instr.op == "linear")
            assert (head > 0) == computed
        return
    module, ran = importlib.import_module(type(step).__module__), []
    real = module.interpret
    monkeypatch.setattr(
        module, "interpret", lambda entry, *rest, **more: ran.append(entry) or real(entry, *rest, **more)
    )
    step.run(batch_of(step, WANT_HIDDEN))
    assert ran == [step.program.forward]
