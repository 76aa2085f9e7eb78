"""`ridgeline keys`: a file of hashes, keys that are shown once, and what cannot be done with them."""

from __future__ import annotations

import pytest

from commands import refused
from ridgeline.server.keys import KeyRing


def test_keys_are_added_listed_and_removed(cli, tmp_path):
    file = tmp_path / "keys.json"
    limits = ["--scope", "user", "--scope", "metrics", "--rate", 60, "--tokens", 9000, "--concurrency", 4]
    secret = cli("keys", "add", "ann", "--api-keys", file, *limits, "--watermark", "must").out.strip()
    assert cli("keys", "add", "bob", "--api-keys", file).code == 0
    assert secret not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    key = KeyRing(str(file)).find(secret)
    assert (key.name, key.scopes, key.rate, key.tokens, key.concurrency, key.watermark) == (
        "ann", ("user", "metrics"), 60, 9000, 4, "must",
    )  # fmt: skip
    shown = cli("keys", "list", "--api-keys", file).out
    assert all(word in shown for word in ("ann", "bob", "user, metrics", "9000", "must")) and secret not in shown
    assert len(key.watermark_key) == 16 and key.watermark_key not in shown
    assert cli("keys", "remove", "ann", "--api-keys", file).code == 0
    assert KeyRing(str(file)).find(secret) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "ridgeline keys add"),
        (["remove", "ann"], "ridgeline keys add"),
        (["add"], "NAME"),
        (["add", "a b"], "name"),
        (["add", "ann", "--scope", "god"], "user, metrics, admin"),
        (["add", "ann", "--rate", "-1"], "rate"),
        (["add", "ann", "--watermark", "always"], "must, may, never"),
        (["frobnicate"], "add, list and remove"),
    ],
)
def test_refusals(cli, tmp_path, words, said):
    refused(cli("keys", *words, "--api-keys", tmp_path / "keys.json"), said)
    assert not (tmp_path / "keys.json").exists()


def test_a_name_is_taken_once(cli, tmp_path):
    file = tmp_path / "keys.json"
    cli("keys", "add", "ann", "--api-keys", file)
    refused(cli("keys", "add", "ann", "--api-keys", file), "ann", "already")
    refused(cli("keys", "remove", "bob", "--api-keys", file), "NAME", "ann")
