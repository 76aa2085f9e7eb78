"""TGI's smaller routes, its limits and its quirks, over a fake engine."""

from __future__ import annotations

import pytest
from serving import ANSWER, Server, byte_tokenizer

from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.errors import ConfigError
from ridgeline.server.app import create_app
from ridgeline.server.service import sha_of
from ridgeline.weights.hub import ResolvedModel

USER = [{"role": "user", "content": "héy"}]
TEXT = "<user>héy</user><assistant>"


# --- tokenize


def test_tokenize_tells_where_each_token_is():
    found = Server.new().post("/tokenize", {"inputs": "xé!"}).json
    assert [t["id"] for t in found] == byte_tokenizer().encode("xé!", add_special=False)
    assert [(t["text"], t["start"], t["stop"]) for t in found] == [("x", 0, 1), ("é", 1, 2), ("é", 1, 2), ("!", 2, 3)]


def test_tokenize_truncates_as_generate_does():
    body = {"inputs": "xyz", "parameters": {"truncate": 2}}
    assert [t["text"] for t in Server.new().post("/tokenize", body).json] == ["y", "z"]
    assert Server.new().post("/tokenize", {"inputs": ""}).json == []
    assert Server.new().post("/tokenize", {"inputs": "x", "parameters": {"truncate": 0}}).status == 422


def test_chat_tokenize_shows_the_templated_text():
    body = Server.new().post("/chat_tokenize", {"messages": USER}).json
    assert body["templated_text"] == TEXT
    spans = body["tokenize_response"]
    assert [t["id"] for t in spans] == byte_tokenizer().encode(TEXT, add_special=False)
    assert all(TEXT[t["start"] : t["stop"]] == t["text"] for t in spans)


def test_chat_tokenize_errors_are_tgis():
    for server, kind in ((Server.new(template=None), "template_error"), (Server.new(), "validation")):
        answer = server.post("/chat_tokenize", {"messages": USER if kind == "template_error" else []})
        assert answer.status == 422 and answer.json["error_type"] == kind


# --- clouds


def test_invocations_answer_as_the_body_says():
    def ask(**body):
        return Server.new().post("/invocations", body)

    assert ask(inputs="xyz").json == [{"generated_text": ANSWER}]
    assert ask(inputs="xyz", stream=True).events[-1]["generated_text"] == ANSWER
    assert ask(messages=USER).json["object"] == "chat.completion"
    assert ask(messages=USER, stream=True).events[-1] == "[DONE]"
    assert ask(prompt="xyz").json["object"] == "text_completion"


def test_invocations_name_what_is_missing():
    answer = Server.new().post("/invocations", {"input": "xyz"})
    assert answer.status == 422 and answer.json["error_type"] == "validation"
    assert all(name in answer.json["error"] for name in ("inputs", "messages", "prompt"))


def test_a_chat_that_fails_in_invocations_says_so_as_a_chat():
    server = Server.new()
    server.client.crash_at = 3
    *_, error, done = server.post("/invocations", {"messages": USER, "stream": True}).events
    assert error["error"]["code"] == "generation" and done == "[DONE]"


def test_vertex_answers_every_instance_with_a_text():
    server = Server.new()
    instances = [
        {"inputs": "xyz", "parameters": {"max_new_tokens": 2, "return_full_text": True}},
        {"messages": USER, "max_tokens": 1},
        {"inputs": "abc", "parameters": {"do_sample": False}},
    ]
    assert server.post("/vertex", {"instances": instances}).json == {"predictions": ["xyzHi", "H", ANSWER]}
    assert [s.params.temperature > 0 for s in server.client.submitted] == [True, True, False]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "instances"),
        ({"instances": []}, "instances"),
        ({"instances": [3]}, "instances[0]"),
        ({"instances": [{"inputs": "x"}, {"inputs": "x", "parameters": {"top_p": 3}}]}, "instances[1]: top_p"),
        ({"instances": [{"messages": USER, "stream": True}]}, "stream"),
        ({"instances": [{"inputs": "x"}] * 129}, "128"),
    ],
)
def test_vertex_refuses_by_name(body, said):
    server = Server.new()
    answer = server.post("/vertex", body)
    assert answer.status == 422 and said in answer.json["error"] and not server.client.submitted


def test_vertex_keeps_the_terms_of_chats():
    server = Server.new()
    chat = {"messages": USER, "cache_salt": "pepper"}
    assert server.post("/vertex", {"instances": [chat, chat]}).status == 200
    assert [s.terms.salt for s in server.client.submitted] == ["pepper", "pepper"]
    apart = Server.new().post("/vertex", {"instances": [chat, {"inputs": "x"}]})
    assert apart.status == 422 and "cache_salt" in apart.json["error"]


def test_vertex_warns_of_every_instance_and_of_grammars():
    instances = [
        {"inputs": "x", "parameters": {"odd": 1, "max_new_tokens": 1}},
        {"inputs": "x", "parameters": {"even": 1, "max_new_tokens": 1}},
        {"messages": USER, "guided_grammar": "start: /a+/", "max_tokens": 1},
    ]
    said = Server.new().post("/vertex", {"instances": instances}).headers["x-ridgeline-warning"]
    assert "parameters.odd" in said and "parameters.even" in said and "grammar" in said


def test_vertex_keeps_the_limit_of_prompts_for_chats():
    answer = Server.new(max_input_tokens=5).post("/vertex", {"instances": [{"messages": USER}]})
    assert answer.status == 422 and "5" in answer.json["error"] and "instances[0]" in answer.json["error"]


def test_a_stream_that_is_not_to_be_had_is_told():
    answer = Server.new().post("/generate", {"inputs": "x", "stream": True})
    assert answer.json["generated_text"] == ANSWER and "stream" in answer.headers["x-ridgeline-warning"]
    assert "x-ridgeline-warning" not in Server.new().post("/generate_stream", {"inputs": "x", "stream": True}).headers


def test_vertex_routes_are_where_vertex_wants_them():
    given = {"predict_route": "/ai/predict", "health_route": "/ai/health"}
    answer = Server.new(**given).post("/ai/predict", {"instances": [{"inputs": "xyz"}]})
    assert answer.json == {"predictions": [ANSWER]}
    assert Server.new(**given).get("/ai/health").status == 200


# --- limits


@pytest.mark.parametrize(
    ("limit", "path", "body"),
    [
        ({"max_input_tokens": 2}, "/generate", {"inputs": "xyz"}),
        ({"max_input_tokens": 2}, "/v1/completions", {"prompt": "xyz"}),
        ({"max_input_tokens": 2}, "/generate", {"inputs": "x", "parameters": {"truncate": 3}}),
        ({"max_best_of": 2}, "/generate", {"inputs": "x", "parameters": {"best_of": 3, "do_sample": True}}),
        ({"max_best_of": 2}, "/v1/completions", {"prompt": "x", "n": 3}),
        ({"max_stop_sequences": 1}, "/generate", {"inputs": "x", "parameters": {"stop": ["a", "b"]}}),
        ({"max_top_n_tokens": 1}, "/generate", {"inputs": "x", "parameters": {"top_n_tokens": 2}}),
        ({"max_client_batch_size": 1}, "/v1/completions", {"prompt": ["x", "y"]}),
        ({"max_client_batch_size": 1}, "/vertex", {"instances": [{"inputs": "x"}] * 2}),
    ],
)
def test_a_limit_is_kept_and_told(limit, path, body):
    answer = Server.new(**limit).post(path, body)
    assert answer.status == (400 if path.startswith("/v1/") else 422)
    assert str(next(iter(limit.values()))).encode() in answer.body
    info = Server.new(**limit).get("/info").json
    assert info[next(iter(limit))] == next(iter(limit.values()))


def test_a_truncated_prompt_is_within_the_limit():
    body = {"inputs": "x" * 300, "parameters": {"truncate": 2, "max_new_tokens": 3}}
    assert Server.new(max_input_tokens=2).post("/generate", body).status == 200


@pytest.mark.parametrize(
    "given", [{"max_top_n_tokens": 21}, {"max_best_of": 0}, {"payload_limit": 0}, {"predict_route": "predict"}]
)
def test_limits_out_of_range_are_refused_by_name(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        ServerConfig(EngineConfig("fake"), **given)
    with pytest.raises(ConfigError, match="max_input_tokens"):
        Server.new(max_input_tokens=200)


def test_all_the_room_left_is_generated():
    server = Server.new(answer="z" * 500)
    details = server.post("/generate", {"inputs": "xyz", "parameters": {"details": True}}).json["details"]
    assert details["generated_tokens"] == 197 and details["finish_reason"] == "length"


# --- TGI's quirks


def test_strict_shows_the_prompt_on_the_legacy_route_only():
    strict = {"tgi_strict": True}
    assert Server.new(**strict).post("/", {"inputs": "xyz"}).json == [{"generated_text": "xyz" + ANSWER}]
    last = Server.new(**strict).post("/", {"inputs": "xyz", "stream": True}).events[-1]
    assert last["generated_text"] == "xyz" + ANSWER
    assert Server.new(**strict).post("/generate", {"inputs": "xyz"}).json["generated_text"] == ANSWER
    asked = {"inputs": "xyz", "parameters": {"return_full_text": False}}
    assert Server.new(**strict).post("/", asked).json == [{"generated_text": ANSWER}]


def test_strict_still_samples_without_parameters():
    server = Server.new(tgi_strict=True)
    server.post("/", {"inputs": "xyz"})
    assert server.client.submitted[0].params.temperature > 0


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[1]", 422), (b'{"inputs": 3}', 422), (b"{}", 422)])
def test_strict_tells_malformed_bodies_in_plain_text(body, status):
    answer = Server.new(tgi_strict=True).post("/generate", body)
    assert answer.status == status and answer.headers["content-type"].startswith("text/plain")
    assert b"error_type" not in answer.body and len(answer.body) > 10


def test_a_bug_inside_a_stream_has_tgis_word_for_it(monkeypatch):
    from ridgeline.server import tgi

    monkeypatch.setattr(tgi, "_final", lambda *_: 1 / 0)
    body = {"inputs": "x", "parameters": {"details": True}}
    assert Server.new().post("/generate_stream", body).events[-1]["error_type"] == "incomplete_generation_stream"


# --- what the model's file is


def test_info_has_the_models_sha():
    client, tokenizer = Server.new().client, byte_tokenizer()
    app = create_app(client, tokenizer, ServerConfig(EngineConfig("fake")), "fake", "abc")
    assert Server(client, app).get("/info").json["model_sha"] == "abc"
    assert Server.new().get("/info").json["model_sha"] is None


def test_the_sha_is_the_files_or_the_snapshots(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    for path, kind, known, sha in (
        (tmp_path / "m.gguf", "gguf", "abc", "abc"),
        (tmp_path / "m.gguf", "gguf", None, None),
        (snapshot / "m.gguf", "gguf", None, commit),
        (snapshot, "dir", None, commit),
        (link, "dir", None, commit),
        (tmp_path, "dir", None, None),
        (tmp_path / "m.gguf", "random", "abc", None),
    ):
        assert sha_of(ResolvedModel(path, "name", kind, known)) == sha
