"""/metrics: in Prometheus's own format, ours and TGI's names, what is counted, and the board that is shipped."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import Server, until

from ridgeline.config import AccessConfig
from ridgeline.engine.ledger import Failures
from ridgeline.engine.records import Counters, StepDelta, Steps
from ridgeline.errors import Overloaded
from ridgeline.server.exposition import exposition
from ridgeline.server.keys import Key
from ridgeline.server.record import Record
from ridgeline.server.tgi_metrics import TGIMetrics

BOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
CHAT = "/v1/chat/completions"
USER = {"messages": [{"role": "user", "content": "hello"}]}
TGI = {
    "counter": "request_count request_success request_failure batch_inference_count batch_inference_success "
    "batch_inference_failure batch_concat",
    "gauge": "queue_size batch_current_size batch_current_max_tokens batch_max_total_tokens",
    "histogram": "request_duration request_validation_duration request_queue_duration request_inference_duration "
    "request_mean_time_per_token_duration request_generated_tokens request_input_length request_max_new_tokens "
    "request_skipped_tokens batch_next_size batch_inference_duration batch_forward_duration batch_decode_duration "
    "batch_filter_duration batch_concat_duration",
}
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')


def read(body: bytes) -> tuple[dict[str, float], dict[str, str]]:
    """Samples by name and labels as they are written, and types by family."""
    samples, types = {}, {}
    for line in body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types, f"{name} comes twice"
            types[name] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found, line
            name = found[1] + (f"{{{found[2]}}}" if found[2] else "")
            assert name not in samples
            samples[name] = float(found[3])
    return samples, types


def after(server: Server, *asked, leave=None) -> tuple[dict[str, float], dict[str, str]]:
    async def look():
        async with server.running():
            for path, body in asked:
                await server.ask("POST", path, body, leave=leave)
            await until(lambda: server.client.idle)
            answer = await server.ask("GET", "/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            return read(answer.body)

    return asyncio.run(look())


def test_tgis_names_and_types():
    samples, types = after(Server.new())
    for kind, names in TGI.items():
        for name in names.split():
            assert types[f"tgi_{name}"] == kind
    bounds = [float(s.split('"')[1]) for s in samples if s.startswith("tgi_request_duration_bucket")]
    assert len(bounds) == 36 and bounds[0] == pytest.approx(1.5e-4) and bounds[1] / bounds[0] == pytest.approx(1.5)
    lengths = [float(s.split('"')[1]) for s in samples if s.startswith("tgi_request_generated_tokens_bucket")]
    assert len(lengths) == 101 and lengths[:2] == [2, 4] and lengths[-2] == 200
    words = {s.split('"')[1] for s in samples if s.startswith("tgi_request_failure")}
    assert words == {"validation", "overloaded", "template", "generation", "incomplete", "dropped"}


def test_what_the_usual_client_reads_is_the_same():
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    server = Server.new()
    after(server, (CHAT, USER))
    text = server.app.state.hub.metrics.text(server.client, True)
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value
             for family in parser.text_string_to_metric_families(text.decode()) for s in family.samples}  # fmt: skip
    samples, _ = read(text)
    assert len(found) == len(samples)
    assert found["ridgeline_generated_tokens_total", (("key", ""),)] == 16


def test_requests_are_counted():
    samples, _ = after(Server.new(), (CHAT, USER), (CHAT, USER | {"stream": True}), ("/generate", {"inputs": "a"}))
    assert samples["tgi_request_count"] == samples["tgi_request_success"] == 3
    assert samples['ridgeline_requests_total{key="",status="200"}'] == 3
    assert samples['ridgeline_generated_tokens_total{key=""}'] == 48
    assert samples['ridgeline_prompt_tokens_total{key=""}'] == 2 * len("<user>hello</user><assistant>") + 1
    assert samples["ridgeline_time_to_first_token_seconds_count"] == 3
    assert samples["ridgeline_inter_token_seconds_count"] == 45
    assert samples["tgi_request_generated_tokens_sum"] == 48 and samples["tgi_request_duration_count"] == 3
    assert samples["ridgeline_healthy"] == 1 and samples['ridgeline_kv_pages{state="free"}'] == 10_000


@pytest.mark.parametrize(
    ("set_up", "body", "word"),
    [
        ({}, {"inputs": ""}, "validation"),
        ({}, {"inputs": "x" * 300}, "validation"),
        ({"crash_at": 3}, {"inputs": "x"}, "generation"),
        ({"problem": "dead"}, {"inputs": "x"}, "incomplete"),
        ({}, USER | {"chat_template": "{{ missing() }}"}, "template"),
    ],
)
def test_failures_have_tgis_words(set_up, body, word):
    server = Server.new(trust_request_chat_template=True)
    for name, value in set_up.items():
        setattr(server.client, name, value)
    samples, _ = after(server, ("/generate" if "inputs" in body else CHAT, body))
    assert samples[f'tgi_request_failure{{err="{word}"}}'] == 1 == samples["tgi_request_count"]
    assert samples["tgi_request_success"] == 0


def test_what_never_was_the_models_is_not_counted():
    server = Server.new(access=AccessConfig(api_key="k"))

    async def look():
        async with server.running():
            await server.ask("POST", "/generate", {"inputs": "x"})
            return await server.ask("GET", "/metrics", headers=[(b"authorization", b"Bearer k")])

    samples, _ = read(asyncio.run(look()).body)
    assert samples["tgi_request_count"] == 0 and samples['ridgeline_requests_total{key="",status="401"}'] == 1


def test_what_asks_nothing_of_the_model_is_no_request_of_tgis():
    asked = [(path, body) for path in ("/tokenize", "/watermark/detect", "/detokenize", "/chat_tokenize")
             for body in ({}, {"inputs": "x", "text": "x", "tokens": [1], **USER})]  # fmt: skip
    samples, _ = after(Server.new(), *asked)
    assert samples["tgi_request_count"] == 0 == samples['tgi_request_failure{err="validation"}']
    assert [samples[f'ridgeline_requests_total{{key="",status="{status}"}}'] for status in (200, 400, 422)] == [4, 1, 3]


def test_times_are_those_of_answers():
    server = Server.new()
    server.client.crash_at = 3
    samples, _ = after(server, ("/generate", {"inputs": "x"}))
    assert samples["tgi_request_duration_count"] == samples["tgi_request_queue_duration_count"] == 0


def test_the_queue_and_the_model_share_the_time():
    server = Server.new()
    server.client.pace, server.client.ran = 0.01, 0.004

    async def wait():
        server.client.gate.clear()
        async with server.running():
            asked = asyncio.ensure_future(server.ask("POST", "/generate", {"inputs": "x"}))
            await until(lambda: bool(server.client.submitted))
            await asyncio.sleep(0.06)
            server.client.gate.set()
            return await asked, read((await server.ask("GET", "/metrics")).body)[0]

    answer, samples = asyncio.run(wait())
    times = {name: int(answer.headers[f"x-{name}-time"]) for name in ("queue", "inference", "validation", "total")}
    assert times["queue"] >= 50 and times["inference"] >= 15 * 10 - 10
    assert abs(times["total"] - times["queue"] - times["inference"] - times["validation"]) <= 3
    queued, inferred = (samples[f"tgi_request_{what}_duration_sum"] for what in ("queue", "inference"))
    assert queued == pytest.approx(times["queue"] / 1e3, abs=0.005) and inferred >= times["inference"] / 1e3
    assert samples["tgi_request_mean_time_per_token_duration_sum"] == pytest.approx(inferred / 16)


def test_steps_are_told_as_prefill_or_decode():
    metrics, failures = TGIMetrics(Server.new().client.info), Failures()

    def step(number: int, reading: Steps, answering: Steps, joins: int = 0) -> dict[str, float]:
        last = StepDelta(number, (), 5, 0, 0, counters=Counters(reading=reading, answering=answering, joins=joins))
        metrics.stepped(last)
        return read(exposition(metrics.families(SimpleNamespace(last=last, waiting=0, failures=failures))))[0]

    step(1, Steps(1, 0.5, 0.25), Steps(), 2)
    samples = step(4, Steps(1, 0.5, 0.25), Steps(3, 0.3, 0.03), 3)
    assert [samples[f'tgi_batch_inference_count{{method="{m}"}}'] for m in ("prefill", "decode")] == [1, 3]
    assert [samples[f'tgi_batch_forward_duration_sum{{method="{m}"}}'] for m in ("prefill", "decode")] == [0.5, 0.3]
    assert samples['tgi_batch_decode_duration_sum{method="prefill"}'] == 0.25
    assert samples['tgi_batch_inference_duration_sum{method="decode"}'] == pytest.approx(0.33)
    assert samples['tgi_batch_inference_duration_count{method="decode"}'] == 3
    assert samples["tgi_batch_next_size_count"] == 4
    joined = {reason: samples[f'tgi_batch_concat{{reason="{reason}"}}'] for reason in ("chunking", "backpressure")}
    assert joined == {"chunking": 3, "backpressure": 0}
    failures.answering += 1
    again = step(1, Steps(), Steps(1, 0.1, 0.0), 1)  # of a new engine
    assert again['tgi_batch_concat{reason="chunking"}'] == 4
    assert [again[f'tgi_batch_inference_{w}{{method="decode"}}'] for w in ("count", "success", "failure")] == [5, 4, 1]
    assert again['tgi_batch_inference_failure{method="prefill"}'] == 0
    assert again['tgi_batch_forward_duration_sum{method="decode"}'] == pytest.approx(0.4)


def test_what_was_refused_has_used_nothing():
    server = Server.new()
    server.client.gate.clear()

    async def too_many():
        async with server.running():
            asking = [asyncio.ensure_future(server.ask("POST", "/generate", {"inputs": "abc"})) for _ in range(17)]
            refused = await next(asyncio.as_completed(asking))
            server.client.gate.set()
            await asyncio.gather(*asking)
            return refused, read((await server.ask("GET", "/metrics")).body)[0]

    refused, samples = asyncio.run(too_many())
    assert refused.status == 429 and samples['ridgeline_requests_total{key="",status="429"}'] == 1
    assert samples['ridgeline_prompt_tokens_total{key=""}'] == samples["tgi_request_input_length_sum"] == 16 * 3
    assert samples['tgi_request_failure{err="overloaded"}'] == 1 and samples["tgi_request_count"] == 17


def test_prompts_that_are_refused_together_are_not_counted():
    server = Server.new()
    server.client.gate.clear()

    async def too_many():
        async with server.running():
            one = asyncio.ensure_future(server.ask("POST", "/generate", {"inputs": "abc"}))
            await until(lambda: bool(server.client.submitted))
            await server.ask("POST", "/v1/completions", {"prompt": ["abcd"] * 16})
            server.client.gate.set()
            await one
            return read((await server.ask("GET", "/metrics")).body)[0]

    samples = asyncio.run(too_many())
    assert samples['ridgeline_prompt_tokens_total{key=""}'] == 3 and samples["tgi_request_count"] == 2
    assert samples['tgi_request_failure{err="overloaded"}'] == 1


def test_all_parts_of_an_embedding_are_counted():
    server = Server.new()
    samples, _ = after(server, ("/v1/embeddings", {"input": ["abcd"] * 20}))
    assert samples['ridgeline_prompt_tokens_total{key=""}'] == samples["tgi_request_input_length_sum"] == 80
    assert samples["ridgeline_request_seconds_count"] == 1


def test_a_part_that_is_refused_does_not_undo_those_before_it():
    server = Server.new()
    submit = server.client.submit

    def full(*given):
        if len(server.client.submitted) == 8:
            raise Overloaded("full", 1.0)
        return submit(*given)

    server.client.submit = full
    samples, _ = after(server, ("/v1/embeddings", {"input": ["abcd"] * 20}))
    assert samples['ridgeline_prompt_tokens_total{key=""}'] == samples["tgi_request_input_length_sum"] == 32
    assert samples['tgi_request_failure{err="overloaded"}'] == samples["tgi_request_count"] == 1
    assert samples["ridgeline_request_seconds_count"] == 0


def test_gaps_of_choices_are_those_between_steps():
    """Choices whose tokens come in the same steps have no gaps of nothing between them."""
    samples, _ = after(Server.new(), (CHAT, USER | {"n": 3}))
    assert samples['ridgeline_inter_token_seconds_bucket{le="+Inf"}'] == 3 * 15
    assert samples["ridgeline_inter_token_seconds_sum"] > 0


def test_keys_are_told_apart_up_to_a_bound():
    metrics = Server.new().app.state.hub.metrics
    names = [f"key{i}" for i in range(1000)]
    for name in names * 2:
        now = time.perf_counter()
        key = Key(name=name, hash="0" * 64)
        metrics.ended(Record(key=key, begin=now, submitted=now, first=now, end=now, prompt=2, status=200))
    samples, _ = read(metrics.text(Server.new().client, True))
    assert samples['ridgeline_prompt_tokens_total{key="key0"}'] == 4
    assert samples['ridgeline_time_to_first_token_seconds_count{key="key255"}'] == 2
    assert samples['ridgeline_prompt_tokens_total{key="(others)"}'] == 4 * (1000 - 256)
    assert len(samples) < 20_000


def test_attainment_is_told_where_it_is_known():
    samples, _ = after(server := Server.new(), (CHAT, USER))
    assert not any("attainment" in name for name in samples)
    server.client.ledger.last = StepDelta(9, (), 0, 0, 0, counters=Counters(attainment=0.75))
    samples, types = read(server.app.state.hub.metrics.text(server.client, True))
    assert samples["ridgeline_attainment_ratio"] == 0.75 and types["ridgeline_attainment_ratio"] == "gauge"


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_dropped(stream):
    """Before the answer, or when a 200 and a part of it have gone out."""
    server = Server.new()
    server.client.pace = 0.002
    leave = (lambda a: b"data" in a.body) if stream else (lambda a: bool(server.client.submitted))
    samples, _ = after(server, (CHAT, USER | {"stream": stream}), leave=leave)
    assert samples['tgi_request_failure{err="dropped"}'] == 1
    assert samples['ridgeline_requests_total{key="",status="499"}'] == 1
    assert 'ridgeline_requests_total{key="",status="200"}' not in samples


def test_a_fault_of_ours_is_a_500_and_nobody_who_left(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    server = Server.new(log_format="json")

    async def look():
        async with server.running():
            with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
                broken.setattr(server.app.state.hub.metrics, "text", lambda *_: 1 / 0)
                await server.ask("GET", "/metrics")
            return read((await server.ask("GET", "/metrics")).body)[0]

    assert asyncio.run(look())['ridgeline_requests_total{key="",status="500"}'] == 1
    line = json.loads(file.getvalue().splitlines()[0])
    assert (line["status"], line["error"]) == (500, "incomplete_generation")


def test_a_stream_that_the_server_gave_up_was_no_success():
    """As uvicorn does at the end of its patience with clients who take nothing, when it shuts down."""
    server = Server.new()
    server.client.gate.clear()

    async def cut():
        async with server.running():
            asking = asyncio.ensure_future(server.ask("POST", CHAT, USER | {"stream": True}))
            await until(lambda: bool(server.client.submitted))
            await asyncio.sleep(0.02)
            asking.cancel()
            await asyncio.wait([asking])
            await until(lambda: server.client.idle)
            return read((await server.ask("GET", "/metrics")).body)[0]

    samples = asyncio.run(cut())
    assert samples["tgi_request_success"] == 0 and samples['tgi_request_failure{err="incomplete"}'] == 1


def test_the_board_shows_what_there_is():
    server = Server.new()
    server.client.ledger.last = StepDelta(0, (), 0, 0, 0, counters=Counters(attainment=0.75))
    _, types = after(server, (CHAT, USER))
    board = json.loads(BOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    named = set(re.findall(r"\b(?:ridgeline|tgi)_[a-z_]+", " ".join(queries)))
    assert len(queries) > 10 and named
    for name in named:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in types or types.get(family) == "histogram", name
