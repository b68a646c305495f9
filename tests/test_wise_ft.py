"""WiSE-FT against the interpolation of full weights, and at its ends."""

import pytest
import torch

from conftest import tiny
from test_edits import tuned
from test_step import same, state
from titer import adapters
from titer.edits.wise_ft import WiseFT


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_the_weights_are_interpolated(alpha):
    aligned, finetuned = state(tiny()), state(adapters.merged(tuned()))
    model = tuned()
    changes = WiseFT(alpha).edit(model, [])
    assert changes.norm_after == pytest.approx(alpha * changes.norm_before, rel=1e-12)
    assert changes.changed == changes.sizes
    assert changes.count == sum(adapter.b.weight.numel() for adapter in adapters.adapters(model).values())
    interpolated = state(adapters.merged(model))
    moved = 0
    for name, weight in interpolated.items():
        torch.testing.assert_close(weight, (1 - alpha) * aligned[name] + alpha * finetuned[name], rtol=0, atol=1e-12)
        moved += not torch.equal(weight, aligned[name])
    assert moved == 4  # two layers, two targets


def test_the_ends_are_the_fine_tuned_and_the_aligned_model():
    model, before = tuned(), state(tuned())
    assert WiseFT(1.0).edit(model, []).count == 0
    assert same(state(model), before)
    changes = WiseFT(0.0).edit(model, [])
    assert (changes.norm_after, changes.count) == (0.0, sum(changes.sizes.values()))
    assert same(state(adapters.merged(model)), state(tiny()))
    assert {WiseFT(), WiseFT(0.5)} == {WiseFT()}  # a value, by which stages are shared


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_what_is_no_interpolation_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}: the mixing coefficient must lie between 0 and 1"):
        WiseFT(alpha)
