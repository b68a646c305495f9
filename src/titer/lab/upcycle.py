"""Make a mixture of experts of a dense Llama: `python -m titer.lab.upcycle MODEL FOLDER`.

Sparse upcycling (arXiv 2212.05055): every expert begins as the MLP whose place it takes, and routers
are drawn. Two of them are chosen for a token, with weights that add up to 1, so that the mixture begins
as the dense model, whatever its routers choose. Where all experts are equal they stay nearly so, and
routing means nothing. So a share of every expert's hidden units is drawn afresh, from a normal
distribution with the mean and the deviation of the weights that they replace (Drop-Upcycling, arXiv
2502.19261, with its share of .5). Such a model has to be trained on before it is of use.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from titer.weights import checkpoints

CHOSEN = 2  # experts of a token
SAME = (  # of both configurations
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def upcycle(
    dense: PreTrainedModel, experts: int, fresh: float = 0.5, seed: int = 0
) -> MixtralForCausalLM:
    """Make a Mixtral of a Llama, with a share `fresh` of the hidden units of every expert drawn anew.

    fresh=0 computes what the Llama does. Raises where it is no Llama, or one with biases.
    """
    config: Any = dense.config
    if not isinstance(dense, LlamaForCausalLM) or config.attention_bias or config.mlp_bias:
        raise ValueError(
            f"a model of type {config.model_type!r} cannot be upcycled: give a Llama without biases"
        )
    if experts < CHOSEN:
        raise ValueError(
            f"experts={experts}: a token takes {CHOSEN} of them; give at least as many"
        )
    if not 0.0 <= fresh <= 1.0:
        raise ValueError(f"fresh={fresh}: a share lies between 0 and 1")
    torch.manual_seed(seed)
    sparse = MixtralForCausalLM(_configuration(config, experts))
    cast(nn.Module, sparse).to(dense.dtype)
    sparse.load_state_dict(dense.state_dict(), strict=False)  # all but the MLPs
    for before, layer in zip(dense.model.layers, sparse.model.layers, strict=True):
        mlp, made = before.mlp, layer.mlp.experts
        with torch.no_grad():
            for expert in range(experts):
                drawn = torch.randperm(config.intermediate_size)[
                    : round(fresh * config.intermediate_size)
                ]
                into = [_redraw(of.weight, drawn) for of in (mlp.gate_proj, mlp.up_proj)]
                made.gate_up_proj[expert] = torch.cat(into)  # (2 hidden units, width)
                made.down_proj[expert] = _redraw(mlp.down_proj.weight.T, drawn).T
    sparse.eval()
    return sparse


def _configuration(config: LlamaConfig, experts: int) -> MixtralConfig:
    shared: dict[str, Any] = {name: getattr(config, name) for name in SAME}
    return MixtralConfig(
        **shared, num_local_experts=experts, num_experts_per_tok=CHOSEN, sliding_window=None
    )


def _redraw(weight: Tensor, units: Tensor) -> Tensor:
    """Return a copy of a weight (hidden units, width) whose rows of some units are drawn anew."""
    made = weight.clone()
    made[units] = weight.mean() + weight.std() * torch.randn_like(weight[units])
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a Llama: a folder, a name, or pip:PACKAGE")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--fresh", type=float, default=0.5, help="share of units drawn anew")
    arguments = parser.parse_args()
    model, tokenizer = checkpoints.load(arguments.model)
    checkpoints.save(
        upcycle(model, arguments.experts, arguments.fresh), tokenizer, arguments.folder
    )
