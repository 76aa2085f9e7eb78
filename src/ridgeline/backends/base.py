"""What a backend is: compile a program with its weights into a Step; a Step runs batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from ridgeline.program.batch import Batch, BatchLayout, StepResult
from ridgeline.program.ir import Program, Weight
from ridgeline.weights.source import Raw

ReadWeight = Callable[[Weight], Raw]


class Step(Protocol):
    """A compiled program with its weights and its KV pool. `run` executes copies, forward and sample of a batch."""

    layout: BatchLayout

    def run(self, batch: Batch) -> StepResult: ...


class Backend(Protocol):
    """A way to run programs.

    `held_as` maps each stored weight format the backend takes to the (losslessly equal) format it holds it in, which
    is the one the cost fold counts; `int8_formats` are held formats whose linears may read int8 rows.
    """

    @property
    def name(self) -> str: ...

    @property
    def held_as(self) -> Mapping[str, str]: ...

    @property
    def int8_formats(self) -> Collection[str]: ...

    def compile(self, program: Program, read: ReadWeight, layout: BatchLayout, pages: int) -> Step: ...
