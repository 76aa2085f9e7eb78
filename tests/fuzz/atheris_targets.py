"""Coverage-guided runs of the same targets: `atheris_targets.py TARGET [libFuzzer options]`, e.g. -max_total_time=60.

Needs the atheris package, which no install of ours asks for; says so and ends well where it is missing. What libFuzzer
finds it writes as crash-*; give that file as the only option to run it again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

OPTIONS = ["-max_len=16384", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]


def main() -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import atheris
    except ImportError as why:
        print(f"skipped: {why}; `pip install atheris` where it has a wheel for this Python")
        return 0
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    name, options = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["ridgeline"], enable_loader_override=False):
        from meter import unchecked
        from work import load

        from ridgeline.errors import RidgelineError

        scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        fuzz = load(name, scratch)

    def one_input(data: bytes) -> None:
        with contextlib.suppress(RidgelineError):
            fuzz.run(fuzz.parse(data), unchecked)

    if not any(Path(option).is_file() for option in options):
        corpus = scratch / "corpus"
        corpus.mkdir()
        for i, data in enumerate(fuzz.corpus()):
            (corpus / str(i)).write_bytes(data)
        options.append(str(corpus))
    atheris.Setup([sys.argv[0], *OPTIONS, *options], one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
