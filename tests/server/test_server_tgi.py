"""TGI's routes over a fake engine: replies, token events, details, rules and headers."""

from __future__ import annotations

import pytest
from serving import ANSWER, EOS_TEXT, Server

TOKENS = len(ANSWER.encode()) + 1


def generate(path: str = "/generate", server: Server | None = None, **parameters):
    return (server or Server.new()).post(path, {"inputs": "xyz", "parameters": parameters})


def params(body: dict) -> object:
    server = Server.new()
    assert server.post("/generate", body).status == 200
    return server.client.submitted[0].params


def test_a_plain_answer_is_only_text():
    assert generate().json == {"generated_text": ANSWER}


def test_details():
    body = generate(details=True).json
    assert body["generated_text"] == ANSWER
    details = body["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("eos_token", TOKENS, None)
    assert details["prefill"] == [] and "top_tokens" not in details and "best_of_sequences" not in details
    first, *_, last = details["tokens"]
    assert first == {"id": first["id"], "text": "H", "logprob": -0.5, "special": False}
    assert last["text"] == EOS_TEXT and last["special"]
    assert "".join(t["text"] for t in details["tokens"] if not t["special"]) == ANSWER


def test_prompt_logprobs_force_details():
    details = generate(decoder_input_details=True).json["details"]
    assert [(t["text"], t["logprob"]) for t in details["prefill"]] == [("x", None), ("y", -2.0), ("z", -2.0)]


def test_top_tokens():
    details = generate(details=True, top_n_tokens=3).json["details"]
    assert len(details["top_tokens"]) == TOKENS
    assert set(details["top_tokens"][0][0]) == {"id", "text", "logprob", "special"}
    assert len(details["top_tokens"][0]) == 3


def test_full_text():
    assert generate(return_full_text=True).json["generated_text"] == "xyz" + ANSWER


def test_a_stop_sequence_stays_in_the_text():
    body = generate(stop=[", b"], details=True).json
    assert body["generated_text"] == "Hi wörld, b" and body["details"]["finish_reason"] == "stop_sequence"


def test_length():
    body = generate(max_new_tokens=2, details=True).json
    assert body["generated_text"] == "Hi" and body["details"]["finish_reason"] == "length"


def test_truncate_keeps_the_right_end():
    server = Server.new()
    answer = generate(server=server, truncate=2)
    assert len(server.client.submitted[0].prompt) == 2
    assert answer.headers["x-prompt-tokens"] == "2"
    assert bytes(server.client._tokenizer.token_bytes(server.client.submitted[0].prompt[0])) == b"y"


def test_headers():
    headers = generate().headers
    assert headers["x-prompt-tokens"] == "3" and headers["x-generated-tokens"] == str(TOKENS)
    assert headers["x-compute-type"] == "cpu" and headers["x-compute-characters"] == "3"
    for name in ("compute-time", "total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        assert float(headers[f"x-{name}"]) >= 0


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_a_stream_is_one_event_per_token(path):
    server = Server.new()
    answer = server.post(path, {"inputs": "xyz", "parameters": {"details": True}, "stream": True})
    events = answer.events
    assert answer.headers["x-accel-buffering"] == "no" and answer.headers["x-compute-type"] == "cpu"
    assert [e["index"] for e in events] == list(range(1, TOKENS + 1))
    assert all(e["generated_text"] is None and e["details"] is None and "top_tokens" not in e for e in events[:-1])
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == ANSWER
    assert events[-1]["generated_text"] == ANSWER
    assert events[-1]["details"] == {
        "finish_reason": "eos_token", "generated_tokens": TOKENS, "seed": None, "input_length": 3,
    }  # fmt: skip


def test_a_stream_without_details_ends_with_text_only():
    last = generate("/generate_stream", return_full_text=True, top_n_tokens=1).events[-1]
    assert last["details"] is None and last["generated_text"] == "xyz" + ANSWER and len(last["top_tokens"]) == 1


def test_token_texts_join_to_the_text_even_when_it_ends_inside_a_character():
    events = generate("/generate_stream", Server.new(answer="aö"), max_new_tokens=2).events
    assert "".join(e["token"]["text"] for e in events) == events[-1]["generated_text"] == "a\ufffd"


def test_the_legacy_route_answers_with_a_list():
    assert Server.new().post("/", {"inputs": "xyz"}).json == [{"generated_text": ANSWER}]


def test_sampling_is_off_with_parameters_and_on_without():
    assert params({"inputs": "x", "parameters": {}}).temperature == 0
    assert params({"inputs": "x"}).temperature == 1.0
    assert params({"inputs": "x", "parameters": {"do_sample": True}}).temperature == 1.0


@pytest.mark.parametrize("given", [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"typical_p": 0.5}])
def test_sampling_values_switch_sampling_on(given):
    chosen = params({"inputs": "x", "parameters": given})
    assert chosen.temperature > 0 and all(getattr(chosen, k) == v for k, v in given.items())


def test_penalties_see_the_prompt():
    chosen = params({"inputs": "x", "parameters": {"repetition_penalty": 1.2, "frequency_penalty": 0.5}})
    assert chosen.repetition_penalty == 1.2 and chosen.frequency_penalty == 0.5
    assert chosen.count_prompt and chosen.repetition_prompt


def test_the_seed_is_reported_when_sampling():
    assert generate(details=True, do_sample=True, seed=5).json["details"]["seed"] == 5
    assert isinstance(generate(details=True, do_sample=True).json["details"]["seed"], int)
    assert generate(details=True, seed=5).json["details"]["seed"] is None


def test_best_of_picks_the_likeliest_and_shows_the_others():
    server = Server.new()
    details = generate(server=server, best_of=3, do_sample=True, details=True).json["details"]
    others = details["best_of_sequences"]
    assert len(others) == 2 and all(o["generated_text"] == ANSWER for o in others)
    (request,) = server.client.submitted
    assert sorted(request.params.seeds) == sorted([details["seed"], *(o["seed"] for o in others)])
    assert len(set(request.params.seeds)) == request.params.n == 3


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1.0}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": 200}, "truncate"),
        ({"seed": -1}, "seed"),
        ({"top_n_tokens": 21}, "top_n_tokens"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "best_of"),
        ({"best_of": 17, "do_sample": True}, "best_of"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"typical_p": 0}, "typical_p"),
        ({"typical_p": 1}, "typical_p"),
        ({"watermark": "yes"}, "watermark"),
        ({"grammar": {"type": "regex", "value": 7}}, "grammar"),
        ({"adapter_id": "x"}, "adapter_id"),
        ({"max_new_tokens": "9"}, "max_new_tokens"),
    ],
)
def test_rules_are_422_and_name_the_field(given, field):
    answer = generate(**given)
    assert answer.status == 422
    assert set(answer.json) == {"error", "error_type"} and answer.json["error_type"] == "validation"
    assert field in answer.json["error"]


@pytest.mark.parametrize("given", [{"decoder_input_details": True}, {"best_of": 2, "do_sample": True}])
def test_what_streams_cannot_do(given):
    answer = generate("/generate_stream", **given)
    assert answer.status == 422 and next(iter(given)) in answer.json["error"]


def test_too_long_names_all_numbers():
    server = Server.new()
    long = server.post("/generate", {"inputs": "x" * 200, "parameters": {}})
    assert long.status == 422 and "200" in long.json["error"] and "199" in long.json["error"]
    many = Server.new().post("/generate", {"inputs": "x" * 150, "parameters": {"max_new_tokens": 60}})
    assert many.status == 422
    assert all(number in many.json["error"] for number in ("150", "60", "210", "200", "max_new_tokens"))


def test_watermark_off_is_fine_and_unknown_parameters_are_reported():
    answer = generate(watermark=False, odd=1)
    assert answer.status == 200 and answer.headers["x-ridgeline-warning"] == "ignored fields: parameters.odd"


def test_info():
    body = Server.new().get("/info").json
    assert body["model_id"] == "fake-model" and body["max_total_tokens"] == 200 and body["max_input_tokens"] == 199
    for name in (
        "model_sha", "model_pipeline_tag", "max_concurrent_requests", "max_best_of", "max_stop_sequences",
        "validation_workers", "max_client_batch_size", "router", "version", "sha", "docker_label",
    ):  # fmt: skip
        assert name in body


@pytest.mark.parametrize("path", ["/health", "/", "/ping"])
def test_health(path):
    well = Server.new().get(path)
    assert well.status == 200 and well.body == b""
    server = Server.new()
    server.client.problem = "it is dead"
    ill = server.get(path)
    assert ill.status == 503 and ill.json == {"error": "unhealthy", "error_type": "healthcheck"}
