"""The channel between server and engine: whole messages, however many pieces they come in."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from ridgeline.engine.params import SamplingParams
from ridgeline.engine.records import Cancel, Submit, ToEngine
from ridgeline.engine.wire import Channel


def pair() -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return Channel(one, ToEngine), Channel(other, ToEngine)


def test_a_long_prompt_is_there_at_once():
    """An engine that has work looks once a step."""
    sender, receiver = pair()
    prompt = tuple(range(100_000, 128_000))
    sending = threading.Thread(target=sender.send, args=(Submit(1, prompt, SamplingParams(), 0, 9),))
    sending.start()
    sending.join(5)  # the system holds it all
    messages = receiver.receive(0)
    sending.join(20)
    assert [message.prompt for message in messages] == [prompt]


def test_what_came_before_the_end_is_given_first():
    sender, receiver = pair()
    piece = struct.pack("<I", 3) + b"\x93\x01\x02"  # a frame that is cut off below
    sender.send(Cancel(7, "left"))
    sender.sock.sendall(piece[:-1])
    sender.sock.close()
    assert receiver.receive(0) == [Cancel(7, "left")]
    with pytest.raises(EOFError):
        receiver.receive(0)


def test_an_end_at_the_edge_of_a_piece_is_told_by_the_next_call(monkeypatch):
    sender, receiver = pair()
    sender.send(Cancel(7, "left"))
    monkeypatch.setattr("ridgeline.engine.wire._PIECE", len(receiver.sock.recv(1 << 16, socket.MSG_PEEK)))
    sender.sock.close()
    assert receiver.receive(0) == [Cancel(7, "left")]
    with pytest.raises(EOFError):
        receiver.receive(0)
