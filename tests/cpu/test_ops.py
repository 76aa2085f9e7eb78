"""Every op the native loop has, on the cases of its own entry, against its numpy meaning, at every ISA level."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from harness import ISAS, backend, run_case

from ridgeline import ops  # noqa: F401  (fills the op table)
from ridgeline.backends.cpu.record import SIGNATURES
from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import OPS

NATIVE = sorted(SIGNATURES.keys() & OPS.keys())


def cases(op: str) -> list:
    """The op's cases; rows of other types are tested with the formats they are for."""
    every = OPS[op].cases(np.random.default_rng(7))
    plain = [c for c in every if c.attrs.get("dtype", "i8g32") == "i8g32" and "threshold" not in c.attrs]
    return [c for c in plain if not is_int8(c.operands.get("x"))]


def is_int8(x: object) -> bool:
    return isinstance(x, QuantizedRows)


def flat(x: object) -> np.ndarray:
    return x.float32() if isinstance(x, QuantizedRows) else np.asarray(x)


def close(actual: object, wanted: object, tolerance: float) -> None:
    a, b = flat(actual), flat(wanted)
    assert a.shape == b.shape
    finite = np.isfinite(b)
    assert np.array_equal(a[~finite], b[~finite], equal_nan=True)
    scale = np.abs(b[finite]).max(initial=0)
    assert np.abs(a[finite].astype(np.float64) - b[finite]).max(initial=0) <= tolerance * max(scale, 1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", NATIVE)
def test_cases(op: str, threads: int, isa: str) -> None:
    cpu = backend(threads, isa)
    for case in cases(op):
        meant = copy.deepcopy(case)
        wanted = OPS[op].meaning(*(meant.operands.get(p.name) for p in OPS[op].params), **meant.attrs)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for actual, expected in zip(run_case(op, case, cpu), wanted, strict=True):
            close(actual, expected, case.tolerance or OPS[op].tolerance)
