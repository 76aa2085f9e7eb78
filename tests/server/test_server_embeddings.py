"""POST /v1/embeddings over a fake whose vectors are (3, 4, number of tokens)."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from serving import Server, byte_tokenizer

from ridgeline.engine.params import SamplingParams

PATH = "/v1/embeddings"


def embed(given, server: Server | None = None, **fields):
    return (server or Server.new()).post(PATH, {"input": given, **fields})


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text, add_special=False)


def test_a_vector_has_openais_shape_and_unit_length():
    body = embed("x", model="fake-model").json
    assert body["object"] == "list" and body["model"] == "fake-model"
    assert body["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    (item,) = body["data"]
    assert item["object"] == "embedding" and item["index"] == 0
    assert item["embedding"] == pytest.approx([0.6, 0.8, 0])


@pytest.mark.parametrize("given", ["abc", ["abc"], ids_of("abc"), [ids_of("abc")]], ids=str)
def test_the_four_shapes_of_input(given):
    server = Server.new()
    assert len(embed(given, server).json["data"]) == 1
    (submitted,) = server.client.submitted
    assert list(submitted.prompt) == ids_of("abc")
    assert submitted.params == SamplingParams(embed="last", max_tokens=1, temperature=0)


def test_more_inputs_than_the_queue_holds_keep_their_order():
    given = ["a" * (1 + i % 7) for i in range(100)]
    body = embed(given, max_tokens=None).json
    assert [x["index"] for x in body["data"]] == list(range(100))
    shown = [0 if len(x) == 1 else len(x) for x in given]
    assert [x["embedding"][2] / x["embedding"][0] * 3 for x in body["data"]] == pytest.approx(shown)
    assert body["usage"]["prompt_tokens"] == sum(map(len, given))


def test_base64_is_little_endian_float32():
    (item,) = embed("abc", encoding_format="base64").json["data"]
    (plain,) = embed("abc", encoding_format="float").json["data"]
    assert np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() == pytest.approx(plain["embedding"])


def test_dimensions_cut_before_the_length_is_one():
    (item,) = embed("abc", dimensions=2).json["data"]
    assert item["embedding"] == pytest.approx([0.6, 0.8])


def test_pooling_is_the_servers_setting():
    server = Server.new(pooling="mean")
    embed("abc", server)
    assert server.client.submitted[0].params.embed == "mean"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [[1], [999]]}, "input"),
        ({"input": ["a", "b" * 300]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({}, "input"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_bad_requests_are_400_and_named(fields, param):
    reply = Server.new().post(PATH, fields)
    assert reply.status == 400 and reply.json["error"]["param"] == param, reply.body


def test_texts_end_as_the_tokenizer_ends_them_and_ids_are_as_given():
    server = Server.new()
    server.client._tokenizer.tail = (256,)
    body = embed(["ab", "c"], server).json
    assert [list(s.prompt) for s in server.client.submitted] == [[*ids_of("ab"), 256], [*ids_of("c"), 256]]
    assert body["usage"]["prompt_tokens"] == 5
    server = Server.new()
    server.client._tokenizer.tail = (256,)
    embed([ids_of("ab")], server)
    assert list(server.client.submitted[0].prompt) == ids_of("ab")


def test_the_servers_limit_of_inputs_holds_here_too():
    reply = embed(["abc", "abcd"], Server.new(max_input_tokens=3))
    assert reply.status == 400 and reply.json["error"]["message"].startswith("input 1: ")


def test_unknown_models_and_fields():
    assert embed("a", model="other").status == 404
    assert embed("a", odd=1).headers["x-ridgeline-warning"] == "ignored fields: odd"
