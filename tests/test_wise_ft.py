"""WiSE-FT against the interpolation of full weights, and at its ends."""

import pytest
import torch

from repair import opened, repair, weights
from test_edits import models
from test_step import same, state
from titer.edits.wise_ft import WiseFT


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_the_weights_are_interpolated(tmp_path, kind, alpha):
    found = repair(WiseFT(alpha), models(kind), tmp_path)
    assert found.changes.norm_after == pytest.approx(alpha * found.changes.norm_before, rel=1e-12)
    aligned, finetuned, interpolated = (
        state(opened(folder)) for folder in (found.aligned, found.tuned, found.folder)
    )
    for name, weight in interpolated.items():
        torch.testing.assert_close(
            weight, (1 - alpha) * aligned[name] + alpha * finetuned[name], rtol=0, atol=1e-12
        )
    moved = [name for name in interpolated if not torch.equal(interpolated[name], aligned[name])]
    if kind == "adapter":
        assert len(moved) == 4  # two layers, two targets
        before, after = found.before, found.after
        assert all(
            torch.equal(after[name], alpha * before[name] if "lora_B" in name else before[name])
            for name in before
        )
        assert found.changes.count == sum(
            before[name].numel() for name in before if "lora_B" in name
        )
    else:
        assert (
            set(found.changes.sizes) == set(weights(found.tuned)) == {*moved} - {"lm_head.weight"}
        )  # norms and the embedding too
        assert found.changes.changed == found.changes.sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_the_ends_are_the_fine_tuned_and_the_aligned_model(tmp_path, kind, dtype):
    found = repair(WiseFT(1.0), models(kind, dtype), tmp_path)
    assert found.changes.count == 0
    assert same(found.after, found.before)
    found = repair(WiseFT(0.0), models(kind, dtype), tmp_path)
    assert (found.changes.norm_after, found.changes.count > 0) == (0.0, True)
    assert same(state(opened(found.folder)), state(opened(found.aligned)))
    assert {WiseFT(), WiseFT(0.5)} == {WiseFT()}  # a value, by which stages are shared


def test_an_adapter_stays_one_and_nothing_else_is_asked_for():
    edit = WiseFT()
    assert (
        edit.keeps_rank,
        edit.needs.factors,
        edit.needs.whole,
        edit.needs.rows,
        edit.needs.watches,
    ) == (
        True,
        False,
        True,
        None,
        None,
    )
    assert (edit.needs.targets, edit.needs.references, edit.stage) == (("all",), (), "edit")


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_what_is_no_interpolation_is_refused(alpha):
    with pytest.raises(
        ValueError, match=f"alpha={alpha}: the mixing coefficient must lie between 0 and 1"
    ):
        WiseFT(alpha)
