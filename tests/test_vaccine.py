"""Vaccine against a plain computation, row by row, and at its limits."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from families import FAMILIES
from test_step import same, state, step_for
from titer.defenses.sft import SFT
from titer.defenses.vaccine import Vaccine
from titer.training.layers import recompute_layers
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

LORA = Lora(r=2, targets=("q_proj", "o_proj", "down_proj"))


def plain(model, rows, rho: float, chosen=None, over=None):
    """eps and the gradient with it in place: one row at a time, no pads, from leaves that are added to what each o_proj gives.

    `over` are the groups of rows that a norm is over; all in one if left out.
    """
    modules = {
        i: layer.self_attn.o_proj
        for i, layer in enumerate(model.model.layers)
        if chosen is None or i in chosen
    }
    tokens = sum(len(row.ids) - row.answer for row in rows)

    def loss(row, eps) -> torch.Tensor:
        with ExitStack() as stack:
            for i, module in modules.items():
                handle = module.register_forward_hook(
                    lambda module, inputs, output, i=i: output + eps[i]
                )
                stack.callback(handle.remove)
            logits = model(torch.tensor([row.ids])).logits[0]
        picked = torch.log_softmax(logits, -1)[
            range(row.answer - 1, len(row.ids) - 1), row.ids[row.answer :]
        ]
        return -picked.sum() / tokens

    at = []
    for row in rows:
        zero = {
            i: torch.zeros(
                1, len(row.ids), model.config.hidden_size, dtype=torch.float64, requires_grad=True
            )
            for i in modules
        }
        at.append(
            dict(
                zip(modules, torch.autograd.grad(loss(row, zero), list(zero.values())), strict=True)
            )
        )
    total: dict[str, torch.Tensor] = {}
    for group in over or [range(len(rows))]:
        norm = sum(float((g**2).sum()) for j in group for g in at[j].values()) ** 0.5
        for j in group:
            eps = {i: rho * g / norm for i, g in at[j].items()}
            named = {
                name: weight for name, weight in model.named_parameters() if weight.requires_grad
            }
            grads = torch.autograd.grad(loss(rows[j], eps), list(named.values()), allow_unused=True)
            for name, grad in zip(named, grads, strict=True):
                if grad is not None:
                    total[name] = total.get(name, 0) + grad
    return at, total


def prepared(trained: str, layers: int):
    """A tiny model, or one with an adapter that does something."""
    model = tiny(layers=layers)
    if trained == "full":
        return model
    model = add_lora(model, LORA)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(params=["full", "lora"])
def model(request):
    return prepared(request.param, 3)


def inner(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def batch_rows(rows, step):
    """The rows of the step's batch, in its order."""
    found = {row.ids: row for row in rows}
    pairs = [
        pair for part in step.batch("rows").parts for pair in zip(part.ids, part.mask, strict=True)
    ]
    return [found[tuple(ids[: int(mask.sum())].tolist())] for ids, mask in pairs]


@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_the_gradient_is_that_of_the_perturbed_loss(model, rows, accelerator, rho):
    step = step_for(model, rows, accelerator, batch=3, accumulate=2)
    vec = Vaccine(rho).gradient(step, None)
    drawn = batch_rows(rows["rows"], step)
    _, expected = plain(inner(model), drawn, rho)
    names = {name.removeprefix("base_model.model."): name for name in vec.names()}
    assert set(names) == set(expected)
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(vec.value(names[name]), grad, rtol=0, atol=1e-10 * scale)
    sft = SFT().gradient(step, None)
    assert (vec - sft).norm() > 1e-2 * sft.norm()
    assert step.logged["f_perturbed"] > step.logged["f"]
    assert step.logged["f"] == pytest.approx(sft.loss, rel=1e-12)


def test_the_norm_is_over_the_update_or_over_each_micro_batch(model, rows, accelerator):
    parts = step_for(model, rows, accelerator, batch=2, accumulate=3)
    whole = step_for(model, rows, accelerator, batch=6)
    a, b = Vaccine(2.0).gradient(parts, None), Vaccine(2.0).gradient(whole, None)
    assert (a - b).norm() < 1e-11 * b.norm()
    micro = Vaccine(2.0, norm="micro").gradient(parts, None)
    _, expected = plain(
        inner(model), batch_rows(rows["rows"], parts), 2.0, over=[(0, 1), (2, 3), (4, 5)]
    )
    for name, grad in expected.items():
        full = next(each for each in micro.names() if each.endswith(name))
        torch.testing.assert_close(micro.value(full), grad, rtol=1e-9, atol=1e-11)
    assert (a - micro).norm() > 1e-2 * a.norm()


def test_the_perturbation_has_the_norm_rho_and_the_gradients_direction(rows, accelerator):
    model = tiny(layers=3)
    step = step_for(model, rows, accelerator, batch=3, accumulate=2)
    batch = step.batch("rows")
    g_e = step.at(batch)
    at, _ = plain(model, batch_rows(rows["rows"], step), 1.0)
    for layer, norm in g_e.norms().items():
        assert norm == pytest.approx(
            sum(float((each[layer] ** 2).sum()) for each in at) ** 0.5, rel=1e-10
        )
    eps = 2.0 * g_e.unit()
    zero = [torch.zeros_like(part[0]) for part in g_e.parts]
    square = sum(
        float((eps.perturb(batch.parts[j], layer, zero[j]) ** 2).sum())
        for j in range(2)
        for layer in range(3)
    )
    assert square**0.5 == pytest.approx(2.0, rel=1e-12)
    row = at[0][1][0]  # the first row's, at layer 1
    torch.testing.assert_close(
        eps.perturb(batch.parts[0], 1, zero[0])[0, : len(row)],
        2.0 / g_e.norm() * row,
        rtol=1e-9,
        atol=1e-12,
    )
    padded = [
        tensor[part.mask == 0]
        for part, tensors in zip(batch.parts, g_e.parts, strict=True)
        for tensor in tensors.values()
    ]
    assert any(len(pads) for pads in padded)
    assert not any(pads.any() for pads in padded)


def test_no_perturbation_is_plain_alignment_bit_for_bit(rows):
    settings = Training(updates=4, lr=1e-3, batch=2, accumulate=2, lora=None)
    models = [tiny(torch.float32) for _ in range(3)]
    for model, defense in zip(models, (SFT(), Vaccine(0.0), Vaccine(1.0)), strict=True):
        train(model, defense, rows, settings, seed=0)
    assert same(state(models[0]), state(models[1]))
    assert not same(state(models[0]), state(models[2]))


def test_every_tau_th_update_is_perturbed(rows, accelerator):
    model = tiny()
    defense = Vaccine(1.0, every=3)
    assert (defense.period, Vaccine().period) == (3, 1)
    for update in range(1, 7):
        step = step_for(model, rows, accelerator, update=update)
        vec = defense.gradient(step, None)
        assert set(step.logged) == ({"f", "f_perturbed"} if update % 3 == 0 else {"f"})
        other = (Vaccine(1.0) if update % 3 == 0 else SFT()).gradient(step, None)
        assert (vec - other).norm() == 0.0


def test_recomputed_activations_are_perturbed_too(model, rows, accelerator):
    step = step_for(model, rows, accelerator, batch=3, accumulate=2)
    vec = Vaccine().gradient(step, None)
    with recompute_layers(model):
        again = Vaccine().gradient(replace(step, logged={}), None)
    assert (vec - again).norm() == 0.0


@pytest.mark.parametrize("family", ["GPTNeoX", "OPT", "Qwen3Moe"])
def test_other_families_are_perturbed_where_attention_ends(family, rows, accelerator):
    model = FAMILIES[family](vocabulary=400)
    step = step_for(model, rows, accelerator)
    zero, some = Vaccine(0.0).gradient(step, None), Vaccine(0.05).gradient(step, None)
    g_e = step.at(step.batch("rows"))
    with step.shifted(0.05 * g_e.unit()):
        moved = step.grad(step.batch("rows")).loss
    assert moved - g_e.loss == pytest.approx(0.05 * g_e.norm(), rel=0.05)  # to first order
    assert (zero - some).norm() > 0.0


def test_hooks_go_and_flags_come_back_also_after_an_exception(rows, accelerator):
    model = tiny()
    model.model.embed_tokens.weight.requires_grad_(False)
    step = step_for(model, rows, accelerator)
    flags = [weight.requires_grad for weight in model.parameters()]

    def broken(model, part):
        model(part.ids)
        raise RuntimeError("no")

    for attempt in (
        lambda: step.at(step.batch("rows"), loss=broken),
        lambda: step.grad(step.batch("rows"), broken),
    ):
        with pytest.raises(RuntimeError, match="no"), step.shifted(step.at(step.batch("rows"))):
            attempt()
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert not any(module._forward_hooks for module in model.modules())


def test_a_perturbation_is_for_its_own_batch(rows, accelerator):
    step = step_for(tiny(), rows, accelerator)
    with (
        step.shifted(step.at(step.batch("rows"))),
        pytest.raises(ValueError, match="is for the batch that it was computed on"),
    ):
        step.grad(step.batch("harmful"))


def test_a_vanishing_gradient_has_no_direction(rows, accelerator):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(ValueError, match="has no direction"):
        Vaccine().gradient(step_for(model, rows, accelerator), None)
    with pytest.raises(ValueError, match="has no direction"):
        Vaccine(norm="micro").gradient(step_for(model, rows, accelerator), None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rho": -1.0}, "rho=-1.0"), ({"rho": float("nan")}, "rho=nan"), ({"every": 0}, "every=0")],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Vaccine(**fields)
    assert {Vaccine(), Vaccine(2.0)} == {Vaccine()}
