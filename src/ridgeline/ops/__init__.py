"""The instruction set. Importing a name from here gives a callable op: on traced values it records, on arrays it
computes. `OPS` is the table that backends, cost, verify and tests read."""

from ridgeline.ops.attention import attention
from ridgeline.ops.comm import all_gather, all_reduce
from ridgeline.ops.linear import linear, quantize_act
from ridgeline.ops.norm import add_rms_norm, layer_norm, rms_norm
from ridgeline.ops.pointwise import add, gelu, gelu_mul, mul, relu2, silu_mul, softcap
from ridgeline.ops.position import rope, rotary
from ridgeline.ops.rows import embedding, take_rows
from ridgeline.ops.sample import sample
from ridgeline.ops.spec import OPS, OpSpec

__all__ = [
    "OPS", "OpSpec", "add", "add_rms_norm", "all_gather", "all_reduce", "attention", "embedding", "gelu", "gelu_mul",
    "layer_norm", "linear", "mul", "quantize_act", "relu2", "rms_norm", "rope", "rotary", "sample", "silu_mul",
    "softcap", "take_rows",
]  # fmt: skip
