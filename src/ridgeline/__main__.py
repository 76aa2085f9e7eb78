"""`python -m ridgeline` is the command `ridgeline`."""

from __future__ import annotations

from ridgeline.cli import main

if __name__ == "__main__":
    main()
