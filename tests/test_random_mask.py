"""Antidote's null: as many zeros in the same groups, elsewhere."""

import hashlib

import pytest
import torch

from repair import on_disk, opened, repair, tuned, weights
from test_edits import calibration, everywhere, models  # noqa: F401  calibration is a fixture
from test_step import same, state
from titer import registry
from titer.edits.antidote import Antidote
from titer.edits.random_mask import RandomMask
from titer.edits.scale import Scale
from titer.weights import adapters
from titer.weights.finetuned import Weight


def removed(edit, model, folder, batches=()) -> dict[str, torch.Tensor]:
    """Where an edit changes the tensors of a model in which no entry is zero, nor as in the aligned
    one.
    """
    found = repair(edit, model, folder, batches)
    before = (
        found.before if found.before.keys() == found.after.keys() else state(opened(found.tuned))
    )
    return {name: (found.after[name] - before[name]).abs() > 1e-12 for name in found.changes.sizes}


@pytest.mark.parametrize(
    ("group", "rounding", "alpha"),
    [
        ("row", "exact", 0.3),
        ("row", "ceiling", 0.05),
        ("tensor", "exact", 0.2),
        ("global", "exact", 0.1),
    ],
)
@everywhere
def test_every_group_has_as_many_zeros_as_antidotes(
    calibration,
    tmp_path,
    target,
    kind,
    group,
    rounding,
    alpha,
):
    match = Antidote(alpha, target, group, rounding)
    mine, its = (
        removed(RandomMask(match), models(kind), tmp_path),
        removed(match, models(kind), tmp_path, calibration),
    )
    assert set(mine) == set(its)
    for name in mine:
        if group == "row":
            assert torch.equal(mine[name].sum(1), its[name].sum(1))
        elif group == "tensor":
            assert mine[name].sum() == its[name].sum()
            assert not torch.equal(mine[name].sum(1), its[name].sum(1))
    assert (
        sum(int(mask.sum()) for mask in mine.values())
        == sum(int(mask.sum()) for mask in its.values())
        > 0
    )
    assert any(not torch.equal(mine[name], its[name]) for name in mine)


def chosen(edit, weight) -> dict[str, torch.Tensor]:
    """Return what an edit zeroes of the factors of one weight."""
    update = edit.edit(weight, edit.prepare([weight]))
    return {"a": update.a == 0, "b": update.b == 0}


def test_the_choice_is_uniform_and_the_seeds(tmp_path):
    found = on_disk(tuned(), tmp_path)
    first, second = (Weight(name, found, {}) for name in list(found.factors)[:2])
    counts: dict[str, torch.Tensor] = {}
    for seed in range(400):
        for part, mask in chosen(RandomMask(Antidote(0.25), seed), first).items():
            counts[part] = counts.get(part, 0) + mask
    for (
        count
    ) in counts.values():  # each entry in a quarter of the draws: mean 100, standard deviation 8.7
        assert 100 - 50 < int(count.min()) <= int(count.max()) < 100 + 50
    mine = chosen(RandomMask(seed=3), first)
    assert same(mine, chosen(RandomMask(seed=3), first))
    assert not same(mine, chosen(RandomMask(seed=2), first))
    assert same(chosen(RandomMask(), first), chosen(RandomMask(seed=0), first))
    halves = [chosen(RandomMask(Antidote(0.5)), weight)["a"][:, :32] for weight in (first, second)]
    assert not torch.equal(*halves)  # each weight draws its own


@pytest.mark.parametrize("group", ["row", "global"])
def test_the_choice_can_be_computed_again_and_leaves_torchs_own_generator(tmp_path, group):
    found = on_disk(tuned(), tmp_path)
    weight = Weight(next(iter(found.factors)), found, {})
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"3 {weight.name}".encode()).digest()[:4])
    )
    h = {
        part: torch.rand(of.shape, generator=generator, dtype=torch.float64)
        for part, of in (("a", weight.update.a), ("b", weight.update.b))
    }
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    mine = chosen(RandomMask(Antidote(0.25, group=group), seed=3), weight)
    assert torch.equal(torch.rand(3), expected)
    least = (
        torch.cat([of.flatten() for of in h.values()])
        .sort(descending=True)
        .values[sum(of.numel() for of in h.values()) // 4 - 1]
    )
    for part, mask in mine.items():
        threshold = (
            h[part].topk(h[part].shape[1] // 4, 1).values[:, -1:] if group == "row" else least
        )
        assert torch.equal(mask, h[part] >= threshold)
    assert {RandomMask(): 1}[RandomMask(Antidote(), 0)]  # frozen: the same one is the same key


def test_only_the_adapter_changes_and_the_report_is_right(tmp_path):
    model = tuned()
    with torch.no_grad():
        next(iter(adapters.adapters(model).values())).b[:5] = (
            0.0  # what is zero already does not change
        )
    found = repair(RandomMask(Antidote(0.25)), model, tmp_path)
    before, after = found.before, found.after
    for name in before:
        kept = after[name] != 0
        assert torch.equal(after[name][kept], before[name][kept])
    assert found.changes.changed == {
        name: int((before[name] != after[name]).sum()) for name in before
    }
    assert 0 < found.changes.norm_after < found.changes.norm_before


def test_the_limits_and_what_it_asks_for(tmp_path):
    found = repair(RandomMask(Antidote(0.0)), tuned(), tmp_path)
    assert found.changes.count == 0
    assert same(found.before, found.after)
    assert repair(RandomMask(Antidote(1.0)), tuned(), tmp_path).changes.norm_after == 0.0
    found = repair(RandomMask(Antidote(1.0, "update", "global")), tuned(torch.float32), tmp_path)
    assert same(found.after, weights(found.aligned))
    assert RandomMask().match == Antidote()
    assert (RandomMask().needs.rows, RandomMask().needs.watches) == (None, None)  # it needs no rows
    for target, factors in (("factors", True), ("update", False)):
        mask = RandomMask(Antidote(target=target, targets=("q_proj",)))
        assert (mask.needs.factors, mask.keeps_rank, mask.needs.whole, mask.needs.targets) == (
            factors,
            factors,
            False,
            ("q_proj",),
        )
    with pytest.raises(
        ValueError, match="match=Scale: a random mask meets the counts of antidote alone"
    ):
        RandomMask(Scale())
    built = registry.build(
        "edits", {"method": "random_mask", "match": {"method": "antidote", "alpha": 0.4}, "seed": 3}
    )
    assert built == RandomMask(Antidote(0.4), 3)
    assert registry.build("edits", registry.describe(built)) == built
