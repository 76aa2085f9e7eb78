"""Refusals: which keywords of a JSON schema an error of llguidance is about, whose words name no places."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from ridgeline.guidance.schemas import HOLDERS, Place, keywords, places

_SHOWN = 5  # pointers
_BEGIN = 400  # characters of a text of which the rest need not be shown
_LARGE = 2**63  # integers are smaller
_LONGEST = 2**32  # lengths are smaller
_TINY = 1e-80  # bounds next to zero are larger
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
About = Callable[[str, Any], bool]


def unsupported(schema: Any, said: str) -> str:
    """JSON pointers of the keywords that llguidance's error is about; "" if there are none."""
    found: list[Place] = []
    if "schema must be an object or boolean" in said:
        found = [place for place, node in places(schema) if not isinstance(node, (dict, bool))]
    for pattern, make in _ERRORS:
        if not found and (match := re.search(pattern, said)):
            about = make(match)
            found = [place for place, key, value in keywords(schema) if about(key, value)]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(place.shown() for place in found[:_SHOWN])}{more}"


def _alike(value: Any, shown: str | None) -> bool:
    """Whether a text is what is shown: with its whitespace made one space, and of a long one only its begin."""
    text = " ".join(value.split()) if isinstance(value, str) else None
    shown = shown or ""
    return text == shown or (text is not None and len(shown) >= _BEGIN and text.startswith(shown))


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _unknown(found: re.Match[str]) -> About:
    names = set(re.findall(r'"([^"]*)"', found[1]))
    return lambda key, value: key in names


def _named(found: re.Match[str]) -> About:
    return lambda key, value: key == found[1]


def _valued(*names: str) -> Callable[[re.Match[str]], About]:
    """Keywords that have the text that is told, or have it in a list."""

    def make(found: re.Match[str]) -> About:
        def about(key: str, value: Any) -> bool:
            values = value if isinstance(value, list) else [value]
            return key in names and any(_alike(one, found[1]) for one in values)

        return about

    return make


def _other(kind: type) -> Callable[[re.Match[str]], About]:
    """A keyword that is told, where its value is of another kind."""
    return lambda found: lambda key, value: key == found[1] and not isinstance(value, kind)


def _typed(found: re.Match[str]) -> About:
    """Types that are no strings, or in a list not only strings."""

    def about(key: str, value: Any) -> bool:
        return key == "type" and not all(
            isinstance(one, str) for one in (value if isinstance(value, list) else [value])
        )

    return about


def _unexpected(found: re.Match[str]) -> About:
    """`Expected string for 'pattern', got 7`, whose end may be cut off; it may be of one `item` of a list."""

    def about(key: str, value: Any) -> bool:
        if key != found[1]:
            return False
        values = value if found[2] and isinstance(value, list) else [value]
        return any(" ".join(msgspec.json.encode(one).decode().split()).startswith(found[3]) for one in values)

    return about


def _ranged(found: re.Match[str]) -> About:
    """Bounds of numbers: the larger is what cannot be spelled, and those of integers are cut to 64 bits."""
    told = max((float(found[name]) for name in ("min", "max") if found[name]), key=abs)
    most = _LARGE if found["kind"] == "integer" else float("inf")

    def about(key: str, value: Any) -> bool:
        number = _number(value) if key in _BOUNDS else None
        return number is not None and max(-most, min(most, number)) == told

    return about


def _tiny(found: re.Match[str]) -> About:
    """Bounds so near to zero that they have too many digits to be spelled."""

    def about(key: str, value: Any) -> bool:
        number = _number(value) if key in _BOUNDS else None
        return number is not None and 0 < abs(number) < _TINY

    return about


def _long(found: re.Match[str]) -> About:
    """Lengths that no pattern can have."""
    told = {int(length) for length in found.groups() if length and int(length) >= _LONGEST}
    return lambda key, value: key in ("minLength", "maxLength") and _number(value) in told


def _digits(found: re.Match[str]) -> About:
    """A number whose digits are told, as an integer."""

    def about(key: str, value: Any) -> bool:
        number = _number(value) if key == "multipleOf" else None
        while number is not None and abs(number) < _LARGE and number % 1:
            number *= 10
        return number is not None and number == float(found[1])

    return about


def _beyond(found: re.Match[str]) -> About:
    """A number that is told, anywhere in data."""

    def about(key: str, value: Any) -> bool:
        open_, inner = [value], key not in HOLDERS
        while open_:
            one = open_.pop()
            if isinstance(one, int) and abs(one) >= _LARGE and str(one).startswith(found[1]):
                return True
            if inner and isinstance(one, (list, dict)):
                open_ += one.values() if isinstance(one, dict) else one
        return False

    return about


def _place(found: re.Match[str]) -> About:
    """A reference to a place or a name in the schema, where it has none."""
    end = f"#{unquote(found[1])}"
    return lambda key, value: key == "$ref" and isinstance(value, str) and unquote(value).endswith(end)


def _resource(found: re.Match[str]) -> About:
    """A reference to another schema, of which the whole name is told."""

    def about(key: str, value: Any) -> bool:
        named = key in ("$ref", "$schema") and isinstance(value, str)
        other = value.partition("#")[0].removeprefix("./") if named else ""
        return bool(other) and found[1].endswith(other)

    return about


def _pattern(found: re.Match[str]) -> About:
    """A pattern as it is shown: with its whitespace made one space, and behind it marks below what is wrong; of a long
    one only its begin."""

    def shown(pattern: str) -> bool:
        text = " ".join(pattern.replace("\n", "\\n").split())
        return _alike(text, found[1]) or re.match(r"\s*\^+ error: ", found[1].removeprefix(text)) is not None

    def about(key: str, value: Any) -> bool:
        if key == "patternProperties" and isinstance(value, dict):
            return any(map(shown, value))
        return key == "pattern" and isinstance(value, str) and shown(value)

    return about


def _overlapping(found: re.Match[str]) -> About:
    """Two patterns of names that match the same."""

    def about(key: str, value: Any) -> bool:
        patterns = value if key == "patternProperties" and isinstance(value, dict) else ()
        return {found[1], found[2]} <= {" ".join(pattern.split()) for pattern in patterns}

    return about


_ERRORS: tuple[tuple[str, Callable[[re.Match[str]], About]], ...] = (  # llguidance's, and what tells their keywords
    (r"Unimplemented keys: \[(.*?)\]", _unknown),
    (r"Unknown format:(?: (.*))?$", _valued("format")),
    (r"Invalid type:(?: (.*))?$", _valued("type")),
    (r"Invalid URI reference '(.*)':", _valued("$id", "$ref", "$schema")),
    (r"^(\w+) constraints are not supported", _named),
    (r"^(\w+) must be an array", _other(list)),
    (r"^(\w+) must be an object", _other(dict)),
    (r"^type must be a string", _typed),
    (r"Expected [\w ]+ for '([^']+)'( item)?, got (.+)", _unexpected),
    (
        r"for (?P<kind>float|integer) range: min=(?:None|Some\((?P<min>.*?)\)), max=(?:None|Some\((?P<max>.*?)\))",
        _ranged,
    ),
    (r"^invalid multiple of", lambda found: lambda key, value: key == "multipleOf" and _number(value) == 0),
    (r"'multipleOf' has too many digits: (\d+)", _digits),
    (r"not JSON serializable: (-?\d+)", _beyond),
    (r"Pointer '(.*)' does not exist", _place),
    (r"Anchor '(.*)' does not exist", _place),
    (r"Resource '(.*?)' is not present", _resource),
    (r"(\$ref) must be a string", _other(str)),
    (r"regex parse error: (.*)", _pattern),
    (r"regex parse error: \(\?s:\.\{(\d+),(\d*)\}\)", _long),
    (r"regex parse error: -?\(+0\\\.\(0\(0", _tiny),
    (r"in regex /(.*)/$", _pattern),
    (r"patternProperty regexes /(.*)/ and /(.*)/ are not disjoint", _overlapping),
)
