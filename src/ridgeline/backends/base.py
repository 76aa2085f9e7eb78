"""What a backend is: compile a program with its weights into a Step; a Step runs batches.

And what the backends that interpret share: the stores of a program's state, and a batch's copies among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ridgeline.errors import Unsupported
from ridgeline.program.batch import Batch, BatchLayout, StepResult
from ridgeline.program.ir import Program, State, Weight
from ridgeline.weights.source import Raw

if TYPE_CHECKING:
    from ridgeline.weights.packed import PackedWeights

ReadWeight = Callable[[Weight], Raw]
Store = Callable[[State, int], Any]  # (group, pages) -> the store of one layer
States = dict[tuple[str, int], Any]  # (group, layer) -> its store

# What the oracles multiply: what a backend with a kernel for every format would.
MULTIPLIES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "iq4_xs"), ("i8g32", "i8g32x2")),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k"), ("i8g32", "i8g32x2")),
    **dict.fromkeys(("int4_g64", "uint4_g64"), ("i8g64",)),
    **dict.fromkeys(("int4_g128", "uint4_g128", "int8_g128"), ("i8g128",)),
    "int8": ("i8", "i8g32", "i8g32x2"),
    "bf16": ("bf16",),
}


class Step(Protocol):
    """A compiled program with its weights and its KV pool. `run` executes copies, forward and sample of a batch."""

    layout: BatchLayout

    def run(self, batch: Batch) -> StepResult: ...


class PageBytes(Protocol):
    """The pages of a KV pool as bytes, between steps. Those of one engine mean the same to another with this `layout`:
    its steps would have written the same ones."""

    layout: str
    nbytes: int  # of a page

    def read(self, page: int) -> bytes: ...

    def write(self, page: int, data: bytes) -> None: ...


@runtime_checkable
class Paged(Protocol):
    """A step whose pages can be kept between runs."""

    pages: PageBytes


class Backend(Protocol):
    """A way to run programs.

    `held_as` maps each stored weight format the backend takes to the (losslessly equal) format it holds it in, which
    is the one the cost fold counts. `multiplies` maps held formats to the types of rows, besides float32, that linears
    over them may read, best first. `unpacks_to` is the format in which a compiled program's weights lie in memory where
    that is not the held one, else "".
    """

    @property
    def name(self) -> str: ...

    @property
    def held_as(self) -> Mapping[str, str]: ...

    @property
    def multiplies(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def unpacks_to(self) -> str: ...

    def compile(
        self, program: Program, read: ReadWeight, layout: BatchLayout, pages: int, packed: PackedWeights | None = None
    ) -> Step:
        """`packed` is where a backend that lays weights out anew may find and keep them between runs."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A backend that shows how far a step has come."""

    def count_in(self, counter: Any) -> None:
        """Count up u64 [1] as work goes on."""


def open_states(program: Program, stores: Mapping[str, Store], pages: int) -> States:
    """The store of each layer of each state group, by the group's kind; Unsupported for a kind without one."""
    for s in program.states:
        if s.kind not in stores:
            raise Unsupported(f"state {s.name} of kind {s.kind!r} has no store; known: {', '.join(stores)}")
    return {(s.name, layer): stores[s.kind](s, pages) for s in program.states for layer in range(s.layers)}


def run_copies(batch: Batch, states: States) -> None:
    """A batch's copies, in order, in every layer of their group."""
    for group, source, target, count in batch["copies"].tolist():
        for (name, _), store in states.items():
            if name == batch.layout.groups[group]:
                store.move(source, target, count)
