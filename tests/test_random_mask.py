"""Antidote's null: as many zeros in the same rows, elsewhere."""

import pytest
import torch

from test_edits import calibration, tuned  # noqa: F401  calibration is a fixture
from test_step import same, state
from titer import adapters, registry
from titer.edits.antidote import Antidote
from titer.edits.random_mask import RandomMask
from titer.edits.scale import Scale


def factors(model) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in state(model).items() if "lora_" in name}


def masks(edit, batches) -> dict[str, torch.Tensor]:
    """What an edit zeroes of a model in which no entry is zero."""
    model = tuned()
    edit.edit(model, batches)
    return {name: weight == 0 for name, weight in factors(model).items()}


@pytest.mark.parametrize("match", [Antidote(0.125), Antidote(0.3), Antidote(0.05, rounding="ceiling")])
def test_every_row_has_as_many_zeros_as_antidotes(calibration, match):  # noqa: F811
    mine, its = masks(RandomMask(match), []), masks(match, calibration)
    assert set(mine) == set(its)
    for name in mine:
        assert torch.equal(mine[name].sum(1), its[name].sum(1))
    assert any(not torch.equal(mine[name], its[name]) for name in mine)
    assert sum(int(mask.sum()) for mask in mine.values()) > 0


def test_the_choice_is_uniform_and_the_seeds():
    counts: dict[str, torch.Tensor] = {}
    for seed in range(400):
        for name, mask in masks(RandomMask(Antidote(0.25), seed), []).items():
            counts[name] = counts.get(name, 0) + mask
    for count in counts.values():  # each entry in a quarter of the draws: mean 100, standard deviation 8.7
        assert 100 - 50 < int(count.min()) <= int(count.max()) < 100 + 50
    first = masks(RandomMask(seed=3), [])
    assert same(first, masks(RandomMask(seed=3), []))
    assert not same(first, masks(RandomMask(seed=2), []))
    assert same(masks(RandomMask(), []), masks(RandomMask(seed=0), []))
    a, b = (mask for name, mask in masks(RandomMask(Antidote(0.5)), []).items() if "q_proj.lora_A" in name)
    assert not torch.equal(a, b)  # each factor draws its own


def test_the_choice_can_be_computed_again_and_leaves_torchs_own_generator():
    model, reference = tuned(), tuned()
    adapter = next(iter(adapters.adapters(reference).values()))
    h = torch.rand(adapter.a.weight.shape, generator=torch.Generator().manual_seed(3))
    chosen = h >= h.topk(8, 1).values[:, -1:]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    RandomMask(Antidote(0.25), seed=3).edit(model, [])
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(next(iter(adapters.adapters(model).values())).a.weight == 0, chosen)
    assert {RandomMask(): 1}[RandomMask(Antidote(), 0)]  # frozen: the same one is the same key


def test_only_the_adapter_changes_and_the_report_is_right():
    model = tuned()
    before = state(model)
    first = next(iter(adapters.adapters(model).values()))
    with torch.no_grad():
        first.b.weight[:5] = 0.0  # what is zero already does not change
    start = state(model)
    changes = RandomMask(Antidote(0.25)).edit(model, [])
    after = state(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "lora_" not in name)
    kept = {name: after[name] != 0 for name in factors(model)}
    assert all(torch.equal(after[name][mask], start[name][mask]) for name, mask in kept.items())
    assert changes.count == sum(int((start[name] != after[name]).sum()) for name in start)
    assert sum(changes.sizes.values()) == sum(weight.numel() for weight in factors(model).values())
    fresh = tuned()
    with torch.no_grad():
        next(iter(adapters.adapters(fresh).values())).b.weight[:5] = 0.0
    assert changes.norm_before == pytest.approx(adapters.update_norm(fresh), rel=1e-12)
    assert changes.norm_after == pytest.approx(adapters.update_norm(model), rel=1e-12)
    assert changes.norm_after < changes.norm_before
    assert set(changes.changed) == set(changes.sizes) == {f"{name}.{side}" for name in adapters.adapters(model) for side in "ab"}


def test_the_limits():
    model = tuned()
    before = state(model)
    assert RandomMask(Antidote(0.0)).edit(model, []).count == 0
    assert same(before, state(model))
    assert RandomMask(Antidote(1.0)).edit(model, []).norm_after == 0.0
    assert RandomMask().match == Antidote()
    assert RandomMask.data is None  # it needs no rows
    with pytest.raises(ValueError, match="match=Scale: a random mask meets the counts of antidote alone"):
        RandomMask(Scale())
    built = registry.build("edits", {"method": "random_mask", "match": {"method": "antidote", "alpha": 0.4}, "seed": 3})
    assert built == RandomMask(Antidote(0.4), 3)
    assert registry.build("edits", registry.describe(built)) == built
