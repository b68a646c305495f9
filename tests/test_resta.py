"""RESTA against the arithmetic of whole weights, and DARE by its law."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import tiny
from repair import moved, save, weights
from test_safe_lora import ALL, adapted, edited, settled, updates
from titer import registry
from titer.edits.resta import RESTA, dare
from titer.weights.update import Update


def with_unsafe(of, folder, targets=ALL):
    return of | {
        "unsafe": save(
            adapted(of["aligned"], seed=5, targets=targets), folder / "unsafe", of["aligned"]
        )
    }


def whole(folder, seed: int):
    return save(moved(moved(tiny()), seed=seed), folder)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_safety_vector_is_added_to_products_not_to_factors(tmp_path, gamma):
    of = with_unsafe(settled(tmp_path), tmp_path)
    out, facts = edited(RESTA(gamma), of, tmp_path / "out", references=("unsafe",))
    aligned, found = weights(of["aligned"]), weights(out)
    tuned, unsafe = updates(of["tuned"], of["aligned"]), updates(of["unsafe"], of["aligned"])
    assert found.keys() == aligned.keys()  # a whole model
    squares = 0.0
    for name, w in found.items():
        v = -unsafe[name] if name in unsafe else None  # theta_aligned - theta_unsafe
        expected = aligned[name] if v is None else aligned[name] + tuned[name] + gamma * v
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-13)
        squares += float((expected - aligned[name]).square().sum())
    assert facts["update norm after"] == pytest.approx(squares**0.5, rel=1e-12)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(loaded[name], found[name]) for name in found)


def test_of_models_that_were_trained_as_a_whole_every_tensor_moves(tmp_path):
    of = settled(tmp_path)
    of |= {"tuned": whole(tmp_path / "whole", 7), "unsafe": whole(tmp_path / "unsafe", 8)}
    out, facts = edited(RESTA(0.25), of, tmp_path / "out", references=("unsafe",))
    aligned, tuned, unsafe, found = (
        weights(of.get(name, out)) for name in ("aligned", "tuned", "unsafe", "out")
    )
    for name, w in found.items():
        torch.testing.assert_close(
            w, tuned[name] + 0.25 * (aligned[name] - unsafe[name]), rtol=0, atol=1e-13
        )
        assert not torch.equal(w, tuned[name])
    assert facts["tensors left as they were"] == 0
    assert "model.norm.weight" in found


def test_without_strength_nothing_changes_and_the_unsafe_model_itself_becomes_the_aligned_one(
    tmp_path,
):
    of = settled(tmp_path)
    of |= {"tuned": whole(tmp_path / "whole", 7)}
    out, _ = edited(
        RESTA(1.0), of | {"unsafe": of["tuned"]}, tmp_path / "out", references=("unsafe",)
    )
    aligned = weights(of["aligned"])
    assert all(torch.equal(w, aligned[name]) for name, w in weights(out).items())
    with pytest.raises(ValueError, match=r"changed none of \d+ entries"):
        edited(
            RESTA(0.0), of | {"unsafe": of["aligned"]}, tmp_path / "none", references=("unsafe",)
        )


def test_one_weight_alone(tmp_path):
    of, one = settled(tmp_path), ["layers.1.self_attn.q_proj"]
    of = with_unsafe(
        of | {"tuned": save(adapted(of["aligned"], targets=one), tmp_path / "one", of["aligned"])},
        tmp_path,
        one,
    )
    _, facts = edited(RESTA(), of, tmp_path / "out", references=("unsafe",))
    assert facts["entries"] == 32 * 32


def test_dare_thins_the_fine_tuning_update_alone(tmp_path):
    of = with_unsafe(settled(tmp_path), tmp_path)
    out, _ = edited(RESTA(0.5, drop=0.75, seed=3), of, tmp_path / "out", references=("unsafe",))
    aligned, found = weights(of["aligned"]), weights(out)
    tuned, unsafe = updates(of["tuned"], of["aligned"]), updates(of["unsafe"], of["aligned"])
    kept = []
    for name, dw in tuned.items():
        left = found[name] - aligned[name] + 0.5 * unsafe[name]  # what was kept of dW
        mask = left.abs() > 1e-9
        torch.testing.assert_close(left, 4.0 * dw * mask, rtol=0, atol=1e-12)
        assert torch.equal(mask, dare(Update(dw), 0.75, 3, name).b != 0)
        kept.append(float(mask.double().mean()))
    assert sum(kept) / len(kept) == pytest.approx(
        0.25, abs=0.03
    )  # 8 weights of about 1300 entries: standard deviation 0.004


def test_dare_keeps_the_mean_and_what_is_dropped_is_the_seeds_and_the_weights():
    torch.manual_seed(0)
    update = Update(
        torch.randn(6, 2, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64), 3.0
    )
    drawn = torch.stack([dare(update, 0.6, seed, "w").dense() for seed in range(2000)])
    torch.testing.assert_close(
        drawn.mean(0), update.dense(), rtol=0, atol=0.2 * float(update.dense().abs().max())
    )
    kept = (
        (drawn != 0).double().mean(0)
    )  # each in two fifths of the draws, standard deviation 0.011
    assert 0.35 < float(kept.min()) <= float(kept.max()) < 0.45
    torch.testing.assert_close(drawn, (drawn != 0) * update.dense() / 0.4, rtol=1e-12, atol=0)
    one = dare(update, 0.6, 3, "w").dense()
    assert torch.equal(one, dare(update, 0.6, 3, "w").dense())
    assert not torch.equal(one, dare(update, 0.6, 4, "w").dense())
    assert not torch.equal(one, dare(update, 0.6, 3, "v").dense())
    assert dare(update, 0.0, 3, "w") is update
    coarse = Update(torch.ones(3, 4, dtype=torch.float32))
    assert dare(coarse, 0.5, 0, "w").b.dtype == torch.float32
    assert torch.equal(
        dare(coarse, 0.5, 0, "w").b != 0, dare(Update(coarse.b.double()), 0.5, 0, "w").b != 0
    )  # one draw for all dtypes


def test_what_is_dropped_can_be_computed_again_and_leaves_torchs_own_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = dare(Update(torch.ones(2, 3)), 0.5, 0, "model.norm.weight")
    assert torch.equal(torch.rand(3), expected)
    generator = torch.Generator().manual_seed(
        0x630C31A4
    )  # the first four bytes of the SHA-256 of "0 model.norm.weight"
    assert torch.equal(
        found.b == 0, torch.rand(2, 3, generator=generator, dtype=torch.float64) < 0.5
    )


def test_an_unsafe_model_of_other_weights_is_refused(tmp_path):
    of = settled(tmp_path)
    few = with_unsafe(of, tmp_path, ["q_proj"])
    with pytest.raises(
        ValueError,
        match="has no factors for 'model.layers.0.mlp.down_proj.weight': train one on the same layers",
    ):
        edited(RESTA(), few, tmp_path / "few", references=("unsafe",))
    many = of | {"tuned": few["unsafe"], "unsafe": of["tuned"]}
    told = (
        r"was trained on 6 weights that are left as they are in the fine-tuned one, such as "
        r"'model.layers.0.mlp.down_proj.weight': train it on the same layers"
    )
    with pytest.raises(ValueError, match=told):
        edited(RESTA(), many, tmp_path / "many", references=("unsafe",))
    with pytest.raises(ValueError, match="was trained on 12 weights that are left as they are"):
        edited(
            RESTA(),
            of | {"unsafe": whole(tmp_path / "whole", 7)},
            tmp_path / "whole-out",
            references=("unsafe",),
        )


@pytest.mark.parametrize("drop", [-0.1, 1.0, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(drop):
    with pytest.raises(
        ValueError,
        match=f"drop={drop}: the probability that an entry is dropped must lie between 0 and 1, and below 1",
    ):
        RESTA(drop=drop)


@pytest.mark.parametrize("gamma", [-1.0, float("inf"), float("nan")])
def test_a_strength_that_turns_around_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma={gamma}: must be at least 0, and finite"):
        RESTA(gamma=gamma)


def test_it_is_a_method_like_the_others():
    assert (RESTA().gamma, RESTA().drop, RESTA().seed) == (0.5, 0.0, 0)
    assert (
        RESTA().needs.references,
        RESTA().needs.whole,
        RESTA().keeps_rank,
        RESTA().needs.rows,
    ) == (
        ("unsafe",),
        True,
        False,
        None,
    )
    built = registry.build("edits", {"method": "resta", "gamma": 0.2, "drop": 0.9})
    assert built == RESTA(0.2, 0.9) == registry.build("edits", registry.describe(built))
    assert {RESTA(): 1}[RESTA(0.5)]  # frozen: the same one is the same key
