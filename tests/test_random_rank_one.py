"""Ablation's null: the same matrices move as far, along one random direction."""

import hashlib

import pytest
import torch

from test_refusal_ablation import prompts
from titer import registry
from titer.edits.lox import LoX
from titer.edits.random_rank_one import RandomRankOne
from titer.edits.refusal_ablation import RefusalAblation
from titer.methods import Answers, Harmful
from titer.testing.small import sparse, state, tiny
from titer.training.writers import rewrite_stream


@pytest.mark.parametrize("make", [tiny, sparse])
def test_every_parameter_moves_as_far_as_by_the_ablation_along_another_direction(make):
    its, mine = make(), make()
    before = state(mine)
    changes = rewrite_stream(RefusalAblation(), its, *prompts())
    null = rewrite_stream(RandomRankOne(seed=4), mine, *prompts())
    assert null.moved.keys() == changes.moved.keys()
    assert null.moved == pytest.approx(changes.moved, rel=1e-12)
    assert null.norm_after == pytest.approx(changes.norm_after, rel=1e-12)
    steps = {name: of - before[name] for name, of in state(mine).items() if name in null.moved}
    for name, step in steps.items():
        rank = torch.linalg.matrix_rank(step.reshape(-1, *step.shape[-2:]), rtol=1e-9)
        assert (rank == 1).all(), name
    theirs = state(its)["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]
    step = steps["model.embed_tokens.weight"]
    assert abs(float((step * theirs).sum() / step.norm() ** 2)) < 0.9
    assert abs(null.facts["cosine with the refusal direction"]) < 0.9


def test_the_step_is_a_projection_on_the_drawn_direction_scaled_to_the_norm():
    drawn = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(b"4 random_rank_one").digest()[:4])
    )
    u = torch.randn(32, generator=drawn, dtype=torch.float64)
    u /= (u * u).sum() ** 0.5
    edit, matrix = RandomRankOne(seed=4), torch.randn(32, 7, dtype=torch.float64)
    seen = edit.observe(tiny(), *prompts())
    r = RefusalAblation().observe(tiny(), *prompts()).r
    along, target = torch.einsum("d,dk->k", u, matrix), torch.einsum("d,dk->k", r, matrix)
    c = (target @ target / (along @ along)) ** 0.5
    expected = matrix - c * u[:, None] * along[None, :]
    torch.testing.assert_close(edit.edit("w", matrix, seen), expected, rtol=0, atol=1e-13)
    assert float(edit.facts(seen)["cosine with the refusal direction"]) == pytest.approx(
        float((r * u).sum())
    )


def test_a_matrix_that_writes_nothing_along_it_stays():
    edit = RandomRankOne()
    seen = edit.observe(tiny(), *prompts())
    nothing = torch.zeros(32, 3, dtype=torch.float64)
    assert torch.equal(edit.edit("w", nothing, seen), nothing)


def test_the_direction_is_the_seeds_and_torchs_generator_stays():
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = tiny()
    torch.manual_seed(5)
    first = RandomRankOne(seed=1).observe(model, *prompts())[1]
    assert torch.equal(torch.rand(3), expected)
    assert float(first.norm()) == pytest.approx(1.0)
    assert torch.equal(first, RandomRankOne(seed=1).observe(model, *prompts())[1])
    assert abs(float(first @ RandomRankOne(seed=2).observe(model, *prompts())[1])) < 0.9


def test_it_meets_refusal_ablation_alone_and_asks_for_its_rows():
    with pytest.raises(ValueError, match="match=LoX: a random direction meets the norms of"):
        RandomRankOne(LoX())
    null = RandomRankOne(RefusalAblation(layer=2), seed=3)
    assert (null.needs.rows, null.needs.against) == (Harmful, Answers)
    assert (RandomRankOne().match, RandomRankOne().seed) == (RefusalAblation(), 0)
    assert registry.build("edits", registry.describe(null)) == null
    assert {RandomRankOne(): 1}[RandomRankOne(RefusalAblation(), 0)]  # frozen
