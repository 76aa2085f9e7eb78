"""Attention beyond its entry's cases: head sizes, bit-identity, what may not be read, sinks, slopes and spans."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from harness import ISAS, OneOp, backend, kv_pool, run_case

from ridgeline.ops.attention import KV_FORMATS, PAGE, _case, attention
from ridgeline.ops.spec import OPS, Case

FORMATS = sorted(KV_FORMATS)


def case(spans: list[tuple[int, int]], heads: int, kv_heads: int, seed: int = 5, **attrs: Any) -> Case:
    return _case(np.random.default_rng(seed), spans, heads, kv_heads, **attrs)


def meaning(c: Case) -> np.ndarray:
    c = copy.deepcopy(c)
    return attention(**c.operands, **c.attrs)


def bound(c: Case) -> float:
    return c.tolerance or OPS["attention"].tolerance


def close(got: np.ndarray, c: Case) -> bool:
    return np.abs(got - meaning(c)).max() < bound(c) * np.abs(got).max()


def rows_of(c: Case, rows: slice) -> Case:
    """The case as a later step would see it: rows before the slice are already stored, those after unknown."""
    c = copy.deepcopy(c)
    o = c.operands
    o["kv"].write(o["kv_slot"][: rows.start], o["k"][: rows.start], o["v"][: rows.start])
    for name in ("q", "k", "v", "kv_slot", "kv_len", "request", "span"):
        if name in o:
            o[name] = o[name][rows]
    return c


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dim", [2, 24, 40, 64, 72, 80, 96, 112, 128, 256, 7, 65])
def test_head_sizes(dim: int, fmt: str, isa: str) -> None:
    c = case([(60, 9), (0, 3), (200, 1)], 6, 2, head_dim=dim, format=fmt)
    assert close(run_case("attention", c, backend(2, isa))[0], c)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "attrs"),
    [(9, 3, {}), (3, 3, {"window": 70}), (71, 1, {"head_dim": 8}), (4, 2, {"softcap": 5.0, "window": 1})],
)
def test_row_bits_do_not_depend_on_company(heads: int, kv_heads: int, attrs: dict, fmt: str, isa: str) -> None:
    c = case([(30, 140)], heads, kv_heads, **attrs, format=fmt)
    whole = run_case("attention", c, backend(1, isa))[0]
    assert np.isfinite(whole).all() and close(whole, c)
    for threads in (2, 3, 5):
        assert np.array_equal(run_case("attention", c, backend(threads, isa))[0], whole)
    for rows in (slice(0, 1), slice(33, 34), slice(34, 40), slice(98, 140), slice(139, 140)):
        part = run_case("attention", rows_of(c, rows), backend(2, isa))[0]
        assert np.array_equal(part, whole[rows]), rows


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("attrs", [{}, {"window": 1300}, {"window": 90, "softcap": 9.0}], ids=str)
def test_long_contexts_are_cut_anywhere(attrs: dict, fmt: str, isa: str) -> None:
    """Spans of one, two and four ranges, cut between threads with one token, few and many; a decode batch too."""
    c = case([(1019, 14), (2040, 12), (10, 9)], 6, 2, head_dim=24, format=fmt, **attrs)
    rng = np.random.default_rng(0)
    c.operands["sinks"] = rng.standard_normal(6, dtype=np.float32)
    c.operands["span"] = np.where(np.arange(35) == 9, c.operands["kv_len"] + 2, 0).astype(np.int32)
    whole = run_case("attention", c, backend(1, isa))[0]
    assert close(whole, c)
    for threads in (2, 3, 4, 7):
        assert np.array_equal(run_case("attention", c, backend(threads, isa))[0], whole), threads
    for rows in (slice(4, 5), slice(5, 7), slice(13, 15), slice(24, 27), slice(25, 26)):
        for threads in (1, 2, 3, 4, 6):
            part = run_case("attention", rows_of(c, rows), backend(threads, isa))[0]
            assert np.array_equal(part, whole[rows]), (rows, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("window", [0, 21])
def test_future_values_never_reach_a_row(window: int, fmt: str, isa: str) -> None:
    """A NaN or inf in a later token's value, in the same tile or pair, leaves earlier rows as they are."""
    for first in (50, 51):
        c = case([(0, 80)], 4, 2, window=window, format=fmt)
        whole = run_case("attention", c, backend(1, isa))[0]
        c.operands["v"][first:] = np.nan
        c.operands["k"][60:] = np.inf
        got = run_case("attention", c, backend(1, isa))[0]
        assert np.array_equal(got[:first], whole[:first])
        assert np.isnan(got[first:]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_values_out_of_the_window_never_reach_a_row(fmt: str, isa: str) -> None:
    """Nor do those before it: a NaN 5 keys back is gone with the fifth token after it."""
    c = case([(0, 40)], 4, 2, window=5, format=fmt)
    whole = run_case("attention", c, backend(1, isa))[0]
    for at in (6, 7):
        bad = copy.deepcopy(c)
        bad.operands["v"][at] = np.nan
        got = run_case("attention", bad, backend(2, isa))[0]
        assert np.isnan(got[at : at + 5]).all()
        assert np.array_equal(np.delete(got, np.s_[at : at + 5], 0), np.delete(whole, np.s_[at : at + 5], 0))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_scores_near_the_largest_float(fmt: str, isa: str) -> None:
    """They are finite, and so is what follows: nothing may scale a score up before its maximum is taken off."""
    c = case([(0, 3)], 2, 2, head_dim=2, format=fmt, scale=1.0)
    c.operands["q"][:], c.operands["k"][:] = 1.25 * 2.0**63, 1.5 * 2.0**63
    assert np.finfo(np.float32).max > 1.25 * 1.5 * 2.0**127
    assert close(run_case("attention", c, backend(1, isa))[0], c)


@pytest.mark.parametrize("fmt", FORMATS)
def test_sinks_slopes_and_spans(fmt: str) -> None:
    c = case([(3, 70), (64, 64)], 4, 2, format=fmt)
    rng = np.random.default_rng(0)
    extras = {
        "sinks": rng.standard_normal(4, dtype=np.float32),
        "slopes": np.array([0.5, 0.25, -0.125, 0.0625], np.float32),
        "span": np.where(np.arange(134) % 3 == 1, np.minimum(c.operands["kv_len"] + 5, 73), 0).astype(np.int32),
    }
    for name, value in extras.items():
        with_it = Case(name, {**c.operands, name: value}, c.attrs, c.tolerance)
        got = run_case("attention", with_it, backend(2))[0]
        assert close(got, with_it), name
        assert not np.array_equal(got, meaning(c))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dim", [24, 72, 7])
def test_stored_keys_are_the_oracles(dim: int, fmt: str, isa: str) -> None:
    c = case([(63, 3), (0, 65)], 6, 3, head_dim=dim, format=fmt)
    before = kv_pool(c.operands["kv"])
    op = OneOp("attention", c, backend(2, isa))
    op.run()
    stored = copy.deepcopy(c.operands["kv"])
    stored.write(c.operands["kv_slot"], c.operands["k"], c.operands["v"])
    got, want = op.pool.array()[: before.size], kv_pool(stored)
    changed = want != before
    assert np.array_equal(got[changed], want[changed])
    zeros = np.uint8(0) if fmt != "int8" else np.uint8(0x80)  # the padding of appended keys
    assert np.array_equal(got[~changed & (got != zeros)], before[~changed & (got != zeros)])


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_layout_is_as_large_as_the_cost_fold_counts(fmt: str) -> None:
    for dim in (64, 65, 6):
        kv = case([(3, 2)], 4, 2, head_dim=dim, format=fmt).operands["kv"]
        assert kv_pool(kv).size == len(kv.k) * 2 * 2 * KV_FORMATS[fmt].head_bytes(dim)
        assert len(kv.k) % PAGE == 0
