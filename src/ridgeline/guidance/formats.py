"""Formats of dates and times as patterns: llguidance's own allow days that no calendar has, and minutes of 61 seconds.

RFC 3339 with the calendar's rules, years from 1, without leap seconds: what validators agree on.
"""

from __future__ import annotations

from typing import Any

DATA = ("enum", "const", "default", "examples", "example")  # values here are no schemas
NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # keys here are names
_DEPTH = 128  # more than llguidance reads

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_LONG, _SHORT = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])", "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAYS = f"(?:{_LONG}|{_SHORT}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(?:{_YEAR}-{_DAYS}|{_LEAP}-02-29)"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def spelled(node: Any, names: bool = False, depth: int = 0) -> Any:
    """A schema with these formats as patterns; with `names`, an object of schemas by name."""
    if isinstance(node, list) and depth < _DEPTH:
        return [spelled(inner, depth=depth + 1) for inner in node]
    if not isinstance(node, dict) or depth >= _DEPTH:
        return node
    found = {
        key: value if key in DATA and not names else spelled(value, key in NAMES and not names, depth + 1)
        for key, value in node.items()
    }
    pattern = _PATTERNS.get(found["format"]) if not names and isinstance(found.get("format"), str) else None
    if pattern is not None:
        del found["format"]
        both = found.get("allOf", [])
        found["allOf"] = [*both, {"pattern": pattern}] if isinstance(both, list) else both
    return found
