"""The torch backend: each op on its own entry's cases, a whole engine over it, and a batch that reaches the device as
bytes alone. Each on the CPU, and on a GPU where torch sees one. Gradients of models are in test_torch_gradients.py."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
import toy
from ridgeline import LLM, SamplingParams, ops
from ridgeline.backends import get_backend
from ridgeline.backends.reference import Reference
from ridgeline.config import EngineConfig
from ridgeline.errors import ConfigError, Unsupported
from ridgeline.ops.attention import KVPages, _case
from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import OPS
from ridgeline.program.batch import Batch, BatchLayout, Limits
from ridgeline.program.ir import Field
from ridgeline.weights.load import open_checkpoint

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
from ridgeline.backends import torch_eager  # noqa: E402
from ridgeline.backends.torch_eager import KV_DTYPES, MEANINGS, KVTensors, Torch, field_of  # noqa: E402

pytestmark = pytest.mark.parity
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
CORE = sorted(set(ops.__all__) - {"OPS", "OpSpec"})


def cases_of(op):
    return list(OPS[op].cases(np.random.default_rng(7)))


def to_torch(x, device):
    """An operand as the backend would bind it."""
    if isinstance(x, KVPages):
        dtype = KV_DTYPES[x.format]
        return KVTensors(*(torch.tensor(p, device=device).to(dtype) for p in (x.k, x.v)), x.format)
    if isinstance(x, QuantizedRows):
        return QuantizedRows(torch.tensor(x.q, device=device), torch.tensor(x.scale, device=device), x.columns, x.dtype)
    if not isinstance(x, np.ndarray):
        return x
    t = torch.tensor(x, device=device)
    return t if t.is_floating_point() else t.long()


def call(op, operands, attrs, device="cpu"):
    """(outputs, state) of the torch meaning; the fields of sample stay on the host, as the step binds them."""
    bound = {
        p.name: operands.get(p.name) if op == "sample" and p.kind == "field" else to_torch(operands.get(p.name), device)
        for p in OPS[op].params
    }
    out = MEANINGS[op](*bound.values(), **attrs)
    return out if isinstance(out, tuple) else (out,), bound.get("kv")


def flat(x):
    """An output as float64 on the host."""
    if isinstance(x, QuantizedRows):
        x = torch_eager.dequantize(x) if torch.is_tensor(x.q) else x.float32()
    return np.asarray(x.detach().cpu() if torch.is_tensor(x) else x, np.float64)


def close(actual, wanted, tolerance):
    a, b = flat(actual), flat(wanted)
    assert a.shape == b.shape
    finite = np.isfinite(b)
    assert np.array_equal(a[~finite], b[~finite], equal_nan=True)
    assert np.abs(a[finite] - b[finite]).max(initial=0) <= tolerance * np.abs(b[finite]).max(initial=0)


def check(op, operands, attrs, device="cpu"):
    """The torch meaning against numpy's, state included."""
    got, kv = call(op, operands, attrs, device)
    meant = {k: KVPages(x.k.copy(), x.v.copy(), x.format) if k == "kv" else x for k, x in operands.items()}
    wanted = OPS[op].meaning(*(meant.get(p.name) for p in OPS[op].params), **attrs)
    for a, b in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        close(a, b, OPS[op].tolerance)
    if kv is not None:
        for a, b in ((kv.k, meant["kv"].k), (kv.v, meant["kv"].v)):
            assert np.array_equal(flat(a.float()), flat(b), equal_nan=True)


# --- ops


def test_every_core_op_has_a_meaning():
    assert sorted(MEANINGS) == CORE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", CORE)
def test_cases(op, device):
    for case in cases_of(op):
        check(op, case.operands, case.attrs, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("extra", ["plain", "sinks", "slopes", "tree", "span"])
@pytest.mark.parametrize("options", [{}, {"window": 30, "softcap": 5.0}, {"format": "bf16"}], ids=str)
def test_attention_with_options(options, extra, device):
    rng = np.random.default_rng(5)
    case = _case(rng, [(0, 1), (70, 3), (120, 10)], 6, 3, head_dim=16, **options)
    operands = dict(case.operands)
    if extra in ("sinks", "tree"):
        operands["sinks"] = rng.standard_normal(6).astype(np.float32)
    if extra in ("slopes", "tree"):
        operands["slopes"] = (2.0 ** -np.arange(1, 7)).astype(np.float32)
    if extra == "span":
        operands["span"] = np.array([0, 0, 73, 73, *[0] * 5, 130, 130, 0, 0, 0], np.int32)
    if extra == "tree":
        slots = operands["kv_slot"]
        operands["path"] = np.full((14, 4), -1, np.int32)
        operands["path"][1, 0], operands["path"][2, :2], operands["path"][3, :2] = slots[1], slots[1:3], slots[[1, 3]]
        operands["kv_len"] = np.concatenate([operands["kv_len"][:1], [70] * 3, operands["kv_len"][4:]]).astype(np.int32)
    check("attention", operands, case.attrs, device)


@pytest.mark.parametrize("op", ["embedding", "take_rows"])
def test_rows_from_elsewhere(op):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((7, 40), dtype=np.float32)
    operands = {
        "embedding": {"ids": np.array([3, 0, 6]), "table": x, "input_row": np.array([-1, 1, 0]), "input_rows": -x},
        "take_rows": {"x": x, "out_rows": np.array([6, -1, 0, -3]), "held": -x},
    }[op]
    check(op, operands, {})


def test_linear_over_int8_rows():
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((5, 80), dtype=np.float32), rng.standard_normal((33, 80), dtype=np.float32)
    check("linear", {"x": OPS["quantize_act"].meaning(x), "w": w}, {})


@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_communicators_see_tensors(op):
    comm = SimpleNamespace(all_reduce=lambda x: x + 1, all_gather=lambda x: torch.cat([x, x], 1))
    assert MEANINGS[op](torch.zeros(2, 3), comm).shape == (2, 6 if op == "all_gather" else 3)


ROW_WISE = ["linear", "rms_norm", "add_rms_norm", "layer_norm", "silu_mul", "gelu_mul", "gelu", "softcap", "rope"]


@pytest.mark.parametrize("op", ROW_WISE)
def test_a_row_does_not_depend_on_its_neighbours(op):
    """Bit for bit, at sizes at which torch's own silu, gelu and products differ."""
    acts = {p.name for p in OPS[op].params if p.kind == "act"}
    for case in cases_of(op):
        whole, _ = call(op, case.operands, case.attrs)
        for start, stop in ((0, 1), (1, 3), (2, 7)):
            rows = {k: x[start:stop] if k in acts else x for k, x in case.operands.items()}
            part, _ = call(op, rows, case.attrs)
            assert all(torch.equal(a, b[start:stop]) for a, b in zip(part, whole, strict=True)), case.name


# --- gradients


def dense_attention(q, k, v, sinks, heads, window, cap):
    """Plain causal attention of one sequence in one softmax: q [T, heads * d], k and v [T, kv_heads * d]."""
    t, d = len(q), q.shape[1] // heads
    q, k, v = (x.view(t, -1, d).transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // len(k), dim=0) for x in (k, v))
    scores = cap * (q @ k.mT * d**-0.5 / cap).tanh()
    gap = torch.arange(t)[:, None] - torch.arange(t)
    scores = scores.masked_fill((gap < 0) | (gap >= window), -torch.inf)
    p = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, t, 1)], dim=2).softmax(dim=2)[:, :, :-1]
    return (p @ v).transpose(0, 1).flatten(1)


def test_attention_passes_gradients_through_its_pages():
    """Two pages full of NaN, sinks, a window and a softcap; a graph does not outlive its step."""
    case = _case(np.random.default_rng(3), [(0, 100)], 6, 3, head_dim=16, window=40, softcap=4.0)
    bound = {p.name: to_torch(case.operands.get(p.name), "cpu") for p in OPS["attention"].params}
    bound["sinks"] = torch.linspace(-1, 1, 6)
    trained, other = [bound[name].requires_grad_() for name in ("q", "k", "v", "sinks")], torch.randn(100, 96)
    for _ in range(2):
        grads = torch.autograd.grad((MEANINGS["attention"](*bound.values(), **case.attrs) * other).sum(), trained)
        assert not bound["kv"].k.requires_grad
        wanted = torch.autograd.grad((dense_attention(*trained, 6, 40, 4.0) * other).sum(), trained)
        for a, b in zip(grads, wanted, strict=True):
            close(a, b, 1e-5)


def test_gates_far_from_zero_have_gradients():
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]]).requires_grad_()
    silu = torch.autograd.grad(MEANINGS["silu_mul"](gate, torch.ones(1, 5)).sum(), gate)[0]
    gelu = torch.autograd.grad(MEANINGS["gelu"](gate).sum(), gate)[0]
    assert silu.allclose(torch.tensor([0, 0, 0.5, 1, 1])) and gelu.allclose(torch.tensor([0, 0, 0.5, 1, 1]))


# --- a step, and an engine over it


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_format", ["f32", "bf16", "int8"])
def test_logits_equal_the_reference(tmp_path, kv_format, device):
    c = tiny.CONFIGS["qwen2w"]
    checkpoint = open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c)))
    steps = [tiny.compile_model(checkpoint, b, kv_format=kv_format) for b in (Reference(), Torch(device))]
    wanted, got = (tiny.run_step(s, s.layout, tiny.prompt(150), (70, 1, 79)) for s in steps)
    assert np.abs(got - wanted).max() <= (1e-4 if kv_format == "f32" else 5e-2)
    assert {str(x.dtype) for s in steps[1].states.values() for x in (s.k, s.v)} == {
        "torch.bfloat16" if kv_format == "bf16" else "torch.float32"
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [toy.CONFIG, toy.WINDOWED], ids=["full", "windowed"])
def test_an_engine_gives_the_same_text(tmp_path, config, device):
    folder = toy.write(tmp_path / "m", config)
    settings = {"activations": "float32", "kv_memory": 4 << 20, "max_requests": 3, "step_tokens": 24}
    prompts = ["The ridge line runs north, and on it " * 3, "a", "weights, bytes and clocks"]
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    sampled = SamplingParams(n=2, seed=5, max_tokens=12, logprobs=3, ignore_eos=True)
    ours = LLM(folder, backend="torch", device=device, threads=1, **settings)
    theirs = LLM(folder, backend="reference", **settings)
    for params in (greedy, sampled):
        for a, b in zip(ours.generate(prompts, params), theirs.generate(prompts, params), strict=True):
            assert [c.text for c in a.completions] == [c.text for c in b.completions]
            scores = [[t.logprob for c in x.completions for t in c.tokens] for x in (a, b)]
            assert np.allclose(*[np.array(s, np.float64) for s in scores], atol=1e-2)


def test_int8_activations_are_close(tmp_path):
    folder = toy.write(tmp_path / "m")
    scores = []
    for activations in ("float32", "int8"):
        llm = LLM(folder, backend="torch", threads=1, activations=activations, kv_format="f32", kv_memory=4 << 20)
        [out] = llm.generate("a ridge", SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=True))
        scores.append([t.logprob for t in out.prompt_logprobs])
    assert np.allclose(*scores, atol=0.2)


# --- what reaches the device


def leaves(x):
    """Everything a record is made of."""
    if dataclasses.is_dataclass(x):
        for f in dataclasses.fields(x):
            yield from leaves(getattr(x, f.name))
    elif isinstance(x, Mapping):
        for pair in x.items():
            yield from leaves(pair)
    elif isinstance(x, tuple):
        for part in x:
            yield from leaves(part)
    else:
        yield x


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_is_its_bytes_and_a_program_is_plain_records(tmp_path, device):
    """A step given copies, its program's and each batch's, computes the same: neither holds a host pointer."""
    c, ids = tiny.CONFIGS["qwen2w"], tiny.prompt(80)
    checkpoint = open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c)))
    step = tiny.compile_model(checkpoint, Torch(device))
    assert {type(x) for x in leaves(step.program)} <= {str, int, float, bool, type(None)}
    program = pickle.loads(pickle.dumps(step.program))
    copy = Torch(device).compile(program, checkpoint.read, BatchLayout(step.layout.limits, step.layout.groups), 32)

    def run_bytes(batch):
        data = batch.buffer.tobytes()
        batch.buffer.fill(0xEE)  # whoever still looks there sees it
        return copy.run(Batch(copy.layout, np.frombuffer(data, np.uint8)))

    runs = [tiny.run_step(x, step.layout, ids, (50, 30)) for x in (step, SimpleNamespace(run=run_bytes))]
    assert np.array_equal(*runs)


def test_a_step_crosses_once(tmp_path, monkeypatch):
    """One array becomes a tensor in a step, the batch's buffer; every field on the device is read from its bytes."""
    c = tiny.CONFIGS["llama"]
    step = tiny.compile_model(open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c))), Torch())
    names = {x.name for x in step.program.operands() if isinstance(x, Field)} - {"held", "sampler", "masks"}
    crossed, tensor = [], torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda x, **more: crossed.append(x) or tensor(x, **more))
    for other in ("from_numpy", "as_tensor", "asarray", "from_dlpack", "frombuffer"):
        monkeypatch.setattr(torch, other, None)

    def look(batch):
        buffer = tensor(batch.buffer)
        for name in names:
            field = field_of(batch, buffer, name)
            assert np.array_equal(field.numpy(), batch[name]) and field.shape == batch[name].shape, name
        step.run(batch)
        assert len(crossed) == 1 and crossed[0] is batch.buffer

    assert {"ids", "positions", "kv_len", "page_table.kv", "kv_slot.kv"} <= names
    tiny.Runner(SimpleNamespace(run=look), step.layout).feed(tiny.prompt(9))


# --- settings


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CUDA", "cuda:1 ", "meta", ""])
def test_devices_that_do_not_exist(device):
    with pytest.raises(ConfigError, match="device"):
        EngineConfig("m", backend="torch", device=device)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_device_is_for_torch(backend):
    with pytest.raises(ConfigError, match="backend torch"):
        EngineConfig("m", backend=backend, device="cuda")


def test_a_gpu_that_torch_does_not_see():
    with pytest.raises(ConfigError, match="sees . GPUs"):
        get_backend(EngineConfig("m", backend="torch", device="cuda:99"))


def test_torch_is_asked_for_by_name(monkeypatch):
    monkeypatch.delitem(sys.modules, "ridgeline.backends.torch_eager")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'ridgeline-llm\[torch\]'"):
        get_backend(EngineConfig("m", backend="torch"))


def test_an_op_without_a_meaning_is_named(tmp_path, monkeypatch):
    c = tiny.CONFIGS["llama"]
    checkpoint = open_checkpoint(tiny.write_hf(tmp_path / "m", c, tiny.weights(c)))
    monkeypatch.setattr(torch_eager, "MEANINGS", {k: f for k, f in MEANINGS.items() if k != "silu_mul"})
    program = tiny.program_of(checkpoint, Torch())
    limits = Limits(tokens=4, requests=1, rows=4, pages=1, vocab=tiny.VOCAB, hidden=96)
    with pytest.raises(Unsupported, match="silu_mul"):
        Torch().compile(program, checkpoint.read, BatchLayout.of(limits, program.states), 1)
