"""Beam search against transformers on tiny models: the same answers in the same order, with the same scores."""

from __future__ import annotations

import numpy as np
import pytest

import make_parity
import tiny
import toy
from ridgeline import LLM, SamplingParams

pytestmark = pytest.mark.parity
WIDTH, NEW = 4, 24


@pytest.fixture(scope="module", params=[toy.CONFIG, toy.WINDOWED], ids=["llama", "mistral"])
def both(request, tmp_path_factory):
    """(transformers' model, ours) of one tiny config."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = toy.write(tmp_path_factory.mktemp("toy"), request.param)
    theirs = make_parity.transformers_model(request.param, tiny.weights(request.param))
    ours = LLM(str(folder), backend="reference", activations="float32", kv_format="f32", kv_memory=8 << 20)
    return theirs, ours


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 1.7])
def test_answers_and_scores(both, early, penalty):
    import torch

    theirs, ours = both
    ended = 0
    for seed in range(4):
        prompt = tiny.prompt(12 + 17 * seed, seed=seed)
        given = {"inputs": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)), "pad_token_id": 0}
        # Ends that random weights like: those which a plain search meets.
        first = theirs.generate(**given, max_new_tokens=NEW, do_sample=False)
        ends = sorted({int(i) for i in first[0, len(prompt) + 3 :: 7]})[:3]
        got = theirs.generate(
            **given, num_beams=WIDTH, num_return_sequences=WIDTH, do_sample=False, eos_token_id=ends,
            max_new_tokens=NEW, early_stopping=early, length_penalty=penalty, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        params = SamplingParams(
            beams=WIDTH, n=WIDTH, max_tokens=NEW, stop_token_ids=tuple(ends), ignore_eos=True, logprobs=0,
            early_stopping=early, length_penalty=penalty,
        )  # fmt: skip
        answers = ours.generate(prompt, params)[0].completions
        for answer, text, score in zip(answers, got.sequences, got.sequences_scores, strict=True):
            tokens = [t.id for t in answer.tokens]
            assert tokens == text[len(prompt) :][: len(tokens)].tolist()
            total = sum(t.logprob for t in answer.tokens)
            assert np.isclose(total / len(tokens) ** penalty, float(score), rtol=1e-4)
            ended += answer.finish_reason == "stop_sequence"
    assert ended
