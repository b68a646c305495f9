"""LoX against its equation, computed densely in float64, and at its limits."""

import numpy as np
import pytest
import torch

from titer import registry
from titer.edits.lox import LoX, truncate

SHAPES = {
    "embed.weight": (40, 12),
    "a.q_proj.weight": (12, 12),
    "a.norm.weight": (12,),
    "b.q_proj.weight": (12, 9),
    "b.experts": (2, 9, 8),
}


def pair(*shape: int, seed: int = 0, size: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """An aligned tensor and its base, in float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64)
    return base + size * torch.randn(shape, generator=generator, dtype=torch.float64), base


def dense(aligned: torch.Tensor, base: torch.Tensor, k: int, alpha: float) -> np.ndarray:
    """The equation for one matrix, from the full decomposition."""
    u, s, vt = np.linalg.svd((aligned - base).numpy())
    return aligned.numpy() + alpha * sum(s[i] * np.outer(u[:, i], vt[i]) for i in range(k))


def same(found: torch.Tensor, aligned: torch.Tensor, expected: np.ndarray) -> bool:
    """Return True if the step is the expected one, by the norm of the step."""
    step = expected - aligned.numpy()
    return float(np.linalg.norm(found.numpy() - expected)) <= 1e-10 * float(np.linalg.norm(step))


@pytest.mark.parametrize(("k", "alpha"), [(1, 1.25), (6, 0.5), (11, 3.0), (12, 1.25)])
@pytest.mark.parametrize("shape", [(40, 12), (12, 30), (12, 12)])
def test_a_matrix_goes_along_its_largest_singular_triplets(shape, k, alpha):
    aligned, base = pair(*shape)
    assert same(LoX(k, alpha).tensor("w", aligned, base), aligned, dense(aligned, base, k, alpha))


def test_of_more_axes_every_matrix_has_its_own_triplets():
    aligned, base = pair(2, 3, 10, 7)
    found = LoX(4, 1.25).tensor("experts", aligned, base)
    for i in range(2):
        for j in range(3):
            assert same(found[i, j], aligned[i, j], dense(aligned[i, j], base[i, j], 4, 1.25))


@pytest.mark.parametrize("k", [8, None])
def test_the_full_rank_is_plain_extrapolation(k):
    aligned, base = pair(20, 8)
    assert torch.equal(LoX(k, 0.75).tensor("w", aligned, base), aligned + 0.75 * (aligned - base))


def test_the_step_has_rank_k_and_the_norm_of_its_singular_values():
    aligned, base = pair(30, 20)
    s = np.linalg.svd((aligned - base).numpy(), compute_uv=False)
    step = LoX(5, 2.0).tensor("w", aligned, base) - aligned
    assert int(torch.linalg.matrix_rank(step, rtol=1e-9)) == 5
    assert float(torch.linalg.matrix_norm(step)) == pytest.approx(
        2.0 * float(np.linalg.norm(s[:5])), rel=1e-10
    )
    rest = (
        aligned - base - step / 2.0
    )  # what is left of the update: its smaller triplets, orthogonal to the step on both sides
    assert float(torch.linalg.matrix_norm(rest)) == pytest.approx(
        float(np.linalg.norm(s[5:])), rel=1e-10
    )
    assert float((step @ rest.T).abs().max()) < 1e-15
    assert float((step.T @ rest).abs().max()) < 1e-15


def test_an_update_of_lower_rank_is_taken_whole():
    u, v = torch.randn(30, 2, dtype=torch.float64), torch.randn(2, 20, dtype=torch.float64)
    base = torch.zeros(30, 20, dtype=torch.float64)
    torch.testing.assert_close(
        LoX(6, 1.25).tensor("w", u @ v, base), 2.25 * u @ v, rtol=1e-12, atol=1e-12
    )


def test_a_tensor_that_alignment_left_stays():
    aligned, _ = pair(20, 8)
    assert torch.equal(LoX().tensor("w", aligned, aligned.clone()), aligned)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e30])
def test_the_size_of_the_update_does_not_matter(size):
    matrix = pair(30, 20)[0]
    torch.testing.assert_close(
        truncate(size * matrix, 6) / size, truncate(matrix, 6), rtol=1e-10, atol=1e-12
    )
    single = truncate(size * matrix.float(), 6).double() / size
    torch.testing.assert_close(single, truncate(matrix, 6), rtol=1e-4, atol=1e-5)


def test_an_update_without_a_positive_entry_is_an_update():
    matrix = -pair(30, 20)[0].abs()
    matrix[0, 0] = 0.0
    assert int(torch.linalg.matrix_rank(truncate(matrix, 6), rtol=1e-9)) == 6


def test_of_equal_singular_values_any_k_are_taken():
    step = truncate(torch.eye(30, dtype=torch.float64), 6)
    assert float(torch.linalg.matrix_norm(step)) == pytest.approx(6**0.5, rel=1e-12)
    assert int(torch.linalg.matrix_rank(step, rtol=1e-9)) == 6


def test_the_result_is_repeatable_and_leaves_the_generators():
    aligned, base = pair(30, 20)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    first = LoX().tensor("w", aligned, base)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()
    assert torch.equal(first, LoX().tensor("w", aligned, base))


def test_every_tensor_of_two_axes_or_more_is_chosen_or_those_that_are_named():
    assert LoX().select(SHAPES) == [
        "embed.weight",
        "a.q_proj.weight",
        "b.q_proj.weight",
        "b.experts",
    ]
    assert LoX(targets=("q_proj",)).select(SHAPES) == ["a.q_proj.weight", "b.q_proj.weight"]
    assert LoX(targets=("b.q_proj", "embed")).select(SHAPES) == ["embed.weight", "b.q_proj.weight"]
    assert LoX(targets=("q_proj", "a.q_proj", "experts")).select(SHAPES) == [
        "a.q_proj.weight",
        "b.q_proj.weight",
        "b.experts",
    ]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_prj",), "unknown target 'q_prj': did you mean 'q_proj'"),
        (("proj",), "unknown target 'proj'"),
        (("q_proj", "a.norm"), "unknown target 'a.norm'"),
        (("weight",), "There is embed, experts, q_proj"),
    ],
)
def test_a_target_that_matches_no_matrix_is_named_with_the_nearest(targets, message):
    with pytest.raises(ValueError, match=message):
        LoX(targets=targets).select(SHAPES)


def test_a_rank_that_a_matrix_has_not_is_refused():
    assert LoX(8).select(
        SHAPES
    )  # the smallest matrix has 8 columns; that there are 2 of it does not count
    with pytest.raises(
        ValueError,
        match=r"k=9: 'b.experts' \(2 x 9 x 8\) has no such rank; lower k, or leave it out by targets",
    ):
        LoX(9).select(SHAPES)
    assert LoX(9, targets=("q_proj",)).select(SHAPES)
    with pytest.raises(ValueError, match=r"k=41: 'embed.weight' \(40 x 12\) has no such rank"):
        LoX(41).select(SHAPES)
    assert LoX(None).select(SHAPES) == LoX().select(SHAPES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k=0: .* at least 1, or null"),
        ({"k": -1}, "k=-1"),
        ({"alpha": 0.0}, "alpha=0.0: .* above 0"),
        ({"alpha": -0.5}, "alpha=-0.5"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"targets": ()}, r"targets=\[\]: name tensors"),
        ({"targets": ("all", "q_proj")}, "give 'all' alone"),
    ],
)
def test_values_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoX(**fields)


def test_defaults_and_short_forms():
    assert (LoX().k, LoX().alpha, LoX().targets, LoX.stage) == (6, 1.25, ("all",), "release")
    assert LoX(alpha=1e308).alpha == 1e308  # large, but finite
    assert LoX(1, 0.25, ("q_proj", "embed")).targets == ("q_proj", "embed")
    assert registry.build("edits", {"method": "lox", "k": None, "targets": "q_proj"}) == LoX(
        None, 1.25, ("q_proj",)
    )
    assert {LoX(): 1}[LoX()]  # frozen: the same one is the same key
