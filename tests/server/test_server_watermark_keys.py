"""Watermarks where API keys are configured: a key's policy and secret on every route, and who may look for whose."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from serving import Server

from ridgeline.config import AccessConfig
from ridgeline.engine.watermark import PUBLIC_KEY, Watermark
from ridgeline.ops.green import LEFT_HASH, colours, seeds
from ridgeline.server.keys import POLICIES, Key, KeyRing, hashed, new_key, read_keys, write_keys

MUST, MAY, NEVER = POLICIES
CHAT = {"messages": [{"role": "user", "content": "x"}]}
ROUTES = {
    "/v1/completions": lambda w: {"prompt": ["x", "yy"], "n": 2, **w},
    "/v1/chat/completions": lambda w: {**CHAT, "n": 3, "stream": True, **w},
    "/generate": lambda w: {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, **w}},
    "/generate_stream": lambda w: {"inputs": "x", "parameters": w},
    "/": lambda w: {"inputs": "x", "parameters": w},
    "/invocations": lambda w: {**CHAT, **w},
    "/vertex": lambda w: {"instances": [{"inputs": "x", "parameters": w}, {**CHAT, **w}]},
}
OPENAI = ("/v1/completions", "/v1/chat/completions", "/invocations")
REFUSED = {path: 400 if path.startswith("/v1/") else 422 for path in ROUTES}


class Keyed:
    """Servers with one key file, and requests of its keys: each is called after its policy, but for an admin's."""

    def __init__(self, folder) -> None:
        self.file, self.secrets = folder / "keys.json", {}
        made = {name: {"watermark": name} for name in POLICIES} | {
            "root": {"scopes": ("admin",)}, "meter": {"scopes": ("metrics",)},
        }  # fmt: skip
        self.keys: dict[str, Key] = {}
        for name, more in made.items():
            self.secrets[name], self.keys[name] = new_key(name, **more)
        write_keys(self.file, list(self.keys.values()))

    def server(self, **config) -> Server:
        return Server.new(access=AccessConfig(api_keys=str(self.file)), **config)

    def ask(self, name: str, path: str, body, server: Server | None = None):
        headers = [(b"authorization", f"Bearer {self.secrets[name]}".encode())]
        return (server or self.server()).post(path, body, headers=headers)

    def given(self, name: str, path: str, asked) -> tuple[list[Watermark | None], object]:
        """The watermarks of all that a request submitted, and its answer."""
        server = self.server(watermark_scheme="minhash")
        answer = self.ask(name, path, ROUTES[path]({} if asked is None else {"watermark": asked}), server)
        return [s.params.watermark for s in server.client.submitted], answer


@pytest.fixture
def keyed(tmp_path):
    return Keyed(tmp_path)


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_that_must_marks_every_answer(keyed, path):
    mark = Watermark("minhash", key=int(keyed.keys[MUST].watermark_key, 16))
    for asked in (None, True):
        given, answer = keyed.given(MUST, path, asked)
        assert answer.status == 200 and given and set(given) == {mark}
        assert "x-ridgeline-warning" not in answer.headers


def test_a_key_that_must_says_what_becomes_of_false(keyed):
    """OpenAI's routes refuse it; TGI's clients send it with every request, and are told."""
    for path in OPENAI:
        given, answer = keyed.given(MUST, path, False)
        assert answer.status == REFUSED[path] and not given
        assert "policy is 'must'" in answer.body.decode() and "leave watermark out" in answer.body.decode()
    for path in ("/generate", "/generate_stream", "/"):
        given, answer = keyed.given(MUST, path, False)
        assert answer.status == 200 and all(given) and "policy is 'must'" in answer.headers["x-ridgeline-warning"]


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_that_never_marks_refuses_who_asks(keyed, path):
    for asked in (None, False):
        given, answer = keyed.given(NEVER, path, asked)
        assert answer.status == 200 and set(given) == {None}
    given, answer = keyed.given(NEVER, path, True)
    assert answer.status == REFUSED[path] and not given and "policy is 'never'" in answer.body.decode()


@pytest.mark.parametrize("path", ROUTES)
def test_a_key_that_may_marks_who_asks_by_its_own_secret(keyed, path):
    own = keyed.keys[MAY].marks_by
    assert own not in (PUBLIC_KEY, keyed.keys[MUST].marks_by, keyed.keys["root"].marks_by)
    assert set(keyed.given(MAY, path, True)[0]) == {Watermark("minhash", key=own)}
    for asked in (None, False):
        given, answer = keyed.given(MAY, path, asked)
        assert answer.status == 200 and set(given) == {None} and "x-ridgeline-warning" not in answer.headers


def test_openai_routes_take_a_scheme_under_any_policy_but_never(keyed):
    for path in OPENAI:
        for name in (MUST, MAY):
            marks = {Watermark("selfhash", key=keyed.keys[name].marks_by)}
            assert set(keyed.given(name, path, {"scheme": "selfhash"})[0]) == marks
        assert keyed.given(NEVER, path, {"scheme": "selfhash"})[1].status == REFUSED[path]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": "x", "use_beam_search": True, "n": 2}, "use_beam_search"),
        ("/v1/chat/completions", {**CHAT, "use_beam_search": True, "best_of": 2}, "use_beam_search"),
        ("/v1/completions", {"prompt": "x", "echo": True, "max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_cannot_be_marked_is_refused_where_it_must(keyed, path, body, field):
    answer = keyed.ask(MUST, path, body)
    assert answer.status == 400 and answer.json["error"]["param"] == field
    assert "policy is 'must'" in answer.json["error"]["message"]
    assert keyed.ask(MAY, path, body).status == 200


def test_tgis_one_key_has_a_secret_too():
    """It follows from the key: the same after a restart, and another with another key."""
    seen = []
    for key in ("sesame", "sesame", "simsim"):
        server = Server.new(access=AccessConfig(api_key=key))
        body = {"inputs": "x", "parameters": {"watermark": True}}
        assert server.post("/generate", body, headers=[(b"x-api-key", key.encode())]).status == 200
        seen.append(server.client.submitted[0].params.watermark.key)
    assert seen[0] == seen[1] != seen[2] and PUBLIC_KEY not in seen


def test_secrets_of_the_file(keyed):
    """Drawn for each key, kept in the file; one without any has what follows from its hash, like older files."""
    assert len({key.watermark_key for key in keyed.keys.values()}) == len(keyed.keys)
    read = {key.name: key for key in read_keys(keyed.file)}
    assert {key.marks_by for key in read.values()} == {key.marks_by for key in keyed.keys.values()}
    old = Key(name="old", hash=hashed("old"))
    assert 0 <= old.marks_by < 1 << 64 and old.marks_by != Key(name="old", hash=hashed("new")).marks_by
    assert old.watermark == MAY and KeyRing(str(keyed.file)).named("old") is None


def test_a_policy_is_heeded_as_soon_as_the_file_has_it(keyed, monkeypatch):
    monkeypatch.setattr("ridgeline.server.keys._LOOK_S", 0.0)
    server = keyed.server()
    headers = [(b"x-api-key", keyed.secrets[MAY].encode())]
    kept = json.loads(keyed.file.read_text())

    async def ask():
        async with server.running():
            for policy in (MUST, MAY):
                for key in kept["keys"]:
                    key["watermark"] = policy
                keyed.file.write_text(json.dumps(kept))
                await server.ask("POST", "/generate", {"inputs": "x"}, headers=headers)

    asyncio.run(ask())
    first, second = (s.params.watermark for s in server.client.submitted)
    assert first == Watermark(key=keyed.keys[MAY].marks_by) and second is None


def marked_by(key: int) -> dict:
    """A body with tokens that are all green under a key."""
    ids = [3]
    while len(ids) < 150:
        all_ids = np.arange(256)
        green = all_ids[colours(seeds(LEFT_HASH, key, np.array([ids[-1:]]), all_ids), all_ids) < 1 << 31]
        ids.append(int(green[len(ids) % len(green)]))
    return {"token_ids": ids}


def test_detection_is_by_the_callers_own_secret(keyed):
    for name in (MUST, MAY, NEVER, "root"):
        found = {other: keyed.ask(name, "/watermark/detect", marked_by(keyed.keys[other].marks_by)).json
                 for other in POLICIES}  # fmt: skip
        assert {other for other in POLICIES if found[other]["marked"]} == {name} & set(POLICIES)
        assert all(f["p_corrected"] == pytest.approx(min(1, 3 * f["p"])) for f in found.values())
    public = marked_by(PUBLIC_KEY)
    assert not keyed.ask(MAY, "/watermark/detect", public).json["marked"]
    assert Server.new().post("/watermark/detect", public).json["marked"]


def test_only_an_admin_may_name_another_key(keyed):
    body = marked_by(keyed.keys[MUST].marks_by)
    assert keyed.ask("root", "/watermark/detect", {**body, "key": MUST}).json["marked"]
    assert not keyed.ask("root", "/watermark/detect", {**body, "key": MAY}).json["marked"]
    assert keyed.ask(MUST, "/watermark/detect", {**body, "key": MUST, "scheme": "lefthash"}).json["marked"]
    told = {keyed.ask(MAY, "/watermark/detect", {**body, "key": name}).body for name in (MUST, "root", "nobody", "")}
    assert len(told) == 1, "which names there are is not told"
    assert keyed.ask(MAY, "/watermark/detect", {**body, "key": MUST}).status == 403
    unknown = keyed.ask("root", "/watermark/detect", {**body, "key": "nobody"})
    assert unknown.status == 422 and "nobody" in unknown.json["error"]


def test_detection_asks_for_a_key_where_there_are_any(keyed):
    body = marked_by(PUBLIC_KEY)
    assert keyed.server().post("/watermark/detect", body).status == 401
    assert keyed.ask("meter", "/watermark/detect", body).status == 403
    without = Server.new().post("/watermark/detect", {**body, "key": "ann"})
    assert without.status == 422 and "has no API keys" in without.json["error"]
