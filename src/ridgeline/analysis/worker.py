"""The engine process of a server: engine/worker.py, whose steps are set beside their roofline."""

from __future__ import annotations

from ridgeline.analysis.attainment import watch
from ridgeline.engine.worker import main

if __name__ == "__main__":
    main(watch)
