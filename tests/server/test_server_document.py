"""The OpenAPI document: every route is in it, replies are of its shapes, its ranges are the server's own."""

from __future__ import annotations

import asyncio
import re

import msgspec
import pytest
from serving import Server

from ridgeline.server import replies, schema
from ridgeline.server.document import OPERATIONS

USER = [{"role": "user", "content": "hello"}]
DETAILS = {"details": True, "decoder_input_details": True, "top_n_tokens": 2}
BODIES = {
    "/generate": {"inputs": "xyz", "parameters": DETAILS | {"best_of": 2, "do_sample": True}},
    "/": {"inputs": "xyz", "parameters": DETAILS},
    "/generate_stream": {"inputs": "xyz", "parameters": {"details": True, "top_n_tokens": 2}},
    "/tokenize": {"inputs": "xyz"},
    "/detokenize": {"tokens": [1, 2]},
    "/watermark/detect": {"text": "xyz"},
    "/v1/embeddings": {"input": "xyz"},
    "/chat_tokenize": {"messages": USER},
    "/invocations": {"prompt": "xyz"},
    "/vertex": {"instances": [{"inputs": "xyz"}]},
    "/v1/chat/completions": {"messages": USER, "logprobs": True, "top_logprobs": 2},
    "/v1/completions": {"prompt": "xyz", "logprobs": 2, "echo": True},
    "/v2/models/{model}/versions/{version}/infer": {
        "id": "7", "outputs": [{"name": "text"}],
        "inputs": [{"name": "prompt", "shape": [3], "datatype": "BYTES", "data": [120, 121, 122]}],
    },
}  # fmt: skip
POSTS = [o for o in OPERATIONS if o.method == "POST"]


def document(**config):
    return Server.new(**config).get("/openapi.json").json


def fits(value, kinds) -> bool:
    """Whether a value is of one of the shapes; a field that no shape has is a fault too."""
    for kind in kinds:
        try:
            made = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
        if msgspec.to_builtins(made) == value:
            return True
    return False


def test_the_document_has_the_routes_that_are_served():
    server = Server.new(predict_route="/p")
    paths = {
        (re.sub(":path}", "}", route.path), method)
        for route in server.app.routes
        for method in route.methods - {"HEAD"}
    }
    body = server.get("/api-doc/openapi.json").json
    told = {(path, method.upper()) for path, methods in body["paths"].items() for method in methods}
    assert told == paths


def test_the_page_lists_them_and_loads_nothing():
    answer = Server.new().get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert all(o.path.encode() in answer.body for o in OPERATIONS)
    assert not re.search(rb"src=|<link|https?:", answer.body)


@pytest.mark.parametrize("o", POSTS, ids=lambda o: o.path)
def test_replies_are_of_the_documents_shapes(o):
    answer = Server.new().post(o.path.format(model="nick", version="1"), BODIES[o.path])
    assert answer.status == 200
    if o.reply:
        assert fits(answer.json, o.reply), answer.json
    if o.event:
        body = BODIES["/generate_stream" if "inputs" in BODIES[o.path] else o.path] | {"stream": True}
        events = Server.new().post(o.path, body).events
        assert all(fits(event, o.event) for event in events if event != "[DONE]"), events
        assert len(events) > 3


@pytest.mark.parametrize("o", POSTS, ids=lambda o: o.path)
def test_errors_are_of_the_documents_shapes(o):
    answer = Server.new().post(o.path, {"stream": "yes"})
    assert answer.status in o.all_statuses()
    assert fits(answer.json, [replies.OpenAIError if o.openai else replies.TGIError])


@pytest.mark.parametrize("o", POSTS, ids=lambda o: o.path)
def test_a_server_that_ends_answers_as_the_document_says(o):
    async def ask():
        server = Server.new()
        async with server.running():
            server.app.state.hub.drain(0, lambda: None)
            await asyncio.sleep(0)
            return await server.ask("POST", o.path.format(model="nick", version="1"), BODIES[o.path])

    assert asyncio.run(ask()).status == 503 and {429, 503} <= {*o.all_statuses()}


KSERVE = "/v2/models/{model}/versions/{version}"
TOLD = {
    "/v1/models/nick": "/v1/models/{id}", "/debug/requests/1": "/debug/requests/{id}",
    "/v2/models/nick/versions/1": KSERVE, "/v2/models/nick/versions/1/ready": f"{KSERVE}/ready",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/info", "/v1/models", "/v2", "/v2/health/live", "/v2/health/ready", *TOLD])
def test_what_is_asked_for_is_of_the_documents_shapes(path):
    server = Server.new()
    server.post("/generate", {"inputs": "x"})
    (o,) = (o for o in OPERATIONS if o.path == TOLD.get(path, path) and o.method == "GET")
    again = Server.new()
    again.client.submitted = server.client.submitted
    assert fits(again.get(path).json, o.reply)


def edges(component: str):
    """(field, value, whether it is in range) at both ends of every documented range of numbers."""
    for field, told in document()["components"]["schemas"][component]["properties"].items():
        for branch in told.get("anyOf", [told]):
            step = 1 if branch.get("type") == "integer" else 0.01
            for key, sign in (("minimum", -1), ("maximum", 1)):
                if key in branch:
                    yield field, branch[key], True
                    yield field, branch[key] + sign * step, False
            for key in ("exclusiveMinimum", "exclusiveMaximum"):
                if key in branch:
                    yield field, branch[key], False


@pytest.mark.parametrize(
    ("component", "path", "base"),
    [
        ("Parameters", "/generate", {"inputs": "x"}),
        ("Truncation", "/tokenize", {"inputs": "x"}),
        ("ChatRequest", "/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}),
        ("CompletionRequest", "/v1/completions", {"prompt": "x"}),
    ],
)
def test_documented_ranges_are_the_servers(component, path, base):
    needs = {
        "best_of": {"do_sample": True}, "top_logprobs": {"logprobs": True}, "max_tokens": {"echo": True},
        "length_penalty": {"use_beam_search": True, "best_of": 2}, "n": {},
    }  # fmt: skip
    seen = 0
    for field, value, fine in edges(component):
        if field in ("n", "best_of", "min_tokens", "max_tokens", "max_completion_tokens") and path.startswith("/v1"):
            continue  # these also bound each other
        given = needs.get(field, {}) | {field: value}
        body = base | ({"parameters": given} if component in ("Parameters", "Truncation") else given)
        assert (Server.new().post(path, body).status == 200) == fine, (field, value)
        seen += 1
    assert seen >= 2


def test_limits_of_the_server_are_in_the_document():
    schemas = document(max_best_of=3, max_client_batch_size=5, max_input_tokens=9)["components"]["schemas"]
    assert schemas["Parameters"]["properties"]["best_of"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 3}
    assert schemas["Truncation"]["properties"]["truncate"]["anyOf"][0]["maximum"] == 9
    assert schemas["VertexRequest"]["properties"]["instances"]["maxItems"] == 5
    assert set(schemas["Parameters"]["properties"]) == set(schema.Parameters.__struct_fields__)


# --- what random bodies of the document found


def test_a_whole_number_may_have_a_point():
    server = Server.new()
    assert server.post("/v1/completions", {"prompt": [65.0, 66.0], "max_tokens": 2.0}).status == 200
    assert server.client.submitted[0].prompt == (65, 66)
    assert Server.new().post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 2.5}}).status == 422


def test_an_unknown_field_may_have_no_name():
    answer = Server.new().post("/generate", {"inputs": "x", "": None})
    assert answer.status == 200 and answer.headers["x-ridgeline-warning"] == 'ignored fields: ""'


def test_a_wrong_method_is_told_all_that_there_are():
    answer = Server.new().get("/", method="PUT")
    assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD, POST"
