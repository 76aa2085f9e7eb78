"""Every op: its numpy meaning against an independent float64 formula, its shape rule, and the same call captured,
verified and interpreted."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
import pytest

from ridgeline import ops
from ridgeline.ops import OPS
from ridgeline.ops.attention import PAGE, KVPages, round_bf16
from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import TensorType
from ridgeline.program.batch import FIELD_TYPES
from ridgeline.program.capture import Tracer
from ridgeline.program.interpret import Bindings, interpret
from ridgeline.program.ir import CommRef, Entry, Field, Program, State
from ridgeline.program.verify import infer, verify


def cases_of(name):
    return list(OPS[name].cases(np.random.default_rng(zlib.crc32(name.encode()))))


ALL_CASES = [pytest.param(name, i, id=f"{name}-{c.name}") for name in OPS for i, c in enumerate(cases_of(name))]


def fresh(x):
    return KVPages(x.k.copy(), x.v.copy(), x.format) if isinstance(x, KVPages) else x


def call(name, case):
    """The op's meaning on a case, called as a user would; state is copied first."""
    operands = [fresh(case.operands.get(p.name)) for p in OPS[name].params]
    return getattr(ops, name)(*operands, **case.attrs)


def tensors(out):
    """Outputs as a flat list of arrays."""
    if isinstance(out, QuantizedRows):
        return [out.float32()]
    return list(out) if isinstance(out, tuple) else [out]


# --- independent meanings, float64, one output element at a time where that is short


def f64(x):
    return np.asarray(x, np.float64)


def naive_linear(x, w, bias=None):
    x = x.float32() if isinstance(x, QuantizedRows) else x
    return f64(x) @ f64(w).T + (0 if bias is None else f64(bias))


def naive_rms(x, w, eps, width=0):
    x = f64(x)
    y = np.empty_like(x)
    width = width or x.shape[1]
    for t in range(len(x)):
        for start in range(0, x.shape[1], width):
            part = x[t, start : start + width]
            y[t, start : start + width] = part / math.sqrt((part**2).sum() / width + eps) * f64(w)
    return y


def naive_layer_norm(x, w, b=None, eps=0.0):
    x = f64(x)
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps) * f64(w) + (0 if b is None else b)


def naive_rope(x, angles, head_dim, interleaved=False):
    """Each pair is a complex number turned by its angle."""
    y, half = f64(x).reshape(len(x), -1, head_dim).copy(), angles.shape[1] // 2
    turn = f64(angles)[:, :half] + 1j * f64(angles)[:, half:]
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        z = (y[:, :, a] + 1j * y[:, :, b]) * turn[:, None, i]
        y[:, :, a], y[:, :, b] = z.real, z.imag
    return y.reshape(x.shape)


def naive_attention(
    q, k, v, kv, page_table, kv_slot, kv_len, request, path=None, span=None, sinks=None, slopes=None,
    *, n_heads, scale, window=0, softcap=0.0,
):  # fmt: skip
    """Softmax over the visible keys, one head at a time; the state is what the op left behind."""
    out = np.zeros((len(q), n_heads, kv.k.shape[2]))
    group = n_heads // kv.k.shape[1]
    for t in range(len(q)):
        keys = [(p, page_table[request[t], p // PAGE] * PAGE + p % PAGE) for p in range(int(kv_len[t]))]
        if path is not None:
            keys += [(int(kv_len[t]) + i, s) for i, s in enumerate(path[t]) if s >= 0]
        here = keys[-1][0]
        if span is not None:
            more = range(int(kv_len[t]), int(span[t]))
            keys += [(p, page_table[request[t], p // PAGE] * PAGE + p % PAGE) for p in more]
        keys = [(p, s) for p, s in keys if not window or p > here - window]
        slots = [s for _, s in keys]
        for h in range(n_heads):
            head = f64(q[t]).reshape(n_heads, -1)[h]
            scores = f64(kv.k[slots, h // group]) @ head * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if slopes is not None:
                scores = scores + slopes[h] * np.array([p - here for p, _ in keys])
            e = np.exp(scores)
            out[t, h] = e @ f64(kv.v[slots, h // group]) / (e.sum() + (0 if sinks is None else math.exp(sinks[h])))
    return out.reshape(q.shape)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


NAIVE = {
    "linear": naive_linear,
    "rms_norm": naive_rms,
    "add_rms_norm": lambda x, y, w, eps: (x + y, naive_rms(x + y, w, eps)),
    "layer_norm": naive_layer_norm,
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "silu_mul": lambda gate, up: f64(gate) / (1 + np.exp(-f64(gate))) * up,
    "gelu_mul": lambda gate, up: gelu_tanh(f64(gate)) * up,
    "gelu": lambda x, exact: gelu_tanh(f64(x)),
    "relu2": lambda x: np.where(x > 0, f64(x) ** 2, 0),
    "softcap": lambda x, cap: cap * np.tanh(f64(x) / cap),
    "rope": naive_rope,
    "rotary": lambda positions, inv_freq, axis, scale: (
        scale * np.concatenate([f(np.outer(f64(positions[axis]), f64(inv_freq))) for f in (np.cos, np.sin)], axis=1)
    ),
    "embedding": lambda ids, table, axis=0, scale=1.0: scale * np.stack([table[i] for i in np.atleast_2d(ids)[axis]]),
    "take_rows": lambda x, out_rows: np.stack([x[i] for i in out_rows]),
}


@pytest.mark.parametrize(("name", "index"), [p for p in ALL_CASES if p.values[0] in NAIVE])
def test_meaning_equals_a_naive_formula(name, index):
    case = cases_of(name)[index]
    got, expected = tensors(call(name, case)), tensors(NAIVE[name](**case.operands, **case.attrs))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float32
        # float32 angles of up to 8191 turns carry 5e-4 of rounding: rotary is exact in float32, not in float64
        bound = 1e-3 if name == "rotary" else 3e-6 * max(1, np.abs(b).max())
        assert np.abs(a - b).max() <= bound


def test_quantize_act_is_within_half_a_step():
    for case in cases_of("quantize_act"):
        x = case.operands["x"]
        if case.attrs.get("dtype", "i8g32") != "i8g32":
            continue
        got = ops.quantize_act(x)
        padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
        step = np.abs(padded).max(2) / 127
        assert np.allclose(got.scale, step, rtol=1e-6)
        error = np.abs(np.pad(got.float32() - x, ((0, 0), (0, -x.shape[1] % 32)))).reshape(padded.shape)
        assert (error <= step[:, :, None] * 0.5001).all()


def test_linear_reads_quantized_rows_as_their_values():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 80), dtype=np.float32), rng.standard_normal((5, 80), dtype=np.float32)
    q = ops.quantize_act(x)
    assert np.allclose(ops.linear(q, w), naive_linear(q.float32(), w), atol=1e-5)


def test_exact_gelu_is_the_error_function():
    x = np.linspace(-4, 4, 33, dtype=np.float32)[None]
    expected = [[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x[0].tolist()]]
    assert np.allclose(ops.gelu(x, exact=True), expected, atol=1e-6)


def test_embedding_takes_given_rows():
    table, given = np.arange(12, dtype=np.float32).reshape(4, 3), np.full((2, 3), 7, np.float32)
    got = ops.embedding(np.array([1, 0, 3]), table, np.array([-1, 1, -1]), given)
    assert np.array_equal(got, [table[1], given[1], table[3]])


def test_take_rows_takes_held_rows():
    x, held = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([[8, 8], [9, 9]], np.float32)
    assert np.array_equal(ops.take_rows(x, np.array([2, -2, 0, -1]), held), [x[2], held[1], x[0], held[0]])


@pytest.mark.parametrize(("name", "index"), [p for p in ALL_CASES if p.values[0] not in ("attention", "sample")])
def test_no_rows_give_no_rows(name, index):
    """A step may carry tokens and want no row, or only rows held from earlier steps and no token."""
    case = cases_of(name)[index]
    row_kinds = {p.name for p in OPS[name].params if p.kind == "act" or p.name in ("ids", "out_rows", "input_row")}
    given = case.operands.items()
    none = {k: x[:0] if k in row_kinds and (k, len(x.shape)) != ("ids", 2) else x for k, x in given}
    if name == "embedding" and none["ids"].ndim == 2:
        none["ids"] = none["ids"][:, :0]
    if name == "rotary":
        none["positions"] = case.operands["positions"][:, :0]
    full = tensors(call(name, case))
    for got, like in zip(tensors(call(name, dataclasses.replace(case, operands=none))), full, strict=True):
        assert got.shape == (0, *like.shape[1:]) and got.dtype == like.dtype


# --- attention

SPANS = {"one": [(0, 1)], "grouped": [(0, 17)], "mixed": [(63, 2), (130, 1), (0, 65)], "long": [(190, 12)]}
VARIANTS = {
    "plain": {},
    "window": {"window": 20},
    "window_over_pages": {"window": 100},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "slopes": {"slopes": True},
    "all": {"window": 50, "softcap": 3.0, "sinks": True, "slopes": True},
    "bf16": {"format": "bf16"},
    "int8": {"format": "int8"},
}


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention(spans, variant):
    from ridgeline.ops.attention import _case

    rng = np.random.default_rng(5)
    options = dict(VARIANTS[variant])
    sinks, slopes = options.pop("sinks", False), options.pop("slopes", False)
    case = _case(rng, SPANS[spans], 6, 3, head_dim=16, **options)
    operands = {**case.operands, "sinks": None, "slopes": None}
    operands["sinks"] = rng.standard_normal(6).astype(np.float32) if sinks else None
    operands["slopes"] = (2.0 ** -np.arange(1, 7)).astype(np.float32) if slopes else None
    check_attention(operands, case.attrs)


@pytest.mark.parametrize("window", [0, 30])
def test_attention_of_a_tree(window):
    """Three rows of a tree over 70 stored keys: two children of one parent do not see each other."""
    from ridgeline.ops.attention import _case

    rng = np.random.default_rng(6)
    case = _case(rng, [(70, 3)], 6, 3, head_dim=16, **({"window": window} if window else {}))
    slots = case.operands["kv_slot"]
    path = np.full((3, 4), -1, np.int32)
    path[0, 0], path[1, :2], path[2, :2] = slots[0], [slots[0], slots[1]], [slots[0], slots[2]]
    operands = {**case.operands, "kv_len": np.full(3, 70, np.int32), "path": path}
    out = check_attention(operands, case.attrs)
    changed = operands["v"].copy()
    changed[1] += 1
    other = ops.attention(*[fresh(x) for x in {**operands, "v": changed}.values()], **case.attrs)
    assert np.array_equal(out[[0, 2]], other[[0, 2]]) and not np.array_equal(out[1], other[1])


def test_attention_of_a_bidirectional_span():
    """Tokens 10..29 see each other both ways; the ones around them stay causal."""
    from ridgeline.ops.attention import _case

    case = _case(np.random.default_rng(7), [(0, 70)], 6, 3, head_dim=16)
    span = np.zeros(70, np.int32)
    span[10:30] = 30
    check_attention({**case.operands, "path": None, "span": span}, case.attrs)


def check_attention(operands, attrs):
    """The op against the naive formula; every unused slot of the state holds NaN before and after."""
    order = [p.name for p in OPS["attention"].params]
    given = {name: fresh(operands.get(name)) for name in order}
    out = ops.attention(*given.values(), **attrs)
    expected = naive_attention(**given, **attrs)
    assert np.isfinite(out).all()
    bound = 8e-3 if given["kv"].format == "bf16" else 2e-6  # over bf16 pages, queries and probabilities are rounded too
    assert np.abs(out - expected).max() <= bound * max(1, np.abs(expected).max())
    kept = np.ones(len(given["kv"].k), bool)
    kept[given["kv_slot"]] = False
    assert np.array_equal(given["kv"].k[kept], operands["kv"].k[kept], equal_nan=True)
    return out


def test_attention_rows_do_not_depend_on_the_batch():
    [case] = [c for c in cases_of("attention") if "(63, 2)" in c.name]
    together = call("attention", case)
    rows = {k: case.operands[k] for k in ("q", "k", "v", "kv_slot", "kv_len", "request")}
    for keep in ([0, 1], [2], range(3, 68)):
        alone = dataclasses.replace(case, operands={**case.operands, **{k: x[list(keep)] for k, x in rows.items()}})
        assert np.array_equal(call("attention", alone), together[list(keep)])


def test_bf16_rounds_to_nearest_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.3895e38, np.nan, np.inf], np.float32)
    got = round_bf16(x)
    assert got[:4].tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]
    assert np.isnan(got[5]) and got[6] == np.inf


def test_pages_move_slots():
    pages = KVPages.empty(2, 1, 2)
    pages.k[:4, 0] = np.arange(8).reshape(4, 2)
    pages.move(0, 70, 4)
    pages.move(0, 1, 3)  # overlapping
    assert pages.k[70:74, 0].ravel().tolist() == list(range(8))
    assert pages.k[1:4, 0].ravel().tolist() == list(range(6))


# --- shapes, capture, interpret


def captured(name, case):
    """A program of one instruction over a case's operands, and what binds them."""
    m, spec = Tracer(), OPS[name]
    fields, weights, states, params, operands = {}, {}, {}, [], []
    sizes = {}
    for p in spec.params:
        x = case.operands.get(p.name)
        if x is None:
            operands.append(None)
        elif p.kind == "weight":
            weights[p.name] = x
            operands.append(m.weight(p.name, x.shape, ("",) * x.ndim))
        elif p.kind == "field":
            fields[p.name] = x
            known = FIELD_TYPES.get(p.name)
            operands.append(m.field(p.name) if known else _value(m, Field(p.name, TensorType(("T",)))))
        elif p.kind == "state":
            state = State("kv", 1, *x.k.shape[1:], format=x.format)
            states["kv", 0] = fresh(x)
            operands.append(m.state(state, 0))
        else:
            value = m.param(TensorType(("T", *x.shape[1:]), x.dtype if isinstance(x, QuantizedRows) else "f32"))
            params.append((value.operand, x))
            sizes["T"] = len(x)
            operands.append(value)
    out = getattr(ops, name)(*operands, **case.attrs)
    results = tuple(v.operand for v in (out if isinstance(out, tuple) else (out,)))
    entry = Entry(tuple(v.buffer for v, _ in params), m.take(), results)
    program = Program(name, entry, Entry((), (), ()))
    return program, [x for _, x in params], Bindings(fields, weights, states, {})


def _value(m, operand):
    from ridgeline.program.capture import Value

    return Value(m, operand)


@pytest.mark.parametrize(("name", "index"), ALL_CASES)
def test_captured_verified_and_interpreted(name, index):
    case = cases_of(name)[index]
    program, params, bindings = captured(name, case)
    verify(program)
    [instr] = program.forward.instrs
    got = interpret(program.forward, params, bindings)
    expected = call(name, case)
    expected = expected if isinstance(expected, tuple) else (expected,)
    rows = {"T": len(next(iter(case.operands.values()))), "R": 1, "L": len(case.operands.get("out_rows", ()))}
    if name in ("rotary", "embedding"):
        rows["T"] = next(iter(case.operands.values())).shape[-1]
    for a, b, t in zip(got, expected, infer(instr), strict=True):
        if isinstance(a, QuantizedRows):
            assert np.array_equal(a.q, b.q) and np.array_equal(a.scale, b.scale)
            assert (len(a.q), a.columns) == (rows["T"], t.columns)
            continue
        assert np.array_equal(a, b)
        assert a.shape == tuple(rows.get(s, s) for s in t.shape)
        assert {"f32": np.float32, "bf16": np.float32, "i32": np.int32}[t.dtype] == a.dtype


def test_all_reduce_and_all_gather_shapes():
    x, comm = TensorType(("T", 48)), CommRef("tp", 2)
    assert OPS["all_reduce"].shape(x, comm) == x
    assert OPS["all_gather"].shape(x, comm) == TensorType(("T", 96))
