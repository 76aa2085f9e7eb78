"""The offline API over a toy model: order of results, refusals, streams, and what is left behind."""

from __future__ import annotations

import numpy as np
import pytest

import toy
from ridgeline import LLM, SamplingParams
from ridgeline.errors import ConfigError, EngineFailed, InvalidRequest, TemplateError


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = toy.write(tmp_path_factory.mktemp("toy"))
    return LLM(str(folder), backend="reference", activations="float32", kv_memory=8 << 20, max_requests=2, queue=2)


GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def test_results_are_in_order_of_the_prompts(llm):
    prompts = ["one", "two", "three", "four", "five", "six", "seven"]
    together = llm.generate(prompts, GREEDY)
    assert [o.prompt for o in together] == prompts
    assert [o.text for o in together] == [llm.generate(p, GREEDY)[0].text for p in prompts]


def test_ids_and_text_are_the_same_prompt(llm):
    ids = llm.tokenizer.encode("hello", add_special=True)
    assert llm.generate(ids, GREEDY)[0].text == llm.generate(["hello"], GREEDY)[0].text


def test_a_refusal_leaves_nothing_running(llm):
    with pytest.raises(InvalidRequest, match="the prompt has"):
        llm.generate(["fine", "x" * 5000], GREEDY)
    assert llm.client.idle
    assert llm.generate("fine", GREEDY)[0].completions[0].finish_reason == "length"


def test_more_choices_than_fit_are_refused(llm):
    with pytest.raises(InvalidRequest, match="n is 5"):
        llm.generate("x", SamplingParams(n=5, max_tokens=1))


def test_choices_seeds_and_logprobs(llm):
    params = SamplingParams(n=3, seed=7, max_tokens=5, logprobs=2, prompt_logprobs=True, ignore_eos=True)
    first, again = llm.generate("abc", params)[0], llm.generate("abc", params)[0]
    assert [c.text for c in first.completions] == [c.text for c in again.completions]
    assert [len(c.tokens) for c in first.completions] == [5, 5, 5]
    assert all(len(t.top) == 2 and t.logprob <= 0 for c in first.completions for t in c.tokens)
    assert [t.id for t in first.prompt_logprobs] == first.prompt_ids[1:]


def test_a_stream_that_is_left_ends(llm):
    for delta in llm.stream("abc", SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)):
        assert delta.tokens
        break
    assert len(llm.generate("abc", GREEDY)[0].completions[0].tokens) == 4


def test_chat_needs_a_template(llm, tmp_path):
    assert llm.chat([{"role": "user", "content": "hi"}], GREEDY).completions[0].finish_reason == "length"
    bare = LLM(str(toy.write(tmp_path, template=None)), backend="reference", kv_memory=8 << 20)
    with pytest.raises(TemplateError, match="no chat template"):
        bare.chat([{"role": "user", "content": "hi"}])


def test_prompt_logprobs_are_those_of_the_model(llm):
    """Summed from the logits of a step over the same ids."""
    from ridgeline.tools.evaluate import score

    ids = llm.tokenizer.encode("some text", add_special=True)
    output = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=True, logprobs=0))[0]
    rows = np.concatenate(list(score(llm._loaded.step, llm._loaded.step.layout, ids)))
    x = rows[: len(ids) - 1].astype(np.float64)
    want = x[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(x).sum(axis=1))
    np.testing.assert_allclose([t.logprob for t in output.prompt_logprobs], want, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": "and"},
        {"stop": [1]},
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": 1e-39},
        {"max_tokens": 1.5},
        {"n": 1.5},
        {"seed": 1.5},
        {"logit_bias": {"1": 5.0}},
        {"stop_token_ids": 5},
        {"ignore_eos": "x"},
        {"logprobs": 1.5},
        {"stop": ("x" * 5000,)},
        {"stop_token_ids": tuple(range(257))},
        {"typical_p": "x"},
        {"min_tokens": 1.5},
        {"bad_words": ("and",)},
        {"bad_words": (5,)},
        {"forced": "and"},
    ],
    ids=str,
)
def test_wrong_parameters_are_refused_and_nothing_stays(llm, wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        llm.generate("abc", SamplingParams(**wrong))
    with pytest.raises(InvalidRequest):
        next(llm.stream("abc", SamplingParams(**wrong)))
    assert llm.client.idle
    assert llm.generate("abc", GREEDY)[0].completions[0].finish_reason == "length"


@pytest.mark.parametrize("prompts", [None, 5, np.array([1, 2, 3]), [None], [[1.5]], {"a": 1}], ids=str)
def test_wrong_prompts_are_refused(llm, prompts):
    with pytest.raises(InvalidRequest):
        llm.generate(prompts, GREEDY)
    with pytest.raises(InvalidRequest):
        llm.generate("abc", {"temperature": 0})


@pytest.mark.parametrize(
    "settings", [{"threads": "2"}, {"kv_memory": "512M"}, {"step_tokens": 1 << 20}, {"smoothing": 0.5}], ids=str
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LLM("smollm2-135m", **settings)


def test_a_model_of_no_numbers_is_an_error(tmp_path):
    folder = toy.write(tmp_path)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)
    file.write_bytes(data)
    broken = LLM(folder, backend="reference", kv_memory=8 << 20, activations="float32")
    with np.errstate(all="ignore"), pytest.raises(EngineFailed, match="not numbers"):
        broken.generate("abc", GREEDY)
