"""What subcommands print: one JSON line, tables, progress bars, and figures for people."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ridgeline.weights.fetch import Progress

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
_FOLDED = 10  # least width of a column that folds
_PIPED = 1000  # columns where no terminal limits them


def emit_json(value: Any) -> None:
    """The last line of stdout: one object. Infinite and undefined numbers become null."""
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def say(text: str) -> None:
    """A line for people on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Lines for people on stdout."""
    print("\n".join(map(printable, text.split("\n"))), flush=True)


def printable(text: str) -> str:
    """One line of `text` without what could steer a terminal: names in files are anybody's."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def show(text: str) -> None:
    """A piece of an answer on stdout: as it is, but for control characters on a terminal."""
    print(_CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text, end="", flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], folds: Collection[int] = (0,)) -> None:
    """A table on stdout; all columns but the first are right-aligned.

    Columns in `folds` break into lines where a terminal is narrow; the others always stay whole.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    head = Text(printable(title)) if title else None
    made = Table(title=head, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    least = -1  # no gap before the first column
    for i, column in enumerate(columns):
        widest = max(len(column), *(row[i].cell_len for row in cells)) if cells else len(column)
        kept = min(widest, _FOLDED) if i in folds else widest
        least += kept + 1
        justify: Literal["left", "right"] = "right" if i else "left"
        made.add_column(column, justify=justify, min_width=kept, overflow="fold", no_wrap=i not in folds)
    for row in cells:
        made.add_row(*row)
    terminal = Console()
    limit = terminal.width if terminal.is_terminal else _PIPED
    Console(width=max(limit, least)).print(made, "")


@contextmanager
def download_bar(label: str) -> Iterator[Progress | None]:
    """A callback for downloads that draws a bar on stderr from the first bytes on; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as until:
        bar = functools.cache(lambda: _bar(label, until))

        def advance(done: int, total: int | None) -> None:
            bar()(done, total)

        yield advance


def _bar(label: str, until: ExitStack) -> Progress:
    """Draw a bar that stays until `until` ends."""
    from rich import progress
    from rich.console import Console

    words = progress.TextColumn("{task.description}", markup=False)
    columns = (words, progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
    bar = until.enter_context(progress.Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task(printable(label), total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


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
