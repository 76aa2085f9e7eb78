"""Child processes that answer in lines of JSON, with time limits. Knows neither engines nor work."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class Unmeasured(Exception):
    """Why an engine gives no figure here: shown in the table instead of it."""


def output(command: Sequence[str], limit_s: float, env: Mapping[str, str] | None = None, both: bool = False) -> str:
    """What a command printed on stdout (with stderr if `both`). Unmeasured if it is not there, fails or takes long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=limit_s,
            env={**os.environ, **(env or {})},
        )
    except OSError as wrong:
        raise Unmeasured(f"{Path(command[0]).name} cannot be run: {wrong.strerror}") from wrong
    except subprocess.TimeoutExpired as wrong:
        raise Unmeasured(f"{Path(command[0]).name} took more than {limit_s:.0f} s") from wrong
    if done.returncode:
        raise Unmeasured(f"{Path(command[0]).name} failed ({done.returncode}): {_last_line(done.stderr)}")
    return done.stdout + done.stderr if both else done.stdout


class Child:
    """A process that is asked one line of JSON and answers with one; {"error": text} becomes Unmeasured.

    Between answers it is stopped, with the processes it started: some engines spin while they wait.
    """

    def __init__(self, command: Sequence[str], limit_s: float, env: Mapping[str, str]) -> None:
        self._began = time.perf_counter()
        self._limit_s, self._rest = limit_s, b""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **env},
                start_new_session=True,  # some engines have processes of their own, which end with it
            )
        except OSError as wrong:
            raise Unmeasured(f"{command[0]} cannot be run: {wrong.strerror}") from wrong

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self._began

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return self.answer()
        except OSError as wrong:
            raise Unmeasured("its process has ended") from wrong
        finally:
            self._signal(signal.SIGSTOP)

    def answer(self) -> dict[str, Any]:
        """The next line. Unmeasured if it is an error, does not come in time, or the process ends."""
        end = time.monotonic() + self._limit_s
        while b"\n" not in self._rest:
            self._rest += self._read(end - time.monotonic())
        line, self._rest = self._rest.split(b"\n", 1)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Unmeasured(str(found["error"]))
        return found

    def close(self) -> None:
        """End the process and those it started."""
        self._signal(signal.SIGKILL)
        self._process.communicate()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read(self, limit_s: float) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(limit_s, 0)):
                self.close()
                raise Unmeasured(f"no answer within {self._limit_s:.0f} s")
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            self.close()
            raise Unmeasured(f"its process ended with status {self._process.returncode}")
        return data


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
