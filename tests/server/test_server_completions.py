"""POST /v1/completions over a fake engine: prompts of every shape, echo, logprob lists, streams."""

from __future__ import annotations

import pytest
from serving import ANSWER, Server, byte_tokenizer

from ridgeline.engine.records import Token
from ridgeline.server.service import Choice, best

IDS = byte_tokenizer().encode("xyz", add_special=False)


def complete(server: Server | None = None, **fields):
    return (server or Server.new()).post("/v1/completions", {"prompt": "xyz", **fields})


def test_a_whole_answer_has_openais_shape():
    body = complete(max_tokens=50).json
    assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["system_fingerprint"] == "program-hash"
    assert body["choices"] == [{"index": 0, "text": ANSWER, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"]["prompt_tokens"] == 3


def test_the_default_limit_is_sixteen():
    server = Server.new(answer="z" * 40)
    (choice,) = complete(server).json["choices"]
    assert choice["text"] == "z" * 16 and choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("xyz", 1), (["xyz", "xyz"], 2), (IDS, 1), ([IDS, IDS, IDS], 3)],
    ids=["string", "strings", "ids", "lists of ids"],
)
def test_prompts_of_every_shape(prompt, count):
    server = Server.new()
    body = complete(server, prompt=prompt).json
    assert [c["index"] for c in body["choices"]] == list(range(count))
    assert all(list(s.prompt) == IDS for s in server.client.submitted)
    assert body["usage"]["prompt_tokens"] == 3 * count


def test_choices_are_numbered_prompt_by_prompt():
    body = complete(prompt=["a", "b"], n=2, echo=True, max_tokens=1).json
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "aH"), (1, "aH"), (2, "bH"), (3, "bH")]


def test_a_stream_interleaves_prompts_by_index():
    *chunks, done = complete(prompt=["a", "b"], stream=True, max_tokens=50).events
    assert done == "[DONE]"
    texts, finishes = ["", ""], [None, None]
    for chunk in chunks:
        (c,) = chunk["choices"]
        texts[c["index"]] += c["text"]
        if c["finish_reason"]:
            assert c["text"] == "" and finishes[c["index"]] is None
            finishes[c["index"]] = c["finish_reason"]
    assert texts == [ANSWER] * 2 and finishes == ["stop"] * 2


def test_usage_in_a_stream():
    *chunks, last, _ = complete(stream=True, stream_options={"include_usage": True}, max_tokens=3).events
    assert all(c["usage"] is None for c in chunks)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 3)


def test_logprob_lists():
    (choice,) = complete(logprobs=2, max_tokens=3).json["choices"]
    lists = choice["logprobs"]
    assert lists["tokens"] == ["H", "i", " "]
    assert lists["text_offset"] == [0, 1, 2]
    assert lists["token_logprobs"] == [-0.5] * 3
    assert len(lists["top_logprobs"][0]) == 3 and lists["top_logprobs"][0]["H"] == -0.5


def test_parts_of_a_character_are_spelled_in_bytes_and_share_a_place():
    (choice,) = complete(logprobs=0, max_tokens=7).json["choices"]
    lists = choice["logprobs"]
    assert lists["tokens"][4:6] == ["bytes:\\xc3", "bytes:\\xb6"]
    assert lists["text_offset"] == [0, 1, 2, 3, 4, 4, 5]
    assert lists["top_logprobs"] is None


def test_echo_puts_the_prompt_and_its_logprobs_in_front():
    (choice,) = complete(echo=True, logprobs=1, max_tokens=2).json["choices"]
    assert choice["text"] == "xyzHi"
    lists = choice["logprobs"]
    assert lists["tokens"] == ["x", "y", "z", "H", "i"]
    assert lists["token_logprobs"] == [None, -2.0, -2.0, -0.5, -0.5]
    assert lists["text_offset"] == [0, 1, 2, 3, 4]
    assert lists["top_logprobs"][0] is None and "y" in lists["top_logprobs"][1]


def test_echo_of_token_ids_shows_their_text():
    (choice,) = complete(prompt=IDS, echo=True, max_tokens=1).json["choices"]
    assert choice["text"] == "xyzH" and choice["logprobs"] is None


def test_echo_with_no_new_tokens_scores_the_prompt():
    body = complete(echo=True, logprobs=1, max_tokens=0).json
    (choice,) = body["choices"]
    assert choice["text"] == "xyz" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0]
    assert body["usage"]["completion_tokens"] == 0


def test_streamed_echo_gives_the_same_lists():
    *chunks, _ = complete(echo=True, logprobs=1, max_tokens=2, stream=True).events
    text = "".join(c["choices"][0]["text"] for c in chunks)
    lists = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert text == "xyzHi"
    assert [t for x in lists for t in x["tokens"]] == ["x", "y", "z", "H", "i"]
    assert [t for x in lists for t in x["text_offset"]] == [0, 1, 2, 3, 4]
    assert [t for x in lists for t in x["token_logprobs"]] == [None, -2.0, -2.0, -0.5, -0.5]


def test_streamed_echo_of_nothing_new():
    *chunks, _ = complete(echo=True, max_tokens=0, stream=True).events
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ("xyz", None),
        ("", "length"),
    ]


def test_echo_and_logprobs_of_several_choices():
    body = complete(echo=True, logprobs=0, n=2, max_tokens=1).json
    assert [c["logprobs"]["tokens"] for c in body["choices"]] == [["x", "y", "z", "H"]] * 2
    assert [c["logprobs"]["token_logprobs"][-1] for c in body["choices"]] == [-0.5, -1.5]


def test_offsets_stay_inside_a_text_cut_by_a_stop_string():
    (choice,) = complete(stop=" w", logprobs=0).json["choices"]
    assert choice["text"] == "Hi"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 2]


def test_best_of_equal_to_n_is_fine():
    assert complete(best_of=2, n=2).status == 200


def test_best_of_shows_the_likeliest_and_counts_all():
    server = Server.new(answer="z" * 40)
    body = complete(server, best_of=5, n=2, max_tokens=3).json
    assert [(c["index"], c["text"], c["logprobs"]) for c in body["choices"]] == [(0, "zzz", None), (1, "zzz", None)]
    assert body["usage"]["completion_tokens"] == 15
    (request,) = server.client.submitted
    assert (request.params.n, request.params.logprobs) == (5, 0)


def test_the_best_have_the_highest_logprob_per_token():
    scores = {"a": [-1.0, -1.0], "b": [-1.5], "c": [-0.1, -0.1, -2.0], "d": [-0.9]}
    candidates = [Choice(text, [Token(1, s) for s in given]) for text, given in scores.items()]
    assert [c.text for c in best(candidates, 2)] == ["c", "d"]
    assert best(candidates, 4) == candidates


def test_beam_search():
    server = Server.new()
    beam = {"use_beam_search": True, "best_of": 4, "length_penalty": 0.5, "early_stopping": "never"}
    body = complete(server, **beam, n=2, max_tokens=50).json
    assert [c["text"] for c in body["choices"]] == [ANSWER] * 2
    *_, done = complete(server := Server.new(), **beam, stream=True).events
    assert done == "[DONE]"
    p = server.client.submitted[-1].params
    assert (p.n, p.beams, p.length_penalty, p.early_stopping) == (1, 4, 0.5, "never")
