"""Keys: typed access to the settings of a model file that remembers which were read.

A key that is not understood and carries a value is an error naming it: a silently ignored key is a wrong answer.
It must not know what any key means; the families do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ridgeline.errors import ModelFileError, Unsupported

_MAX_NUMBER = 1e30  # also refuses NaN and infinity, which Python's JSON reader lets through


class Keys:
    """Settings by name; None counts as missing. Every error names file and key, with `prefix` before it."""

    def __init__(self, data: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.data, self.where, self.prefix = data, where, prefix
        self._read: set[str] = set()
        self._spelled: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is, of any type."""
        self._read.add(key)
        value = self.data.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._checked(key, self.get(key, default), (int, float), "a number"))

    def integer(self, key: str, default: int | None = None) -> int:
        return int(self._checked(key, self.get(key, default), (int,), "an integer"))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not value > 0:
            raise self.wrong(key, f"must be positive, is {value}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, is {value!r:.80}")
        return value

    def choice(self, key: str, known: Collection[str], default: str) -> str:
        """A text that must be one of `known`; Unsupported lists them."""
        self._read.add(key)
        value = self.data.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise Unsupported(f"{self.label(key)} {value!r:.80} is not supported; supported: {', '.join(known)}")
        return value

    def rename(self, **current: str) -> None:
        """Read keys that a file spells as of old under their current names. ModelFileError: it has both, and they
        differ."""
        for old, new in current.items():
            if new not in self:
                self._spelled[new] = old
            if old in self:
                if self.data.get(new, self.data[old]) not in (None, self.data[old]):
                    raise self.wrong(old, f"= {self.data[old]!r:.80}, but {new} = {self.data[new]!r:.80}")
                self.data = {**self.data, new: self.data[old]}
                self._read.add(old)

    def only(self, **values: Any) -> None:
        """Keys that, where present, must have the one value that is built."""
        for key, value in values.items():
            got = self.get(key, value)
            if hasattr(got, "ndim") or got != value:
                raise Unsupported(f"{self.label(key)} = {got!r:.80} is not supported; {value!r} is")

    def skip(self, names: str) -> None:
        """Keys, separated by spaces, that do not change what a forward pass computes."""
        self._read.update(names.split())

    def inside(self, key: str) -> Keys:
        """The settings of a nested object; none where the key is missing."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.wrong(key, f"must be an object, is {value!r:.80}")
        return Keys(value, f"{self.label(key)}")

    def finish(self, what: str) -> None:
        """Refuse keys that carry a value and were never asked for; `what` they are not understood for."""
        for key, value in self.data.items():
            if key not in self._read and (hasattr(value, "ndim") or value):
                raise Unsupported(
                    f"{self.where}: key {self.prefix}{key!s:.80} = {value!r:.80} is not understood for {what}; "
                    "remove it if it does not change what the model computes"
                )

    def _checked(self, key: str, value: Any, kinds: tuple[type, ...], words: str) -> Any:
        if type(value) not in kinds:  # a bool is no number
            raise self.wrong(key, f"must be {words}, is {value!r:.80}")
        if not abs(value) < _MAX_NUMBER:
            raise self.wrong(key, "must be finite and of usual size")
        return value

    def wrong(self, key: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.label(key)} {problem}")

    def name(self, key: str) -> str:
        """The key as the file spells it."""
        return f"{self.prefix}{self._spelled.get(key, key)}"

    def label(self, key: str) -> str:
        return f"{self.where}: {self.name(key)}"
