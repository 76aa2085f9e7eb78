"""Trial: a grammar is compiled first in a process of its own, which may die of it.

llguidance bounds the states of its lexer. But it looks before whether patterns that must hold together can, without
bound: 60 of them, in two kilobytes, took 20 GB and no end of time, and nothing inside a process can stop that. The
trial's tokens are bytes: what has no bound does not depend on them.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import threading
import weakref
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from ridgeline.errors import EngineFailed, InvalidRequest

if TYPE_CHECKING:
    import subprocess

STACK = 256 << 20  # of addresses, for a thread that compiles; memory is what is touched
_BYTES = 1 << 30  # beside the stack
_COMMAND = [sys.executable, "-m", "ridgeline.guidance.trial"]
_LENGTH = struct.Struct("<I")
_READY = b"."  # for the next one; what was wrong with the last follows
_SAID = 2048  # bytes at most: no more than a pipe takes as a whole
_START_S = 30.0


class Trial:
    """One process for all grammars, begun with the first and anew after one that it died of. In one thread alone."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, text: str) -> str:
        """Compile llguidance's text of a grammar: what is wrong with it, or "". InvalidRequest where that takes too
        long, or too much memory, EngineFailed where there can be no process."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._begun()
        data = text.encode("utf-8", "replace")
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).write(_LENGTH.pack(len(data)) + data)
            _pipe(self._process.stdin).flush()
        said = _said(self._process, self._seconds)
        if said:
            return said.removeprefix(_READY).decode("utf-8", "replace")
        _end(self._process)
        limit = f"within {self._seconds:g} seconds" if said is None else f"in {_BYTES >> 20} MiB of memory"
        raise InvalidRequest(f"the grammar was not compiled {limit}; simplify it", "grammar")

    def _begun(self) -> subprocess.Popen[bytes]:
        from subprocess import DEVNULL, PIPE, Popen  # what few ask for should cost nobody else a start

        try:
            process = Popen(_COMMAND, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        except OSError as wrong:
            raise EngineFailed(f"the process that tries grammars could not be started: {wrong}") from None
        weakref.finalize(self, _end, process)
        if _said(process, _START_S) != _READY:
            _end(process)
            raise EngineFailed("the process that tries grammars ended, or did nothing, when it was started")
        return process


def _said(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """What it says next, written at once: b"" if it has ended, None if nothing in time."""
    waiting = select.poll()
    waiting.register(_pipe(process.stdout), select.POLLIN)
    return _pipe(process.stdout).read1(_SAID) if waiting.poll(1000 * seconds) else None


def _pipe(end: IO[bytes] | None) -> Any:
    """One of those that it was begun with."""
    assert end is not None
    return end


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for end in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # something may wait in it that nobody took
            _pipe(end).close()


def _serve() -> None:
    """Compile what comes, and say what is wrong with it, until nothing comes any more."""
    import llguidance

    tokens, error = llguidance.LLTokenizer("byte"), ""
    limits = llguidance.LLParserLimits(verbose_errors=False)
    while True:
        os.write(sys.stdout.fileno(), (_READY + error.encode("utf-8", "replace"))[:_SAID])
        if len(head := sys.stdin.buffer.read(_LENGTH.size)) < _LENGTH.size:
            return
        text = sys.stdin.buffer.read(*_LENGTH.unpack(head)).decode("utf-8", "replace")
        error = llguidance.LLMatcher(tokens, text, log_level=0, limits=limits).get_error()


def main() -> None:
    """The process: bounded, and quiet when its server is told to stop, which ends it."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for kind, most in ((resource.RLIMIT_AS, STACK + _BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # where the system has no such bound, time remains
            resource.setrlimit(kind, (most, most))
    threading.stack_size(STACK)
    threading.Thread(target=_serve, name="ridgeline-trial").start()


if __name__ == "__main__":
    main()
