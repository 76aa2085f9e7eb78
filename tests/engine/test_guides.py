"""Grammars in the engine: whatever the batch, the pages and the depth, an answer is that of its request alone."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict

import jsonschema
import msgspec
import numpy as np
import pytest
from collected import Collected, drain, run, seeds, start
from fake import fake_engine

from letters import END, FIRST, OTHER_END, SCHEMAS, Letters, of_schema
from ridgeline.engine.client import LocalClient
from ridgeline.engine.params import Grammar, SamplingParams
from ridgeline.engine.records import EOS, EXPIRED, FAILED, LENGTH, UNGUIDED, Submit, Terms
from ridgeline.errors import InvalidRequest
from ridgeline.guidance.closing import Ways
from ridgeline.guidance.compiler import Compiler
from ridgeline.guidance.guide import Guide, Move
from ridgeline.text.call_grammars import allowing, forcing, quoted
from ridgeline.text.conventions import HERMES

ENDS = {END, OTHER_END}
LETTERS = Letters()
COMPILER = Compiler(LETTERS, 1000)


def engine(**settings):
    return fake_engine(compiler=COMPILER, eos=LETTERS.eos_ids, **settings)


def guided(schema: dict, max_tokens: int = 60, seed: int = 1, **more) -> SamplingParams:
    return SamplingParams(grammar=of_schema(schema), max_tokens=max_tokens, seed=seed, **more)


def valid(tokens: list[int], schema: dict) -> bool:
    jsonschema.validate(json.loads(LETTERS.decode(tokens)), schema)
    return True


def requests(seed: int, count: int = 10) -> list[tuple[list[int], SamplingParams]]:
    """Some with grammars, some without, some that share beginnings."""
    draw, found = random.Random(seed), []
    for i in range(count):
        prompt = [20 + draw.randrange(3)] * draw.randrange(1, 150)
        if i % 3 == 2:
            found.append((prompt, SamplingParams(max_tokens=draw.randrange(1, 80), seed=i)))
            continue
        more = {"logprobs": draw.choice([None, None, 0, 2]), "n": draw.choice([1, 1, 3])}
        found.append((prompt, guided(draw.choice(SCHEMAS), draw.randrange(50, 90), i, **more)))
    return found


def test_answers_match_their_schemas_and_end():
    asked = [([20] * 9, guided(schema, seed=seed)) for schema in SCHEMAS for seed in range(3)]
    for (_, params), seen in zip(asked, run(engine(), asked), strict=True):
        assert seen.finish[0] == [EOS]
        assert valid(seen.tokens[0], json.loads(params.grammar.value))


@pytest.mark.parametrize("seed", seeds(6, 1))
@pytest.mark.parametrize(
    "settings",
    [{"depth": 2, "pages": 11}, {"windows": (0, 32)}, {"step_tokens": 5}, {"policy": "fair", "depth": 3, "pages": 12}],
    ids=str,
)
def test_any_batch_gives_each_request_what_it_gets_alone(seed, settings):
    asked = requests(seed)
    together = run(engine(**settings), asked)
    for request, seen in zip(asked, together, strict=True):
        (alone,) = run(engine(windows=settings.get("windows", (0,))), [request])
        assert seen.tokens == alone.tokens
        assert seen.finish == alone.finish


def test_logprobs_change_no_token():
    for schema in SCHEMAS:
        (plain,), (scored,) = (run(engine(), [([30] * 5, guided(schema, logprobs=k))]) for k in (None, 0))
        assert plain.tokens == scored.tokens


@pytest.mark.parametrize("seed", seeds(4, 1))
@pytest.mark.parametrize(
    "settings",
    [{}, {"depth": 2, "pages": 11}, {"windows": (0, 32)}, {"step_tokens": 5}, {"depth": 3, "pages": 12}],
    ids=str,
)
def test_forced_tokens_have_the_logprobs_that_they_have_when_they_are_sampled(monkeypatch, seed, settings):
    """Whatever parts they are computed in, and though they are preempted."""
    asked = [(prompt, msgspec.structs.replace(params, logprobs=2)) for prompt, params in requests(seed)]
    with monkeypatch.context() as patch:
        patch.setattr(Guide, "_jumps", property(lambda guide: False, lambda guide, jumps: None), raising=False)
        each = run(engine(windows=settings.get("windows", (0,))), asked)
    assert [seen.scored for seen in run(engine(**settings), asked)] == [seen.scored for seen in each]


TOOLS = {"see": {"properties": {"x": {"enum": [1]}}, "required": ["x"]}}
CALLS = [Grammar("lark", write(HERMES, TOOLS, quoted, True)) for write in (allowing, forcing)]


@pytest.mark.parametrize("logprobs", [None, 0])
def test_free_text_is_cut_off_by_its_limit_and_not_made_to_end(logprobs):
    for limit in (1, 2, 20):
        params = SamplingParams(grammar=CALLS[0], max_tokens=limit, n=3, logprobs=logprobs)
        seen = run(engine(), [([30 + i] * 5, msgspec.structs.replace(params, seed=i)) for i in range(8)])
        answers = [(a.tokens[c], a.finish[c]) for a in seen for c in range(3)]
        cut = [tokens for tokens, finish in answers if finish == [LENGTH]]
        assert len(cut) > 5 and all(len(tokens) == limit and not ENDS & {*tokens} for tokens in cut)
        assert all(finish == [EOS] and tokens[-1] in ENDS for tokens, finish in answers if tokens not in cut)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_a_forced_call_ends_as_one_though_another_could_follow(more):
    limit = len(COMPILER.compile(CALLS[1]).result().closing) + more
    asked = [([30] * 5, SamplingParams(grammar=CALLS[1], max_tokens=limit, seed=i, n=2)) for i in range(4)]
    for seen in run(engine(), asked):
        assert seen.finish == {0: [EOS], 1: [EOS]}
        assert '"arguments": {"x": 1}' in LETTERS.decode(seen.tokens[0])


def test_what_is_promised_to_be_whole_ends_at_its_limit():
    for grammar in (*map(of_schema, SCHEMAS), Grammar("regex", "[a-z]*")):
        limit = len(COMPILER.compile(grammar).result().closing)
        for seen in run(
            engine(), [([30] * 5, SamplingParams(grammar=grammar, max_tokens=limit, seed=i)) for i in (1, 2)]
        ):
            assert seen.finish[0] == [EOS] and len(seen.tokens[0]) <= limit
            assert grammar.kind == "regex" or valid(seen.tokens[0], json.loads(grammar.value))


@pytest.mark.parametrize("logprobs", [None, 1])
def test_forced_tokens_take_no_steps(logprobs):
    client = LocalClient(engine())
    schema = {"const": "a text that is the only one there may be"}
    (seen,) = start(client, [([30] * 5, guided(schema, logprobs=logprobs))])
    drain(client)
    assert len(seen.tokens[0]) > 30
    assert client.engine.step_number < (4 if logprobs is None else 8)  # of 16 rows each


@pytest.mark.parametrize("more", [1, 3])
def test_a_prompts_logprobs_and_a_replaced_first_token_go_together(more):
    for schema in SCHEMAS:
        limit = len(COMPILER.compile(of_schema(schema)).result().closing) + more
        for seed in range(4, 8):
            params = guided(schema, limit, seed=seed, logprobs=0)
            (plain,) = run(engine(), [([30] * 5, params)])
            (both,) = run(engine(), [([30] * 5, msgspec.structs.replace(params, prompt_logprobs=True))])
            assert both.scored == plain.scored and both.finish == plain.finish and len(both.prompt) == 4


def test_a_forced_token_whose_logits_are_no_numbers_ends_its_answer(monkeypatch):
    e = engine()
    run_step = e.executor.step.run

    def broken(batch):
        result = run_step(batch)
        result.logprobs[batch["sampler"]["target"] == FIRST + ord("l")] = np.nan
        return result

    monkeypatch.setattr(e.executor.step, "run", broken)
    (seen,) = run(e, [([30] * 5, guided({"const": "all of it"}, logprobs=0))])
    assert seen.finish[0] == [FAILED] and all(token.logprob == token.logprob for token in seen.scored[0])


def test_tokens_that_nobody_has_yet_keep_no_deadline():
    limit = len(COMPILER.compile(of_schema(SCHEMAS[6])).result().closing) + 1
    for seed in range(40):  # until a first token is replaced
        now = [0.0]
        e = engine(clock=lambda now=now: now[0])
        params = guided(SCHEMAS[6], limit, logprobs=0)
        e.submit(Submit(1, (30,) * 40, params, seed, limit, terms=Terms(wait_s=5)))
        (s,) = e._live[1]
        while not e.step().deltas:
            if s.unscored:
                now[0] = 6.0
                assert [d.finish for d in e.step().deltas] == [EXPIRED]
                return
    pytest.fail("no first token was replaced")


@pytest.mark.parametrize("logprobs", [None, 0])
def test_what_must_follow_is_delivered_before_a_guide_fails(monkeypatch, logprobs):
    monkeypatch.setattr(Guide, "glance", lambda guide, token, patient: Move((token, 40, 41, 42), failed="bound"))
    (seen,) = run(engine(), [([30] * 5, guided(SCHEMAS[0], logprobs=logprobs))])
    assert seen.tokens[0][1:] == [40, 41, 42] and seen.finish[0] == [UNGUIDED]


LONG = {"type": "object", "properties": {"x": {"const": "one of many " * 9}, "y": {"enum": [1, 2]}}, "required": ["x"]}


@pytest.mark.parametrize("step_tokens", [5, 32])
def test_forced_tokens_are_delivered_once_each_though_they_are_preempted(step_tokens):
    asked = [([30] * 5, guided(LONG, 400, seed=seed, logprobs=1)) for seed in (1, 2)]
    each = [run(engine(), [request])[0] for request in asked]
    e = engine(step_tokens=step_tokens, depth=2)
    client = LocalClient(e)
    seen = start(client, asked)
    due = defaultdict(lambda: [80, 50, 20])  # tokens of a run that are still to come, by request
    while not client.idle:
        client.pump()
        for s in [s for s in e.scheduler.running if due[s.id] and 0 < s.unscored <= due[s.id][0]]:
            due[s.id].pop(0)
            e.scheduler._preempt(s, s)
    assert [*due.values()] == [[], []]
    assert [x.scored for x in seen] == [x.scored for x in each]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("cut", [1, 9])
def test_a_replay_goes_on_as_the_answer_would_have(cut, cached):
    for schema in (*SCHEMAS[:5], LONG):
        for logprobs in (None, 0):
            first, limit = engine(), 40 + 200 * (schema is LONG)
            params = guided(schema, limit, logprobs=logprobs, n=2)
            (whole,) = run(first, [([30] * 5, params)])
            begun = tuple(tuple(whole.tokens[c][:cut]) for c in range(2))
            done = tuple(c for c in range(2) if len(whole.tokens[c]) <= cut)
            if len(done) == 2:
                continue
            other, rest = first if cached else engine(), Collected()
            other.submit(Submit(99, (30,) * 5, params, params.seed, limit, begun, done))
            while not other.idle:
                for delta in other.step().deltas:
                    rest(delta)
            for c in {0, 1} - set(done):
                assert rest.scored[c] == whole.scored[c][cut:]


def test_stop_strings_and_cancels_end_guided_answers():
    client = LocalClient(engine(stop=7))
    sinks = start(client, [([30] * 5, guided(SCHEMAS[0], seed=s)) for s in range(6)])
    client.cancel(1)
    drain(client)
    assert all(len(seen.finish[0]) == 1 for seen in sinks)


def test_others_run_while_a_grammar_is_compiled(monkeypatch):
    gate, compiler = threading.Event(), Compiler(LETTERS, 1000)
    slow = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda grammar: (gate.wait(20), slow(grammar))[1])
    e = fake_engine(compiler=compiler, eos=LETTERS.eos_ids, max_requests=1)
    e.submit(Submit(1, (30,) * 5, guided(SCHEMAS[0]), 1, 60))
    e.submit(Submit(2, (30,) * 5, SamplingParams(max_tokens=5, ignore_eos=True), 1, 5))
    seen = [d for _ in range(12) for d in e.step().deltas]
    assert [d.id for d in seen] == [2] * 5  # and the one that waits has no place yet
    assert not e.idle and not e.resting
    gate.set()
    while not e.idle:
        seen += e.step().deltas
    assert seen[-1].id == 1 and seen[-1].finish == EOS


def test_a_request_may_leave_while_its_grammar_is_compiled(monkeypatch):
    gate, compiler = threading.Event(), Compiler(LETTERS, 1000)
    slow = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda grammar: (gate.wait(20), slow(grammar))[1])
    e = fake_engine(compiler=compiler, eos=LETTERS.eos_ids, policy="fair")
    e.submit(Submit(1, (30,) * 5, guided(SCHEMAS[0], n=2), 1, 60))
    e.step()
    e.cancel(1)
    assert [d.finish for d in e.step().deltas] == ["cancelled", "cancelled"]
    gate.set()
    for _ in range(20):
        assert not e.step().deltas
    assert e.idle and e.pool.used == 0


def test_a_late_mask_delays_only_its_own_row(monkeypatch):
    glance, late = Guide.glance, []

    def dawdle(guide, token, patient):
        if guide.closing is None or len(guide.closing) > 15:  # the one of the long schema
            time.sleep(0.03)
            late.append(token)
        return glance(guide, token, patient)

    monkeypatch.setattr(Guide, "glance", dawdle)
    long = {"type": "object", "properties": {f"k{i}": {"type": "boolean"} for i in range(9)}, "required": ["k8", "k7"]}
    COMPILER.compile(of_schema(long)).result()
    e = engine()
    e.submit(Submit(1, (30,) * 5, guided(long, 400, logprobs=0), 1, 400))
    e.submit(Submit(2, (30,) * 5, SamplingParams(max_tokens=900, ignore_eos=True), 1, 900))
    while not late:
        e.step()
    for _ in range(80):
        assert 2 in {d.id for d in e.step().deltas}
    assert len(late) < 40
    e.cancel(1)
    e.cancel(2)


def test_a_search_is_waited_for_by_its_own_row_alone(monkeypatch):
    within, gate, searched = Ways.within, threading.Event(), []

    def long(*args):
        searched.append(args)
        gate.wait(20)
        return within(*args)

    compiled = COMPILER.compile(of_schema(SCHEMAS[1])).result()
    monkeypatch.setattr(Ways, "straight", lambda *args: None)
    monkeypatch.setattr(Ways, "within", long)
    e = engine()
    most = len(compiled.closing) + 30
    e.submit(Submit(1, (30,) * 5, guided(SCHEMAS[1], most), 1, most))
    e.submit(Submit(2, (30,) * 5, SamplingParams(max_tokens=900, ignore_eos=True), 1, 900))
    while not searched:
        assert not any(d.finish for d in e.step().deltas)
        time.sleep(1e-3)  # the other request must outlast the way there
    for _ in range(20):
        assert {d.id for d in e.step().deltas} == {2}
    gate.set()
    while not any(d.id == 1 and d.finish == EOS for d in e.step().deltas):
        pass
    e.cancel(2)


def test_late_answers_leave_the_cores_to_others_while_there_are_any(monkeypatch):
    seen: list[tuple[float, bool]] = []

    class Rests(threading.Event):
        def wait(self, timeout=None):
            seen.append((timeout, self.is_set()))
            return True

    glance = Guide.glance
    monkeypatch.setattr(
        Guide, "glance", lambda guide, token, patient: (time.sleep(0.002), glance(guide, token, patient))[1]
    )
    e = engine()
    e.guides._alone = Rests()
    e.submit(Submit(1, (30,) * 5, guided(SCHEMAS[0], 400, logprobs=0), 1, 400))
    e.submit(Submit(2, (30,) * 5, SamplingParams(max_tokens=900, ignore_eos=True), 1, 900))
    while len(seen) < 3:
        e.step()
        time.sleep(5e-4)  # the other request must outlast three late answers
    assert all(timeout >= 0.008 and not alone for timeout, alone in seen)
    e.cancel(2)
    while not e.idle:
        e.step()
    assert seen[-1][1]


def test_a_guide_that_fails_ends_its_request_with_a_reason(monkeypatch):
    grammar = Grammar("lark", 'start: "a" start')

    def fail(guide, token, patient):
        raise RuntimeError("as if out of bounds")

    monkeypatch.setattr(Guide, "glance", fail)
    asked = [([30] * 5, SamplingParams(grammar=grammar, max_tokens=9)), ([30] * 5, SamplingParams(max_tokens=9))]
    broken, other = run(engine(), asked)
    assert broken.finish[0] == [UNGUIDED]
    assert len(other.tokens[0]) == 9


def test_bad_grammars_are_refused_before_anything_is_queued():
    client = LocalClient(engine())
    with pytest.raises(InvalidRequest, match="/contains"):
        client.submit([30], guided({"type": "array", "contains": {}}), Collected())
    with pytest.raises(InvalidRequest, match=r"max_tokens is 3; .* has \d+ tokens"):
        client.submit([30], guided(SCHEMAS[0], 3), Collected())
    bare = LocalClient(fake_engine())
    with pytest.raises(InvalidRequest, match="not available"):
        bare.submit([30], guided(SCHEMAS[0]), Collected())
    assert client.idle and bare.idle
