"""verify accepts every real program and names the instruction of each kind of broken one."""

from __future__ import annotations

import dataclasses

import pytest

import tiny
from ridgeline import models
from ridgeline.models.hf import from_hf
from ridgeline.ops.spec import TensorType
from ridgeline.program.ir import Buffer, StateRef, View, Weight
from ridgeline.program.passes import pipeline
from ridgeline.program.verify import verify

BASE = models.build(from_hf(tiny.CONFIGS["qwen2w"]))


def edited(program, index, **changes):
    """The program with one instruction of `forward` changed."""
    instrs = list(program.forward.instrs)
    instrs[index] = dataclasses.replace(instrs[index], **changes)
    return dataclasses.replace(program, forward=dataclasses.replace(program.forward, instrs=tuple(instrs)))


def find(op, skip=0):
    return [i for i, instr in enumerate(BASE.forward.instrs) if instr.op == op][skip]


def with_operand(op, name, value, skip=0):
    at = find(op, skip)
    return edited(BASE, at, operands={**BASE.forward.instrs[at].operands, name: value})


def instr(op, skip=0):
    return BASE.forward.instrs[find(op, skip)]


def output_of(op):
    return View(instr(op).outputs[0], 0, instr(op).outputs[0].type.columns)


def unknown_op():
    return edited(BASE, 3, op="nonsense")


def missing_operand():
    return with_operand("rms_norm", "w", None)


def extra_operand():
    at = find("add")
    return edited(BASE, at, operands={**BASE.forward.instrs[at].operands, "z": None})


def weight_where_rows_belong():
    return with_operand("linear", "x", Weight("w", (96, 96), ("", ""), "f32", ("w",)))


def rows_where_a_weight_belongs():
    return with_operand("linear", "w", output_of("embedding"))


def a_weight_as_state():
    return with_operand("attention", "kv", Weight("w", (96, 96), ("", "")))


def used_before_computed():
    later = BASE.forward.instrs[-1].outputs[0]
    return with_operand("add", "x", View(later, 0, 96))


def buffer_with_another_type():
    out = instr("embedding").outputs[0]
    other = Buffer(out.id, TensorType(("T", 48)))
    return with_operand("rms_norm", "x", View(other, 0, 48))


def view_past_the_end():
    return with_operand("rms_norm", "x", View(instr("embedding").outputs[0], 0, 97))


def view_of_nothing():
    return with_operand("rms_norm", "x", View(instr("embedding").outputs[0], 8, 8))


def wrong_output_shape():
    at = find("linear")
    out = BASE.forward.instrs[at].outputs[0]
    return edited(BASE, at, outputs=(Buffer(out.id, TensorType(("T", 97))),))


def wrong_output_rows():
    at = find("take_rows")
    out = BASE.forward.instrs[at].outputs[0]
    return edited(BASE, at, outputs=(Buffer(out.id, TensorType(("T", out.type.columns))),))


def wrong_output_count():
    at = find("linear")
    out = BASE.forward.instrs[at].outputs[0]
    return edited(BASE, at, outputs=(out, Buffer(10_000, out.type)))


def written_twice():
    return edited(BASE, find("rope", 2), outputs=instr("rope").outputs)


def result_never_computed():
    entry = BASE.forward
    gone = View(Buffer(9999, TensorType(("L", 96))), 0, 96)
    return dataclasses.replace(BASE, forward=dataclasses.replace(entry, results=(gone, entry.results[1])))


def missing_instruction():
    entry = BASE.forward
    kept = [i for n, i in enumerate(entry.instrs) if n != find("rotary")]
    return dataclasses.replace(BASE, forward=dataclasses.replace(entry, instrs=tuple(kept)))


def instructions_out_of_order():
    entry = BASE.forward
    return dataclasses.replace(BASE, forward=dataclasses.replace(entry, instrs=entry.instrs[::-1]))


def one_weight_in_two_formats():
    at = find("rms_norm")
    w = BASE.forward.instrs[at].operands["w"]
    head = dataclasses.replace(BASE.weights["embed.weight"], name=w.name)
    return with_operand("embedding", "table", head)


def weight_with_too_few_axes():
    w = instr("linear").operands["w"]
    return with_operand("linear", "w", dataclasses.replace(w, axes=("",)))


def weight_of_another_width():
    w = instr("linear").operands["w"]
    return with_operand("linear", "w", dataclasses.replace(w, shape=(w.shape[0], 95)))


def pages_of_two_sizes():
    state = instr("attention").operands["kv"].state
    return with_operand("attention", "kv", StateRef(dataclasses.replace(state, name="other", layers=3), 0))


BROKEN = {
    unknown_op: "not in the op table",
    missing_operand: "operand w is missing",
    extra_operand: "operands",
    weight_where_rows_belong: "x must be act",
    rows_where_a_weight_belongs: "w must be weight",
    a_weight_as_state: "kv must be state",
    used_before_computed: "x is used before it is computed",
    buffer_with_another_type: "x is used before it is computed",
    view_past_the_end: "views columns 0:97 of 96",
    view_of_nothing: "views columns 8:8",
    wrong_output_shape: "the shape rule says",
    wrong_output_rows: "the shape rule says",
    wrong_output_count: "the shape rule says",
    written_twice: "is written twice",
    result_never_computed: "result 9999 is never computed",
    missing_instruction: "angles is used before it is computed",
    instructions_out_of_order: "is used before it is computed",
    one_weight_in_two_formats: "is declared in two ways",
    weight_with_too_few_axes: "weight layers.0.attn.q.weight",
    weight_of_another_width: r"does not fit",
    pages_of_two_sizes: "pages of different sizes",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_program_is_named(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        verify(broken())


def test_the_message_names_the_instruction_its_scope_and_line():
    at = find("linear", 5)
    with pytest.raises(
        AssertionError, match=rf"forward\[{at}\] nonsense \(layers\.0\..*blocks\.py:\d+|llama\.py:\d+\)"
    ):
        verify(edited(BASE, at, op="nonsense"))


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("int8", [{}, {"q4_1": ("i8g32",)}], ids=["float32", "int8"])
def test_every_pass_leaves_a_legal_program(name, int8):
    listed = pipeline.passes(lambda w: "f32" if len(w.shape) == 1 else "q4_1", "bf16", multiplies=int8)
    program = pipeline.run(models.build(from_hf(tiny.CONFIGS[name])), listed)
    assert [label for label, _ in listed] == ["bind formats", "bind KV format", "fuse", "quantize activations"][
        : len(listed)
    ]
    assert all(w.format for w in program.weights.values())
    assert {s.format for s in program.states} == {"bf16"}
    quantised = [i for i in program.instrs if i.op == "quantize_act"]
    assert bool(quantised) == bool(int8)
    if int8:
        read = {i.operands["x"].buffer.type.dtype for i in program.instrs if i.op == "linear"}
        assert read == {"i8g32"}
        # q/k/v, o, gate/up, down read four different rows in each layer (three with a shared norm), and the head one
        c = from_hf(tiny.CONFIGS[name])
        assert len(quantised) == (3 if c.shared_norm else 4) * c.layers + 1


def test_a_pass_that_breaks_a_program_is_named():
    def wreck(program):
        return edited(program, 0, op="nonsense")

    with pytest.raises(AssertionError, match="after pass 'wreck': .*nonsense"):
        pipeline.run(BASE, [("wreck", wreck)])
