"""What a request asks of its own tokens, through the native backend: the same picks and scores as the oracle's."""

from __future__ import annotations

import pytest

import toy
from ridgeline import LLM, SamplingParams

EXACT = {"activations": "float32", "kv_format": "f32", "threads": 1, "kv_memory": 4 << 20, "max_requests": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[LLM]:
    folder = toy.write(tmp_path_factory.mktemp("toy"))
    return [LLM(folder, backend=name, **EXACT) for name in ("cpu", "reference")]


def said(llm: LLM, params: SamplingParams) -> list[list[int]]:
    return [[t.id for t in c.tokens] for c in llm.generate("abc", params)[0].completions]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_oracle_says_the_same(models: list[LLM], temperature: float) -> None:
    plain = {"temperature": temperature, "seed": 5, "n": 2, "max_tokens": 16, "ignore_eos": True}
    before = said(models[0], SamplingParams(**plain))[0]
    words = ((before[2],), tuple(before[5:7]))
    for more in (
        {"typical_p": 0.4},
        {"bad_words": words},
        {"bad_words": words, "repetition_penalty": 1.3, "top_k": 50},
        {"min_tokens": 8, "stop_token_ids": tuple(before[1:6])},
        {"forced": (70, 71, 72), "bad_words": words},
    ):
        answers = [said(llm, SamplingParams(**(plain | more))) for llm in models]
        assert answers[0] == answers[1]
        if "bad_words" in more:
            assert all(before[2] not in tokens for tokens in answers[0])
        if "min_tokens" in more:
            assert all(len(t) > 8 and not set(before[1:6]) & set(t[:8]) for t in answers[0])
        if "forced" in more:
            assert all(tokens[:3] == [70, 71, 72] for tokens in answers[0])


@pytest.mark.parametrize("processed", [False, True])
def test_forced_tokens_have_the_models_own_logprobs(models: list[LLM], processed: bool) -> None:
    """Those that they would have as a prompt's, whatever sampling asks for."""
    llm = models[0]
    prompt, forced = llm.tokenizer.encode("abc", add_special=True), [70, 71, 72, 73]
    known = llm.generate([[*prompt, *forced]], SamplingParams(max_tokens=1, logprobs=3, prompt_logprobs=True))[0]
    asked = SamplingParams(
        max_tokens=6, logprobs=3, forced=tuple(forced), temperature=0.3, top_k=1, processed_logprobs=processed
    )
    tokens = llm.generate([prompt], asked)[0].completions[0].tokens
    assert known.prompt_logprobs is not None and tokens[:4] == known.prompt_logprobs[-4:]
