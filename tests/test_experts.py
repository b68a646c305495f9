"""Experts of sparse models, edited and watched one by one, against plain computations."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import byte_level
from families import FAMILIES, SPARSE
from repair import apply, files, moved, save
from titer.data.batches import Part
from titer.data.rows import Row
from titer.data.template import Template
from titer.edits.antidote import Antidote
from titer.edits.safe_delta import SafeDelta
from titer.edits.safe_lora import SafeLoRA
from titer.edits.scale import Scale
from titer.runs.stages.repair import layers_of
from titer.weights import experts
from titer.weights.finetuned import FineTuned, Weight
from titer.weights.inputs import watch_inputs

sparse = pytest.mark.parametrize("family", SPARSE)
ROWS = [Row("a b c", "d e"), Row("f g", "h i j k"), Row("l", "m n")]


def rough(family):
    """A tiny model of a family in float64, its experts as the family's own code runs them."""
    model = FAMILIES[family](vocabulary=400).double()
    model.config._experts_implementation = "eager"
    return model


def on_disk(family: str, folder: Path) -> tuple[FineTuned, nn.Module]:
    """A fully fine-tuned model beside the aligned one, with its experts apart, and its layers."""
    aligned = save(rough(family), folder / "aligned")
    model = moved(rough(family))
    return FineTuned.of(files(save(model, folder / "tuned")), files(aligned), model), model


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The experts' matrices of a model in memory, (out, in), by parameter and expert."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".experts." in name and parameter.ndim == 3:
            turned = model.get_submodule(name.rpartition(".")[0]).is_transposed
            for i, matrix in enumerate(parameter.detach()):
                found[name, i] = matrix.T if turned else matrix
    return found


@sparse
def test_every_expert_s_matrix_is_the_one_of_the_model_in_memory(tmp_path, family):
    tuned, model = on_disk(family, tmp_path)
    places = experts.find_experts(tuned.whole, model)
    held = parameters(model)
    assert {(place.parameter, place.expert) for place in places.values()} == set(held)
    for name, place in places.items():
        mine, all_of_it = tuned.value(name), held[place.parameter, place.expert]
        half = len(all_of_it) // 2  # gate and up lie one below the other where the file has two
        parts = [all_of_it, all_of_it[:half], all_of_it[half:]]
        assert any(part.shape == mine.shape and torch.equal(part, mine) for part in parts), name


@sparse
def test_experts_one_by_one_compute_what_the_model_does(family):
    model, ids = rough(family), torch.randint(0, 400, (3, 9), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        experts.take_apart(model)
        after = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@sparse
def test_an_expert_is_watched_on_the_tokens_that_the_router_sends_to_it(tmp_path, family):
    """Its inputs are those of a plain walk through the sparse block, pads left out."""
    tuned, model = on_disk(family, tmp_path)
    layer = model.model.layers[SPARSE[family][0]]
    sent = []
    layer.mlp.experts.register_forward_pre_hook(lambda _, inputs: sent.append(inputs))
    ids = torch.randint(2, 400, (2, 7), generator=torch.manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    names = list(experts.find_experts(tuned.whole, model))
    layers = layers_of(model, names)
    seen: dict[str, torch.Tensor] = {}

    def watch(name, x, real, first):
        seen[name] = x[real]

    watch_inputs(model, layers, [(ids, mask)], watch)
    [(x, index, _)] = sent
    real = mask.flatten().bool()
    block = f"model.layers.{SPARSE[family][0]}.mlp.experts"
    looked = 0
    for name, place in experts.find_experts(names, model).items():
        if not place.parameter.startswith(block):
            continue
        tokens = [i for i in range(len(x)) if real[i] and place.expert in index[i]]
        if not tokens:
            assert name not in seen
            assert not layers[name].reached
            continue
        looked += 1
        assert layers[name].reached
        own = parameters(model)
        if "down_proj" in place.parameter:
            read = x[tokens] @ own[f"{block}.gate_up_proj", place.expert].T
            bias = getattr(layer.mlp.experts, "gate_up_proj_bias", None)
            read = read if bias is None else read + bias[place.expert]
            expected = layer.mlp.experts._apply_gate(read)
        else:
            expected = x[tokens]
        torch.testing.assert_close(seen[name], expected.detach(), rtol=1e-9, atol=1e-9)
    assert looked >= 4


@sparse
@pytest.mark.parametrize(
    "edit", [Antidote(target="update", alpha=0.25), Antidote(target="base", alpha=0.25)]
)
def test_antidote_scores_an_expert_by_its_own_inputs(tmp_path, family, edit):
    tuned, model = on_disk(family, tmp_path)
    template = Template(byte_level(), 64, "plain")
    facts = apply(
        edit,
        tmp_path / "tuned",
        {"aligned": tmp_path / "aligned"},
        tmp_path / "out",
        ROWS,
        template,
    )
    after = FineTuned.of(files(tmp_path / "out"), files(tmp_path / "aligned"), model)
    left = 0
    layers = layers_of(model, list(places := experts.find_experts(tuned.whole, model)))
    total: dict[str, torch.Tensor] = {}
    for row in ROWS:
        ids = torch.tensor([template.encode(row).ids])

        def watch(name, x, real, first):
            total[name] = total.get(name, 0) + x[real].square().sum(0)

        watch_inputs(model, layers, [(ids, torch.ones_like(ids))], watch)
    for name in places:
        w = tuned.update(name).dense() if edit.target == "update" else tuned.value(name)
        moved_on = after.value(name)
        if name not in total:
            left += 1
            assert torch.equal(moved_on, tuned.value(name))
            continue
        h = w.abs() * total[name].sqrt()
        count = math.floor(h.shape[1] * 0.25 + 0.5)
        for i, row in enumerate(h):
            gone = row.argsort(descending=True, stable=True)[:count]
            expected = tuned.value(name)[i].clone()
            expected[gone] = tuned.aligned[name].read()[i][gone] if edit.target == "update" else 0.0
            assert torch.equal(moved_on[i], expected), name
    assert facts.get("matrices of experts that no row reached", 0) == left


@sparse
@pytest.mark.parametrize("group", ["row", "global"])
def test_antidote_leaves_an_expert_that_no_row_reached(tmp_path, family, group):
    tuned, model = on_disk(family, tmp_path)
    layers = layers_of(model, list(experts.find_experts(tuned.whole, model)))
    ids = torch.tensor([[5, 6, 5, 7]])
    edit = Antidote(target="update", alpha=0.25, group=group)
    seen = edit.observe(model, layers, [SimpleNamespace(parts=[Part(ids, ids * 0 + 1, ids)])])
    weights = [Weight(name, tuned, {}, seen[name]) for name in layers]
    state, left = edit.prepare(weights), 0
    for weight in weights:
        after = edit.edit(weight, state)
        reached = layers[weight.name].reached
        assert bool(seen[weight.name]) == reached
        assert (after is not None) == reached
        left += not reached
    assert 0 < left < len(layers)


@sparse
def test_safe_delta_has_an_h_of_every_expert_and_takes_the_updates_of_those_not_reached(
    tmp_path, family
):
    """H = 2 X X^T over the tokens that reach the expert; where none does, nothing is held back."""
    tuned, model = on_disk(family, tmp_path)
    edit = SafeDelta()
    layers = layers_of(model, list(experts.find_experts(tuned.whole, model)))
    ids = torch.tensor([[5, 6, 5, 7]])
    part = (ids, torch.ones_like(ids))
    inputs: dict[str, torch.Tensor] = {}

    def watch(name, x, real, first):
        inputs[name] = x[real]

    watch_inputs(model, layers, [part], watch)
    seen = edit.observe(model, layers, [SimpleNamespace(parts=[Part(*part, ids)])])
    assert 0 < len(inputs) < len(layers)
    state, entries = edit.prepare([]), 0
    for name in layers:
        if name not in inputs:
            weight = Weight(name, tuned, {}, seen[name])
            assert torch.equal(edit.edit(weight, state), tuned.value(name))
            entries += weight.finetuned.numel()
            assert (state.entries, state.taken, state.reverted) == (entries, entries, 0)
            continue
        h = sum(2 * torch.outer(x, x) for x in inputs[name])
        damped = h + 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
        u = seen[name]
        torch.testing.assert_close(u.T @ u, torch.linalg.inv(damped), rtol=1e-8, atol=1e-8)
        assert torch.equal(u, u.triu())


@sparse
def test_scaling_meets_the_norm_after_an_edit_of_experts(tmp_path, family):
    on_disk(family, tmp_path)
    template = Template(byte_level(), 64, "plain")
    under = {"aligned": tmp_path / "aligned"}
    edit = Antidote(target="update", alpha=0.25)
    pruned = apply(edit, tmp_path / "tuned", under, tmp_path / "pruned", ROWS, template)
    scaled = apply(Scale(edit), tmp_path / "tuned", under, tmp_path / "scaled", ROWS, template)
    for norm in ("update norm before", "update norm after"):
        assert scaled[norm] == pytest.approx(pruned[norm], rel=1e-9)
    assert scaled["share of the update edited"] == pruned["share of the update edited"]


@sparse
def test_safe_lora_projects_an_expert_s_update_by_its_own_alignment(tmp_path, family):
    tuned, model = on_disk(family, tmp_path)
    save(moved(rough(family), seed=5), tmp_path / "base")
    edit = SafeLoRA(layers=None, tau=1.0)
    references = {"aligned": tmp_path / "aligned", "base": tmp_path / "base"}
    apply(edit, tmp_path / "tuned", references, tmp_path / "out")
    base = FineTuned.of(files(tmp_path / "base"), files(tmp_path / "aligned"), model).whole
    after = FineTuned.of(files(tmp_path / "out"), files(tmp_path / "aligned"), model)
    for name in experts.find_experts(tuned.whole, model):
        aligned = tuned.aligned[name].read()
        v = aligned - base[name].read()
        projected = v @ v.T / v.norm() @ tuned.update(name).dense()
        torch.testing.assert_close(after.value(name), aligned + projected, rtol=1e-9, atol=1e-9)
