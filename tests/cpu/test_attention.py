"""Attention beyond its entry's cases: head sizes, bit-identity, what may not be read, sinks, slopes and spans."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from harness import ISAS, OneOp, backend, kv_pool, run_case

from ridgeline.ops.attention import _case, attention
from ridgeline.ops.spec import Case


def case(spans: list[tuple[int, int]], heads: int, kv_heads: int, seed: int = 5, **attrs: Any) -> Case:
    return _case(np.random.default_rng(seed), spans, heads, kv_heads, **attrs)


def meaning(c: Case) -> np.ndarray:
    c = copy.deepcopy(c)
    return attention(**c.operands, **c.attrs)


def rows_of(c: Case, rows: slice) -> Case:
    """The case as a later step would see it: rows before the slice are already stored, those after unknown."""
    c = copy.deepcopy(c)
    o = c.operands
    o["kv"].write(o["kv_slot"][: rows.start], o["k"][: rows.start], o["v"][: rows.start])
    for name in ("q", "k", "v", "kv_slot", "kv_len", "request"):
        o[name] = o[name][rows]
    return c


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", ["f32", "bf16"])
@pytest.mark.parametrize("dim", [2, 24, 64, 72, 80, 128, 256])
def test_head_sizes(dim: int, fmt: str, isa: str) -> None:
    c = case([(60, 9), (0, 3), (200, 1)], 6, 2, head_dim=dim, format=fmt)
    got = run_case("attention", c, backend(2, isa))[0]
    assert np.abs(got - meaning(c)).max() < 2e-5 * np.abs(got).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "attrs"),
    [(9, 3, {}), (3, 3, {"window": 70}), (71, 1, {"head_dim": 8}), (4, 2, {"softcap": 5.0, "window": 1})],
)
def test_row_bits_do_not_depend_on_company(heads: int, kv_heads: int, attrs: dict, isa: str) -> None:
    c = case([(30, 140)], heads, kv_heads, **attrs)
    whole = run_case("attention", c, backend(1, isa))[0]
    assert np.isfinite(whole).all()
    assert np.abs(whole - meaning(c)).max() < 2e-5 * np.abs(whole).max()
    for threads in (2, 3, 5):
        assert np.array_equal(run_case("attention", c, backend(threads, isa))[0], whole)
    for rows in (slice(0, 1), slice(33, 34), slice(34, 40), slice(98, 140), slice(139, 140)):
        part = run_case("attention", rows_of(c, rows), backend(2, isa))[0]
        assert np.array_equal(part, whole[rows]), rows


@pytest.mark.parametrize("isa", ISAS)
def test_future_values_never_reach_a_row(isa: str) -> None:
    """A NaN or inf in a later token's value, in the same tile, leaves earlier rows as they are."""
    c = case([(0, 80)], 4, 2)
    whole = run_case("attention", c, backend(1, isa))[0]
    c.operands["v"][50:] = np.nan
    c.operands["k"][60:] = np.inf
    got = run_case("attention", c, backend(1, isa))[0]
    assert np.array_equal(got[:50], whole[:50])
    assert np.isnan(got[50:]).all()


def test_sinks_slopes_and_spans() -> None:
    c = case([(3, 70), (64, 64)], 4, 2)
    rng = np.random.default_rng(0)
    extras = {
        "sinks": rng.standard_normal(4, dtype=np.float32),
        "slopes": np.array([0.5, 0.25, -0.125, 0.0625], np.float32),
        "span": np.where(np.arange(134) % 3 == 1, np.minimum(c.operands["kv_len"] + 5, 73), 0).astype(np.int32),
    }
    for name, value in extras.items():
        with_it = Case(name, {**c.operands, name: value}, c.attrs)
        got = run_case("attention", with_it, backend(2))[0]
        assert np.abs(got - meaning(with_it)).max() < 2e-5 * np.abs(got).max(), name
        assert not np.array_equal(got, meaning(c))


@pytest.mark.parametrize("fmt", ["f32", "bf16"])
def test_stored_keys_are_the_oracles(fmt: str) -> None:
    c = case([(63, 3), (0, 65)], 6, 3, head_dim=24, format=fmt)
    op = OneOp("attention", c, backend(2))
    op.run()
    stored = copy.deepcopy(c.operands["kv"])
    stored.write(c.operands["kv_slot"], c.operands["k"], c.operands["v"])
    pool = kv_pool(stored)
    kind = np.float32 if fmt == "f32" else np.uint16
    got, want = op.pool.array()[: pool.size].view(kind), pool.view(kind)
    known = ~np.isnan(want) if fmt == "f32" else (want & 0x7FFF) < 0x7F80
    assert np.array_equal(got[known], want[known])
