"""Sockets: TLS, heads and bodies that never come whole, and what is checked before a model is loaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn
from serving import FakeClient, byte_tokenizer

from ridgeline.config import AccessConfig, EngineConfig, ServerConfig
from ridgeline.errors import ConfigError
from ridgeline.server.app import check, create_app, listen, uvicorn_config

HEAD = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
ENGINE = EngineConfig("fake", backend="reference")


@contextlib.contextmanager
def serving(config: ServerConfig, pace: float = 0.0) -> Iterator[int]:
    """The port of a server in a thread."""
    client = FakeClient(byte_tokenizer())
    client.pace = pace
    app, listener = create_app(client, byte_tokenizer(), config, "fake"), listen(config)
    listener.listen()
    server = uvicorn.Server(uvicorn_config(app, config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    made = ["openssl", "req", *kind, *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    return cert, key


def test_tls(certificate):
    cert, key = certificate
    config = ServerConfig(ENGINE, port=0, access=AccessConfig(tls_cert=str(cert), tls_key=str(key)))
    trusted = ssl.create_default_context(cafile=str(cert))
    with serving(config) as port:
        body = json.dumps({"inputs": "a"}).encode()
        asked = urllib.request.Request(f"https://localhost:{port}/generate", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30, context=trusted) as reply:
            assert "generated_text" in json.loads(reply.read())
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert not plain.recv(100).startswith(b"HTTP")


def test_certificates_that_cannot_be_used(certificate, tmp_path):
    cert, _ = certificate
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    for access in (
        AccessConfig(tls_cert=str(bad)),
        AccessConfig(tls_cert=str(cert)),
        AccessConfig(tls_cert="none.pem"),
    ):
        with pytest.raises(ConfigError, match="TLS"):
            check(ServerConfig(ENGINE, access=access))
    with pytest.raises(ConfigError, match="tls_cert"):
        AccessConfig(tls_key="x")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"", b""),
        (b"POST /generate HTTP/1.1\r\nhost: loc", b""),
        (HEAD + b"content-length: 50\r\n\r\n{", b"408"),
    ],
    ids=["nothing", "half a head", "half a body"],
)  # fmt: skip
def test_who_does_not_go_on_is_closed(said, answer):
    with (
        serving(ServerConfig(ENGINE, port=0, max_pause=0.3)) as port,
        socket.create_connection(("127.0.0.1", port)) as s,
    ):
        s.settimeout(60)
        s.sendall(said)
        begin, reply = time.monotonic(), b""
        while piece := s.recv(1000):
            reply += piece
        s.close()
        assert reply[9:12] == answer and time.monotonic() - begin > 0.2


def test_an_answer_may_take_longer_than_a_head():
    with serving(ServerConfig(ENGINE, port=0, max_pause=0.2), pace=0.05) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(2):  # the second one on the same connection
            connection.request("POST", "/generate", b'{"inputs": "a"}', {"content-type": "application/json"})
            assert b"generated_text" in connection.getresponse().read()
        connection.close()


def test_a_head_without_end_is_cut_off():
    with serving(ServerConfig(ENGINE, port=0)) as port, socket.create_connection(("127.0.0.1", port), 30) as endless:
        endless.sendall(HEAD)
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                endless.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
                time.sleep(0.001)


def test_trailers_are_dropped_and_bounded():
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(b'{"inputs":"a"}'), b'{"inputs":"a"}')
    with serving(ServerConfig(ENGINE, port=0)) as port:
        with socket.create_connection(("127.0.0.1", port), 30) as some:
            some.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk + b"x-request-id: other\r\n\r\n")
            reply = some.recv(65536)
            assert reply.startswith(b"HTTP/1.1 200 ") and b"x-request-id: other" not in reply
        with socket.create_connection(("127.0.0.1", port), 30) as endless:
            endless.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk)
            with pytest.raises(ConnectionError):
                for _ in range(1000):
                    endless.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
                    time.sleep(0.001)


def test_bodies_are_no_part_of_heads():
    body = json.dumps({"inputs": "a" * 300_000, "parameters": {"truncate": 5, "max_new_tokens": 2}})
    with serving(ServerConfig(ENGINE, port=0)) as port:
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(2):
            kept.request("POST", "/generate", body, {"content-type": "application/json"})
            reply = kept.getresponse()
            assert reply.status == 200 and reply.read()
