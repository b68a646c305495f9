"""Updates in factors against dense matrices, in float64."""

import pytest
import torch

from bench import count
from titer.weights.update import Update

SHAPE = (7, 5)


def factors(r: int, seed: int, scaling: float, shape=SHAPE) -> Update:
    generator = torch.Generator().manual_seed(seed)
    b, a = (
        torch.randn(*of, generator=generator, dtype=torch.float64)
        for of in ((shape[0], r), (r, shape[1]))
    )
    return Update(b, a, scaling)


def whole(seed: int, scaling: float = 1.0) -> Update:
    return Update(
        torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        None,
        scaling,
    )


def product(update: Update) -> torch.Tensor:
    """The whole of it, entry by entry."""
    if update.a is None:
        return update.scaling * update.b
    return update.scaling * torch.einsum("or,ri->oi", update.b, update.a)


ONES = {
    "rank 1": factors(1, 0, 2.0),
    "rank 3": factors(3, 1, 0.25),
    "rank of out_features": factors(7, 2, -1.5),
    "whole": whole(3),
    "whole, scaled": whole(4, 0.5),
}
one = pytest.mark.parametrize("one", ONES.values(), ids=ONES)
other = pytest.mark.parametrize("other", ONES.values(), ids=ONES)


@one
@other
def test_sums_products_and_angles_are_those_of_the_dense_matrices(one, other):
    u, v = product(one), product(other)
    torch.testing.assert_close((one + other).dense(), u + v, rtol=1e-13, atol=1e-13)
    assert one.dot(other) == pytest.approx(float((u * v).sum()), rel=1e-12)
    assert one.cosine(other) == pytest.approx(float((u * v).sum() / u.norm() / v.norm()), rel=1e-12)


@one
def test_multiples_and_norms_are_those_of_the_dense_matrix(one):
    torch.testing.assert_close(one.dense(), product(one), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close((-2.5 * one).dense(), -2.5 * product(one), rtol=1e-14, atol=1e-14)
    assert one.norm() == pytest.approx(float(product(one).norm()), rel=1e-12)
    assert (3 * one).scaling == one.scaling
    assert (3 * one).a is one.a
    assert one.cosine(-1 * one) == pytest.approx(-1.0, rel=1e-12)


def test_a_sum_of_factors_has_the_rank_of_both_and_other_sums_are_whole():
    low, high = factors(1, 0, 2.0), factors(3, 1, 0.25)
    both = low + high
    assert (tuple(both.b.shape), tuple(both.a.shape), both.scaling) == ((7, 4), (4, 5), 1.0)
    assert (low + whole(0)).a is None
    assert (whole(0) + low).a is None


def test_of_zero_and_rounding():
    zero = 0 * factors(2, 0, 1.0)
    assert (zero.norm(), zero.cosine(whole(0)), whole(0).cosine(zero)) == (0.0, 0.0, 0.0)
    b = torch.tensor([[1.0, -1.0 - 2e-16]], dtype=torch.float64)
    assert (
        Update(b, torch.ones(2, 1, dtype=torch.float64)).norm() >= 0.0
    )  # a square below zero by rounding is none


@pytest.mark.parametrize(
    "act", [lambda u, v: u.dot(v), lambda u, v: u.norm(), lambda u, v: u + v, lambda u, v: 2.0 * u]
)
def test_no_product_of_the_size_of_the_weight_is_formed(act):
    u, v = (factors(2, seed, 1.0, (300, 400)) for seed in (0, 1))
    assert count.peak([], lambda: act(u, v)) < 8 * 300 * 400 / 5
