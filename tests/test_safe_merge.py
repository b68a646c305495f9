"""SafeMERGE against the merging of whole updates."""

import re

import pytest
import torch

from repair import save, weights
from test_resta import whole
from test_safe_lora import ALL, adapted, edited, projections, settled, updates
from titer import registry
from titer.edits.resta import dare
from titer.edits.safe_merge import SafeMERGE
from titer.weights.update import Update

REFERENCES = ("base", "safe")


def with_safe(of, folder, targets=ALL):
    return of | {
        "safe": save(
            adapted(of["aligned"], seed=5, targets=targets), folder / "safe", of["aligned"]
        )
    }


def middle(of, tuned: str = "tuned") -> tuple[float, set[str]]:
    """A threshold, and the weights whose cosines lie below it: half of them."""
    cosines = {name: c for name, (_, _, c) in projections(of, tuned=tuned).items()}
    ranks = sorted(cosines.values())
    tau = (ranks[len(ranks) // 2 - 1] + ranks[len(ranks) // 2]) / 2
    return tau, {name for name, c in cosines.items() if c < tau}


@pytest.mark.parametrize("pair", [(0.8, 0.2), (0.5, 1.0), (0.0, 1.0)])
def test_what_lies_below_the_threshold_is_merged_with_the_safe_update(tmp_path, pair):
    of = with_safe(settled(tmp_path), tmp_path)
    tau, chosen = middle(of)
    assert len(chosen) == 4
    out, facts = edited(SafeMERGE(tau, pair), of, tmp_path / "out", references=REFERENCES)
    aligned, found = weights(of["aligned"]), weights(out)
    tuned, safe = updates(of["tuned"], of["aligned"]), updates(of["safe"], of["aligned"])
    for name, w in found.items():
        dw = (
            pair[0] * tuned[name] + pair[1] * safe[name] if name in chosen else tuned.get(name, 0.0)
        )
        torch.testing.assert_close(w, aligned[name] + dw, rtol=0, atol=1e-13)
    assert set(facts["chosen"]) == chosen
    assert facts["tensors left as they were"] == 4
    expected = projections(of)
    assert facts["cosine"] == pytest.approx(
        {name: c for name, (_, _, c) in expected.items()}, rel=1e-9
    )
    assert facts["norm ratio"] == pytest.approx(
        {name: float(cdw.norm() / dw.norm()) for name, (dw, cdw, _) in expected.items()}, rel=1e-9
    )


def test_the_threshold_itself_is_not_below_it(tmp_path):
    of = with_safe(settled(tmp_path), tmp_path)
    _, facts = edited(SafeMERGE(1.0), of, tmp_path / "all", references=REFERENCES)
    assert facts["chosen weights"] == 8
    exact = sorted(facts["cosine"].values())  # as the edit has them, to the last bit
    _, below = edited(SafeMERGE(exact[3]), of, tmp_path / "below", references=REFERENCES)
    assert below["chosen weights"] == 3
    assert below["tensors left as they were"] == 5
    with pytest.raises(ValueError, match=r"changed none of \d+ entries"):
        edited(SafeMERGE(0.0), of, tmp_path / "none", references=REFERENCES)


def test_dare_thins_both_updates_of_what_is_merged_and_nothing_else(tmp_path):
    of = with_safe(settled(tmp_path), tmp_path)
    tau, chosen = middle(of)
    out, _ = edited(SafeMERGE(tau, drop=0.5, seed=3), of, tmp_path / "out", references=REFERENCES)
    aligned, found = weights(of["aligned"]), weights(out)
    tuned, safe = updates(of["tuned"], of["aligned"]), updates(of["safe"], of["aligned"])
    for name, dw in tuned.items():
        left = found[name] - aligned[name]
        if name not in chosen:
            torch.testing.assert_close(left, dw, rtol=0, atol=1e-13)
            continue
        a, b = (
            dare(Update(of), 0.5, 3, f"{which} {name}").b
            for which, of in (("finetuned", dw), ("safe", safe[name]))
        )
        torch.testing.assert_close(left, 0.8 * a + 0.2 * b, rtol=0, atol=1e-12)
        assert not torch.equal(a == 0, b == 0)  # each draws its own


def test_models_that_were_trained_as_a_whole(tmp_path):
    of = settled(tmp_path)
    of |= {"tuned": whole(tmp_path / "whole", 7), "safe": whole(tmp_path / "safe", 8)}
    tau, chosen = middle(of)
    assert len(chosen) == 7
    out, _ = edited(SafeMERGE(tau), of, tmp_path / "out", references=REFERENCES)
    aligned, tuned, safe, found = (
        weights(of.get(name, out)) for name in ("aligned", "tuned", "safe", "out")
    )
    for name, w in found.items():
        if name in chosen:
            torch.testing.assert_close(
                w,
                aligned[name]
                + 0.8 * (tuned[name] - aligned[name])
                + 0.2 * (safe[name] - aligned[name]),
            )
        else:
            assert torch.equal(w, tuned[name])


def test_a_safe_model_of_other_weights_is_refused(tmp_path):
    of = with_safe(settled(tmp_path), tmp_path, ["q_proj", "v_proj"])
    with pytest.raises(
        ValueError,
        match=r"has no factors for 'model.layers.\d.mlp.\w+.weight': train one on the same layers",
    ):
        edited(SafeMERGE(1.0), of, tmp_path / "out", references=REFERENCES)
    _, facts = edited(
        SafeMERGE(1.0, targets=("q_proj",)), of, tmp_path / "q", references=REFERENCES
    )
    assert facts["chosen weights"] == 2


def test_what_is_no_setting_is_refused():
    with pytest.raises(
        ValueError,
        match="tau=-0.1: the cosine of an update and its projection lies between 0 and 1",
    ):
        SafeMERGE(tau=-0.1)
    with pytest.raises(ValueError, match=r"tau=1\.5"):
        SafeMERGE(tau=1.5)
    with pytest.raises(ValueError, match="drop=1.0: the probability that an entry is dropped"):
        SafeMERGE(drop=1.0)
    for strengths in ((0.0, -5.0), (-5.0, 0.0), (float("inf"), 1.0)):
        told = re.escape(f"weights={list(strengths)}: must be at least 0, and finite")
        with pytest.raises(ValueError, match=told):
            SafeMERGE(weights=strengths)
    assert SafeMERGE(weights=(0.0, 1.0)).weights == (0.0, 1.0)


def test_it_is_a_method_like_the_others():
    assert (SafeMERGE().tau, SafeMERGE().weights, SafeMERGE().drop, SafeMERGE().seed) == (
        0.35,
        (0.8, 0.2),
        0.0,
        0,
    )
    assert (SafeMERGE().needs.references, SafeMERGE().needs.whole, SafeMERGE().keeps_rank) == (
        REFERENCES,
        False,
        False,
    )
    assert SafeMERGE(targets=("q_proj",)).needs.targets == ("q_proj",)
    built = registry.build(
        "edits", {"method": "safe_merge", "tau": 0.5, "weights": [0.7, 0.3], "targets": "q_proj"}
    )
    assert (
        built
        == SafeMERGE(0.5, (0.7, 0.3), targets=("q_proj",))
        == registry.build("edits", registry.describe(built))
    )
    assert {SafeMERGE(): 1}[SafeMERGE(0.35)]  # frozen: the same one is the same key
