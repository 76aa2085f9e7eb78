"""Python's log as lines of JSON, for those who collect them: one for each entry, with its traceback as a field.

Of a whole process: what Python itself would print of warnings, and of exceptions that nobody caught, is in it too.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import datetime, timezone
from types import TracebackType

_LEVELS = {"WARNING": "warn", "CRITICAL": "error"}  # as --log-level calls them; the others have Python's names
log = logging.getLogger(__name__)


class Lines(logging.Formatter):
    """One line for each entry."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "event": "log",
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "logger": record.name,
            "message": record.getMessage().removeprefix("ridgeline: "),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def speak_json() -> None:
    """Have all that this process logs on stderr as JSON from now on. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        log.critical("an exception that nobody caught: %s", kind.__name__, exc_info=(kind, fault, trace))


def _uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None:
        _uncaught(given.exc_type, given.exc_value, given.exc_traceback)
