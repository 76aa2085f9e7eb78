"""Perplexity, KL and agreement: by hand on made-up logits, and on tiny models driven in chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tiny
import toy
from ridgeline.config import EngineConfig
from ridgeline.engine.load import load
from ridgeline.errors import InvalidRequest
from ridgeline.program.batch import BatchLayout, Limits, StepResult
from ridgeline.tools import evaluate

VOCAB = 10
LAYOUT = BatchLayout(Limits(tokens=64, requests=1, rows=64, pages=4, vocab=VOCAB, hidden=8), ("kv",))


class FakeStep:
    """Logits given by a function of the token alone."""

    def __init__(self, logits_of):
        self.layout, self.logits_of = LAYOUT, logits_of
        self.chunks = []

    def run(self, batch):
        ids = batch["ids"].tolist()
        self.chunks.append(len(ids))
        rows = np.array([self.logits_of(i) for i in ids], np.float32)
        nothing = np.zeros(len(ids))
        return StepResult(batch.size("step"), nothing, nothing, nothing, nothing, logits=rows)


def uniform(token):
    return np.zeros(VOCAB)


def counting(token):
    """Half the probability on the next number, the rest on all others alike."""
    p = np.full(VOCAB, 0.5 / (VOCAB - 1))
    p[(token + 1) % VOCAB] = 0.5
    return np.log(p)


COUNTED = [i % VOCAB for i in range(150)]


def run(logits_of, texts, reference=None):
    made = (FakeStep(reference), LAYOUT) if reference else None
    return evaluate.evaluate((FakeStep(logits_of), LAYOUT), texts, made)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    done = run(uniform, [COUNTED])
    assert done.tokens == 149 and done.perplexity == pytest.approx(VOCAB)
    assert done.kl is None and done.top1_agreement is None and done.perplexity_ratio is None


def test_perplexity_is_the_geometric_mean_over_all_windows():
    done = run(counting, [COUNTED[:100], COUNTED[100:], [3, 3]])
    assert done.tokens == 99 + 49 + 1
    assert done.nll == pytest.approx(148 * math.log(2) - math.log(0.5 / (VOCAB - 1)))


def test_kl_and_agreement_by_hand():
    done = run(uniform, [COUNTED], counting)
    expected = 0.5 * math.log(0.5 * VOCAB) + 0.5 * math.log(0.5 / (VOCAB - 1) * VOCAB)
    assert done.kl == pytest.approx(expected)
    assert done.top1_agreement == pytest.approx(COUNTED[:-1].count(VOCAB - 1) / 149)  # argmax of zeros is 0
    assert done.perplexity_ratio == pytest.approx(VOCAB / 2) and done.reference_perplexity == pytest.approx(2)


def test_a_model_against_itself_loses_nothing():
    done = run(counting, [COUNTED], counting)
    assert (done.kl, done.top1_agreement, done.perplexity_ratio) == (0, 1, 1)


def test_impossible_tokens_of_the_reference_count_nothing():
    p, q = np.log(np.array([[0.5, 0.5]])), np.log(np.array([[0.25, 0.75]]))
    with np.errstate(divide="ignore"):
        excluded = np.log(np.array([[1.0, 0.0]]))
    assert evaluate.kl_divergence(excluded, p) == pytest.approx(math.log(2))
    assert evaluate.kl_divergence(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))


def test_a_hopeless_model_is_infinitely_perplexed():
    assert evaluate.Evaluation(1, 1000.0).perplexity == math.inf


def test_rows_come_in_chunks():
    step = FakeStep(uniform)
    assert [len(rows) for rows in evaluate.score(step, LAYOUT, COUNTED)] == [64, 64, 22] == step.chunks


def test_windows():
    ids = list(range(11))
    assert evaluate.windows(ids, 4, 100) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert evaluate.windows(ids, 4, 9) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert evaluate.windows(ids, 4, 7, bos=99) == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6]]
    with pytest.raises(InvalidRequest, match="at least 1"):
        evaluate.windows([], 4, 7, bos=99)


@pytest.mark.parametrize(("ids", "window"), [([], 4), ([5], 4), ([1, 2, 3], 1)])
def test_a_text_that_predicts_nothing_is_refused(ids, window):
    with pytest.raises(InvalidRequest, match="at least 2"):
        evaluate.windows(ids, window, 100)


@pytest.mark.parametrize("config", [toy.CONFIG, toy.WINDOWED], ids=["full", "windowed"])
def test_scores_equal_a_plain_run(tmp_path, config):
    folder = toy.write(tmp_path / "m", config)
    settings = {"backend": "reference", "activations": "float32", "kv_format": "f32"}
    loaded = load(EngineConfig(str(folder), context=192, max_requests=1, step_tokens=64, **settings))
    ids = tiny.prompt(150)
    got = np.concatenate([rows.copy() for rows in evaluate.score(loaded.step, loaded.step.layout, ids)])
    checkpoint = loaded.opened.checkpoint
    step = tiny.compile_model(checkpoint, loaded.opened.backend)
    np.testing.assert_array_equal(got, tiny.run_step(step, step.layout, ids))
