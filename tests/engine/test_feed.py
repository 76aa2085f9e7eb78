"""LLM.generate over any number of prompts: the engine stays full, a refusal comes first, nothing is left behind."""

from __future__ import annotations

import pytest
from fake import fake_engine

import toy
from ridgeline import LLM, SamplingParams
from ridgeline.engine.client import LocalClient
from ridgeline.errors import InvalidRequest

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = toy.write(tmp_path_factory.mktemp("toy"))
    return LLM(str(folder), backend="reference", activations="float32", kv_memory=8 << 20)


@pytest.fixture
def busy(llm, monkeypatch):
    """The model's tokenizer over an engine that takes no time: sequences in each step, by step."""
    engine = fake_engine(max_requests=8, eos=frozenset(range(0, 1000, 20)))
    filled = []
    engine.observe = lambda flight, result: filled.append(len(flight.chunks))
    monkeypatch.setattr(llm, "client", LocalClient(engine))
    return filled


def test_ten_thousand_prompts_keep_the_engine_full(llm, busy):
    prompts = [[1 + i % 900, 1 + i // 900] for i in range(10_000)]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=6, seed=3))
    assert [o.prompt for o in outputs] == prompts
    assert all(o.completions[0].finish_reason in ("length", "eos_token") for o in outputs)
    assert len({len(o.completions[0].tokens) for o in outputs}) == 6  # they end at different times
    full = next(i for i, n in enumerate(busy) if n < 8)
    assert sum(busy[full:]) < 8 * 6 and set(busy[:full]) == {8}  # short of work only when nothing is left to begin
    assert outputs[7_777].text == llm.generate([prompts[7_777]], SamplingParams(max_tokens=6, seed=3))[0].text


def test_choices_fill_the_engine_too(llm, busy):
    outputs = llm.generate([[1], [2], [3]] * 50, SamplingParams(max_tokens=4, n=3, ignore_eos=True))
    assert [len(o.completions) for o in outputs] == [3] * 150
    assert max(busy) == 8 and sum(busy[:-4]) > 0.7 * 8 * len(
        busy[:-4]
    )  # two choices in three wait for the first's prompt


@pytest.mark.parametrize("wrong", [[5, 1000], [], None, "\ud800", list(range(1024))], ids=repr)
def test_a_refusal_names_its_prompt_before_any_runs(llm, busy, wrong):
    with pytest.raises(InvalidRequest, match="^prompt 600: "):
        llm.generate([[1]] * 600 + [wrong, [2]], GREEDY)
    assert busy == [] and llm.client.idle


def test_a_refusal_of_one_prompt_has_no_number(llm, busy):
    with pytest.raises(InvalidRequest, match="^token id 1000 is outside"):
        llm.generate([5, 1000], GREEDY)


def test_an_interrupted_call_leaves_nothing(llm, busy, monkeypatch):
    pump, count = llm.client.pump, iter(range(100))

    def interrupted(timeout):
        pump(timeout)
        if next(count) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(llm.client, "pump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1]] * 1000, GREEDY)
    assert llm.client.idle
    assert len(llm.generate([[1]], GREEDY)[0].completions[0].tokens) == 4
