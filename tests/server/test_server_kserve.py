"""KServe's v2 routes as TGI has them, over a fake engine."""

from __future__ import annotations

import pytest
from serving import ANSWER, MODEL, Server

from ridgeline.config import AccessConfig

MODEL_ROUTE = "/v2/models/nick/versions/1"
INFER = f"{MODEL_ROUTE}/infer"


def tensor(data: bytes, name: str = "prompt") -> dict:
    return {"name": name, "shape": [1, len(data)], "datatype": "BYTES", "data": list(data)}


def infer(*texts: bytes, server: Server | None = None, path: str = INFER, **more):
    outputs = [{"name": f"out{i}"} for i in range(len(texts))]
    body = {"id": "7", "inputs": [tensor(text) for text in texts], "outputs": outputs} | more
    return (server or Server.new()).post(path, body)


def test_an_answer_for_each_input():
    server = Server.new()
    body = infer(b"xyz", "wörld".encode(), server=server, parameters={"max_new_tokens": 4}).json
    text = list(b"Hi w")
    assert body == {
        "id": "7",
        "outputs": [
            {"name": name, "shape": [1, 4], "datatype": "BYTES", "data": text} for name in ("out0", "out1")
        ],
    }  # fmt: skip
    assert [len(s.prompt) for s in server.client.submitted] == [3, 6]


def test_parameters_are_those_of_generate():
    server = Server.new()
    body = infer(b"xyz", server=server, parameters={"return_full_text": True, "best_of": 2, "do_sample": True}).json
    assert bytes(body["outputs"][0]["data"]).decode() == "xyz" + ANSWER
    assert server.client.submitted[0].params.n == 2
    again = Server.new()
    infer(b"x", server=again)
    assert again.client.submitted[0].params.temperature == 1.0  # as in TGI without parameters


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"inputs": [tensor(b"\xff")]}, "utf8", "inputs[0]"),
        ({"outputs": []}, "length mismatch", "1 inputs and 0 outputs"),
        ({"inputs": [], "outputs": []}, "validation", "inputs"),
        ({"inputs": [tensor(b"")]}, "validation", "inputs"),
        ({"inputs": [tensor(b"x") | {"data": [256]}]}, "validation", "255"),
        ({"inputs": [tensor(b"x") | {"data": "x"}]}, "validation", "data"),
        ({"parameters": {"top_p": 1.0}}, "validation", "top_p"),
        ({"parameters": {"adapter_id": "x"}}, "validation", "adapter_id"),
        ({"id": None}, "validation", "id"),
    ],
)
def test_refusals(given, kind, said):
    server = Server.new()
    answer = infer(b"x", server=server, **given)
    assert answer.status == 422 and answer.json["error_type"] == kind and said in answer.json["error"]
    assert not server.client.submitted


def test_too_many_inputs_and_unknown_parameters():
    assert "2" in infer(b"x", b"y", b"z", server=Server.new(max_client_batch_size=2)).json["error"]
    assert infer(b"x", b"y", parameters={"odd": 1}).headers["x-ridgeline-warning"] == "ignored fields: parameters.odd"


def test_a_path_may_end_with_a_line_break():
    assert infer(b"x", path=f"{INFER}\n").status == 200


def test_what_is_served_and_whether_it_is_well():
    assert Server.new().get("/v2").json["extensions"] == ["health", "models", "metrics"]
    about = Server.new().get(MODEL_ROUTE).json
    assert about == {"name": "nick", "version": "1", "extensions": ["infer", "ready"]}
    for ill in (False, True):
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 503), (f"{MODEL_ROUTE}/ready", 503)):
            server = Server.new()
            server.client.problem = "it is dead" if ill else None
            answer = server.get(path)
            if not ill or status == 200:
                assert (answer.status, answer.json) == (200, {"live": True})
            else:
                assert (answer.status, answer.json["error_type"]) == (503, "healthcheck")


@pytest.mark.parametrize("path", [MODEL_ROUTE, f"{MODEL_ROUTE}/ready", INFER])
def test_another_model_is_not_served_but_as_tgi_does_it(path):
    other = path.replace("nick", "some/model")
    for strict in (False, True):
        server = Server.new(tgi_strict=strict)
        answer = infer(b"x", server=server, path=other) if path == INFER else server.get(other)
        assert answer.status == (200 if strict else 404)
    assert Server.new(aliases=("some/model",)).get("/v2/models/some/model/versions/2").json["name"] == "some/model"


@pytest.mark.parametrize("strict", [False, True])
def test_a_key_is_asked_for(strict):
    for path in ("/v2", "/v2/health/ready", MODEL_ROUTE):
        assert Server.new(tgi_strict=strict, access=AccessConfig(api_key="k")).get(path).status == 401
    assert infer(b"x", server=Server.new(tgi_strict=strict, access=AccessConfig(api_key="k"))).status == 401


@pytest.mark.model
def test_the_default_model_infers(live):
    from test_server_live import ask

    path = f"/v2/models/{MODEL}/versions/1"
    body = {"id": "a", "inputs": [tensor(b"The capital of France is")], "outputs": [{"name": "text"}]}
    status, answer = ask(live.url, f"{path}/infer", body | {"parameters": {"max_new_tokens": 5}})
    assert status == 200 and "Paris" in bytes(answer["outputs"][0]["data"]).decode()
    assert ask(live.url, f"{path}/ready") == (200, {"live": True})
