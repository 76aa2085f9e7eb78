"""Formats of dates and times as patterns: llguidance's own allow days that no calendar has, and minutes of 61 seconds.

RFC 3339 with the calendar's rules, years from 1, without leap seconds: what validators agree on.
"""

from __future__ import annotations

from typing import Any

from ridgeline.guidance.schemas import mapped

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_LONG, _SHORT = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])", "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAYS = f"(?:{_LONG}|{_SHORT}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(?:{_YEAR}-{_DAYS}|{_LEAP}-02-29)"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def spelled(schema: Any) -> Any:
    """A schema with these formats as patterns."""
    return mapped(schema, _spelled)


def _spelled(node: dict[str, Any]) -> dict[str, Any]:
    pattern = _PATTERNS.get(node["format"]) if isinstance(node.get("format"), str) else None
    both = node.get("allOf", [])
    if pattern is None or not isinstance(both, list):
        return node
    return {**{key: value for key, value in node.items() if key != "format"}, "allOf": [*both, {"pattern": pattern}]}
