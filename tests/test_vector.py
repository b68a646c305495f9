"""Vec: partial, lazy, exact."""

import math

import pytest
import torch

from titer.training.vector import Vec


def vec(**values: list[float]) -> Vec:
    return Vec.of({name: torch.tensor(value) for name, value in values.items()})


def test_arithmetic_follows_the_formula():
    f, g, h = vec(a=[1.0, 2.0], b=[3.0]), vec(a=[0.5, -1.0], b=[2.0]), vec(a=[4.0, 4.0], b=[-1.0])
    folded = (f + 5.0 * (g - h)).fold()
    torch.testing.assert_close(folded["a"], torch.tensor([1 + 5 * (0.5 - 4), 2 + 5 * (-1 - 4)]))
    torch.testing.assert_close(folded["b"], torch.tensor([3 + 5 * (2.0 + 1)]))


def test_negation_and_right_multiplication():
    folded = (-2.0 * vec(a=[1.0]) * 3.0 - vec(a=[4.0])).fold()
    assert folded["a"].item() == -10.0


def test_an_absent_name_stays_absent():
    folded = (vec(a=[1.0]) + 2.0 * vec(b=[3.0])).fold()
    assert set(folded) == {"a", "b"}
    assert folded["b"].item() == 6.0
    assert set((2.0 * vec(a=[1.0])).fold()) == {"a"}


def test_the_same_tensors_twice_are_one_term():
    g = vec(a=[1.0, -2.0])
    assert len((g + g).terms) == 1
    torch.testing.assert_close((3.0 * g + g - 0.5 * g).fold()["a"], torch.tensor([3.5, -7.0]))


def test_folding_is_in_place_and_makes_no_copy():
    first, second = torch.ones(3), torch.full((3,), 2.0)
    folded = (2.0 * Vec.of({"a": first}) + Vec.of({"a": second})).fold()
    assert folded["a"].data_ptr() == first.data_ptr()
    assert second.tolist() == [2.0, 2.0, 2.0]


def test_nothing_is_computed_before_folding():
    value = torch.ones(2)
    combined = 4.0 * Vec.of({"a": value}) - Vec.of({"a": torch.ones(2)})
    assert value.tolist() == [1.0, 1.0]
    assert all(isinstance(scale, float) for scale, _ in combined.terms)


def test_norm_and_dot_run_over_all_names_together():
    g, h = vec(a=[3.0, 0.0], b=[4.0]), vec(a=[1.0, 1.0], c=[7.0])
    assert g.norm() == 5.0
    assert g.dot(h) == 3.0
    assert (g - g).norm() == 0.0
    assert (2.0 * g - vec(a=[6.0, 0.0], b=[4.0])).norm() == 4.0
    assert (-2.0 * g).norm() == 10.0


def test_norm_is_exact_where_single_precision_is_not():
    big = Vec.of({"a": torch.full((1_000_000,), 1e-4), "b": torch.tensor([1e4])})
    assert math.isclose(big.norm() ** 2, 1e8 + 1e-2, rel_tol=1e-9)


def test_unit_has_norm_one_and_refuses_zero():
    assert math.isclose(vec(a=[3.0], b=[4.0]).unit().norm(), 1.0, rel_tol=1e-12)
    with pytest.raises(ValueError, match=r"norm 0\.0 has no direction"):
        vec(a=[0.0]).unit()


def test_add_to_moves_the_parameters():
    parameters = {"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}
    (0.5 * vec(a=[4.0])).add_to(parameters)
    assert (parameters["a"].item(), parameters["b"].item()) == (3.0, 1.0)


def test_the_cosine_is_of_the_angle_and_zero_for_nothing():
    a = Vec.of({"x": torch.tensor([3.0, 0.0]), "y": torch.tensor([4.0])})
    b = 2.0 * Vec.of({"y": torch.tensor([5.0])}) - Vec.of({"x": torch.tensor([0.0, 10.0])})
    assert a.cosine(b) == pytest.approx(4 / 5 / 2**0.5)
    assert a.cosine(-1.0 * a) == pytest.approx(-1.0)
    assert a.cosine(0.0 * a) == 0.0


def test_within_leaves_out_what_is_under_other_names():
    g, h = vec(a=[1.0, 2.0], b=[3.0]), vec(a=[4.0, 5.0], c=[6.0])
    inside = (g - 2.0 * h).within(["a", "c", "d"])
    assert set(inside.names()) == {"a", "c"}
    assert (inside.value("a").tolist(), inside.value("c").tolist()) == ([-7.0, -8.0], [-12.0])
    assert g.within(["b"]).norm() == 3.0
    assert g.within([]).names() == g.within(["nothing"]).names() == []
    assert (g + g.within([])).fold()["a"].tolist() == [1.0, 2.0]


def test_within_copies_nothing_and_is_the_same_vector_where_nothing_is_left_out():
    g, h = vec(a=[1.0], b=[2.0]), vec(a=[5.0])
    whole = (g - 0.5 * h).within(["b", "a"])
    assert [scale for scale, _ in whole.terms] == [1.0, -0.5]
    assert all(
        mine is theirs for (_, mine), (_, theirs) in zip(whole.terms, (g - h).terms, strict=True)
    )
    [(_, part)] = g.within(["b"]).terms
    assert part["b"] is g.terms[0][1]["b"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_vector_and_a_part_of_it_fold_without_reading_what_was_written(order):
    def sum_of(g: Vec) -> Vec:
        first, second = [3.0 * g, 2.0 * g.within(["a", "b"])][::order]
        return first + second - 4.0 * g.within(["b", "c"])

    folded = sum_of(vec(a=[1.0], b=[10.0], c=[100.0], d=[1000.0])).fold()
    assert {name: value.item() for name, value in folded.items()} == {
        "a": 5.0,
        "b": 10.0,
        "c": -100.0,
        "d": 3000.0,
    }
    exact = sum_of(vec(a=[1.0], b=[10.0], c=[100.0], d=[1000.0]))
    assert {name: exact.value(name).item() for name in "abcd"} == {
        name: value.item() for name, value in folded.items()
    }
