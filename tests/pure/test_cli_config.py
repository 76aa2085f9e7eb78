"""`--config FILE` and `ridgeline config check`: the same names as flags, which win, and nothing unknown."""

from __future__ import annotations

import pytest

import toy
from commands import refused


@pytest.fixture
def served(cli, monkeypatch):
    """The settings that a command line would serve with."""
    from ridgeline.server import app

    def call(*words):
        seen = []
        monkeypatch.setattr(app, "serve", seen.append)
        done = cli("serve", *words)
        assert done.code == 0, done.err
        return seen[0]

    return call


def file(tmp_path, text):
    path = tmp_path / "ridgeline.toml"
    path.write_text(text)
    return path


def test_a_file_sets_what_flags_do_not(served, model, tmp_path):
    path = file(
        tmp_path,
        f'model = "{model}"\nport = 4000\nbackend = "reference"\nactivations = "float32"\nmax-wait = 2\n'
        'kv-memory = "2G"\nallowed-hosts = ["a.example", "b.example"]\npin = false\nopen = true\n'
        "max-undelivered = 1000\n",
    )
    config = served("--config", path)
    assert (config.port, config.max_wait, config.max_undelivered) == (4000, 2.0, 1000)
    assert (config.engine.model, config.engine.kv_memory, config.engine.pin) == (model, 2 << 30, False)
    assert config.access.allowed_hosts == ("a.example", "b.example") and config.access.open
    config = served("--config", path, "--port", 5000, "--allowed-hosts", "c.example", "--kv-memory", "1G")
    assert (config.port, config.access.allowed_hosts, config.engine.kv_memory) == (5000, ("c.example",), 1 << 30)


def test_zero_on_the_command_line_wins_too(served, model, tmp_path):
    path = file(tmp_path, "max-wait = 2.5\nport = 4000\n")
    config = served(model, "--config", path, "--max-wait", 0, "--port", 0, *toy.REFERENCE)
    assert (config.max_wait, config.port) == (0.0, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-request = 3", ["max-request", "did you mean 'max-requests'?"]),
        ("max_requests = 3", ["did you mean 'max-requests'?"]),
        ("zzzz = 3", ["zzzz", "--help"]),
        ("config = 'x'", ["there is no setting 'config'"]),
        ("port = '3'", ["port", "must be int"]),
        ("port = 3.5", ["port", "must be int"]),
        ("open = 1", ["open", "must be bool"]),
        ("max-requests = true", ["max-requests", "must be int"]),
        ("kv-memory = '5X'", ["kv-memory", "512M"]),
        ("allowed-hosts = 'a'", ["allowed-hosts", "list"]),
        ("[server]\nport = 3", ["there is no setting 'server'"]),
        ("policy = 'fair'\npolicy = 'fcfs'", ["TOML"]),
        ("port 3", ["TOML"]),
        ("policy = 'lucky'", ["policy", "fcfs"]),
        ("max-pause = -1", ["max_pause"]),
        ("hostname = '0.0.0.0'", ["--api-keys"]),
        ("api-keys = 'none.json'", ["ridgeline keys add"]),
        ("tls-key = 'x'", ["tls_cert"]),
        ("tls-cert = 'none.pem'", ["TLS"]),
        ("log-format = 'xml'", ["log_format", "json"]),
        ("port = 99999", ["port", "65535"]),
        ("max-input-tokens = 100\nmax-total-tokens = 50", ["max_input_tokens", "50"]),
    ],
)
def test_what_is_wrong_is_named(cli, tmp_path, text, words):
    refused(cli("config", "check", file(tmp_path, text)), *words)


def test_a_good_file_is_good(cli, tmp_path):
    done = cli("config", "check", file(tmp_path, 'port = 4000\nlog-format = "json"\n'))
    assert done.code == 0 and done.out == "the settings are good\n"
    refused(cli("config", "check", tmp_path / "none.toml"), "cannot be read")
    refused(cli("config", "make", tmp_path / "none.toml"), "check")
