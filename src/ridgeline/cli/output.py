"""What subcommands print: one JSON line, tables, progress bars, and figures for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ridgeline.weights.fetch import Progress


def emit_json(value: Any) -> None:
    """The last line of stdout: one object. Infinite and undefined numbers become null."""
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def say(text: str) -> None:
    """A line for people on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; all columns but the first are right-aligned."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    Console(width=console.width if console.is_terminal else 200).print(made)


def printable(text: str) -> str:
    """`text` without what could steer a terminal: names in files are anybody's."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


@contextmanager
def download_bar(label: str) -> Iterator[Progress | None]:
    """A callback for downloads that draws a bar on stderr, or None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    words = progress.TextColumn("{task.description}")
    columns = (words, progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def token_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A callback that counts tokens on a bar on stderr; it does nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda tokens: bar.advance(task, tokens)


def size(nbytes: float) -> str:
    """98.4 MB; powers of 1000, as bandwidth is given."""
    for unit in ("B", "kB", "MB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def percent(part: float | None) -> str:
    return "n/a" if part is None else f"{100 * part:.0f} %"
