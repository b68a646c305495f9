"""Antidote and scale against their equations, and at their limits."""

import math

import pytest
import torch

from conftest import tiny
from families import FAMILIES
from test_step import same, state
from titer import adapters
from titer.adapters import Lora
from titer.data import Batch
from titer.edits.antidote import Antidote, feature_norms, top
from titer.edits.lox import LoX
from titer.edits.scale import Scale

TARGETS = ("q_proj", "down_proj")


def tuned(dtype=torch.float64, r=8):
    """A model with a fine-tuned adapter: B is no longer zero."""
    model = adapters.add_lora(tiny(dtype), Lora(r=r, alpha=2.0 * r, targets=TARGETS))
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.a.weight.copy_(torch.randn_like(adapter.a.weight) * 0.1)
            adapter.b.weight.copy_(torch.randn_like(adapter.b.weight) * 0.1)
    return model


@pytest.fixture
def calibration(rows) -> list[Batch]:
    return [batch_of(rows["harmful"][:6], 3)]


def batch_of(rows, size) -> Batch:
    return Batch.of("calibration", [rows[i : i + size] for i in range(0, len(rows), size)], 0)


def plain_scores(model, rows) -> dict[str, torch.Tensor]:
    """|W| ||X||_2 of every factor, one row at a time with no pads, from inputs caught layer by layer."""
    squares: dict[str, torch.Tensor] = {}
    factors = {name: module for name, module in model.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))}
    handles = [
        module.register_forward_hook(
            lambda module, inputs, out, name=name: squares.__setitem__(name, squares.get(name, 0) + (inputs[0][0] ** 2).sum(0))
        )
        for name, module in factors.items()
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return {name: module.weight.detach().abs() * squares[name].sqrt() for name, module in factors.items()}


@pytest.mark.parametrize("alpha", [0.125, 0.3])
def test_antidote_zeroes_the_top_scores_of_every_row(rows, alpha):
    model, reference = tuned(), tuned()
    scores = plain_scores(reference, rows["harmful"][:6])
    Antidote(alpha=alpha).edit(model, [batch_of(rows["harmful"][:6], 3)])
    edited = dict(model.named_modules())
    for name, score in scores.items():
        before, after = reference.get_submodule(name).weight, edited[name].weight
        count = math.floor(alpha * score.shape[1] + 0.5)
        for i in range(len(score)):
            removed = set(score[i].argsort(descending=True)[:count].tolist())
            assert all((after[i, j] == 0) if j in removed else torch.equal(after[i, j], before[i, j]) for j in range(score.shape[1]))


@pytest.mark.parametrize(
    ("cols", "alpha", "exact", "ceiling"),
    [(256, 0.05, 13, 13), (256, 0.1, 26, 26), (8, 0.05, 0, 1), (8, 0.1, 1, 1), (8, 0.2, 2, 2), (16, 0.05, 1, 1), (32, 0.05, 2, 2)]
    + [(4096, 0.1, 410, 410), (8, 0.0, 0, 0), (8, 1.0, 8, 8), (10, 0.25, 3, 3), (64, 0.02, 1, 2)],
)
def test_counts_of_both_roundings(cols, alpha, exact, ceiling):
    assert Antidote(alpha=alpha).count(cols) == exact
    assert Antidote(alpha=alpha, rounding="ceiling").count(cols) == ceiling


def test_alpha_one_is_the_aligned_model_and_alpha_zero_the_fine_tuned_one(calibration):
    aligned = state(tiny())
    model = tuned()
    changes = Antidote(alpha=1.0).edit(model, calibration)
    assert changes.norm_after == 0.0
    assert changes.count == sum(changes.sizes.values())
    assert same(state(adapters.merged(model)), aligned)
    model = tuned()
    before = state(model)
    assert Antidote(alpha=0.0).edit(model, calibration).count == 0
    assert same(state(model), before)


def test_the_result_does_not_depend_on_how_the_rows_are_batched(rows):
    results = []
    for size in (1, 4, 6):
        model = tuned()
        Antidote(alpha=0.25).edit(model, [batch_of(rows["harmful"][:6], size)])
        results.append(state(model))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("family", ["OPT", "DeepseekV3"])
def test_features_are_the_same_where_a_family_flattens_its_tokens(rows, family):
    model = adapters.add_lora(FAMILIES[family](vocabulary=400), Lora(r=2, targets=("all-linear",)))
    layers = {name: adapter.a for name, adapter in adapters.adapters(model).items()}
    batched = feature_norms(model, layers, [batch_of(rows["harmful"][:6], 3)])
    single = [feature_norms(model, layers, [batch_of([row], 1)]) for row in rows["harmful"][:6]]
    for name in layers:
        torch.testing.assert_close(batched[name].square(), sum(norms[name].square() for norms in single), rtol=1e-4, atol=1e-6)


def test_features_come_from_the_unedited_model_and_hooks_are_removed(rows):
    model = tuned()
    layers = {name: adapter.a for name, adapter in adapters.adapters(model).items()}
    first = feature_norms(model, layers, [batch_of(rows["harmful"][:6], 3)])
    second = feature_norms(model, layers, [batch_of(rows["harmful"][:6], 2)])
    for name in layers:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=0)
    assert not any(module._forward_pre_hooks for module in layers.values())


def test_only_the_adapter_changes_and_the_report_is_right(calibration):
    model = tuned()
    before = state(model)
    changes = Antidote(alpha=0.25).edit(model, calibration)
    after = state(model)
    counted = 0
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("lora_" not in name)
        counted += int((value != after[name]).sum())
    assert changes.count == counted
    assert changes.norm_after == pytest.approx(adapters.update_norm(model), rel=1e-12)
    assert 0 < changes.norm_after < changes.norm_before


def test_an_entry_that_was_zero_already_is_not_counted_as_changed(calibration):
    model = tuned()
    adapter = next(iter(adapters.adapters(model).values()))
    with torch.no_grad():
        adapter.b.weight[:5] = 0.0
        adapter.b.weight[5:7] = 1.0
    changes = Antidote(alpha=1.0).edit(model, calibration)
    assert changes.count == sum(changes.sizes.values()) - 5 * adapter.b.weight.shape[1]


def test_of_equal_scores_the_first_are_taken():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize("alpha", [0.125, 0.5])
def test_scale_meets_the_norm_of_antidote_and_keeps_the_direction(calibration, alpha):
    pruned, scaled = tuned(), tuned()
    target = Antidote(alpha=alpha).edit(pruned, calibration)
    changes = Scale(match=Antidote(alpha=alpha)).edit(scaled, calibration)
    assert adapters.update_norm(scaled) == pytest.approx(target.norm_after, rel=1e-12)
    assert changes.norm_after == pytest.approx(target.norm_after, rel=1e-12)
    assert changes.norm_before == pytest.approx(target.norm_before, rel=1e-12)
    c = changes.facts["c"]
    assert 0 < c < 1
    fresh = adapters.adapters(tuned())
    for name, adapter in adapters.adapters(scaled).items():
        assert torch.equal(adapter.a.weight, fresh[name].a.weight)
        torch.testing.assert_close(adapter.b.weight, c * fresh[name].b.weight, rtol=1e-14, atol=0)
    assert changes.count == sum(changes.sizes.values()) == sum(adapter.b.weight.numel() for adapter in fresh.values())
    assert set(changes.sizes) == {f"{name}.b" for name in fresh}


def test_scale_after_an_edit_that_removes_all_is_the_aligned_model(calibration):
    model = tuned()
    Scale(match=Antidote(alpha=1.0)).edit(model, calibration)
    assert same(state(adapters.merged(model)), state(tiny()))


def test_scale_puts_the_factors_back_when_the_matched_edit_fails(calibration, monkeypatch):
    model = tuned()
    before = state(model)

    def failing(self, model, batches):
        for adapter in adapters.adapters(model).values():
            adapter.b.weight.data.zero_()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Antidote, "edit", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        Scale().edit(model, calibration)
    assert same(state(model), before)


def test_scale_refuses_an_update_of_zero(calibration):
    model = adapters.add_lora(tiny(), Lora(targets=TARGETS))  # a fresh adapter: B is zero
    with pytest.raises(ValueError, match="the fine-tuning update is zero"):
        Scale().edit(model, calibration)


@pytest.mark.parametrize("edit", [Antidote(), Scale()])
def test_a_model_without_an_adapter_is_refused(edit, calibration):
    with pytest.raises(ValueError, match="no unmerged LoRA adapter"):
        edit.edit(tiny(), calibration)


def test_alpha_must_be_a_fraction():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha="):
            Antidote(alpha=alpha)


def test_defaults_are_the_papers():
    assert (Antidote().alpha, Antidote().rounding) == (0.1, "exact")
    assert Scale().match == Antidote()


def test_scaling_meets_the_norm_of_another_edit_of_the_adapter_alone():
    with pytest.raises(ValueError, match="match=LoX"):
        Scale(match=LoX())
