"""The torch backend: each op in about one line of torch, on the CPU or a GPU. The second oracle, and a student.

Owns the torch meaning of every core op, the KV pages they read, and the step that carries gradients. A batch crosses
to the device as one buffer whose fields are views of it; nothing else of a program or batch does. A row's result does
not depend on the rows beside it: products have one shape (`ROWS`), and elementwise formulas use only functions that
torch computes alike at every place of a tensor (exp, tanh, erf, cos; not silu, gelu, sigmoid).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.backends.base import MULTIPLIES, ReadWeight, Store, open_states, run_copies
from ridgeline.errors import ConfigError, Unsupported
from ridgeline.ops.attention import PAGE
from ridgeline.ops.linear import QuantizedRows
from ridgeline.ops.spec import OPS, TERM_RATIO, TWO_TERMS, groups_of
from ridgeline.program.batch import WANT_HIDDEN, WANT_HOLD, WANT_LOGITS, WANT_SAMPLE, Batch, BatchLayout, StepResult
from ridgeline.program.interpret import Bindings, interpret
from ridgeline.program.ir import Field, Program, State, Weight
from ridgeline.quant.format import FORMATS

ROWS = 16  # rows of every product: the last ones are padded
KV_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # int8: rounded values
_FIELD_DTYPES = {"i4": torch.int32, "i8": torch.int64, "f4": torch.float32}


@dataclass(frozen=True)
class KVTensors:
    """Keys and values of one layer on a device: [pages * 64, n_kv_heads, head_dim] in the state's format."""

    k: Tensor
    v: Tensor
    format: str = ""

    @classmethod
    def empty(cls, pages: int, state: State, device: torch.device) -> KVTensors:
        """Fresh pages; what they hold is never read before it is written, so they are not cleared."""
        shape, dtype = (pages * PAGE, state.n_kv_heads, state.head_dim), KV_DTYPES[state.format]
        k, v = (torch.empty(shape, dtype=dtype, device=device) for _ in "kv")
        return cls(k, v, state.format)

    def poison(self) -> KVTensors:
        """Fill everything with NaN, so that whatever is read before it is written shows (tests)."""
        self.k.fill_(math.nan)
        self.v.fill_(math.nan)
        return self

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store rows k, v [T, n_kv_heads * head_dim] at `slots` [T]. Gives all keys and values, these with their graph.

        The pages themselves are written through an alias without history, so that no graph outlives its step.
        """
        put = []
        for store, new in ((self.k, k), (self.v, v)):
            rows = new.unflatten(1, store.shape[1:])
            if self.format == "int8":
                rows = _round_int8(rows.detach()) + (rows - rows.detach())  # with the gradient of the unrounded
            put.append(store.detach().index_put_((slots,), rows.to(store.dtype)))
        return put[0], put[1]

    def move(self, source: int, target: int, count: int) -> None:
        """Copy `count` consecutive slots (copy on write, beams, compaction after speculation)."""
        for store in (self.k, self.v):
            store[target : target + count] = store[source : source + count].clone()


def _round_bf16(x: Tensor) -> Tensor:
    """x rounded to bfloat16, with the gradient of the unrounded."""
    return x + (x.detach().bfloat16().float() - x.detach())


def _round_int8(x: Tensor) -> Tensor:
    """x [..., head_dim] as int8 with one scale per row, its maximum / 127 rounded up to bfloat16."""
    exact = x.abs().amax(dim=-1, keepdim=True) / 127
    scale = ((exact.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32)
    scale = torch.where(scale < 2.0**-100, 0.0, scale).where(exact.isfinite(), math.nan)
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (x * inverse).round() * scale


# --- the meanings: operands, attributes and shapes are those of the op table's entries


def embedding(
    ids: Tensor, table: Tensor, input_row: Tensor | None = None, input_rows: Tensor | None = None,
    *, axis: int = 0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    rows = table[ids if ids.ndim == 1 else ids[axis]] * scale
    if input_row is None or input_rows is None or not len(input_rows):
        return rows
    return torch.where(input_row[:, None] >= 0, input_rows[input_row.clamp(min=0)], rows)


def take_rows(x: Tensor, out_rows: Tensor, held: Tensor | None = None) -> Tensor:
    rows = x if held is None else torch.cat([x, held])
    return rows[torch.where(out_rows < 0, len(x) - 1 - out_rows, out_rows)]


def rotary(positions: Tensor, inv_freq: Tensor, *, axis: int = 0, scale: float = 1.0) -> Tensor:
    angles = positions[axis].float()[:, None] * inv_freq
    return torch.cat([angles.cos(), angles.sin()], dim=1) * scale


def rope(x: Tensor, angles: Tensor, *, head_dim: int, interleaved: bool = False) -> Tensor:
    half, last = angles.shape[1] // 2, -1 if interleaved else -2
    turned, rest = x.unflatten(1, (-1, head_dim)).tensor_split([2 * half], dim=2)
    a, b = turned.unflatten(2, (half, 2) if interleaved else (2, half)).unbind(last)
    cos, sin = angles[:, None].chunk(2, dim=2)
    pairs = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=last)
    return torch.cat([pairs.flatten(2), rest], dim=2).flatten(1)


def linear(x: Tensor | QuantizedRows, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = dequantize(x) if isinstance(x, QuantizedRows) else x
    blocks = F.pad(rows, (0, 0, 0, -len(rows) % ROWS)).split(ROWS)
    return torch.cat([F.linear(block, w, bias) for block in blocks])[: len(rows)]


def dequantize(x: Any) -> Tensor:
    values = (x.q.float().unflatten(1, (-1, x.group)) * x.scale[:, :, None]).flatten(1)
    return sum(values.chunk(1 + (x.dtype in TWO_TERMS), dim=1), start=0.0)[:, : x.columns]


def quantize_act(x: Any, *, dtype: str = "i8g32", threshold: float = 0.0) -> Any:
    x = torch.where(x.abs() < threshold, 0, x) if threshold > 0 else x
    if dtype in ("f32", "bf16"):
        return x if dtype == "f32" else x.bfloat16().float()
    if dtype in TWO_TERMS:
        first = quantize_act(x, dtype=dtype[:-2])
        second = _round(x - dequantize(first), dtype[:-2], first.scale / TERM_RATIO)
        both: Any = (torch.cat(pair, dim=1) for pair in ((first.q, second.q), (first.scale, second.scale)))
        return QuantizedRows(*both, x.shape[1], dtype)
    return _round(x, dtype)


def _round(x: Any, dtype: str, scale: Any = None) -> QuantizedRows:
    count, group = groups_of(dtype, x.shape[1])
    groups = F.pad(x, (0, count * group - x.shape[1])).unflatten(1, (count, group))
    scale = groups.abs().amax(dim=2) / 127 if scale is None else scale
    inverse = torch.where(scale > 0, 1 / scale, 0)
    q: Any = (groups * inverse[:, :, None]).round().to(torch.int8).flatten(1)
    return QuantizedRows(q, scale, x.shape[1], dtype)


def rms_norm(x: Tensor, w: Tensor, *, eps: float, width: int = 0) -> Tensor:
    width = width or x.shape[1]
    return F.rms_norm(x.unflatten(1, (-1, width)), (width,), w, eps).flatten(1)


def add_rms_norm(x: Tensor, y: Tensor, w: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    return x + y, rms_norm(x + y, w, eps=eps)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + (-gate).clamp(max=80).exp()) * up  # beyond 80, exp would make the gradient inf * 0


def gelu(x: Tensor, *, exact: bool = False) -> Tensor:
    inner = (x / math.sqrt(2)).erf() if exact else (math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)).tanh()
    return 0.5 * x * (1 + inner)


def softcap(x: Tensor, *, cap: float) -> Tensor:
    return cap * (x / cap).tanh()


def sample(logits: Tensor, *fields: np.ndarray) -> Any:
    """numpy's own meaning on the host: its noise is a hash of 64 unsigned bits, which torch does not have."""
    return OPS["sample"].meaning(logits.detach().cpu().numpy(), *fields)


def attention(
    q: Tensor, k: Tensor, v: Tensor, kv: KVTensors, page_table: Tensor, kv_slot: Tensor, kv_len: Tensor,
    request: Tensor, path: Tensor | None = None, span: Tensor | None = None, sinks: Tensor | None = None,
    slopes: Tensor | None = None, *, n_heads: int, scale: float, window: int = 0, softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """All tokens together, one range of 64 absolute positions after the other; a range nobody sees changes nothing."""
    keys, values = kv.write(kv_slot, k, v)
    bf16 = kv.format == "bf16"  # queries and probabilities are rounded like keys and values
    q = _round_bf16(q) if bf16 else q
    q = q.unflatten(1, (keys.shape[1], -1, keys.shape[2]))  # [T, n_kv_heads, group, head_dim]
    seen = kv_len if span is None else torch.maximum(kv_len, span)
    branch = torch.zeros_like(kv_len) if path is None else (path >= 0).sum(dim=1)
    position, end = kv_len + branch - 1, seen + branch
    first = (position - window + 1).clamp(min=0) if window else torch.zeros_like(kv_len)
    least = q.new_full((n_heads,), torch.finfo(q.dtype).min)
    top = (least if sinks is None else sinks.detach()).view(q.shape[1:3]).expand(q.shape[:3])
    weight = torch.zeros_like(top) if sinks is None else (sinks.view(q.shape[1:3]) - top).exp()
    total = torch.zeros_like(q)
    for start in range(0, int(end.max()) if len(q) else 0, PAGE):
        at = torch.arange(start, start + PAGE, device=q.device)
        page = page_table[request, min(start // PAGE, page_table.shape[1] - 1)]
        slots = page[:, None] * PAGE + at % PAGE
        if path is not None and path.shape[1]:
            ancestor = (at - seen[:, None]).clamp(0, path.shape[1] - 1)
            slots = torch.where(at < seen[:, None], slots, path.gather(1, ancestor))
        visible = (at >= first[:, None]) & (at < end[:, None])  # [T, 64]
        slots, shown = slots.where(visible, 0), visible[:, :, None, None]
        parts = [x[slots].float().where(shown, 0) for x in (keys, values)]  # [T, 64, n_kv_heads, head_dim]
        k_range, v_range = (x.transpose(1, 2).contiguous() for x in parts)  # one layout for any T: the same bits
        scores = q @ k_range.mT * scale  # [T, n_kv_heads, group, 64]
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        if slopes is not None:
            scores = scores + slopes.view(*q.shape[1:3], 1) * (at - position[:, None])[:, None, None]
        scores = scores.masked_fill(~visible[:, None, None], -math.inf)
        own = scores.detach().amax(dim=3).clamp(min=torch.finfo(q.dtype).min)  # a range may have nothing to see
        new = torch.maximum(top, own)
        old, fresh, p = (top - new).exp(), (own - new).exp(), (scores - own[..., None]).exp()
        p = _round_bf16(p) if bf16 else p
        total = total * old[..., None] + (p @ v_range) * fresh[..., None]
        weight, top = weight * old + p.sum(dim=3) * fresh, new
    return (total / weight[..., None]).flatten(1)


MEANINGS: Mapping[str, Callable[..., Any]] = {
    "embedding": embedding,
    "take_rows": take_rows,
    "rotary": rotary,
    "rope": rope,
    "linear": linear,
    "quantize_act": quantize_act,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "layer_norm": lambda x, w, b=None, *, eps: F.layer_norm(x, x.shape[1:], w, b, eps),
    "add": torch.add,
    "mul": torch.mul,
    "silu_mul": silu_mul,
    "gelu_mul": lambda gate, up: gelu(gate) * up,
    "gelu": gelu,
    "relu2": lambda x: x.relu().square(),
    "softcap": softcap,
    "attention": attention,
    "all_reduce": lambda x, comm: comm.all_reduce(x),
    "all_gather": lambda x, comm: comm.all_gather(x),
    "sample": sample,
}


# --- the backend


class Torch:
    """Backend over torch: weights are unpacked to float32 on the device, `threads` 0 leaves torch's own number.

    The number of threads is torch's, for the whole process. Raises ConfigError for a device torch does not see.
    """

    name = "torch"
    held_as: Mapping[str, str] = {name: name for name in FORMATS}
    multiplies = MULTIPLIES
    unpacks_to = "f32"

    def __init__(self, device: str = "cpu", threads: int = 0) -> None:
        self.device = torch.device(device)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device.type == "cuda" and (self.device.index or 0) >= count:
            raise ConfigError(f"device {device}: torch {torch.__version__} sees {count} GPUs here; choose another")
        if threads:
            torch.set_num_threads(threads)

    def compile(
        self, program: Program, read: ReadWeight, layout: BatchLayout, pages: int, packed: object = None
    ) -> TorchStep:
        for instr in program.instrs:
            if instr.op not in MEANINGS:
                raise Unsupported(f"op {instr.op} has no torch meaning; use backend reference")
        weights = {w.name: torch.tensor(_array(w, read), device=self.device) for w in program.weights.values()}
        return TorchStep(program, weights, layout, pages, self.device)


def _array(w: Weight, read: ReadWeight) -> np.ndarray:
    return np.array(w.constant, np.float32) if w.constant is not None else read(w).float32()


class TorchStep:
    """A program bound to tensors of one device.

    `weights` (name -> float32 tensor) are the caller's to train: after `requires_grad_()` on some, or with tensors
    computed from others in their place, `logits` carries the graph to them. `run` never builds one.
    """

    def __init__(
        self, program: Program, weights: dict[str, Tensor], layout: BatchLayout, pages: int, device: torch.device,
        comms: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.weights, self.layout, self.device, self.comms = program, weights, layout, device, comms or {}
        stores: dict[str, Store] = {"kv": lambda s, pages: KVTensors.empty(pages, s, device)}
        self.states = open_states(program, stores, pages)
        self.held = torch.zeros((layout.limits.held, layout.limits.hidden), device=device)
        used = [(i.op, x.name) for i in program.instrs for x in i.operands.values() if isinstance(x, Field)]
        self._host = {name for op, name in used if op == "sample"}
        self._device = {name for op, name in used if op != "sample"} - {"held"}

    def run(self, batch: Batch) -> StepResult:
        """Copies first, then forward, then sample."""
        want = batch["want"]
        holding = np.flatnonzero(want & WANT_HOLD)
        with torch.no_grad():
            bindings = self._bind(batch)
            kept, hidden, *extra = interpret(self.program.forward, [], bindings, meanings=MEANINGS)
            self.held[batch["hold_slot"][holding].tolist()] = kept[holding.tolist()]
            extra = [x.cpu().numpy() for x in extra]
            if want.size and not np.any(want & WANT_SAMPLE):
                ids = np.zeros(len(want), np.int32)
                return StepResult(batch.size("step"), ids, hidden=hidden.cpu().numpy(), extra=tuple(extra))
            found = interpret(self.program.sample, [hidden], bindings, meanings=MEANINGS)
        ids, logprobs, top_ids, top_logprobs, logits = found
        return StepResult(
            batch.size("step"), ids, logprobs, top_ids, top_logprobs,
            hidden.cpu().numpy() if np.any(want & WANT_HIDDEN) else None,
            logits.cpu().numpy() if np.any(want & WANT_LOGITS) else None,
            tuple(extra),
        )  # fmt: skip

    def logits(self, batch: Batch) -> Tensor:
        """Logits [L, vocab] of a batch on the device, with the graph to weights that require gradients.

        Keys of earlier steps are constants in it. Rows that int8 activations round pass no gradient: train with
        float32 ones. The backward pass takes memory as large as the layer's pages for each range of keys: compile
        with no more pages than the batch needs.
        """
        bindings = self._bind(batch)
        _, hidden, *_ = interpret(self.program.forward, [], bindings, meanings=MEANINGS)
        sample = self.program.sample
        head = replace(sample, instrs=tuple(i for i in sample.instrs if i.op != "sample"), results=sample.results[4:])
        [logits] = interpret(head, [hidden], bindings, meanings=MEANINGS)
        return logits

    def _bind(self, batch: Batch) -> Bindings:
        """Copies done, fields on the device as views of one buffer; those that only the sampler reads stay."""
        run_copies(batch, self.states)
        buffer = torch.tensor(batch.buffer, device=self.device)
        fields: dict[str, Any] = {name: field_of(batch, buffer, name) for name in self._device}
        fields |= {name: batch[name] for name in self._host} | {"held": self.held}
        return Bindings(fields, self.weights, self.states, self.comms)


def field_of(batch: Batch, buffer: Tensor, name: str) -> Tensor:
    """A field's part in use, read from the batch's bytes on the device; integers widened, as torch indexes by int64."""
    slot = batch.layout.slots[name]
    raw = buffer[slot.offset : slot.offset + math.prod(slot.shape) * slot.dtype.itemsize]
    whole = raw.view(_FIELD_DTYPES[slot.dtype.str[1:]]).view(slot.shape)
    part = whole[tuple(slice(batch.size(axis)) for axis in slot.axes)]
    return part if part.is_floating_point() else part.long()
