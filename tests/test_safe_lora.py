"""Safe LoRA against the dense formula, with the limits of its projectors, on checkpoints of every
kind.
"""

import json
import shutil
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from conftest import tiny
from families import FAMILIES
from repair import apply, moved, save, weights
from titer import registry
from titer.edits.safe_lora import Agreement, SafeLoRA, directions
from titer.weights import adapters

ALL = ["q_proj", "v_proj", "gate_proj", "down_proj"]


def adapted(aligned: Path, seed: int = 2, r: int = 4, targets: list[str] = ALL):
    """An adapter over a model whose factors are all random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(aligned, dtype="auto")
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)
    with adapters.literal_peft():
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def settled(folder: Path, build=tiny, **how) -> dict[str, Path]:
    """Base, aligned and fine-tuned model, the last an adapter over the aligned one."""
    base, aligned = (
        save(build(), folder / "base", **how),
        save(moved(build()), folder / "aligned", **how),
    )
    return {
        "base": base,
        "aligned": aligned,
        "tuned": save(adapted(aligned), folder / "tuned", aligned),
    }


def edited(
    edit, of: dict[str, Path], out: Path, tuned: str = "tuned", references=("base",)
) -> tuple[Path, dict]:
    """Return what an edit makes of a fine-tuned model, and what is known of it."""
    others = {name: of[name] for name in ("aligned", *references)}
    return out, apply(edit, of[tuned], others, out)


def updates(folder: Path, aligned: Path, scaling: float = 2.0) -> dict[str, torch.Tensor]:
    """Return what fine-tuning added to every linear layer, whole and in float64."""
    found, start = weights(folder), weights(aligned)
    if (folder / "adapter_config.json").is_file():
        layers = [name.split(".lora_A")[0] for name in found if ".lora_A" in name]
        pairs = {
            layer: (
                found[f"{layer}.lora_B.weight"].double(),
                found[f"{layer}.lora_A.weight"].double(),
            )
            for layer in layers
        }
        return {
            f"{layer.removeprefix('base_model.model.')}.weight": scaling * b @ a
            for layer, (b, a) in pairs.items()
        }
    return {
        name: found[name].double() - start[name].double()
        for name in found
        if name.endswith("_proj.weight")
    }


def differences(of: dict[str, Path]) -> dict[str, torch.Tensor]:
    aligned, base = weights(of["aligned"]), weights(of["base"])
    return {name: aligned[name].double() - base[name].double() for name in aligned}


def surrogate(v: torch.Tensor) -> torch.Tensor:
    return v @ v.T / v.square().sum().sqrt()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def projections(
    of: dict[str, Path], c=surrogate, tuned: str = "tuned"
) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """dW, C dW and the cosine of every layer, by the dense formula."""
    v = differences(of)
    dense = {name: (dw, c(v[name]) @ dw) for name, dw in updates(of[tuned], of["aligned"]).items()}
    return {name: (dw, cdw, cosine(dw, cdw)) for name, (dw, cdw) in dense.items()}


def check(
    found: dict[str, torch.Tensor], expected: dict, chosen: set[str], within: float = 1e-10
) -> None:
    assert found.keys() == expected.keys()
    for name, (dw, cdw, _) in expected.items():
        torch.testing.assert_close(
            found[name], cdw if name in chosen else dw, rtol=0, atol=within * float(cdw.norm())
        )


@pytest.mark.parametrize("k", [1, 3, 8])
def test_number_projects_exactly_so_many_of_the_lowest_cosines_by_the_dense_formula(tmp_path, k):
    of = settled(tmp_path)
    expected = projections(of)
    assert len(expected) == 8  # two layers, four targets
    chosen = sorted(expected, key=lambda name: expected[name][2])[:k]
    out, facts = edited(SafeLoRA(layers=k), of, tmp_path / "out")
    check(updates(out, of["aligned"]), expected, set(chosen))
    assert (facts["chosen weights"], facts["chosen"]) == (k, chosen)
    assert facts["cosine"] == pytest.approx(
        {name: c for name, (_, _, c) in expected.items()}, rel=1e-9
    )
    assert facts["norm ratio"] == pytest.approx(
        {name: float(cdw.norm() / dw.norm()) for name, (dw, cdw, _) in expected.items()}, rel=1e-9
    )
    assert facts["tensors left as they were"] == 16 - k  # of a projected layer B changes alone
    before, after = weights(of["tuned"]), weights(out)
    assert all(torch.equal(before[name], after[name]) for name in before if "lora_A" in name)


def test_tau_projects_what_lies_at_it_or_below(tmp_path):
    of = settled(tmp_path)
    expected = projections(of)
    _, first = edited(SafeLoRA(layers=1), of, tmp_path / "first")
    exact = sorted(first["cosine"].values())  # as the edit has them, to the last bit
    lower = {name for name in expected if expected[name][2] <= exact[4] + 1e-12}
    assert len(lower) == 5
    out, facts = edited(SafeLoRA(layers=None, tau=exact[4]), of, tmp_path / "out")
    check(updates(out, of["aligned"]), expected, lower)
    assert set(facts["chosen"]) == lower
    _, below = edited(SafeLoRA(layers=None, tau=exact[4] - 1e-9), of, tmp_path / "below")
    assert below["chosen weights"] == 4
    _, everything = edited(SafeLoRA(layers=None, tau=1.0), of, tmp_path / "everything")
    assert everything["chosen weights"] == 8
    with pytest.raises(ValueError, match=r"changed none of \d+ entries"):
        edited(SafeLoRA(layers=None, tau=0.0), of, tmp_path / "nothing")


def test_of_equal_cosines_the_first_are_projected(tmp_path):
    of = settled(tmp_path)
    base, aligned, tuned = (load_file(of[name] / file) for name, file in (
        ("base", "model.safetensors"),
        ("aligned", "model.safetensors"),
        ("tuned", "adapter_model.safetensors"),
    ))  # fmt: skip
    for found in (base, aligned, tuned):  # the layers become equal
        for name in list(found):
            if "layers.1" in name:
                found[name] = found[name.replace("layers.1", "layers.0")].clone()
    save_file(base, of["base"] / "model.safetensors", {"format": "pt"})
    save_file(aligned, of["aligned"] / "model.safetensors", {"format": "pt"})
    save_file(tuned, of["tuned"] / "adapter_model.safetensors", {"format": "pt"})
    (of["tuned"] / "titer.json").unlink()  # the hash of the aligned weights that it was made over
    _, facts = edited(SafeLoRA(layers=3), of, tmp_path / "out")
    lowest = sorted(set(facts["cosine"].values()))
    assert len(lowest) == 4  # each twice
    assert [facts["cosine"][name] for name in facts["chosen"]] == [lowest[0], lowest[0], lowest[1]]
    assert "layers.0" in facts["chosen"][2]


def low_rank(of: dict[str, Path], rank: int) -> None:
    """Alignment that moved every matrix in so many directions of its outputs."""
    aligned, base = (
        load_file(of["aligned"] / "model.safetensors"),
        load_file(of["base"] / "model.safetensors"),
    )
    for name, w in base.items():
        torch.manual_seed(len(name))
        if w.ndim == 2:
            aligned[name] = w + 1e-2 * torch.randn(w.shape[0], rank, dtype=w.dtype) @ torch.randn(
                rank, w.shape[1], dtype=w.dtype
            )
    save_file(aligned, of["aligned"] / "model.safetensors", {"format": "pt"})


def projector(rank: int | None, drop: float = 1e-8):
    def of(v: torch.Tensor) -> torch.Tensor:
        u, s, _ = torch.linalg.svd(v)
        u = u[:, : int((s > drop).sum())][:, :rank]
        return u @ u.T

    return of


@pytest.mark.parametrize("rank", [None, 3, 2, 32, 50])
def test_the_exact_projector_is_onto_the_leading_directions(tmp_path, rank):
    of = settled(tmp_path)
    low_rank(of, 3)
    of["tuned"] = save(adapted(of["aligned"]), tmp_path / "again", of["aligned"])
    expected = projections(of, projector(rank))
    assert expected.keys() == projections(of, projector(3)).keys()
    out, facts = edited(
        SafeLoRA(layers=None, tau=1.0, projector="exact", rank=rank), of, tmp_path / "out"
    )
    check(
        updates(out, of["aligned"]), expected, set(expected), 1e-7
    )  # the aligned weights are rounded
    for name, (dw, cdw, c) in expected.items():
        assert facts["cosine"][name] == pytest.approx(c, rel=1e-7)
        assert c == pytest.approx(float(cdw.norm() / dw.norm()), rel=1e-7)  # as of every projector


def test_of_a_full_rank_the_exact_projector_is_the_identity(tmp_path):
    of = settled(tmp_path)
    start = updates(of["tuned"], of["aligned"])
    out, facts = edited(
        SafeLoRA(layers=None, tau=1.0, projector="exact", targets=("v_proj", "down_proj")),
        of,
        tmp_path / "out",
    )
    for name, c in facts["cosine"].items():
        assert c == pytest.approx(1.0, abs=1e-12)
        torch.testing.assert_close(
            updates(out, of["aligned"])[name], start[name], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("dtype", "rank"), [(torch.bfloat16, None), (torch.float32, None), (torch.float32, 5)]
)
def test_what_rounding_added_to_the_aligned_weights_is_no_direction(tmp_path, dtype, rank):
    of = settled(tmp_path, lambda: tiny(dtype))
    low_rank(of, 3)
    assert all(
        torch.linalg.matrix_rank(v) > 20
        for name, v in differences(of).items()
        if name.endswith("q_proj.weight")
    )
    of["tuned"] = save(adapted(of["aligned"]), tmp_path / "again", of["aligned"])
    _, facts = edited(
        SafeLoRA(layers=None, tau=1.0, projector="exact", rank=rank), of, tmp_path / "out"
    )
    expected = projections(of, projector(3))
    assert facts["cosine"] == pytest.approx(
        {name: c for name, (_, _, c) in expected.items()}, rel=2e-2
    )
    assert max(facts["cosine"].values()) < 0.6


@pytest.mark.parametrize("size", [1e-30, -1.0, 1e6])
def test_directions_have_no_scale(size):
    torch.manual_seed(0)
    v = torch.rand(12, 8) + 0.1  # all of one sign
    found, (u, _, _) = directions(size * v, 0.0, 2), torch.linalg.svd(v.double())
    torch.testing.assert_close((found @ found.T).double(), u[:, :2] @ u[:, :2].T, rtol=0, atol=1e-5)


def test_a_weight_of_zeros_has_no_directions():
    for rank in (None, 2, 3):
        assert directions(torch.zeros(3, 4), 0.0, rank).shape == (3, 0)


def test_a_direction_a_little_above_what_rounding_brings_counts(tmp_path):
    of = settled(tmp_path, lambda: tiny(torch.float32))
    base, aligned = (load_file(of[name] / "model.safetensors") for name in ("base", "aligned"))
    for name in (name for name in base if name.endswith("q_proj.weight")):
        torch.manual_seed(0)
        (u, _), (v, _) = (torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)) for _ in "uv")
        weak = 8 * 2.0**-23 * float(base[name].norm()) / 32**0.5  # the floor is an eighth of it
        s = torch.tensor([0.1, 0.05, weak], dtype=torch.float64)
        aligned[name] = (base[name].double() + (u[:, :3] * s) @ v[:, :3].T).float()
    save_file(aligned, of["aligned"] / "model.safetensors", {"format": "pt"})
    of["tuned"] = save(
        adapted(of["aligned"], targets=["q_proj"]), tmp_path / "again", of["aligned"]
    )
    _, facts = edited(SafeLoRA(layers=None, tau=1.0, projector="exact"), of, tmp_path / "out")
    for kept, close in ((3, True), (2, False), (4, False)):
        expected = {name: c for name, (_, _, c) in projections(of, projector(kept)).items()}
        assert (facts["cosine"] == pytest.approx(expected, rel=1e-6)) == close


def test_twice_the_alignment_is_twice_the_surrogate_and_the_same_exact_projection(tmp_path):
    of = settled(tmp_path)
    base, v = load_file(of["base"] / "model.safetensors"), differences(of)
    further = shutil.copytree(
        of["base"], tmp_path / "further"
    )  # as far again below the aligned weights
    save_file(
        {name: w - v[name] for name, w in base.items()},
        further / "model.safetensors",
        {"format": "pt"},
    )
    for edit, factor in ((SafeLoRA(None, 1.0), 2.0), (SafeLoRA(None, 1.0, "exact", 3), 1.0)):
        name = f"{edit.projector}"
        once, facts = edited(edit, of, tmp_path / name)
        twice, its = edited(edit, of | {"base": further}, tmp_path / f"{name}-twice")
        a, b = updates(once, of["aligned"]), updates(twice, of["aligned"])
        for key in a:
            torch.testing.assert_close(
                b[key], factor * a[key], rtol=0, atol=1e-8 * float(a[key].norm())
            )
        assert its["cosine"] == pytest.approx(facts["cosine"], rel=1e-8)
        assert its["norm ratio"] == pytest.approx(
            {key: factor * ratio for key, ratio in facts["norm ratio"].items()}, rel=1e-8
        )


def test_the_control_deletes_what_the_surrogate_projects(tmp_path):
    of = settled(tmp_path)
    _, facts = edited(SafeLoRA(layers=3), of, tmp_path / "surrogate")
    out, zeroed = edited(SafeLoRA(layers=3, projector="zero"), of, tmp_path / "zero")
    assert zeroed["chosen"] == facts["chosen"]
    assert zeroed["cosine"] == facts["cosine"]
    start = updates(of["tuned"], of["aligned"])
    for name, dw in updates(out, of["aligned"]).items():
        assert torch.equal(dw, torch.zeros_like(dw) if name in facts["chosen"] else start[name])
    matched, _ = edited(
        registry.build("edits", {"method": "scale", "match": SafeLoRA(layers=3)}),
        of,
        tmp_path / "scale",
    )
    norms = [
        sum(float(dw.square().sum()) for dw in updates(folder, of["aligned"]).values())
        for folder in (matched, tmp_path / "surrogate")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


def test_rank_equal_to_the_width_and_a_model_with_biases(tmp_path):
    of = settled(tmp_path, lambda: FAMILIES["Qwen2"]().double())
    assert any(name.endswith("q_proj.bias") for name in weights(of["aligned"]))
    width = weights(of["aligned"])["model.layers.0.self_attn.v_proj.weight"].shape[0]
    of["tuned"] = save(
        adapted(of["aligned"], r=width, targets=["q_proj", "v_proj"]),
        tmp_path / "wide",
        of["aligned"],
    )
    expected = projections(of)
    assert len(expected) == 4
    chosen = set(sorted(expected, key=lambda name: expected[name][2])[:3])
    out, facts = edited(SafeLoRA(layers=3), of, tmp_path / "out")
    check(updates(out, of["aligned"]), expected, chosen)
    assert set(facts["chosen"]) == chosen


def test_a_weight_that_alignment_or_fine_tuning_left_alone(tmp_path):
    of = settled(tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    base = load_file(of["base"] / "model.safetensors")
    base[name] = load_file(of["aligned"] / "model.safetensors")[name]
    save_file(base, of["base"] / "model.safetensors", {"format": "pt"})
    tuned, still = (
        load_file(of["tuned"] / "adapter_model.safetensors"),
        "model.layers.1.self_attn.q_proj",
    )
    tuned[f"base_model.model.{still}.lora_B.weight"].zero_()
    save_file(tuned, of["tuned"] / "adapter_model.safetensors", {"format": "pt"})
    for kind, rank in (("surrogate", None), ("exact", None), ("exact", 3)):
        out, facts = edited(
            SafeLoRA(layers=2, projector=kind, rank=rank), of, tmp_path / f"{kind}-{rank}"
        )
        assert facts["chosen"] == [name, f"{still}.weight"]
        assert (
            [facts["cosine"][key] for key in facts["chosen"]]
            == [facts["norm ratio"][key] for key in facts["chosen"]]
            == [0.0, 0.0]
        )
        assert float(updates(out, of["aligned"])[name].norm()) == 0.0
        assert facts["tensors left as they were"] == 15


@pytest.mark.parametrize("small", [False, True])
def test_a_model_that_was_trained_as_a_whole(tmp_path, small):
    how = {"max_shard_size": "20KB"} if small else {}
    of = settled(tmp_path, **how)
    of["tuned"] = save(moved(moved(tiny()), seed=7), tmp_path / "whole", **how)
    assert len(list(of["tuned"].glob("*.safetensors"))) > (3 if small else 0)
    expected = projections(of)
    assert len(expected) == 14  # all linear layers but the head
    chosen = set(sorted(expected, key=lambda name: expected[name][2])[:5])
    out, facts = edited(SafeLoRA(layers=5), of, tmp_path / "out")
    check(updates(out, of["aligned"]), expected, chosen)
    assert facts["tensors left as they were"] == 9
    before, after = weights(of["tuned"]), weights(out)
    assert all(torch.equal(after[name], before[name]) for name in before if name not in chosen)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(loaded[name], after[name]) for name in after)


def test_coarse_checkpoints_in_shards_and_the_adapter_loads(tmp_path):
    of = settled(tmp_path, lambda: tiny(torch.bfloat16), max_shard_size="20KB")
    assert len(list(of["aligned"].glob("model-*.safetensors"))) > 2
    expected = projections(of)
    chosen = set(sorted(expected, key=lambda name: expected[name][2])[:4])
    out, facts = edited(SafeLoRA(layers=4), of, tmp_path / "out")
    assert set(facts["chosen"]) == chosen
    before, after = weights(of["tuned"]), weights(out)
    assert {name: w.dtype for name, w in after.items()} == {
        name: w.dtype for name, w in before.items()
    }
    check(updates(out, of["aligned"]), expected, chosen, 2.0**-8)
    with adapters.literal_peft():
        adapter = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(of["aligned"], dtype="auto"), out
        )
    loaded = {
        name.replace(".default", ""): w
        for name, w in adapter.state_dict().items()
        if "lora_" in name
    }
    assert all(torch.equal(loaded[name], w.to(loaded[name].dtype)) for name, w in after.items())
    assert json.loads((out / "changes.json").read_text())[0].keys() == {
        "tensor",
        "entries",
        "changed",
        "norm of the change",
    }


def test_edits_chain(tmp_path):
    of = settled(tmp_path)
    first, _ = edited(SafeLoRA(layers=8), of, tmp_path / "first")
    second, facts = edited(
        registry.build("edits", "wise_ft"),
        of | {"tuned": first},
        tmp_path / "second",
        references=(),
    )
    expected = projections(of)
    check(
        updates(second, of["aligned"]),
        {name: (cdw / 2, cdw / 2, c) for name, (_, cdw, c) in expected.items()},
        set(expected),
    )
    assert facts["update norm after"] == pytest.approx(facts["update norm before"] / 2, rel=1e-12)


def test_what_does_not_belong_together_is_refused(tmp_path):
    of = settled(tmp_path)
    with pytest.raises(
        ValueError,
        match="layers=10: fine-tuning changed 8 weights; project as many at most, or set tau",
    ):
        edited(SafeLoRA(), of, tmp_path / "many")
    with pytest.raises(
        ValueError,
        match="no update has a part in what alignment changed: give as base the model that alignment started",
    ):
        edited(SafeLoRA(layers=1), of | {"base": of["aligned"]}, tmp_path / "same")
    wide = save(tiny(layers=1), tmp_path / "shallow")
    with pytest.raises(
        ValueError, match=r"it has no 'model.layers.1.self_attn.q_proj.weight' of shape \[32, 32\]"
    ):
        edited(
            SafeLoRA(layers=1, targets=("layers.1.self_attn.q_proj",)),
            of | {"base": wide},
            tmp_path / "missing",
        )
    other = save(FAMILIES["Phi3"]().double(), tmp_path / "phi")
    with pytest.raises(ValueError, match=r"the base is not the model that alignment started from"):
        edited(SafeLoRA(layers=1), of | {"base": other}, tmp_path / "family")
    with pytest.raises(ValueError, match="unknown target 'q_projj': did you mean 'q_proj'"):
        edited(SafeLoRA(layers=1, targets=("q_projj",)), of, tmp_path / "target")
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    older, newer = save(gpt, tmp_path / "gpt"), save(moved(gpt), tmp_path / "gpt-aligned")
    with pytest.raises(ValueError, match=r"has no linear layers but its head \(GPT2LMHeadModel\)"):
        edited(
            SafeLoRA(layers=1), {"base": older, "aligned": older, "tuned": newer}, tmp_path / "none"
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layers": None},
            "layers=None and tau=None: one of them chooses what is projected; make the other null",
        ),
        ({"tau": 0.3}, "layers=10 and tau=0.3: one of them"),
        ({"layers": 0}, "layers=0: project at least one"),
        (
            {"layers": None, "tau": 1.1},
            "tau=1.1: the cosine of an update and its projection lies between 0 and 1",
        ),
        ({"layers": None, "tau": -0.1}, "tau=-0.1"),
        (
            {"rank": 2},
            "rank=2: cuts the exact projector to at least 1; leave it out, or set projector to "
            "exact",
        ),
        ({"projector": "exact", "rank": 0}, "rank=0: cuts"),
    ],
)
def test_what_is_no_setting_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SafeLoRA(**fields)


def test_it_is_a_method_like_the_others():
    assert (SafeLoRA().layers, SafeLoRA().tau, SafeLoRA().projector, SafeLoRA().rank) == (
        10,
        None,
        "surrogate",
        None,
    )
    assert SafeLoRA(1, None, "exact", 1).rank == 1
    assert SafeLoRA(targets=("q_proj",)).needs.targets == ("q_proj",)
    assert (
        SafeLoRA().keeps_rank,
        SafeLoRA().needs.references,
        SafeLoRA().needs.rows,
        SafeLoRA().needs.whole,
    ) == (True, ("base",), None, False)
    built = registry.build(
        "edits", {"method": "safe_lora", "layers": None, "tau": 0.0, "targets": "q_proj"}
    )
    assert (
        built
        == SafeLoRA(None, 0.0, targets=("q_proj",))
        == registry.build("edits", registry.describe(built))
    )
    with pytest.raises(FrozenInstanceError):
        Agreement({}, {}).cosine = {"w": 1.0}
    assert {SafeLoRA(None, 1.0): 1}[
        replace(SafeLoRA(), layers=None, tau=1.0)
    ]  # frozen: the same one is the same key
