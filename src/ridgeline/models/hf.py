"""Reading of a Hugging Face config.json into ModelConfig: finds the family and lets it read its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ridgeline.errors import Unsupported
from ridgeline.models import FAMILIES
from ridgeline.models.config import ModelConfig
from ridgeline.models.keys import Keys

# Keys that do not change what a forward pass computes (or are read by the tokenizer and generation settings).
_IGNORED = (
    "_name_or_path architectures auto_map bos_token_id eos_token_id pad_token_id unk_token_id torch_dtype dtype "
    "transformers_version transformers.js_config use_cache initializer_range is_llama_config "
    "attention_dropout pretraining_tp model_type quantization_config_path output_attentions output_hidden_states "
    "return_dict id2label label2id chunk_size_feed_forward problem_type _num_labels output_past pruned_heads "
    "unsloth_version unsloth_fixed _attn_implementation_autoset attn_implementation _attn_implementation "
    "_flash_attn_2_enabled use_flash_attn model_max_length max_length temperature top_p top_k do_sample "
    "num_logits_to_keep neftune_noise_alpha "
    "embd_pdrop attn_pdrop hidden_dropout resid_pdrop classifier_dropout bad_words_ids begin_suppress_tokens "
    "task_specific_params tokenizer_class prefix decoder_start_token_id"
)
_HINTS = {"gemma3": " (images and text in one; the text model alone, gemma3_text, is)"}


def from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig of a decoder. Unsupported names an architecture, key or value that is not built."""
    family = data.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        hint = _HINTS.get(family, "") if isinstance(family, str) else ""
        raise Unsupported(
            f"{where}: model_type {family!r:.80} is not supported{hint}; supported: {', '.join(FAMILIES)}"
        )
    if data.get("quantization_config"):
        raise Unsupported(
            f"{where}: weights quantised by another tool (quantization_config) are not supported; use a GGUF file"
        )
    keys = Keys(data, where)
    keys.skip(_IGNORED)
    config = FAMILIES[family].from_hf(keys, family)
    keys.finish(family)
    return config
