"""The commands `ridgeline` and `text-generation-launcher`. One small file per subcommand; engine and numpy are imported
inside handlers.

A typed error is one line on stderr and exit status 2; anything else is our bug and shows its trace.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line on `args` (sys.argv by default). Always ends by SystemExit."""
    _run(sys.argv[1:] if args is None else list(args))


def launch(args: Sequence[str] | None = None) -> None:
    """`text-generation-launcher` on `args` (sys.argv by default). Always ends by SystemExit."""
    _run(sys.argv[1:] if args is None else list(args), launcher=True)


def _run(words: Sequence[str], launcher: bool = False) -> None:
    from ridgeline.cli import app
    from ridgeline.cli.output import say
    from ridgeline.errors import RidgelineError

    try:
        if launcher:
            from ridgeline.cli.launcher import translate

            words = translate(words)
        app.run(words)
    except RidgelineError as wrong:
        sys.stdout.flush()
        say(f"ridgeline: {wrong}")
        sys.exit(2)
    sys.exit(0)
