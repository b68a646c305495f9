"""LoX's null: a step of the same norm and rank, matrix by matrix, along random directions."""

import hashlib

import numpy as np
import pytest
import torch

from test_lox import SHAPES, pair
from titer import registry
from titer.edits.antidote import Antidote
from titer.edits.lox import LoX
from titer.edits.random_lox import RandomLoX


def step(edit, aligned, base, name="w") -> torch.Tensor:
    return edit.tensor(name, aligned, base) - aligned


@pytest.mark.parametrize("shape", [(40, 12), (12, 30), (2, 3, 10, 9)])
@pytest.mark.parametrize(("k", "rank"), [(4, 4), (None, None)])
def test_every_matrix_has_a_step_of_loxs_norm_and_rank_elsewhere(shape, k, rank):
    aligned, base = pair(*shape)
    match = LoX(k, 1.25)
    mine, its = step(RandomLoX(match), aligned, base), step(match, aligned, base)
    torch.testing.assert_close(
        torch.linalg.matrix_norm(mine), torch.linalg.matrix_norm(its), rtol=1e-10, atol=0
    )
    assert (torch.linalg.matrix_rank(mine, rtol=1e-9) == (rank or min(shape[-2:]))).all()
    angle = (mine * its).sum((-2, -1)) / torch.linalg.matrix_norm(its) ** 2
    assert (angle.abs() < 0.5).all()


def test_the_direction_is_a_product_of_normal_factors_drawn_for_the_tensor():
    aligned, base = pair(20, 11)
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(b"3 layer.w").digest()[:4])
    )
    a, b = (
        torch.randn(*of, generator=generator, dtype=torch.float64).numpy()
        for of in ((20, 5), (5, 11))
    )
    s = np.linalg.svd((aligned - base).numpy(), compute_uv=False)
    expected = 0.75 * np.linalg.norm(s[:5]) * (a @ b) / np.linalg.norm(a @ b)
    found = step(RandomLoX(LoX(5, 0.75), seed=3), aligned, base, "layer.w").numpy()
    assert np.linalg.norm(found - expected) <= 1e-10 * np.linalg.norm(expected)


def test_the_direction_is_the_seeds_and_the_names_and_torchs_generator_stays():
    aligned, base = pair(20, 11)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = step(RandomLoX(seed=3), aligned, base)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, step(RandomLoX(seed=3), aligned, base))
    for other in (
        step(RandomLoX(seed=2), aligned, base),
        step(RandomLoX(seed=3), aligned, base, "v"),
    ):
        assert abs(float((first * other).sum() / first.norm() ** 2)) < 0.5
    assert torch.equal(step(RandomLoX(), aligned, base), step(RandomLoX(seed=0), aligned, base))


def test_a_tensor_that_alignment_left_stays():
    aligned, _ = pair(20, 8)
    assert torch.equal(RandomLoX().tensor("w", aligned, aligned.clone()), aligned)


def test_it_chooses_as_lox_does_and_meets_lox_alone():
    assert RandomLoX(LoX(3, targets=("q_proj",))).select(SHAPES) == [
        "a.q_proj.weight",
        "b.q_proj.weight",
    ]
    with pytest.raises(ValueError, match="k=9: 'b.experts'"):
        RandomLoX(LoX(9)).select(SHAPES)
    with pytest.raises(
        ValueError, match="match=Antidote: a random step meets the norms of lox alone"
    ):
        RandomLoX(Antidote())
    assert (RandomLoX().match, RandomLoX().seed, RandomLoX.stage) == (LoX(), 0, "release")
    assert {RandomLoX(): 1}[RandomLoX(LoX(), 0)]  # frozen: the same one is the same key
    built = registry.build(
        "edits", {"method": "random_lox", "match": {"method": "lox", "k": 3}, "seed": 2}
    )
    assert built == RandomLoX(LoX(3), 2)
    assert registry.build("edits", registry.describe(built)) == built
