"""Restarts of the engine process, over a fake engine: poison, silence, failing loads, closing and leaks."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import child
import msgspec
import pytest
from collected import Collected, greedy, prompt_of, start
from fake import fake_engine
from test_process import finish

from ridgeline.config import EngineConfig
from ridgeline.engine import process, worker
from ridgeline.engine.ledger import Ledger
from ridgeline.engine.process import ProcessClient
from ridgeline.engine.progress import Progress
from ridgeline.engine.records import NO_TERMS, EngineInfo, StepDelta, Submit
from ridgeline.engine.wire import Channel, FromEngine, ToEngine
from ridgeline.errors import EngineFailed, ModelFileError


def plain(length: int) -> list[int]:
    """A prompt without a token that harms the child."""
    return [10 + t % 900 for t in prompt_of(length, length)]


REQUESTS = [(plain(n), greedy(m)) for n, m in ((3, 300), (40, 200), (130, 90), (1, 250))]


def command(fd: int, progress: int, config: EngineConfig) -> list[str]:
    return [sys.executable, child.__file__, str(fd), str(progress), msgspec.json.encode(asdict(config)).decode()]


@pytest.fixture(autouse=True)
def launched(monkeypatch) -> list[process.Child]:
    """Every child of a test; all must be gone, with their sockets and threads, when it ends."""
    children: list[process.Child] = []

    class Recorded(process.Child):
        def __init__(self, config: EngineConfig) -> None:
            super().__init__(config)
            children.append(self)

    monkeypatch.setattr(process, "command", command)
    monkeypatch.setattr(process, "Child", Recorded)
    monkeypatch.setattr(process, "_BACKOFF_S", 0.02)
    gc.collect()  # what other tests left open
    before = len(os.listdir("/proc/self/fd"))
    yield children
    assert all(c.process.returncode is not None for c in children)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(c._writer.is_alive() for c in children)


@pytest.fixture
def note(tmp_path) -> Path:
    return tmp_path / "note"


@pytest.fixture
def client(note):
    client = ProcessClient(EngineConfig(str(note)), silence_s=1.0)
    yield client
    client.close()


@pytest.fixture(scope="module")
def undisturbed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "command", command)
        client = ProcessClient(EngineConfig("none"))
        sinks = start(client, REQUESTS)
        finish(client, sinks)
        client.close()
    return [s.tokens[0] for s in sinks]


def pump_until(client, condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        client.pump(0.05)
        assert time.monotonic() < end, "it did not happen in time"


@pytest.mark.parametrize("first", [True, False])
def test_poison_fails_alone(client, launched, undisturbed, first):
    client._stall_s = client._silence_s = 20.0  # a child that only waits for a core is no death to count
    bad = ([1, child.POISON], greedy(5))
    at = 0 if first else len(REQUESTS)
    sinks = start(client, [*REQUESTS[:at], bad, bad, *REQUESTS[at:]])
    finish(client, sinks)
    assert [s.finish[0] for s in sinks[at : at + 2]] == [["failed"]] * 2
    assert [s.tokens[0] for s in sinks[:at] + sinks[at + 2 :]] == undisturbed
    assert client.unhealthy() is None and len(launched) == 1 + 2 + 2  # two deaths together, one of each alone


@pytest.mark.soak
def test_many_poisons_leave_the_engine_serving(client, undisturbed):
    sinks = start(client, [([1, child.POISON], greedy(5))] * 8)
    finish(client, sinks)
    assert all(s.finish[0] == ["failed"] for s in sinks)
    sinks = start(client, REQUESTS)
    finish(client, sinks)
    assert [s.tokens[0] for s in sinks] == undisturbed


@pytest.mark.soak
def test_an_engine_that_only_dies_is_given_up(client, launched):
    deaths = 0
    while client.gone() is None:
        finish(client, start(client, [([1, child.POISON], greedy(5))]))
        deaths += 1
    assert deaths == 3  # of three deaths each, one is the request's; the sixth of the others is one too many
    with pytest.raises(EngineFailed, match="delivered nothing"):
        client.submit([1], greedy(), Collected())
    count = len(launched)
    begin = time.monotonic()
    client.pump(0.2)
    assert time.monotonic() - begin >= 0.2 and len(launched) == count


@pytest.mark.parametrize("early", [False, True])
def test_a_stopped_child_is_replaced(client, undisturbed, early):
    sinks = start(client, REQUESTS)
    pump_until(client, lambda: early or len(sinks[0].tokens[0]) > 20)
    stopped = client.pid
    os.kill(stopped, signal.SIGSTOP)
    finish(client, sinks)
    assert client.pid != stopped and [s.tokens[0] for s in sinks] == undisturbed


def test_a_stuck_step_is_replaced_and_its_request_fails(client, undisturbed):
    sinks = start(client, [([1, child.STUCK], greedy(5)), *REQUESTS])
    finish(client, sinks)
    assert sinks[0].finish[0] == ["failed"] and [s.tokens[0] for s in sinks[1:]] == undisturbed


def test_idle_silence_is_no_stall(client):
    first = client.pid
    for _ in range(15):
        client.pump(0.1)
    finish(client, start(client, [([1], greedy(3))]))
    assert client.pid == first


def test_submit_cancel_and_close_never_wait_for_the_child(client):
    os.kill(client.pid, signal.SIGSTOP)
    begin = time.monotonic()
    big = greedy(1, stop=("x" * 4000,), logit_bias=dict.fromkeys(range(1000), 0.0))
    sinks = [Collected() for _ in range(60)]
    for sink in sinks:  # over 15 kB each: far more than a socket buffers
        client.cancel(client.submit(plain(1000), big, sink))
    client.close()
    assert time.monotonic() - begin < 2
    assert all(s.finish[0] == ["cancelled"] for s in sinks)


def test_a_cancel_survives_a_restart(client):
    seen, other = Collected(), Collected()
    id = client.submit([1], greedy(1000), seen)
    client.submit([2], greedy(50), other)
    pump_until(client, lambda: len(seen.tokens[0]) > 5)
    os.kill(client.pid, signal.SIGKILL)
    client.cancel(id)
    finish(client, [seen, other])
    assert seen.finish[0] == ["cancelled"] and other.finish[0] == ["length"]


def test_a_pause_is_no_stall_and_survives_a_restart(client, launched, undisturbed):
    seen = Collected()
    id = client.submit(*REQUESTS[0], seen)
    pump_until(client, lambda: len(seen.tokens[0]) > 5)
    client.pause(id)
    for killed in (False, True):
        if killed:
            os.kill(client.pid, signal.SIGKILL)
            pump_until(client, lambda: client.ledger.last.step == 0)  # of a new child, which has nothing to compute
        pump_until(client, lambda: client.ledger.last.paused == 1)
        had, begin = len(seen.tokens[0]), time.monotonic()
        while time.monotonic() - begin < 1.3:  # longer than silence_s
            client.pump(0.05)
        assert len(seen.tokens[0]) == had and len(launched) == 1 + killed
    client.resume(id)
    finish(client, [seen])
    assert seen.tokens[0] == undisturbed[0]
    told = [line.removeprefix("choice 0 ").split()[0] for line in client.ledger.why(id)]
    assert [word for word in told if word != "starts:"] == ["is", "is", "is", "goes", "ends"], told
    assert told.count("starts:") == 2 and any("new engine process" in line for line in client.ledger.why(id))


def test_prompt_logprobs_come_once_though_the_child_is_killed(client):
    prompt = plain(900)
    seen = Collected()
    client.submit(prompt, greedy(40, prompt_logprobs=True), seen)
    for condition in (
        lambda: client.ledger.last is not None and client.ledger.last.step >= 2,
        lambda: len(seen.tokens[0]) > 3,
    ):
        pump_until(client, condition)
        os.kill(client.pid, signal.SIGKILL)
    finish(client, [seen])
    assert [t.id for t in seen.prompt] == prompt[1:] and len(seen.tokens[0]) == 40


def test_every_step_is_a_sign_of_life(monkeypatch):
    loaded = SimpleNamespace(engine=fake_engine(step_tokens=32), opened=SimpleNamespace(backend=None))
    monkeypatch.setattr(worker, "load", lambda config: loaded)
    progress = Progress.create()
    with progress.handed_over():
        pass  # to a thread, which needs no descriptor
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, contextlib.suppress(EOFError):
            worker.serve(Channel(theirs, ToEngine), EngineConfig("none"), progress)

    serving = threading.Thread(target=serve)
    serving.start()
    with ours:
        channel = Channel(ours, FromEngine)
        channel.send(Submit(1, tuple(plain(320)), greedy(1), 7, 1))
        heard: list[FromEngine] = []
        while not (heard and isinstance(heard[-1], StepDelta) and heard[-1].deltas):
            heard += channel.receive(None)
        assert isinstance(heard[0], EngineInfo)
        assert [len(m.deltas) for m in heard[1:]] == [0] * 9 + [1]
        ours.shutdown(socket.SHUT_RDWR)
        serving.join()
    progress.close()


def test_a_failed_reload_is_tried_again(client, note, launched, undisturbed):
    sinks = start(client, REQUESTS)
    pump_until(client, lambda: len(sinks[0].tokens[0]) > 20)
    note.write_text("fail")
    os.kill(client.pid, signal.SIGKILL)
    pump_until(client, lambda: len(launched) == 4)
    late = Collected()
    client.submit([5], greedy(9), late)
    note.unlink()
    finish(client, [*sinks, late])
    assert [s.tokens[0] for s in sinks] == undisturbed and len(late.tokens[0]) == 9


@pytest.mark.parametrize(("what", "words"), [("fail", "the disk is gone"), ("shrink", "another pages")])
def test_reloads_that_keep_failing_end_everything_once(client, note, launched, what, words):
    sinks = start(client, REQUESTS)
    note.write_text(what)
    os.kill(client.pid, signal.SIGKILL)
    finish(client, sinks)
    assert all(s.finish[0] == ["failed"] for s in sinks)
    assert words in client.unhealthy() and len(launched) == 6


def test_a_restart_is_told_what_was_settled(note):
    client = ProcessClient(EngineConfig(str(note), threads=0, kv_memory=0))
    client.close()
    info, settled = client.info, client._settled
    assert settled.kv_memory == info.pages * info.page_bytes
    assert (settled.context, settled.threads) == (info.context, info.threads)


def test_closing_while_a_child_loads_leaves_none(client, note, launched):
    note.write_text("hang")
    os.kill(client.pid, signal.SIGKILL)
    pump_until(client, lambda: len(launched) == 2)
    pumping = threading.Thread(target=client.pump, args=(30,))
    pumping.start()
    client.close()
    pumping.join(5)
    assert not pumping.is_alive()
    client._restart_at = 0.0
    client.pump(0)
    client._restart()  # a pump that had got this far
    assert len(launched) == 2


def test_a_first_load_that_fails_leaves_nothing(note, launched):
    note.write_text("fail")
    with pytest.raises(ModelFileError, match="disk"):
        ProcessClient(EngineConfig(str(note)))
    assert len(launched) == 1


def test_who_leaves_while_suspects_are_tried_one_by_one_ends_at_once():
    ledger = Ledger(fake_engine().info)
    first, second, third = (ledger.accept([1, n], greedy(), Collected(), NO_TERMS).id for n in range(3))
    for _ in range(2):
        ledger.due()
        ledger.engine_died()
    ledger.cancel(third)
    assert [m.id for m in ledger.due()] == [first, third, third]
    ledger.cancel(second)
    assert [m.id for m in ledger.due()] == [second, second]


def test_time_that_the_parent_itself_was_stopped_is_no_silence_of_the_child(client, monkeypatch):
    """As when a container is paused: each wait seems to take 100 seconds."""
    sinks, pid, channel = start(client, REQUESTS), client.pid, client._child.channel
    stopped, now, receive = [0.0], time.monotonic, channel.receive

    def late(timeout):
        stopped[0] += 100
        return receive(timeout)

    monkeypatch.setattr(process.time, "monotonic", lambda: now() + stopped[0])
    monkeypatch.setattr(channel, "receive", late)
    for _ in range(2000):
        if not client.idle:
            client.pump(0.05)
    assert client.idle and client.pid == pid and all(s.finish[0] == ["length"] for s in sinks)
    assert client._patience < 2


def test_a_first_load_that_dies_leaves_nothing(note, launched, monkeypatch):
    monkeypatch.setattr(process, "command", lambda fd, progress, config: [sys.executable, "-c", ""])
    with pytest.raises(EngineFailed, match="ended while loading"):
        ProcessClient(EngineConfig(str(note)))
    monkeypatch.setattr(process, "command", lambda fd, progress, config: ["/no/such/program"])
    with pytest.raises(EngineFailed, match="could not be started"):
        ProcessClient(EngineConfig(str(note)))
    assert len(launched) == 1


def test_a_paused_suspect_is_no_silence(client, launched):
    """It waits here, not in the engine, which has nothing to do meanwhile and is left alone."""
    seen = Collected()
    id = client.submit(*REQUESTS[0], seen)
    pump_until(client, lambda: len(seen.tokens[0]) > 2)
    client.pause(id)
    pump_until(client, lambda: client.ledger.last.paused == 1)
    for deaths in (1, 2):
        os.kill(client.pid, signal.SIGKILL)
        pump_until(client, lambda n=deaths: len(launched) == 1 + n and client._ready)
        if deaths == 1:
            pump_until(client, lambda: client.ledger.last.paused == 1)
    client._stall_s = client._silence_s = 0.2
    end = time.monotonic() + 2
    while time.monotonic() < end:
        client.pump(0.05)
        assert client.unhealthy() is None
    assert len(launched) == 3
