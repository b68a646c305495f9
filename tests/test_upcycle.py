"""A mixture of experts made of a dense model: the same function where nothing is drawn anew, and experts that
differ by as many units as were drawn.
"""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import tiny
from titer.lab.upcycle import upcycle
from titer.training.layers import layers
from titer.weights import checkpoints

IDS = torch.tensor([[5, 17, 9, 200, 31, 8]])


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_without_fresh_units_it_computes_what_the_dense_model_does(experts):
    dense = tiny(torch.float32)
    sparse = upcycle(dense, experts, fresh=0.0)
    torch.testing.assert_close(sparse(IDS).logits, dense(IDS).logits, rtol=0, atol=2e-4)
    found = layers(sparse)
    assert len(found) == 2
    assert all(layer.router is not None for layer in found)
    assert sparse.config.num_local_experts == experts
    for layer in sparse.model.layers:  # routers tell tokens apart, though it does not matter yet
        assert layer.mlp.gate.weight.std() > 0


def test_of_every_expert_a_share_of_the_units_is_fresh():
    dense = tiny(torch.float32)
    units = dense.config.intermediate_size
    sparse = upcycle(dense, 4, fresh=0.25)
    chosen = set()
    for before, layer in zip(dense.model.layers, sparse.model.layers, strict=True):
        gate, up = layer.mlp.experts.gate_up_proj.split(units, 1)  # (E, units, width)
        down = layer.mlp.experts.down_proj.transpose(1, 2)
        for expert in range(4):
            kept = [
                (now[expert] == was).all(1)
                for now, was in (
                    (gate, before.mlp.gate_proj.weight),
                    (up, before.mlp.up_proj.weight),
                    (down, before.mlp.down_proj.weight.T),
                )
            ]
            assert torch.equal(kept[0], kept[1])
            assert torch.equal(kept[0], kept[2])  # the same units of all three
            assert int((~kept[0]).sum()) == units // 4
            chosen.add(tuple(kept[0].tolist()))
            drawn = gate[expert][~kept[0]]
            assert drawn.std().item() == pytest.approx(
                before.mlp.gate_proj.weight.std().item(), rel=0.2
            )
    assert len(chosen) == 8  # others of every expert and layer
    logits = sparse(IDS).logits
    assert not torch.allclose(logits, dense(IDS).logits, atol=0.1)
    assert torch.equal(upcycle(dense, 4, fresh=0.25)(IDS).logits, logits)
    assert not torch.equal(upcycle(dense, 4, fresh=0.25, seed=1)(IDS).logits, logits)


def test_all_that_is_not_an_mlp_is_the_dense_models(tmp_path, tokenizer):
    dense = tiny(torch.float32, vocabulary=len(tokenizer))
    sparse = upcycle(dense, 2)
    for name, weight in dense.state_dict().items():
        if ".mlp." not in name:
            assert torch.equal(sparse.state_dict()[name], weight), name
    assert sparse.lm_head.weight is sparse.model.embed_tokens.weight
    checkpoints.save(sparse, tokenizer, tmp_path)
    again, _ = checkpoints.load(str(tmp_path))
    assert torch.equal(again(IDS).logits, sparse(IDS).logits)


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'gpt2' cannot be upcycled: give a Llama without biases"):
        upcycle(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50)), 2)
    for experts, fresh, match in (
        (1, 0.5, "experts=1"),
        (2, 1.5, r"fresh=1\.5"),
        (2, -0.1, "fresh=-0.1"),
    ):
        with pytest.raises(ValueError, match=match):
            upcycle(tiny(), experts, fresh)
