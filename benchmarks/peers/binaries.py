"""llama.cpp and programs that descend from it: a folder with llama-bench, llama-batched-bench and others.

Each piece of work is a process of its own, which loads the model from the page cache and warms up before it measures.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.child import Unmeasured, output
from peers.config import EngineSettings, Entry
from peers.engines import Limits, Session
from peers.work import Work

PROMPT = "Name the capital of France and"
WINDOW, WINDOWS = 512, 8  # tokens of a window of the KL measurement, and how many


class Binaries:
    """One build."""

    def __init__(self, name: str, settings: EngineSettings, limits: Limits) -> None:
        self.name, self._settings, self._limits = name, settings, limits
        self._folder = Path(settings.directory)

    def version(self) -> str:
        if not self._settings.directory:
            raise Unmeasured("no folder of binaries given")
        if not (self._folder / "llama-bench").exists():
            raise Unmeasured("no llama-bench in the folder given")
        found = re.search(r"version: (.+)", self.output("llama-perplexity", ["--version"]))
        return self._settings.version or (found[1].strip() if found else "unknown version")

    def open(self, entry: Entry) -> Session:
        return BinarySession(self, entry)

    def kl(self, entry: Entry, text: Path) -> float:
        """The reference is the same file unpacked to float32: its weights unchanged, its activations float."""
        with tempfile.TemporaryDirectory() as folder:
            plain, base = f"{folder}/plain.gguf", f"{folder}/base"
            self.output("llama-quantize", ["--allow-requantize", entry.model, plain, "F32"])
            common = ["-t", str(self._limits.threads), "-c", str(WINDOW), "-b", str(WINDOW)]
            common += ["--chunks", str(WINDOWS), "--kl-divergence-base", base]
            self.output("llama-perplexity", ["-m", plain, "-f", str(text), *common])
            return parse_divergence(self.output("llama-perplexity", ["-m", entry.model, "--kl-divergence", *common]))

    def output(self, program: str, arguments: Sequence[str]) -> str:
        """What one of the programs printed, both streams."""
        return output([self._path(program), *arguments], self._limits.seconds, self._settings.env, both=True)

    def bench(self, entry: Entry, tests: Sequence[str]) -> dict[str, float]:
        """llama-bench's figures of `tests`."""
        threads = str(self._limits.threads)
        command = [self._path("llama-bench"), "-m", entry.model, "-t", threads, *tests, "-r", "1", "-o", "json"]
        command += [*self._settings.options, *entry.options]
        return parse_bench(output(command, self._limits.seconds, self._settings.env))

    def batch(self, entry: Entry, work: Work) -> dict[str, float]:
        """llama-batched-bench: all prompts in lock-step, no server in between."""
        threads, context = str(self._limits.threads), str(work.count * (work.prompt + work.new) + 256)
        arguments = [
            "-m", entry.model, "-t", threads, "-tb", threads, "-c", context, "-b", "2048", "-ub", "512", "-fa", "on",
            "-npp", str(work.prompt), "-ntg", str(work.new), "-npl", str(work.count),
        ]  # fmt: skip
        return parse_batched(self.output("llama-batched-bench", arguments))

    def depth(self, context: int, new: int) -> list[str]:
        """llama-bench's options for decoding at a depth."""
        if self._is_ik:
            return ["-p", "0", "-n", "0", "-gp", f"{context},{new}"]
        return ["-p", "0", "-n", str(new), "-d", str(context)]

    def first_token(self, entry: Entry) -> float:
        """Seconds of a whole process that answers with one token."""
        threads = str(self._limits.threads)
        prompt = ["-t", threads, "-p", PROMPT] if self._is_ik else [PROMPT]
        env = {**self._settings.env, "OMP_THREAD_LIMIT": threads}  # llama.cpp's has no option for it
        command = [self._path("llama-simple"), "-m", entry.model, "-n", "1", *prompt]
        begin = time.perf_counter()
        output(command, self._limits.seconds, env)
        return time.perf_counter() - begin

    @functools.cached_property
    def _is_ik(self) -> bool:
        """ik_llama.cpp left llama.cpp long ago; some options differ."""
        return "--n-depth" not in output([self._path("llama-bench"), "--help"], 60, both=True)

    def _path(self, program: str) -> str:
        return str(self._folder / program)


class BinarySession:
    """Nothing is held between pieces of work but the file in the page cache."""

    def __init__(self, engine: Binaries, entry: Entry) -> None:
        self._engine, self._entry, self.weights = engine, entry, 0
        engine.bench(entry, ["-p", "16", "-n", "1"])  # refuses a broken model now, and fills the page cache

    def run(self, work: Work, seed: int) -> Mapping[str, float]:
        if work.kind == "batch":
            return self._engine.batch(self._entry, work)
        if work.kind == "cold":
            return {"first token": self._engine.first_token(self._entry)}
        if work.kind == "long":
            return self._engine.bench(self._entry, self._engine.depth(work.prompt, work.new))
        return self._engine.bench(self._entry, ["-p", str(work.prompt), "-n", str(work.new)])

    def close(self) -> None:
        pass


def parse_bench(text: str) -> dict[str, float]:
    """Figures of llama-bench's JSON: tests that generate give decode, the others prefill."""
    try:
        tests: list[dict[str, Any]] = json.loads(text[text.index("[") : text.rindex("]") + 1])
        figures = {"decode" if test["n_gen"] else "prefill": float(test["avg_ts"]) for test in tests}
    except (ValueError, KeyError, TypeError) as wrong:
        raise Unmeasured("llama-bench printed no figures") from wrong
    if not figures:
        raise Unmeasured("llama-bench printed no figures")
    return figures


def parse_batched(text: str) -> dict[str, float]:
    """Generated tokens over the whole time, from the only row of llama-batched-bench's table."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) >= 11 and cells[1].isdigit():
            new, count, seconds = float(cells[2]), float(cells[3]), float(cells[9])
            return {"output": count * new / seconds}
    raise Unmeasured("llama-batched-bench printed no figures")


def parse_divergence(text: str) -> float:
    """Mean KL divergence from llama-perplexity's summary."""
    found = re.search(r"Mean\s+KLD:\s*([-+.\deE]+)", text)
    if found is None:
        raise Unmeasured("llama-perplexity printed no KL divergence")
    return float(found[1])
