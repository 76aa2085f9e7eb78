"""A minute of the soak, and what it must notice: bugs planted in sharing, preemption, windows, searches and
replays."""

from __future__ import annotations

import itertools
import json
import time

import msgspec
import pytest

pytest.importorskip("ridgeline.backends.cpu._native", reason="the native module is not built")

from ridgeline.engine.beams import Beams
from ridgeline.engine.ledger import Live
from ridgeline.engine.params import check_params
from ridgeline.engine.prefix import PrefixCache
from ridgeline.engine.sequence import Sequence
from soak import play
from soak.scenario import Scenario, draw
from soak.soak import Soak

SEED = 20_000
COVERED = (
    "preemptions", "recomputed_tokens", "cached_tokens", "requests of several choices", "ended: cancelled",
    "ended: deadline", "ended: stop_sequence", "ended: eos_token", "ended: length", "refused: Overloaded",
    "engines lost", "restarts", "SIGKILL", "SIGSTOP", "SIGSEGV", "searches", "requests with seeds", "pauses", "resumes",
    "marked requests",
    "requests with a salt", "pages shared by two tenants", "steps without memory", "steps pressed", "ended: no_memory",
)  # fmt: skip


def test_a_scenario_is_its_seed_and_plays_step_for_step(tmp_path):
    """Also after it was written and read again, as a trace is."""
    one = Soak(tmp_path / "one")
    scenario = draw(SEED)
    read = msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario)
    assert read == scenario == draw(SEED) != draw(SEED + 4)
    first, again = play.play(scenario, one.engines), play.play(read, Soak(tmp_path / "two").engines)
    assert first.digest == again.digest != 0 and first.counts == again.counts and first.counts["steps"] > 20


def test_what_is_drawn_is_accepted():
    """Else a kind of request might be refused unnoticed."""
    for seed in range(SEED, SEED + 200):
        for ask in draw(seed).asks:
            check_params(ask.params, 260)


@pytest.mark.soak
@pytest.mark.timeout(1800)  # a minute, on a machine that has one to spare
def test_a_minute_of_soak(tmp_path):
    soak, seed, end = Soak(tmp_path), SEED, time.monotonic() + 60
    while time.monotonic() < end or any(not soak.counts[what] for what in COVERED):
        try:
            soak.play(draw(seed))
        except Exception as failure:
            raise AssertionError(f"{failure}; replay with: make soak SEED={seed}") from failure
        seed += 1
    print(json.dumps(soak.record()))


def nothing_copied(monkeypatch):
    """Choices of a request get a page of their own, without what the prompt's last page holds."""
    fork = Sequence.fork
    monkeypatch.setattr(Sequence, "fork", lambda self, pool, child: fork(self, pool, child) and [])


def released_early(monkeypatch):
    """Pages behind the window go a page too soon."""
    slide = Sequence.slide

    def early(self, pool):
        self.computed += 32
        slide(self, pool)
        self.computed -= 32

    monkeypatch.setattr(Sequence, "slide", early)


def last_token_forgotten(monkeypatch):
    """A replay begins one token before what was delivered."""
    replay = Live.replay

    def forgetful(self, now):
        request = replay(self, now)
        return msgspec.structs.replace(request, emitted=tuple(e[:-1] for e in request.emitted))

    monkeypatch.setattr(Live, "replay", forgetful)


def keys_forgotten(monkeypatch):
    """One that gave way goes on as if the first page were still there."""
    release = Sequence.release

    def partly(self, cache):
        release(self, cache)
        self.computed = 1 if self.finish is None else 0

    monkeypatch.setattr(Sequence, "release", partly)
    monkeypatch.setattr(Sequence, "adopt", _adopt_more(Sequence.adopt))


def _adopt_more(adopt):
    def more(self, pool, node):
        before = self.computed
        adopt(self, pool, node)
        self.computed = max(self.computed, before)

    return more


def any_page_matches(monkeypatch):
    """The prefix cache looks at a page's own tokens, wherever it lies: that of another beginning is as good."""
    match = PrefixCache.match

    def anywhere(self, tokens, node, most):
        found = match(self, tokens, node, most)
        if found.parent is None and most > 64:
            found = next(iter(found.children.values()), found)
        return found

    monkeypatch.setattr(PrefixCache, "match", anywhere)


def old_match_kept(monkeypatch):
    """A beam that takes another's place looks for pages where its own tokens led."""
    placed = Beams._placed

    def keeping(self, branches):
        before = {s: s.match for s in self._spare}
        lines, children = placed(self, branches)
        for child in itertools.chain(*children.values()):
            child.match = before.get(child, child.match)
        return lines, children

    monkeypatch.setattr(Beams, "_placed", keeping)


PLANTED = (nothing_copied, released_early, last_token_forgotten, keys_forgotten, any_page_matches, old_match_kept)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_bug_is_found(tmp_path, monkeypatch, plant):
    """Within the scenarios that a minute plays."""
    plant(monkeypatch)
    soak = Soak(tmp_path)
    with pytest.raises((AssertionError, ValueError)) as found:  # ours, or the native loop's of a page that is gone
        for seed in range(SEED, SEED + 40):
            soak.play(draw(seed))
    print(f"{plant.__name__}: found in scenario {soak.counts['scenarios']}: {str(found.value)[:120]}")
