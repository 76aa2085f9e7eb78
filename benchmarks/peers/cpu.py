"""Ours against other CPU engines: the same work, interleaved, medians of ratios; writes docs/benchmarks.md.

    python benchmarks/peers/cpu.py CONFIG.json [--case TEXT] [--work NAME] [--rounds 5] [--kl] [--quick]

CONFIG.json (config.py, README.md) says where the engines and models are. Results are kept in a file beside the build
and the document is written from all of them, so that cases can be measured one at a time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
if not __package__:  # run as a script
    sys.path.insert(0, str(ROOT / "benchmarks"))

from peers.binaries import Binaries  # noqa: E402
from peers.child import Unmeasured  # noqa: E402
from peers.config import Case, Config, EngineSettings, Entry, load  # noqa: E402
from peers.engines import DISTRIBUTIONS, OURS, Engine, Limits, Ours, Package, Session  # noqa: E402
from peers.machine import LOADS, Loads  # noqa: E402
from peers.report import CaseRecord, Store, Subject, document  # noqa: E402
from peers.rounds import Instruments, Result, measure, median, median_ratio  # noqa: E402
from peers.work import FIGURES, Work, quick_works, works  # noqa: E402
from ridgeline.analysis import hardware  # noqa: E402
from ridgeline.errors import RidgelineError  # noqa: E402

BINARIES = ("llama.cpp", "ik_llama.cpp")
BUSY = 0.5  # load average, before anything is started
RESULTS, DOCUMENT = ROOT / "build" / "peers.json", ROOT / "docs" / "benchmarks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as for Ctrl-C: what was started ends too
    known = quick_works() if options.quick else works()
    options.results = options.results or (RESULTS.with_name("peers-quick.json") if options.quick else RESULTS)
    store = Store() if options.quick else _stored(options.results)
    if options.config is not None:
        measure_cases(load(options.config), known, store, options)
    document_file = options.out or (options.results.with_suffix(".md") if options.quick else DOCUMENT)
    document_file.parent.mkdir(parents=True, exist_ok=True)
    document_file.write_text(document(store, known))
    return 0


def measure_cases(config: Config, known: Mapping[str, Work], store: Store, options: argparse.Namespace) -> None:
    """Measure the cases asked for; each is kept as soon as it is done."""
    chosen = [case for case in config.cases if options.case in case.name]
    if not chosen:
        raise SystemExit(f"no case has {options.case!r} in its name; there are: {[c.name for c in config.cases]}")
    if (load_average := os.getloadavg()[0]) > BUSY:
        _say(f"the machine is busy (load average {load_average:.1f}): these figures are not for the record")
    for case in chosen:
        names = options.work or case.works or list(known)
        record, results = run(config, case, [known[name] for name in names if name in known], options)
        for result in results:
            store.put(record, result)
        _keep(options.results, store)


def run(
    config: Config, case: Case, todo: Sequence[Work], options: argparse.Namespace
) -> tuple[CaseRecord, list[Result]]:
    """Measure one case."""
    limits = Limits(config.threads, config.limit_s)
    engines = made(config, limits)
    entries = [case.ours, *case.peers]
    subjects = [_subject(engines, entry) for entry in entries]
    if options.kl and case.kl and config.text:
        for subject, entry in zip(subjects, entries, strict=True):
            subject.kl = _kl(engines, entry, subject, Path(config.text))
    absent = {name: "no model given in this case" for name in engines if name not in {e.engine for e in entries}}
    here = hardware.machine()
    record = CaseRecord(case.name, subjects, here.cpu, config.threads, absent)
    with ExitStack() as stack:
        sessions = _open(engines, entries, subjects, stack)
        if (mine := sessions.get(case.ours.title)) is not None:
            sessions[LOADS] = Loads(mine.weights, limits)
        results = [_measured(case, work, sessions, subjects, options) for work in todo]
    return record, results


def made(config: Config, limits: Limits) -> dict[str, Engine]:
    """Every known engine by name, ours first; those the configuration does not place are looked for here."""
    names = dict.fromkeys([OURS, *BINARIES, *DISTRIBUTIONS, *config.engines])
    found: dict[str, Engine] = {}
    for name in names:
        settings = config.engines.get(name, EngineSettings())
        if name == OURS:
            found[name] = Ours(settings, limits)
        else:
            found[name] = (Package if name in DISTRIBUTIONS else Binaries)(name, settings, limits)
    return found


def _subject(engines: dict[str, Engine], entry: Entry) -> Subject:
    try:
        version = engines[entry.engine].version()
    except KeyError:
        return Subject(entry.title, entry.engine, entry.format, reason="no such engine")
    except Unmeasured as wrong:
        return Subject(entry.title, entry.engine, entry.format, reason=str(wrong))
    return Subject(entry.title, entry.engine, entry.format, version)


def _kl(engines: dict[str, Engine], entry: Entry, subject: Subject, text: Path) -> float | None:
    if subject.reason:
        return None
    try:
        return engines[entry.engine].kl(entry, text)
    except Unmeasured as wrong:
        _say(f"{entry.title}: KL {wrong}")
        return None


def _open(
    engines: dict[str, Engine], entries: Sequence[Entry], subjects: Sequence[Subject], stack: ExitStack
) -> dict[str, Session]:
    sessions: dict[str, Session] = {}
    for entry, subject in zip(entries, subjects, strict=True):
        if subject.reason:
            _say(f"{entry.title}: not measured, {subject.reason}")
            continue
        _say(f"{entry.title}: loading {entry.model}")
        try:
            session = engines[entry.engine].open(entry)
        except Unmeasured as wrong:
            subject.reason = str(wrong)
            _say(f"{entry.title}: not measured, {wrong}")
            continue
        stack.callback(session.close)
        sessions[entry.title] = session
    return sessions


def _measured(
    case: Case, work: Work, sessions: dict[str, Session], subjects: Sequence[Subject], options: argparse.Namespace
) -> Result:
    failed = {s.title: s.reason for s in subjects if s.reason}
    wanted = {e.title for e in (case.ours, *case.peers) if not e.works or work.name in e.works} | {LOADS}
    taking = {title: session for title, session in sessions.items() if title in wanted}
    watch = Instruments(_barrier, hardware.state_of)
    rounds = measure(work, taking, 1 if options.quick else options.rounds, watch, failed)
    _say(f"{case.name}, {work.name}: {len(rounds)} rounds, {[r.state for r in rounds]}")
    for title in taking:
        for figure in FIGURES:
            value = median(rounds, title, figure)
            times = median_ratio(rounds, case.ours.title, title, figure)
            if value is not None:
                _say(f"  {title}: {figure} {value:.2f}" + (f", ratio {times:.2f}" if times else ""))
    return Result(case.name, work.name, datetime.date.today().isoformat(), rounds, failed)


def _barrier() -> float | None:
    """A barrier of two threads in ns; None if the machine is too busy to tell."""
    try:
        return hardware.barrier()
    except RidgelineError:
        return None


def _stored(path: Path) -> Store:
    if not path.exists():
        return Store()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Store)
    except msgspec.DecodeError as wrong:
        raise SystemExit(f"{path} holds no results of this version ({wrong}); move it away") from wrong


def _keep(path: Path, store: Store) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(store), indent=1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", help="where the engines and models are; left out: no measuring")
    parser.add_argument("--case", default="", help="only cases with this text in their name")
    parser.add_argument("--work", action="append", choices=list(works()), help="only this piece of work; repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="settled rounds of each piece of work")
    parser.add_argument("--quick", action="store_true", help="one round of tiny work, document apart: does it all run?")
    parser.add_argument("--kl", action="store_true", help="also measure the KL figures (minutes)")
    parser.add_argument("--results", type=Path, help="kept results (default build/peers.json)")
    parser.add_argument("--out", type=Path, help="the document (default docs/benchmarks.md)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
