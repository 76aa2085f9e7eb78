"""Watermarks through the engine: the same answers whatever the steps, replays and neighbours, and found again."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from collected import Collected, prompt_of, run
from fake import fake_engine

import toy
from letters import SCHEMAS, Letters, of_schema
from ridgeline.config import WATERMARKS, EngineConfig
from ridgeline.engine.client import LocalClient
from ridgeline.engine.detection import detect
from ridgeline.engine.load import load
from ridgeline.engine.params import Grammar, SamplingParams
from ridgeline.engine.records import Submit
from ridgeline.engine.watermark import Watermark
from ridgeline.guidance.compiler import Compiler
from ridgeline.ops.green import WIDTH

SHAPES = [{"step_tokens": 8}, {"depth": 2}, {"depth": 3, "windows": (0, 40)}, {"pages": 8}]


def asks(scheme: str, **more) -> list[tuple[list[int], SamplingParams]]:
    params = SamplingParams(seed=3, max_tokens=60, ignore_eos=True, watermark=Watermark(scheme), **more)
    return [(prompt_of(n, n), params) for n in (1, 2, 5, 70, 200)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", WATERMARKS)
def test_steps_in_flight_and_short_pools_change_nothing(scheme, shape):
    """The fake picks by the tokens before, as the record has them."""
    windows = shape.get("windows", (0,))
    alone = [run(fake_engine(windows=windows), [ask])[0].tokens for ask in asks(scheme, n=2)]
    assert [c.tokens for c in run(fake_engine(**shape), asks(scheme, n=2))] == alone
    plain = [(prompt, msgspec.structs.replace(params, watermark=None)) for prompt, params in asks(scheme, n=2)]
    assert [c.tokens for c in run(fake_engine(**shape), plain)] != alone


@pytest.mark.parametrize("scheme", WATERMARKS)
def test_a_replay_goes_on_alike(scheme):
    for prompt, params in asks(scheme):
        whole = run(fake_engine(), [(prompt, params)])[0].tokens[0]
        for known in (1, 3, 17):
            engine, tokens = fake_engine(depth=2), whole[:known]
            engine.submit(Submit(0, tuple(prompt), params, 3, 60, (tuple(tokens),)))
            while not engine.idle:
                tokens += [t.id for delta in engine.step().deltas for t in delta.tokens]
            assert tokens == whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scheme", WATERMARKS)
def test_marks_go_with_grammars_whatever_the_steps_and_replays(scheme, shape):
    letters = Letters()
    compiler, windows = Compiler(letters, 1000), shape.get("windows", (0,))
    asked = [
        ([20] * 9, SamplingParams(grammar=of_schema(schema), max_tokens=60, seed=5, n=2, watermark=Watermark(scheme)))
        for schema in SCHEMAS[:4]
    ]  # fmt: skip

    def new(**settings):
        return fake_engine(compiler=compiler, eos=letters.eos_ids, **settings)

    alone = [run(new(windows=windows), [ask])[0].tokens for ask in asked]
    assert [c.tokens for c in run(new(**shape), asked)] == alone
    plain = [(prompt, msgspec.structs.replace(params, watermark=None)) for prompt, params in asked]
    assert [c.tokens for c in run(new(**shape), plain)] != alone
    for (prompt, params), whole in zip(asked, alone, strict=True):
        begun = tuple(tuple(whole[c][:3]) for c in range(2))
        if min(map(len, whole.values())) <= 3:
            continue
        engine, rest = new(windows=windows), Collected()
        engine.submit(Submit(1, tuple(prompt), params, 5, 60, begun))
        while not engine.idle:
            for delta in engine.step().deltas:
                rest(delta)
        assert {c: [*begun[c], *rest.tokens[c]] for c in range(2)} == whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(toy.write(tmp_path_factory.mktemp("toy")))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scheme", WATERMARKS)
def test_marked_answers_are_found(folder, scheme, backend):
    """Sampled ones, choices and penalised ones too, and those without a watermark are not."""
    if backend == "cpu":
        pytest.importorskip("ridgeline.backends.cpu._native", reason="the native module is not built")
    config = EngineConfig(folder, backend=backend, threads=1, kv_memory=4 << 20)
    if backend == "reference":
        config = replace(config, activations="float32", kv_format="f32")
    client, seen = LocalClient(load(config).engine), {}
    tried = [Watermark(name, 0.4, 3.0, 99) for name in WATERMARKS]
    mark = tried[WATERMARKS.index(scheme)]
    for name, more in {
        "sampled": {"watermark": mark, "n": 2},
        "penalised": {"watermark": mark, "presence_penalty": 0.5, "top_p": 0.95},
        "greedy": {"watermark": mark, "temperature": 0, "frequency_penalty": 1.0},
        "guided": {"watermark": mark, "grammar": Grammar("regex", "[a-z ]{130}"), "ignore_eos": False},
        "plain": {},
    }.items():
        seen[name] = Collected()
        client.submit(prompt_of(9), SamplingParams(max_tokens=150, seed=4, **{"ignore_eos": True, **more}), seen[name])
    while not client.idle:
        client.pump()
    for name, collected in seen.items():
        for ids in collected.tokens.values():
            found = detect(ids, tried)
            assert found.marked == (name != "plain")
            assert name == "plain" or (found.scheme == scheme and found.tokens_scored <= 150 - WIDTH[mark.number])
