"""Tiny random models of the families that titer is tested on, built anew in every test."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

# No two widths are equal, so that a wrong axis shows; dropout is on everywhere, so that a pass
# which applies it shows.
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "attention_dropout": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
DEEPSEEK = (
    COMMON
    | EXPERTS
    | LATENT
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    }
)
WINDOWS = {
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # shorter than a prompt

YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
}


def build(
    config: type[PreTrainedConfig], settings: dict[str, Any], vocabulary: int = 64, seed: int = 0
) -> PreTrainedModel:
    """A float32 model in evaluation mode whose logits are not flat."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=vocabulary, **settings), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.ndim > 1 else parameter.add_(
                0.1 * torch.randn_like(parameter)
            )  # biases are born 0
    return model


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "Llama": partial(build, LlamaConfig, COMMON | {"attention_bias": True, "mlp_bias": True}),
    "Mistral": partial(build, MistralConfig, COMMON | {"sliding_window": 8}),
    "Qwen2": partial(build, Qwen2Config, COMMON),
    "Qwen3": partial(build, Qwen3Config, COMMON | {"head_dim": 10}),
    "Gemma2": partial(build, Gemma2Config, COMMON | WINDOWS | {"query_pre_attn_scalar": 8}),
    "Gemma3": partial(build, Gemma3TextConfig, COMMON | WINDOWS | {"query_pre_attn_scalar": 8}),
    "Phi3": partial(build, Phi3Config, COMMON | {"resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    "OPT": partial(
        build,
        OPTConfig,
        COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "layerdrop": 0.5},
    ),
    "GPTNeoX": partial(build, GPTNeoXConfig, COMMON | {"hidden_dropout": 0.5}),
    "Olmo2": partial(build, Olmo2Config, COMMON),
    "Mixtral": partial(
        build,
        MixtralConfig,
        COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.5},
    ),
    "Qwen3Moe": partial(
        build,
        Qwen3MoeConfig,
        COMMON | EXPERTS | {"num_experts": 4, "head_dim": 10, "mlp_only_layers": [1]},
    ),
    "Olmoe": partial(build, OlmoeConfig, COMMON | {"num_experts": 4, "num_experts_per_tok": 2}),
    "GptOss": partial(
        build,
        GptOssConfig,
        COMMON | WINDOWS | YARN | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "DeepseekV2": partial(build, DeepseekV2Config, DEEPSEEK),
    "DeepseekV3": partial(build, DeepseekV3Config, DEEPSEEK | {"n_group": 2, "topk_group": 1}),
}
SPARSE = {  # which layers of a family route tokens to experts
    **dict.fromkeys(("Mixtral", "Olmoe", "GptOss"), (0, 1)),
    **dict.fromkeys(("DeepseekV2", "DeepseekV3"), (1,)),
    "Qwen3Moe": (0,),
}

EYE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def build_wrapper(
    config: type[PreTrainedConfig],
    text: dict[str, Any],
    vision: dict[str, Any],
    vocabulary: int = 64,
    seed: int = 0,
) -> PreTrainedModel:
    """A float32 model that reads pictures too, whose tower has layers named like the language's."""
    torch.manual_seed(seed)
    pictures = {"image_token_id": vocabulary, "image_token_index": vocabulary}
    of = config(
        text_config=COMMON | text | {"vocab_size": vocabulary + 8},
        vision_config=vision,
        video_token_id=vocabulary + 1,
        **pictures,
    )
    return AutoModelForImageTextToText.from_config(of, dtype=torch.float32).eval()


WRAPPERS: dict[str, Callable[..., PreTrainedModel]] = {
    "Gemma3": partial(
        build_wrapper,
        Gemma3Config,
        WINDOWS | {"query_pre_attn_scalar": 8},
        EYE,
    ),
    "Llava": partial(
        build_wrapper,
        LlavaConfig,
        {"model_type": "llama"},
        EYE | {"model_type": "clip_vision_model", "projection_dim": 8},
    ),
    "Mistral3": partial(
        build_wrapper,
        Mistral3Config,
        {"model_type": "mistral"},
        EYE | {"model_type": "pixtral", "head_dim": 8},
    ),
    "Qwen2_5_VL": partial(
        build_wrapper,
        Qwen2_5_VLConfig,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            }
        },
        {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    ),
}
