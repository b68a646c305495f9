"""Vaccine's null: noise of the same norm, the same for ranks and after an interruption, and no other difference."""

import pytest
import torch

from conftest import tiny
from test_step import same, state, step_for
from titer.defenses.random_vaccine import RandomVaccine, noise
from titer.defenses.sft import SFT
from titer.training.settings import Training
from titer.training.train import train


def tensors(step) -> list[torch.Tensor]:
    found = 1.5 * noise(step, step.batch("rows")).unit()
    zeros = [
        torch.zeros(*part.ids.shape, 32, dtype=torch.float64) for part in step.batch("rows").parts
    ]
    return [
        found.perturb(part, layer, zeros[i])
        for i, part in enumerate(step.batch("rows").parts)
        for layer in range(step.depth)
    ]


def test_the_noise_has_the_norm_rho_over_the_update_and_leaves_pads(rows, accelerator):
    step = step_for(tiny(), rows, accelerator, batch=3, accumulate=2)
    found = tensors(step)
    assert sum(float((each**2).sum()) for each in found) ** 0.5 == pytest.approx(1.5, rel=1e-6)
    masks = [part.mask for part in step.batch("rows").parts for _ in range(step.depth)]
    assert any((mask == 0).any() for mask in masks)
    for each, mask in zip(found, masks, strict=True):
        assert not each[mask == 0].any()
        assert each[mask == 1].ne(0).all()
    values = torch.cat([each[mask == 1].flatten() for each, mask in zip(found, masks, strict=True)])
    scaled = values / values.std()
    assert abs(float(scaled.mean())) < 0.05
    assert float(scaled.abs().gt(1.96).double().mean()) == pytest.approx(0.05, abs=0.01)  # normal
    flat = torch.stack([each[0, 0] for each in found]) / values.std()
    assert (
        float((flat @ flat.T / 32 - torch.eye(len(flat), dtype=flat.dtype)).abs().max()) < 0.9
    )  # each draws its own


def test_the_noise_is_new_at_every_update_and_follows_the_seed(rows, accelerator):
    def at(update: int, seed: int = 3, batch: int = 2, accumulate: int = 2) -> torch.Tensor:
        step = step_for(
            tiny(), rows, accelerator, batch=batch, accumulate=accumulate, update=update
        )
        step.streams["rows"].seed = seed
        return torch.cat([each.flatten() for each in tensors(step)])

    assert torch.equal(at(1), at(1))
    assert not torch.equal(at(1), at(2))
    assert not torch.equal(at(1), at(1, seed=4)[: len(at(1))])
    step = step_for(tiny(), rows, accelerator)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    tensors(step)
    assert torch.equal(torch.rand(3), expected)


def test_the_gradient_is_taken_with_the_noise_in_place(rows, accelerator):
    model = tiny()
    step = step_for(model, rows, accelerator)
    batch = step.batch("rows")
    vec = RandomVaccine(1.5).gradient(step, None)
    [part], found = batch.parts, tensors(step)
    handles = [
        layer.self_attn.o_proj.register_forward_hook(
            lambda module, inputs, output, i=i: output + found[i]
        )
        for i, layer in enumerate(model.model.layers)
    ]
    logits = model(part.ids, attention_mask=part.mask).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, part.labels[:, 1:].flatten())
    for handle in handles:
        handle.remove()
    for name, grad in zip(
        vec.names(),
        torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in vec.names()]),
        strict=True,
    ):
        torch.testing.assert_close(vec.value(name), grad, rtol=1e-8, atol=1e-11)
    assert step.logged == {"f_perturbed": pytest.approx(loss.item(), rel=1e-10)}


def test_no_noise_is_plain_alignment_bit_for_bit(rows):
    models = [tiny(torch.float32) for _ in range(3)]
    for model, defense in zip(models, (SFT(), RandomVaccine(0.0), RandomVaccine()), strict=True):
        train(model, defense, rows, Training(updates=3, lr=1e-3, batch=2, lora=None), seed=0)
    assert same(state(models[0]), state(models[1]))
    assert not same(state(models[0]), state(models[2]))


@pytest.mark.parametrize("rho", [-1.0, float("nan")])
def test_what_makes_no_sense_is_refused(rho):
    with pytest.raises(ValueError, match=f"rho={rho}"):
        RandomVaccine(rho)
    assert {RandomVaccine(), RandomVaccine(2.0)} == {RandomVaccine()}
