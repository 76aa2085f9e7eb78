"""A Step without a model: the next token is a hash of the tokens found in the pages that a row may see.

Any mistake of scheduling, paging, chunking or windows changes the hash, and nothing else does.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from ridgeline.engine.engine import Engine
from ridgeline.engine.executor import LocalExecutor
from ridgeline.engine.records import PAGE, EngineInfo, GroupInfo
from ridgeline.guidance.compiler import Compiler
from ridgeline.ops.sample import MAX_TOP, exponential
from ridgeline.program.batch import WANT_HIDDEN, Batch, BatchLayout, Limits, StepResult
from ridgeline.program.ir import State

VOCAB = 1000
LIKELY = 24


class FakeStep:
    """Stores token ids in slots, as a KV cache would; `windows` by group name."""

    def __init__(self, layout: BatchLayout, pages: int, windows: dict[str, int]) -> None:
        self.layout, self.windows = layout, windows
        self.memory = {g: np.full(pages * PAGE, -1, np.int64) for g in layout.groups}
        self.steps = 0

    def run(self, batch: Batch) -> StepResult:
        self.steps += 1
        for group, memory in self.memory.items():
            for at, source, target, slots in batch["copies"]:
                if group == self.layout.groups[at]:
                    memory[target : target + slots] = memory[source : source + slots]
            memory[batch[f"kv_slot.{group}"]] = batch["ids"]
        picked = []
        for row, record in zip(batch["out_rows"], batch["sampler"], strict=True):
            picked.append(int(record["target"]) if record["target"] >= 0 else self._next(batch, int(row), record))
        rows = len(picked)
        top_ids = np.full((rows, MAX_TOP), -1, np.int32)
        top_logprobs = np.full((rows, MAX_TOP), -np.inf, np.float32)
        for i, (row, record) in enumerate(zip(batch["out_rows"], batch["sampler"], strict=True)):
            if n := int(record["n_top"]):
                pairs = likely(self._seen(batch, int(row)))[:n]
                top_ids[i, :n], top_logprobs[i, :n] = zip(*pairs, strict=True)
        return StepResult(
            batch.size("step"),
            np.array(picked, np.int32),
            np.full(rows, -1.5, np.float32),
            top_ids,
            top_logprobs,
            self._hidden(batch) if np.any(batch["want"] & WANT_HIDDEN) else None,
        )

    def _hidden(self, batch: Batch) -> np.ndarray:
        """[rows, 2]: what a row sees, in its number of tokens and a hash."""
        seen = [self._seen(batch, int(row))[0] for row in batch["out_rows"]]
        return np.array([(len(tokens), zlib.crc32(tokens.tobytes()) % 1000) for tokens in seen], np.float32)

    def _next(self, batch: Batch, t: int, record: np.ndarray) -> int:
        """Of the tokens that a row's mask allows, or of all from 10 on."""
        fields = ["seed", "choice", "position"]
        if record["green_below"]:
            fields += [f"green_{i}" for i in range(1, 5)]
        digest = mixed(*(record[field] for field in fields), *self._seen(batch, t))
        if record["mask_row"] >= 0:
            mask = batch["masks"][record["mask_row"]].view(np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
            return int(allowed[digest % len(allowed)]) if len(allowed) else -1
        lists = slice(record["bias_start"], record["bias_stop"])
        banned = set(batch["bias_ids"][lists][batch["bias_values"][lists] == -np.inf].tolist())
        assert len(banned) < VOCAB - 10
        while 10 + digest % (VOCAB - 10) in banned:
            digest += 1
        return 10 + digest % (VOCAB - 10)

    def _seen(self, batch: Batch, t: int) -> list[np.ndarray]:
        """The tokens that row t sees in each group."""
        seen, found = int(batch["kv_len"][t]), []
        for group, memory in self.memory.items():
            first = max(0, seen - self.windows[group]) if self.windows[group] else 0
            table = batch[f"page_table.{group}"][batch["request"][t]]
            at = np.arange(first, seen)
            pages = table[at // PAGE]
            assert (pages >= 0).all(), "a visible page is not in the table"
            found.append(memory[pages * PAGE + at % PAGE])
        return found


def mixed(*parts: np.ndarray | np.generic) -> int:
    """A hash of arrays and numbers that is the same in every process, as Python's own of bytes is not."""
    digest = blake2b(b"".join(part.tobytes() for part in parts), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def likely(seen: list[np.ndarray]) -> list[tuple[int, float]]:
    """The MAX_TOP likeliest tokens behind those seen, of the LIKELY that may follow at all, and their logprobs."""
    logits = exponential(mixed(*seen), np.arange(LIKELY))
    logprobs = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    return [(10 + int(i), float(logprobs[i])) for i in np.argsort(-logprobs)[:MAX_TOP]]


class FakeText:
    """Each token is shown as its number; a token divisible by `stop` ends the choice (0 = never)."""

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop

    def push(self, token: int) -> tuple[str, bool]:
        stopped = bool(self.stop) and token % self.stop == 0
        return ("" if stopped else f"{token} "), stopped

    def flush(self) -> str:
        return ""


def fake_engine(
    *,
    pages: int = 64,
    step_tokens: int = 32,
    max_requests: int = 8,
    windows: tuple[int, ...] = (0,),
    depth: int = 1,
    context: int = 1024,
    stop: int = 0,
    eos: frozenset[int] = frozenset(),
    admission: str = "overcommit",
    policy: str = "fcfs",
    step_ms: int = 0,
    queue: int = 64,
    prefix_sharing: str = "tenant",
    clock: Callable[[], float] = time.monotonic,
    commit: Callable[[int], bool] | None = None,
    compiler: Compiler | None = None,
) -> Engine:
    """An engine over FakeStep with one group per window."""
    names = {f"kv{i}": w for i, w in enumerate(windows)}
    limits = Limits(
        tokens=step_tokens, requests=max_requests, rows=max_requests + 8, pages=context // PAGE, vocab=VOCAB, hidden=1,
        masks=max_requests,
    )  # fmt: skip
    layout = BatchLayout.of(limits, [State(n, 1, 1, 2, window=w) for n, w in names.items()])
    info = EngineInfo(
        model="fake", vocab=VOCAB, context=context, pages=pages, page_bytes=1,
        groups=tuple(GroupInfo(n, w) for n, w in names.items()),
        step_tokens=step_tokens, step_ms=step_ms, max_requests=max_requests, queue=queue, depth=depth,
        admission=admission, policy=policy, backend="fake", format="f32",
        activations="float32", kv_format="f32", threads=1, weight_bytes=0, program="fake", load_seconds=0.0,
        prefix_sharing=prefix_sharing,
    )  # fmt: skip
    step = FakeStep(layout, pages, names)
    return Engine(
        LocalExecutor(step, depth), layout, info, eos, lambda request: FakeText(stop), clock=clock, commit=commit,
        compiler=compiler,
    )  # fmt: skip
