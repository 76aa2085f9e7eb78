"""What a finished command must look like: one JSON line, or one typed error."""

from __future__ import annotations

import json


def only_json(done):
    """The one line of stdout, parsed; nothing may be on stderr after it."""
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.count("\n") == 1 and done.out.endswith("\n")
    return json.loads(done.out)


def refused(done, *words):
    """A typed error: one line on stderr, no trace, status 2."""
    assert done.code == 2
    assert done.err.startswith("ridgeline: ") and done.err.count("\n") == 1 and "Traceback" not in done.err
    for word in words:
        assert word in done.err


def write(path, data):
    path.write_bytes(data)
    return path
