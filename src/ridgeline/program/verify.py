"""What a legal program is. Run after capture and after every pass, so a broken pass is named, not its victim."""

from __future__ import annotations

from typing import Any

from ridgeline.ops.spec import OPS, ROWS, TensorType
from ridgeline.program.ir import Buffer, CommRef, Entry, Field, Instr, Operand, Program, StateRef, View, Weight

_KINDS: dict[str, tuple[type, ...]] = {
    "act": (View,),
    "weight": (Weight,),
    "field": (Field, View),
    "state": (StateRef,),
    "comm": (CommRef,),
}


def verify(program: Program, verified: dict[int, Instr] | None = None) -> Program:
    """Check `program` and return it. Raises AssertionError naming the instruction: an illegal program is our bug.

    `verified` keeps, by identity, instructions whose operands and shapes were found good, from call to call.
    """
    verified = {} if verified is None else verified
    for name, entry in program.entries.items():
        _verify_entry(name, entry, verified)
    by_name: dict[str, Weight] = {}
    for w in (x for x in program.operands() if isinstance(x, Weight)):
        assert by_name.setdefault(w.name, w) == w, f"weight {w.name} is declared in two ways"
        assert len(w.axes) == len(w.shape) and all(n > 0 for n in w.shape), f"weight {w.name}: {w.shape} {w.axes}"
    page_bytes = {s.page_bytes for s in program.states}
    assert len(page_bytes) <= 1, f"state groups have pages of different sizes: {sorted(page_bytes)}"
    return program


def _verify_entry(name: str, entry: Entry, verified: dict[int, Instr]) -> None:
    defined: dict[int, Buffer] = {b.id: b for b in entry.params}
    for i, instr in enumerate(entry.instrs):
        known = id(instr) in verified
        if not known:
            _verify_operands(_place(name, i, instr), instr)
        for label, x in instr.operands.items():
            if isinstance(x, View):
                used = defined.get(x.buffer.id)
                good = used is x.buffer or used == x.buffer
                assert good, f"{_place(name, i, instr)}: {label} is used before it is computed"
        if not known:
            _verify_shapes(_place(name, i, instr), instr)
            verified[id(instr)] = instr
        for out in instr.outputs:
            assert out.id not in defined, f"{_place(name, i, instr)}: buffer {out.id} is written twice"
            defined[out.id] = out
    for result in entry.results:
        assert result.buffer.id in defined, f"{name}: result {result.buffer.id} is never computed"


def _place(entry: str, index: int, instr: Instr) -> str:
    return f"{entry}[{index}] {instr.op} ({instr.scope}, {instr.where})"


def _verify_operands(at: str, instr: Instr) -> None:
    assert instr.op in OPS, f"{at}: not in the op table"
    spec = OPS[instr.op]
    assert set(instr.operands) == {p.name for p in spec.params}, f"{at}: operands {sorted(instr.operands)}"
    for param in spec.params:
        x = instr.operands[param.name]
        if x is None:
            assert param.optional, f"{at}: operand {param.name} is missing"
            continue
        assert isinstance(x, _KINDS[param.kind]), f"{at}: {param.name} must be {param.kind}, is {type(x).__name__}"
        if isinstance(x, View):
            width = x.buffer.type.columns if len(x.buffer.type.shape) > 1 else 1
            assert 0 <= x.start < x.stop <= width, f"{at}: {param.name} views columns {x.start}:{x.stop} of {width}"
            if x.type.dtype in ROWS[1:]:
                assert (instr.op, param.name) == ("linear", "x"), f"{at}: {param.name} cannot be {x.type.dtype} rows"


def _verify_shapes(at: str, instr: Instr) -> None:
    types = infer(instr)
    found = tuple(b.type for b in instr.outputs)
    assert found == types, f"{at}: outputs {found}, the shape rule says {types}"
    w, x = instr.operands.get("w"), instr.operands.get("x")
    if instr.op == "linear" and isinstance(w, Weight) and isinstance(x, View):
        assert w.shape[1] == x.type.columns, f"{at}: {w.name} {w.shape} does not fit {x.type.shape}"


def infer(instr: Instr) -> tuple[TensorType, ...]:
    """Output types by the op's shape rule."""
    shaped = [operand_type(x) for x in instr.operands.values()]
    while shaped and shaped[-1] is None:
        shaped.pop()
    types: Any = OPS[instr.op].shape(*shaped, **instr.attrs)
    return types if isinstance(types, tuple) else (types,)


def operand_type(x: Operand) -> Any:
    """What shape and cost rules see of an operand: its TensorType, or the state or comm reference itself."""
    return x.type if isinstance(x, (View, Field, Weight)) else x
