"""The watermark on the wire: who gets it on which route, what detection answers, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import Server, byte_tokenizer

from ridgeline.config import WATERMARKS, EngineConfig, ServerConfig
from ridgeline.engine.detection import detect
from ridgeline.engine.watermark import PUBLIC_KEY, Watermark
from ridgeline.errors import ConfigError, InvalidRequest
from ridgeline.ops.green import WIDTH, colours, seeds
from ridgeline.server.schema import WatermarkScheme
from ridgeline.server.service import Service
from ridgeline.server.watermark import watermark_of
from ridgeline.text.tokenizer import from_gguf
from ridgeline.weights.load import open_checkpoint

ROUTES = {
    "/v1/completions": lambda w: {"prompt": "x", **w},
    "/v1/chat/completions": lambda w: {"messages": [{"role": "user", "content": "x"}], **w},
    "/generate": lambda w: {"inputs": "x", "parameters": w},
    "/generate_stream": lambda w: {"inputs": "x", "parameters": w},
    "/": lambda w: {"inputs": "x", "parameters": w},
}
OPENAI = tuple(ROUTES)[:2]


def asked(path: str, watermark: object, **config):
    """The watermark that a request reached the engine with, and its answer."""
    server = Server.new(**config)
    answer = server.post(path, ROUTES[path]({} if watermark is None else {"watermark": watermark}))
    return (server.client.submitted[0].params.watermark if server.client.submitted else None), answer


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_marks_who_asks_and_no_other(path):
    given, answer = asked(path, True, watermark_gamma=0.25, watermark_delta=1.5)
    assert answer.status == 200 and given == Watermark("lefthash", 0.25, 1.5, PUBLIC_KEY)
    assert "x-ridgeline-warning" not in answer.headers
    assert asked(path, False)[0] is None and asked(path, None)[0] is None
    assert asked(path, True, watermark_scheme="minhash")[0] == Watermark("minhash")


@pytest.mark.parametrize("path", OPENAI)
def test_openai_routes_take_a_scheme(path):
    assert asked(path, {"scheme": "selfhash"})[0] == Watermark("selfhash")
    for wrong in ({"scheme": "x"}, {"scheme": "selfhash", "gamma": 0.1}, {}, "yes"):
        _, answer = asked(path, wrong)
        assert answer.status == 400 and answer.json["error"]["param"] == "watermark", wrong


@pytest.mark.parametrize("path", OPENAI)
def test_beam_search_refuses(path):
    answer = Server.new().post(path, ROUTES[path]({"watermark": True, "use_beam_search": True, "n": 2}))
    assert answer.status == 400 and "does not go with beam search" in answer.json["error"]["message"]


def test_policies():
    """What an API key's policy and secret will do; without one, requests choose and the key is public."""
    server = Server.new()
    config = ServerConfig(EngineConfig("fake", backend="reference"))
    service = Service(server.client.info, byte_tokenizer(), config, "fake-model")
    assert watermark_of(service, None, "must", 7) == Watermark(key=7) == watermark_of(service, True, "must", 7)
    assert watermark_of(service, WatermarkScheme("minhash"), "must", 7) == Watermark("minhash", key=7)
    assert watermark_of(service, None, "never") is None and watermark_of(service, False, "never") is None
    for asked_, policy in ((False, "must"), (True, "never"), (WatermarkScheme("minhash"), "never")):
        with pytest.raises(InvalidRequest, match="for this API key"):
            watermark_of(service, asked_, policy)


def marked(scheme: str, count: int = 150, gamma: float = 0.5) -> list[int]:
    """Printable bytes, all green where any of them is."""
    number, rng = WATERMARKS.index(scheme), np.random.default_rng(5)
    letters = np.array([i for i in range(256) if 33 <= byte_tokenizer().token_bytes(i)[0] < 127])
    ids = rng.choice(letters, 4).tolist()
    while len(ids) < count:
        past = np.array([ids[: -WIDTH[number] - 1 : -1]])
        green = letters[colours(seeds(number, PUBLIC_KEY, past, letters), letters) < gamma * 2**32]
        ids.append(int(rng.choice(green)))
    return ids


@pytest.mark.parametrize("scheme", WATERMARKS)
def test_detection_of_text_and_tokens(scheme):
    ids = marked(scheme)
    text = byte_tokenizer().decode(ids)
    for body in ({"token_ids": ids}, {"text": text}):
        found = Server.new().post("/watermark/detect", body)
        assert found.status == 200
        assert list(found.json) == ["z", "p", "p_corrected", "scheme", "tokens_scored", "green", "marked"]
        assert found.json["marked"] and found.json["scheme"] == scheme and found.json["z"] > 4
        assert found.json["p_corrected"] == pytest.approx(3 * found.json["p"])
        one = Server.new().post("/watermark/detect", {**body, "scheme": scheme}).json
        assert one["p_corrected"] == one["p"] == found.json["p"] and one["green"] == found.json["green"]
    other = WATERMARKS[WATERMARKS.index(scheme) - 1]
    assert not Server.new().post("/watermark/detect", {"token_ids": ids, "scheme": other}).json["marked"]
    assert not Server.new().post("/watermark/detect", {"text": text[::-1]}).json["marked"]


def test_nothing_to_score_says_nothing():
    for body in ({"text": ""}, {"token_ids": []}, {"text": "a"}):
        found = Server.new().post("/watermark/detect", body).json
        assert (found["tokens_scored"], found["green"], found["z"], found["p"]) == (0, 0, 0, 1)
        assert found["p_corrected"] == 1 and not found["marked"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"), ({"text": "a", "token_ids": [1]}, "text"), ({"text": 1}, "text"),
        ({"token_ids": [257]}, "token_ids"), ({"token_ids": [-1]}, "token_ids"), ({"token_ids": ["a"]}, "token_ids"),
        ({"text": "a", "scheme": "x"}, "scheme"), ({"text": "a", "scheme": 1}, "scheme"), ([], "object"),
        (b"{", "JSON"),
    ],
)  # fmt: skip
def test_detection_refuses_by_name(body, field):
    answer = Server.new().post("/watermark/detect", body)
    assert answer.status == 422 and field in answer.json["error"] and answer.json["error_type"] == "validation"


def test_detection_reports_what_it_ignores():
    answer = Server.new().post("/watermark/detect", {"text": "abc", "gamma": 0.5})
    assert answer.headers["x-ridgeline-warning"] == "ignored fields: gamma"


@pytest.mark.parametrize("given", [{"watermark_scheme": "x"}, {"watermark_gamma": 1.0}, {"watermark_delta": 0.0}])
def test_settings_out_of_range(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        ServerConfig(EngineConfig("fake"), **given)


def test_what_people_wrote_is_not_marked(model_file):
    """Prose and code in a real vocabulary, with all that they repeat: p is what chance makes it, or above."""
    tokenizer = from_gguf(open_checkpoint(model_file.path).metadata)
    here = Path(__file__).parents[1]
    written = [(here / "data/prose.txt").read_text(), *(path.read_text() for path in sorted(here.glob("*/*.py")))]
    ids = tokenizer.encode("\n".join(written[:25]), add_special=False)
    public = [Watermark(scheme) for scheme in WATERMARKS]
    for count, pieces in ((200, 150), (20, 300)):
        starts = [i * (len(ids) - count) // pieces for i in range(pieces)]
        found = [detect(ids[at : at + count], public) for at in starts]
        assert not any(f.marked for f in found)
        assert np.mean([f.p_corrected < 0.05 for f in found]) < 0.08
        assert all(f.tokens_scored < count for f in found)


def test_a_real_answer_is_found_by_its_text(live):
    """Sampled text of SmolLM2: marked, and not."""
    found = {}
    for mark in (True, False):
        body = {"prompt": "The sea", "max_tokens": 200, "temperature": 1, "seed": 1, "ignore_eos": True}
        answer = httpx.post(f"{live.url}/v1/completions", json={**body, "watermark": mark}, timeout=120).json()
        text = {"text": answer["choices"][0]["text"]}
        found[mark] = httpx.post(f"{live.url}/watermark/detect", json=text, timeout=120).json()
    assert found[True]["marked"] and found[True]["scheme"] == "lefthash" and found[True]["tokens_scored"] > 150
    assert not found[False]["marked"]
