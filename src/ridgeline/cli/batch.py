"""`ridgeline batch MODEL IN -o OUT`: answer a file of requests, going on where an earlier run was cut off."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ridgeline.cli.command import Argument, Exit, Option
from ridgeline.cli.options import ENGINE, takes
from ridgeline.cli.output import say
from ridgeline.config import EngineConfig, ServerConfig
from ridgeline.errors import ConfigError

if TYPE_CHECKING:
    from ridgeline.offline.journal import Journal, Left
    from ridgeline.offline.run import Totals

_SAY_S = 10.0  # between lines of progress where stderr is no terminal
_DRAW_S = 0.2
_SOME_FAILED, _INTERRUPTED = 1, 130


@takes(config=ENGINE)
def batch(
    config: EngineConfig,
    lines: Annotated[str, Argument(metavar="IN", help="Requests, one per line, as OpenAI's Batch API has them.")],
    output: Annotated[Path, Option("Answers, one per line; a file that is there is completed.", flag="-o")],
    fresh: Annotated[bool, Option("Empty the output first, whatever it holds.", flag="--fresh")] = False,
    max_requests: Annotated[int, Option("Sequences that run at once.")] = EngineConfig.max_requests,
    step_tokens: Annotated[int, Option("Most tokens in one step.")] = EngineConfig.step_tokens,
) -> None:
    """Answer a file of requests; run again, it goes on where it was stopped.

    Each line is {"custom_id", "method": "POST", "url", "body"} with url /v1/chat/completions or /v1/completions. A line
    that cannot be served is answered with its error. Exit status: 0 all lines have answers, 1 some have errors.
    """
    from ridgeline.offline.journal import Journal
    from ridgeline.offline.lines import read_lines

    source = Path(lines)
    if not source.is_file():
        raise ConfigError(f"{source} is no file; give a file of requests (it is read twice, so no pipe)")
    queue = max(max_requests, ServerConfig.max_best_of)  # any n fits; more would start in an order chosen too early
    config = replace(config, max_requests=max_requests, step_tokens=step_tokens, queue=queue)
    keys = frozenset(line.key for line in read_lines(source))
    with contextlib.closing(Journal(output, source)) as journal:
        if fresh:
            journal.clear()
        left = journal.recover(keys)
        if left.done:
            say(f"{len(left.done)} of {len(keys)} lines are done already")
        errors = left.errors
        if len(left.done) < len(keys):
            errors += _answer(config, source, journal, left, len(keys)).errors
    if errors:
        say(f"{errors} of {len(keys)} lines have errors; see {output}")
        raise Exit(_SOME_FAILED)


def _answer(config: EngineConfig, source: Path, journal: Journal, left: Left, total: int) -> Totals:
    """Load the model and answer what is left; the last line on stderr sums up this run."""
    from ridgeline.cli import session
    from ridgeline.engine.load import find
    from ridgeline.offline.lines import read_lines
    from ridgeline.offline.run import Run
    from ridgeline.server.service import Service, public_name

    llm = session.open_llm(config)
    settings = ServerConfig(config, aliases=(config.model,))
    run = Run(llm.client, Service(llm.info, llm.tokenizer, settings, public_name(find(config.model))), journal, say)
    begin = time.perf_counter()
    todo = (line for line in read_lines(source) if line.key not in left.done)
    try:
        with _progress(len(left.done), total) as progress:
            run.run(todo, progress)
    except KeyboardInterrupt:
        done = len(left.done) + run.totals.lines
        say(f"stopped: {done} of {total} lines are done; the same command goes on from there")
        raise Exit(_INTERRUPTED) from None
    _sum_up(run.totals, time.perf_counter() - begin)
    return run.totals


def _sum_up(t: Totals, seconds: float) -> None:
    say(
        f"{t.lines} requests, {t.errors} errors, {t.prompt_tokens} prompt tokens, {t.generated} generated | "
        f"{seconds:.1f} s, {t.generated / seconds:.1f} tok/s"
    )


@contextlib.contextmanager
def _progress(done: int, total: int) -> Iterator[Callable[[Totals], None]]:
    """What is told after each step: draws a bar on a terminal, else says a line now and then."""
    begin = time.perf_counter()
    if not sys.stderr.isatty():
        yield _Spoken(done, total, begin)
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[speed]:.0f} tok/s"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("batch", total=total, completed=done, speed=0.0)
        due = begin

        def draw(t: Totals) -> None:
            nonlocal due
            now = time.perf_counter()
            if now >= due:
                due = now + _DRAW_S
                bar.update(task, completed=done + t.lines, speed=t.generated / (now - begin))

        yield draw


class _Spoken:
    """A line of progress every _SAY_S seconds: lines, speed, and the time left at the pace of lines so far."""

    def __init__(self, done: int, total: int, begin: float) -> None:
        self._done, self._total, self._begin, self._due = done, total, begin, begin + _SAY_S

    def __call__(self, t: Totals) -> None:
        now = time.perf_counter()
        if now < self._due:
            return
        self._due = now + _SAY_S
        took, done = now - self._begin, self._done + t.lines
        left = f"{(self._total - done) * took / t.lines:.0f} s left" if t.lines else "time left unknown"
        say(f"{done} of {self._total} lines | {t.generated / took:.1f} tok/s | {left}")
