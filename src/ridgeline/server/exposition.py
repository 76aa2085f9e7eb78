"""Counters, gauges and histograms, and Prometheus's text of them.

Our own, since TGI's counters are not called `_total`, which the usual client insists on, and since an observation costs
an addition here, no lock. In the event loop only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Number:
    """A counter or a gauge, one for each set of label values; without labels it is there from the beginning."""

    def __init__(self, name: str, about: str, kind: str, *labels: str) -> None:
        self.name, self.about, self.kind, self._labels = name, about, kind, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float, *values: str) -> None:
        self._values[values] = self._values.get(values, 0.0) + amount

    def set(self, amount: float, *values: str) -> None:
        self._values[values] = amount

    def samples(self) -> Iterator[str]:
        for values, amount in self._values.items():
            yield f"{self.name}{_labelled(zip(self._labels, values, strict=True))} {_text(amount)}"


class Histogram:
    """Observations counted by upper bounds. `fixed` labels are the whole of its labels."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float], **fixed: str) -> None:
        self.name, self.about = name, about
        self._bounds, self._fixed = list(bounds), fixed
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def samples(self) -> Iterator[str]:
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            yield f"{self.name}_bucket{_labelled([*self._fixed.items(), ('le', _text(bound))])} {below}"
        labels = _labelled(self._fixed.items())
        yield f"{self.name}_sum{labels} {_text(self._sum)}"
        yield f"{self.name}_count{labels} {below}"


def exposition(families: Iterable[Number | Histogram]) -> bytes:
    """Prometheus's text format. Families of one name, with other labels, must follow each other."""
    lines, last = [], ""
    for family in families:
        if family.name != last:
            last = family.name
            lines += [f"# HELP {last} {family.about}", f"# TYPE {last} {family.kind}"]
        lines += family.samples()
    return ("\n".join(lines) + "\n").encode()


def _labelled(pairs: Iterable[tuple[str, str]]) -> str:
    shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{shown}}}" if shown else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _text(number: float) -> str:
    if number == float("inf"):
        return "+Inf"
    return str(int(number)) if number == int(number) else repr(number)
