"""Frames between the server process and the engine process: 4 bytes of length, then MessagePack."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import Any

import msgspec

from ridgeline.engine.records import EngineInfo, LoadFailed, StepDelta, ToEngine

FromEngine = EngineInfo | StepDelta | LoadFailed

_LENGTH = struct.Struct("<I")
_MAX_FRAME = 1 << 30
_PIECE = 1 << 16  # read at once; for a megabyte the system maps fresh memory each time


class Channel:
    """One end of a socket. `send` writes one message; `receive` waits for data and gives all complete messages."""

    def __init__(self, sock: socket.socket, expected: Any) -> None:
        self.sock = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(expected)
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, message: ToEngine | FromEngine) -> None:
        data = self._encoder.encode(message)
        self.sock.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, timeout: float | None) -> list[Any]:
        """Messages that have arrived, waiting up to `timeout` seconds (None: for ever) for the first byte. All that is
        there is read: an engine asks once a step, and a long prompt is not to take a step for each piece of it.

        Raises EOFError when the other end is gone.
        """
        # poll, not settimeout: a timeout would also hit a send under way in another thread and tear its frame.
        try:
            if not self._poll.poll(None if timeout is None else timeout * 1000):
                return []
            if not (size := self._read()):
                raise EOFError("the other end closed the connection")
        except OSError as gone:
            raise EOFError(str(gone)) from None
        with contextlib.suppress(OSError):  # the next call says that it is gone: what had come before is whole
            while size == _PIECE and self._poll.poll(0):
                size = self._read()
        return self._complete()

    def _read(self) -> int:
        data = self.sock.recv(_PIECE)
        self._buffer += data
        return len(data)

    def _complete(self) -> list[Any]:
        messages, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            assert size <= _MAX_FRAME, "a frame of the engine channel is over its bound"
            if len(self._buffer) - start - _LENGTH.size < size:
                break
            start += _LENGTH.size
            messages.append(self._decoder.decode(self._buffer[start : start + size]))
            start += size
        del self._buffer[:start]
        return messages
