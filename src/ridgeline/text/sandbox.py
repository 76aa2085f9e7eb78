"""The budget of one template render, and an upper bound for every operation that could make something large.

Chat templates come with model files and are hostile. The rule: no operation may run unless the size of its
result is bounded before it starts, so that none takes long and the clock can be read between any two.
`Budget` counts; the tables say how large the result of a method, a filter or an operator can get. Knows
nothing of chat or models.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sized, ValuesView
from string import Formatter
from typing import Any

import msgspec

from ridgeline.errors import TemplateError

_NODE = 32  # size of a list entry, a number, an object: about its bytes
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CONTAINERS = (list, tuple, dict, KeysView, ValuesView, ItemsView)


class Limits(msgspec.Struct, frozen=True):
    """Sizes are in characters; an entry of a container counts 32."""

    source: int = 1 << 16
    steps: int = 100_000  # loop iterations and calls; a macro call is ten
    output: int = 4 << 20
    value: int = 4 << 20  # any one value
    work: int = 64 << 20  # all values made, together
    call_depth: int = 50
    nesting: int = 100  # of containers
    integer_bits: int = 64
    seconds: float = 1.0


class Budget:
    """What one render may still spend. Methods raise TemplateError when it runs out. One thread only."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._steps = limits.steps
        self._work = limits.work
        self._depth = 0
        self._deadline = time.monotonic() + limits.seconds
        # Containers are immutable in the sandbox, so each is walked once: a list that holds another twice is
        # as quick to measure as one that holds it once. The reference keeps the id from being reused.
        self._shapes: dict[int, tuple[Any, int, int]] = {}

    def check_clock(self) -> None:
        if time.monotonic() > self._deadline:
            raise TemplateError(f"the chat template ran for more than {self.limits.seconds:g} s")

    def step(self, count: int = 1) -> None:
        """A loop iteration or call."""
        self._steps -= count
        if self._steps < 0:
            raise TemplateError(f"the chat template took more than {self.limits.steps} loop steps and calls")
        self.check_clock()

    def enter(self) -> None:
        self._depth += 1
        if self._depth > self.limits.call_depth:
            raise TemplateError(f"the chat template's calls nest deeper than {self.limits.call_depth}")

    def leave(self) -> None:
        self._depth -= 1

    def reserve(self, size: int) -> None:
        """Refuse to begin making a value larger than allowed."""
        if size > self.limits.value:
            raise TemplateError(f"the chat template handles a value larger than {self.limits.value} characters")

    def made(self, value: Any, deep: bool = False) -> Any:
        """Account for a new value and return it; an iterator as a list. `deep`: its entries are new too."""
        self.check_clock()
        if isinstance(value, Iterator):
            value = self._collect(value)
        size = self.measure(value)
        self._work -= _NODE + (size if deep or isinstance(value, str) else _entries(value))
        if self._work < 0:
            raise TemplateError(f"the chat template made more than {self.limits.work} characters in all")
        return value

    def measure(self, value: Any) -> int:
        """Size of a value as if written out in full; shared parts count each time."""
        return self.shape(value)[0]

    def shape(self, value: Any) -> tuple[int, int]:
        """(size, depth of nesting)."""
        if isinstance(value, str):
            self.reserve(len(value))
            return len(value), 0
        if isinstance(value, int):  # before the containers: asking a view's abstract class is slow
            if value.bit_length() > self.limits.integer_bits:
                raise TemplateError(f"the chat template uses an integer of more than {self.limits.integer_bits} bits")
            return _NODE, 0
        return self._container_shape(value) if isinstance(value, _CONTAINERS) else (_NODE, 0)

    def _container_shape(self, value: Any) -> tuple[int, int]:
        known = self._shapes.get(id(value))
        if known is not None:
            return known[1], known[2]
        size, depth, most = _NODE, 0, self.limits.value
        for child in _children(value):
            child_size, child_depth = self.shape(child)
            size += _NODE + child_size
            depth = max(depth, child_depth)
            if size > most:  # calling for each entry would be most of the time
                self.reserve(size)
        if depth >= self.limits.nesting:
            raise TemplateError(f"a value in the chat template nests deeper than {self.limits.nesting}")
        self._shapes[id(value)] = (value, size, depth + 1)
        return size, depth + 1

    def _collect(self, iterator: Iterator[Any]) -> list[Any]:
        items = []
        for item in iterator:
            items.append(item)
            self.reserve(len(items) * _NODE)
            self.check_clock()
        return items


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, ItemsView):
        for key, item in value:
            yield key
            yield item
    else:
        yield from value


# How large can the result be? Each bound takes (budget, operands...) and returns a size, or raises.
Bound = Callable[..., int]


def _entries(value: Any) -> int:
    """Size of a list with one entry per element of `value`, which may be a string."""
    return _NODE * (len(value) + 1) if isinstance(value, Sized) else _NODE


def _listing(budget: Budget, value: Any, *_: Any, **__: Any) -> int:
    return _entries(value)


def _padded(budget: Budget, text: Any, width: int = 80, *_: Any) -> int:
    return max(len(str(text)), width)


def _replaced(budget: Budget, text: Any, old: Any, new: Any, count: Any = None) -> int:
    whole, part = str(text), str(old)
    return len(whole) + whole.count(part) * len(str(new))


def _joined(budget: Budget, items: Any, separator: str = "", attribute: Any = None) -> int:
    entries = _entries(items)
    return max(entries, budget.measure(items)) + entries // _NODE * len(separator)


def _cut(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = text.count(sep) if sep else len(text) // 2
    return len(text) + _NODE * (pieces + 1)


def _lines(budget: Budget, text: str, *_: Any, **__: Any) -> int:
    return len(text) + _NODE * (1 + sum(map(text.count, _LINE_ENDS)))


def _indented(budget: Budget, text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    lines = 1 + sum(map(str(text).count, _LINE_ENDS))
    return len(str(text)) + lines * max(_NODE, width if isinstance(width, int) else len(width))


def _batched(budget: Budget, value: Any, linecount: int, fill_with: Any = None) -> int:
    return _entries(value) + linecount * (_NODE + budget.measure(fill_with))


def _rounded(budget: Budget, value: Any, precision: int = 0, method: str = "common") -> int:
    if abs(precision) > 64:
        raise TemplateError("the chat template rounds to more than 64 digits")
    return _NODE


def _summed(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> int:
    # Lists and strings add up one by one, copying what is there each time.
    return _entries(value) if isinstance(start, int | float) else len(value) * budget.measure(value)


def _jsoned(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    *_: Any,
) -> int:
    size, depth = budget.shape(value)
    margin = indent if isinstance(indent, int) else len(indent or "")
    return size + size // _NODE * (depth * margin + sum(map(len, separators or ())))


def _printed(budget: Budget, text: Any, *values: Any, **named: Any) -> int:
    """`text % values`. Digits after % or ) and flags are widths; counting too many of them is harmless."""
    text = str(text)
    budget.reserve(_NODE * (text.count("%") + text.count(")")))
    specs = re.findall(r"[%)][-+ #0]*(\d*)\.?(\d*)", text)
    widths = (int(digits) for spec in specs for digits in spec if digits)
    return len(text) + sum(widths) + _inserted(budget, (*values, named), text.count("%"), "*" in text)


def _formatted(budget: Budget, text: str, *values: Any, **named: Any) -> int:
    """`text.format(*values)`."""
    budget.reserve(2 * _NODE * text.count("{"))
    specs = [spec for _, _, spec, _ in Formatter().parse(text) if spec]
    widths = (int(digits) for spec in specs for digits in re.findall(r"\d+", spec))
    nested = any("{" in spec for spec in specs)
    return len(text) + sum(widths) + _inserted(budget, (*values, named), text.count("{"), nested)


def _inserted(budget: Budget, values: tuple[Any, ...], fields: int, widths_are_values: bool) -> int:
    largest = max(map(budget.measure, values))
    return fields * (largest + _largest_integer(values) if widths_are_values else largest)


def _largest_integer(value: Any) -> int:
    if isinstance(value, int):
        return abs(value)
    return max(map(_largest_integer, _children(value)), default=0) if isinstance(value, _CONTAINERS) else 0


METHOD_BOUNDS: dict[str, Bound] = {
    "center": _padded,
    "ljust": _padded,
    "rjust": _padded,
    "zfill": _padded,
    "replace": _replaced,
    "join": lambda budget, text, items: _joined(budget, items, text),
    "split": _cut,
    "rsplit": _cut,
    "splitlines": _lines,
    "format": _formatted,
}

FILTER_BOUNDS: dict[str, Bound] = {
    "batch": _batched,
    "center": _padded,
    "e": lambda budget, text: 6 * len(str(text)),
    "escape": lambda budget, text: 6 * len(str(text)),
    "format": _printed,
    "groupby": _listing,
    "indent": _indented,
    "join": lambda budget, value, d="", attribute=None: _joined(budget, value, d, attribute),
    "list": _listing,
    "map": _listing,
    "max": _listing,
    "min": _listing,
    "reject": _listing,
    "rejectattr": _listing,
    "replace": lambda budget, s, old, new, count=None: _replaced(budget, s, old, new),
    "round": _rounded,
    "select": _listing,
    "selectattr": _listing,
    "slice": lambda budget, value, slices, fill_with=None: _batched(budget, value, slices, fill_with),
    "sort": _listing,
    "sum": _summed,
    "title": _listing,
    "tojson": _jsoned,
    "unique": _listing,
}


def bound_of_operator(budget: Budget, operator: str, left: Any, right: Any) -> int:
    """Size of `left operator right`."""
    if operator == "%" and isinstance(left, str):
        return _printed(budget, left, *(right if isinstance(right, tuple) else (right,)))
    size = budget.measure(left) + budget.measure(right)
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        times, value = (left, right) if isinstance(left, int) else (right, left)
        return budget.measure(value) * max(times, 1)
    if operator == "**" and isinstance(left, int) and isinstance(right, int) and abs(left) > 1:
        return 0 if right < budget.limits.integer_bits else budget.limits.value + 1
    return size
