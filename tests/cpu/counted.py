"""A counting build against the cost fold: `python counted.py MODULE` runs random batches of every tiny model.

A process of its own, since the module takes the place of the installed one. Bytes of weights, KV and multiply-adds of
linears and attention must be equal for each op, bytes of activations within 2 %. Prints what differs; exit status 1.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_EXACT = ("weights", "kv", "macs")
_WITH_MACS = ("linear", "linear_i8", "linear_bf16", "attention")


def load(path: str) -> Any:
    """The module at `path`, as if it were the installed one."""
    name = "ridgeline.backends.cpu._native"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def random_chunks(rng: random.Random) -> list[tuple[int, int, int]]:
    """Some of four requests: one token of most, a piece of a prompt of others."""
    chosen = rng.sample(range(4), rng.randint(1, 4))
    sizes = [1 if rng.random() < 0.6 else rng.randint(2, 40) for _ in chosen]
    return [(r, n, rng.choice((0, rng.randint(0, 300)))) for r, n in zip(chosen, sizes, strict=True)]


def counted(native: Any) -> dict[str, Counter[str]]:
    """What the step counted, by op."""
    found = {}
    for op, kinds in native.counts().items():
        kv = kinds["kv_read"] + kinds["kv_written"]
        macs = kinds["macs"] if op in _WITH_MACS else 0
        found[op] = Counter(weights=kinds["weights"], kv=kv, macs=macs, acts=kinds["acts"])
    return found


def predicted(program: Any, load: Any) -> dict[str, Counter[str]]:
    """The same from the cost fold."""
    from ridgeline.backends.cpu.record import _native_name
    from ridgeline.program.cost import costs

    found: dict[str, Counter[str]] = {}
    for c in costs(program.instrs, load):
        op, x = _native_name(c.instr), c.cost
        macs = x.flops / 2 if op in _WITH_MACS else 0
        found.setdefault(op, Counter()).update(weights=x.weight_bytes, kv=x.kv_bytes, macs=macs, acts=x.act_bytes)
    return found


def differences(got: dict[str, Counter[str]], want: dict[str, Counter[str]]) -> Iterable[str]:
    for op in sorted(got.keys() | want.keys()):
        a, b = got.get(op, Counter()), want.get(op, Counter())
        yield from (f"{op}: {kind} counted {a[kind]}, fold {b[kind]}" for kind in _EXACT if a[kind] != b[kind])
    a, b = (sum((x[op]["acts"] for op in x), 0) for x in (got, want))
    if abs(a - b) > 0.02 * b:
        each = ", ".join(f"{op} {got.get(op, Counter())['acts']} {want[op]['acts']}" for op in want)
        yield f"activations: counted {a}, fold {b} ({each})"


def main(path: str) -> int:
    native = load(path)
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import zoo

    from ridgeline.backends.cpu.backend import CPU
    from ridgeline.ops.spec import Load

    rng, batches, wrong = random.Random(5), 0, 0
    for model in zoo.MODELS:
        program, layout = model.program(), model.layout(tokens=160, rows=160)
        steps = {
            threads: CPU(threads, "portable").compile(program, model.read, layout, model.pages) for threads in (1, 3)
        }
        for _ in range(2 if "-" in model.name else 6):
            chunks, share = random_chunks(rng), rng.choice((0, 0.3, 1))
            batch = zoo.batch_of(layout, chunks, lambda t, share=share: rng.random() < share, batches)
            native.counts()
            # in a step of one row every thread computes light ops for itself
            steps[1 if batch.size("T") == 1 else 3].run(batch)
            load_ = Load(tuple((first, n) for _, n, first in chunks), batch.size("L"))
            batches += 1
            for line in differences(counted(native), predicted(program, load_)):
                wrong += 1
                print(f"{model.name}, {chunks}, {batch.size('L')} rows: {line}")
    print(f"{batches} batches, {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
