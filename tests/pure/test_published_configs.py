"""config.json as published with well-known models: each is read, and its program has the model's parameter count."""

from __future__ import annotations

import pytest

from ridgeline.models import build
from ridgeline.models.hf import from_hf
from ridgeline.program import cost

_FACTORS = {"long_factor": [1.5] * 48, "short_factor": [1.1] * 48, "type": "longrope"}
_GEMMA3_LAYERS = (["sliding_attention"] * 5 + ["full_attention"]) * 3
_GPT2 = {
    "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
_FALCON = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "bias": False,
    "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "bos_token_id": 11, "eos_token_id": 11,
    "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon",
    "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True, "use_cache": True,
    "vocab_size": 65024,
}  # fmt: skip
_GEMMA = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    "head_dim": 256, "initializer_range": 0.02, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "use_cache": True,
}  # fmt: skip
_PHI3 = {
    "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
}  # fmt: skip

PUBLISHED = {  # name: (config, millions of parameters)
    "llama-3.1-8b": ({
        "model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 128256,
    }, 8030),
    "mistral-7b-v0.1": ({
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    }, 7242),
    "qwen2.5-7b": ({
        "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
        "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
    }, 7616),
    "qwen3-8b": ({
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    }, 8191),
    "gemma-2b": ({
        **_GEMMA, "model_type": "gemma", "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 16384,
        "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "rope_scaling": None, "vocab_size": 256000,
    }, 2506),
    "gemma-2-2b": ({
        **_GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "vocab_size": 256000,
    }, 2614),
    "gemma-3-270m": ({
        **_GEMMA, "model_type": "gemma3_text", "_sliding_window_pattern": 6, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640,
        "intermediate_size": 2048, "layer_types": _GEMMA3_LAYERS, "max_position_embeddings": 32768,
        "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512,
        "use_bidirectional_attention": False, "vocab_size": 262144,
    }, 268),
    "phi-3-mini-4k": ({
        **_PHI3, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "rope_scaling": None, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    }, 3821),
    "phi-3-mini-128k": ({
        **_PHI3, "max_position_embeddings": 131072, "num_attention_heads": 32, "num_key_value_heads": 32,
        "rope_scaling": _FACTORS, "sliding_window": 262144, "tie_word_embeddings": False, "vocab_size": 32064,
    }, 3821),
    "phi-4-mini": ({
        **_PHI3, "max_position_embeddings": 131072, "num_attention_heads": 24, "num_key_value_heads": 8,
        "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
        "partial_rotary_factor": 0.75, "rope_scaling": _FACTORS, "sliding_window": 262144, "tie_word_embeddings": True,
        "vocab_size": 200064,
    }, 3836),
    "gpt2": ({
        **_GPT2, "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
        "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }, 124),
    "gpt2-medium": ({
        **_GPT2, "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_embd": 1024, "n_head": 16,
        "n_layer": 24, "n_positions": 1024, "n_special": 0, "predict_special_tokens": True, "vocab_size": 50257,
    }, 355),
    "distilgpt2": ({
        **_GPT2, "model_type": "gpt2", "_num_labels": 1, "activation_function": "gelu_new", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 6, "n_positions": 1024, "vocab_size": 50257,
        "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
    }, 82),
    "starcoder": ({
        **_GPT2, "model_type": "gpt_bigcode", "activation_function": "gelu", "attention_softmax_in_fp32": True,
        "inference_runner": 0, "max_batch_size": None, "max_sequence_length": None, "multi_query": True,
        "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_layer": 40, "n_positions": 8192, "pad_key_length": True,
        "pre_allocate_kv_cache": False, "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
        "validate_runner_input": True, "vocab_size": 49152,
    }, 15517),
    "starcoder2-3b": ({
        "model_type": "starcoder2", "attention_dropout": 0.1, "embedding_dropout": 0.1, "residual_dropout": 0.1,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288,
        "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
        "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "rope_theta": 999999.4420358813,
        "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
    }, 3030),
    "pythia-70m": ({
        "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512,
        "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8,
        "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "use_parallel_residual": True, "vocab_size": 50304,
    }, 70),
    "gpt-neox-20b": ({
        "model_type": "gpt_neox", "attention_probs_dropout_prob": 0, "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0, "hidden_size": 6144, "intermediate_size": 24576, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "num_attention_heads": 64, "num_hidden_layers": 44, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50432,
    }, 20555),
    "falcon-7b": ({**_FALCON, "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32}, 6922),
    "falcon-40b": ({
        **_FALCON, "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8,
        "new_decoder_architecture": True,
    }, 41303),
    "falcon-11b": ({
        **_FALCON, "activation": "gelu", "ff_factor": 4, "ffn_hidden_size": 16384, "hidden_size": 4096,
        "max_position_embeddings": 8192, "new_decoder_architecture": True, "num_attention_heads": 32,
        "num_hidden_layers": 60, "num_kv_heads": 8, "num_ln_in_parallel_attn": 1, "rope_scaling": None,
        "rope_theta": 500042.0, "tie_word_embeddings": False,
    }, 11103),
    "falcon-rw-1b": ({
        **_FALCON, "alibi": True, "bias": True, "hidden_size": 2048, "multi_query": False, "num_attention_heads": 32,
        "num_hidden_layers": 24, "parallel_attn": False, "vocab_size": 50304,
    }, 1312),
    "bloom-560m": ({
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "hidden_dropout": 0.0,
        "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "n_embed": 1024, "n_inner": None, "n_layer": 24,
        "num_attention_heads": 16, "offset_alibi": 100, "pad_token_id": 3, "pretraining_tp": 1, "seq_length": 2048,
        "skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0,
        "vocab_size": 250880,
    }, 559),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name):
    config, millions = PUBLISHED[name]
    counted = cost.parameters(build(from_hf(config))) / 1e6
    assert abs(counted - millions) < 1, counted
