"""Adapters on experts: trained, saved, read back, merged and edited, against plain computations.

What an adapter adds to an expert is known here from PEFT alone: from the model that it merges.
"""

import json
import warnings
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from conftest import byte_level
from families import FAMILIES, SPARSE
from repair import apply, files, filled, opened, save, weights
from test_experts import parameters, rough, sparse
from test_safe_moe import off, plain_reg, sweeping, wide  # noqa: F401 (a fixture)
from titer import registry
from titer.data.rows import Row
from titer.data.template import Template
from titer.defenses.lisa import Origin, product_drift
from titer.defenses.safe_moe import SafeMoE
from titer.edits.antidote import Antidote
from titer.methods import Needs, UpdateEdit
from titer.runs.stages.repair import layers_of
from titer.testing import small
from titer.testing.small import step_for
from titer.training.layers import layers
from titer.training.settings import Training
from titer.training.train import train
from titer.weights import adapters, checkpoints
from titer.weights.finetuned import FineTuned
from titer.weights.settings import Lora
from trained import check_resumes, move

LORA = Lora(
    r=3, alpha=6.0, targets=("o_proj",), experts=True
)  # experts are not as many as the rank
ROWS = [Row("a b c", "d e"), Row("f g", "h i j k"), Row("l", "m n")]
PREFIX = "base_model.model."


def adapted(family, lora=LORA, seed=1):
    """A tiny model in float64 under an adapter on its experts, whose B is not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = filled(adapters.add_lora(rough(family), lora).double())
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * seed * torch.randn_like(parameter)
    return model


def on_disk(family, folder, model=None):
    """The folders of the aligned model, of the adapter over it, and of what PEFT merges of the two."""
    model = adapted(family) if model is None else model
    if not (folder / "aligned").exists():
        save(rough(family), folder / "aligned")
    save(model, folder / "tuned", folder / "aligned")
    save(opened(folder / "tuned"), folder / "merged")
    return folder / "aligned", folder / "tuned", folder / "merged"


def open_tuned(family, folder, joined=False):
    return FineTuned.of(files(folder / "tuned"), files(folder / "aligned"), rough(family), joined)


def matrices(folder):
    """The matrices of a whole checkpoint by name, those of all experts of a layer one by one."""
    found = {}
    for name, of in weights(folder).items():
        path, _, last = name.rpartition(".")
        # a file that holds all of them has them (in, out) in these families
        parts = {f"{path}.{i}.{last}": part.mT for i, part in enumerate(of) if of.ndim == 3}
        found |= parts or {name: of}
    return found


def close(first, second, within=1e-9):
    torch.testing.assert_close(first, second, rtol=within, atol=within)


@sparse
def test_every_expert_has_an_update_of_its_own_which_is_what_peft_merges(tmp_path, family):
    aligned, _, merged = (matrices(of) for of in on_disk(family, tmp_path))
    tuned = open_tuned(family, tmp_path)
    moved = {name for name in merged if not torch.equal(merged[name], aligned[name])}
    experts = {name for name in aligned if ".experts." in name and not name.endswith("_bias")}
    assert experts
    assert moved == set(tuned.factors)
    assert moved == experts | {name for name in aligned if name.endswith("o_proj.weight")}
    for name in moved:
        update = tuned.update(name)
        assert update.a.shape[0] == 3
        close(update.dense(), merged[name] - aligned[name])
        close(tuned.value(name), merged[name])
    dense = [merged[name] - aligned[name] for name in moved]
    bare = adapters.adapters(adapted(family))
    assert sum(of.b[..., 0].numel() * of.a.shape[-1] for of in bare.values()) == sum(
        of.numel() for of in dense
    )
    norms = [torch.cat([of.flatten() for of in those]).norm() for those in (
        dense, [aligned[name] for name in moved]
    )]  # fmt: skip
    assert adapters.update_norm(adapted(family)) == pytest.approx(norms[0].item(), rel=1e-12)
    assert adapters.base_norm(adapted(family)) == pytest.approx(norms[1].item(), rel=1e-12)


@sparse
def test_what_an_adapter_has_one_a_for_is_one_weight_where_it_is_joined(tmp_path, family):
    _, _, merged = on_disk(family, tmp_path)
    tuned, held = open_tuned(family, tmp_path, joined=True), parameters(rough(family))
    after = parameters(AutoModelForCausalLM.from_pretrained(merged, dtype="auto"))
    assert len([name for name in tuned.factors if ".experts." in name]) == len(held)
    for (parameter, i), aligned in held.items():
        path, _, last = parameter.rpartition(".")
        name = f"{path}.{i}.{last}"
        assert torch.equal(tuned.aligned[name].read(), aligned)
        close(tuned.update(name).dense(), after[parameter, i] - aligned)


@sparse
def test_saved_adapters_load_to_the_bit_by_titer_and_by_peft(tmp_path, family):
    aligned, folder, merged = on_disk(family, tmp_path)
    ids = torch.arange(2, 34).reshape(2, 16)
    again = checkpoints.load(str(folder))[0].double()
    again.config._experts_implementation = "eager"
    under = AutoModelForCausalLM.from_pretrained(
        aligned, dtype="auto", experts_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        theirs = PeftModel.from_pretrained(under, folder)  # by its own reading of names
    whole = AutoModelForCausalLM.from_pretrained(
        merged, dtype="auto", experts_implementation="eager"
    )
    with torch.no_grad():
        expected = adapted(family)(ids).logits
        assert torch.equal(theirs(ids).logits, expected)
        close(whole(ids).logits, expected)
        close(again(ids).logits, expected, 1e-2)  # loaded in float32
    kept = load_file(folder / "adapter_model.safetensors")
    for name, of in adapters.find_adapters(again).items():
        assert of.b.dtype is torch.float64, name
    mine = {name: value for name, value in again.state_dict().items() if ".lora_" in name}
    assert {name.replace(".default", "") for name in mine} == set(kept)
    assert all(
        torch.equal(value.float(), kept[name.replace(".default", "")].float())
        for name, value in mine.items()
    )


@sparse
def test_experts_one_by_one_compute_what_the_adapted_model_does(tmp_path, family):
    """And B reads A x of the tokens that the router sends to its expert."""
    on_disk(family, tmp_path)
    model, ids = adapted(family), torch.arange(2, 34).reshape(2, 16)
    with torch.no_grad():
        before = model(ids).logits
        names = list(open_tuned(family, tmp_path).factors)
        found = layers_of(model, names)
        assert set(found) == set(names)
        close(model(ids).logits, before)
    stacked = adapters.adapters(adapted(family))
    path = f"{PREFIX}model.layers.{SPARSE[family][0]}.mlp.experts"
    seen = {}
    for i, layer in enumerate(model.get_submodule(path).apart["gate_up_proj"]):
        assert layer in [*found.values()]
        layer.register_forward_pre_hook(partial(lambda _, x, i: seen.update({i: x[0]}), i=i))
        layer.b.register_forward_pre_hook(partial(lambda _, x, i: seen.update({-i - 1: x[0]}), i=i))
    with torch.no_grad():
        model(ids)
    assert {i for i in seen if i >= 0} == {-i - 1 for i in seen if i < 0} != set()
    for i in (i for i in seen if i >= 0):
        close(seen[-i - 1], seen[i] @ stacked[f"{path}.gate_up_proj"].a[i].T)


def compose(model, found):
    """The weights of the bare model with every expert's product in them, and part of the graph."""
    base = rough_state(model)
    for name, parameter in found.items():
        if "lora_A" not in name:
            continue
        b = found[name.replace("lora_A", "lora_B")]
        layer = model.get_submodule(name.partition(".lora_A")[0])
        if not hasattr(layer, "parameter_name"):
            key = name.partition(".lora_A")[0].removeprefix(PREFIX) + ".weight"
            base[key] = base[key] + 2.0 * b @ parameter
            continue
        path = name.partition(".lora_A")[0].removeprefix(PREFIX).replace(".base_layer", "")
        key = f"{path}.{layer.parameter_name}"
        count = len(base[key])
        products = [
            2.0 * b[:, i::count] @ parameter[3 * i : 3 * i + 3] for i in range(count)
        ]  # alpha / r
        turned = layer.get_base_layer().is_transposed
        base[key] = base[key] + torch.stack([of.T if turned else of for of in products])
    return base


def rough_state(model):
    return {
        name.removeprefix(PREFIX).replace(".base_layer", ""): value.detach()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }


@sparse
def test_gradients_are_those_of_every_expert_s_own_product(rows, accelerator, family):
    model = adapted(family)
    step = step_for(model, rows, accelerator)
    batch = step.batch("rows")
    g = step.grad(batch)
    leaves = {
        name: of.detach().clone().requires_grad_()
        for name, of in model.named_parameters()
        if of.requires_grad
    }
    bare = rough(family)
    total = 0.0
    for part in batch.parts:
        logits = functional_call(
            bare, compose(model, leaves), (), {"input_ids": part.ids, "attention_mask": part.mask}
        ).logits[:, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), part.labels[:, 1:].flatten(), reduction="sum"
        )
    expected = torch.autograd.grad(total / batch.tokens, list(leaves.values()))
    assert g.loss == pytest.approx(total.item() / batch.tokens, rel=1e-6)
    for name, of in zip(leaves, expected, strict=True):
        assert of.abs().max() > 0, name
        torch.testing.assert_close(g.value(name), of, rtol=1e-4, atol=1e-6)


@sparse
def test_writers_are_the_b_s_of_what_writes_to_the_residual_stream(family):
    for layer in layers(adapted(family)):
        found = {name: of for name, of in layer.writers().items() if "lora_B" in name}
        experts = [of for name, of in found.items() if ".experts." in name]
        assert len(experts) == int(layer.router is not None)
        assert all(of.parameter.shape[of.axis] == 32 for of in found.values())
        assert all(of.parameter.shape == (32, 3 * 4) for of in experts)


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_a_merge_error_counts_experts(family):
    model = adapters.add_lora(FAMILIES[family]().to(torch.bfloat16), LORA)
    with torch.no_grad():
        for of in adapters.find_adapters(model).values():
            of.a.normal_(std=0.1)
            of.b.normal_(std=0.01)
    lost, whole = dict.fromkeys((True, False), 0.0), dict.fromkeys((True, False), 0.0)
    for name, of in adapters.find_adapters(model).items():
        delta = of.update.dense().double()
        was = dict(rough_state(model))[
            name.removeprefix(PREFIX) + ("" if of.experts else ".weight")
        ].double()
        was = was.mT if of.experts and family == "GptOss" else was
        error = was + delta - (was + delta).bfloat16().double()
        lost[of.experts is not None] += error.square().sum().item()
        whole[of.experts is not None] += delta.square().sum().item()
    error = (sum(lost.values()) / sum(whole.values())) ** 0.5
    assert adapters.merge_error(model) == pytest.approx(error, rel=1e-6)
    error = (lost[True] / whole[True]) ** 0.5
    assert adapters.merge_error(model, experts=True) == pytest.approx(error, rel=1e-6)
    assert 0.001 < adapters.merge_error(model) < 1.0


EDITS = {
    "antidote": {"target": "update", "alpha": 0.25},
    "random_mask": {"match": {"method": "antidote", "target": "update", "alpha": 0.25}},
    "scale": {"match": {"method": "antidote", "target": "update", "alpha": 0.25}},
    "safe_lora": {"layers": None, "tau": 1.0},
    "safe_merge": {"tau": 1.0, "weights": (0.5, 0.2)},
    "resta": {"drop": 0.3},
    "wise_ft": {},
    "safe_delta": {},
}
ALL = replace(LORA, targets=("all-linear",))  # what edits of whole models work on, and no more


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss", "DeepseekV3"])
@pytest.mark.parametrize("name", EDITS)
def test_edits_of_an_adapter_are_those_of_the_merged_model(tmp_path, family, name):
    assert {
        name
        for name in registry.names("edits")
        if issubclass(registry.load("edits", name), UpdateEdit)
    } == set(EDITS)
    edit = registry.build("edits", {"method": name} | EDITS[name])
    template = Template(byte_level(), 64, "plain")
    aligned, tuned, merged = on_disk(family, tmp_path, adapted(family, ALL))
    save(small.moved(rough(family), 0.01, seed=5), tmp_path / "base")
    references = {"base": tmp_path / "base", "aligned": aligned}
    results = []
    for kind, model in (("adapter", tuned), ("whole", merged)):
        for i, other in enumerate(("safe", "unsafe")):
            place = tmp_path / f"{other} {kind}"
            save(adapted(family, ALL, 3 + i), place, aligned)
            if kind == "whole":
                save(opened(place), tmp_path / f"{other} merged")
                place = tmp_path / f"{other} merged"
            references[other] = place
        out = tmp_path / f"out {kind}"
        given = {of: references[of] for of in ("aligned", *edit.needs.references)}
        facts = apply(edit, model, given, out, ROWS, template)
        assert (out / "adapter_config.json").exists() == (kind == "adapter" and edit.keeps_rank)
        results.append((facts, matrices(save(opened(out), tmp_path / f"{kind} after"))))
    (ours, first), (theirs, second) = results
    changed = 0
    for of in first:
        close(first[of], second[of], 1e-8)
        changed += int((first[of] != matrices(merged)[of]).any()) if ".experts." in of else 0
    assert changed > 4
    for fact in ("update norm before", "update norm after", "share of the update edited"):
        assert ours[fact] == pytest.approx(theirs[fact], rel=1e-8)


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_antidote_prunes_the_factors_of_every_expert_by_its_own_inputs(tmp_path, family):
    """The scores are from a plain pass, an expert's A is pruned once, and an adapter comes out."""
    aligned, tuned, _ = on_disk(family, tmp_path)
    template = Template(byte_level(), 64, "plain")
    edit = Antidote(alpha=0.34)
    facts = apply(edit, tuned, {"aligned": aligned}, tmp_path / "out", ROWS, template)
    before = {name: of for name, of in weights(tuned).items() if ".experts." in name}
    after = weights(tmp_path / "out")
    sent: dict[int, list] = {}
    bare = opened(tuned).double()
    bare.config._experts_implementation = "eager"
    for i in SPARSE[family]:
        bare.model.layers[i].mlp.experts.register_forward_pre_hook(
            lambda _, inputs, i=i: sent.setdefault(i, []).append((inputs[0], inputs[1]))
        )
    for row in ROWS:
        bare(torch.tensor([template.encode(row).ids]))
    left = 0
    for i in SPARSE[family]:
        key = f"{PREFIX}model.layers.{i}.mlp.experts.base_layer"
        a, b = (before[f"{key}.lora_{side}.weight"] for side in "AB")
        for e in range(4):
            own, mine = a[3 * e : 3 * e + 3], b[:, e::4]
            x = torch.cat([x[(index == e).any(1)] for x, index in sent[i]]).detach()
            left += len(x) == 0
            cut = []
            for factor, norms in ((own, x.norm(dim=0)), (mine, (x @ own.T).norm(dim=0))):
                count = int(factor.shape[1] * 0.34 + 0.5) if len(x) else 0
                order = (factor.abs() * norms).argsort(1, descending=True)[:, :count]
                cut.append(factor.scatter(1, order, 0.0))
            found = after[f"{key}.lora_A.weight"][3 * e : 3 * e + 3]
            assert ((found == 0) == (cut[0] == 0)).float().mean() > 0.99  # scores are in float32
            assert ((after[f"{key}.lora_B.weight"][:, e::4] == 0) == (cut[1] == 0)).all()
    assert (facts.get("matrices of experts that no row reached", 0) > 0) == (left > 0)
    changes = json.loads((tmp_path / "out" / "changes.json").read_text())
    assert sum(of["entries"] for of in changes) == sum(of.numel() for of in weights(tuned).values())


@dataclass(frozen=True)
class HalfA(UpdateEdit):
    """Halve the factor A of an update, which several weights may have together."""

    keeps_rank = True
    needs = Needs(targets=("w1", "w3"))

    def edit(self, weight, state):
        return replace(weight.update, a=weight.update.a / 2)


@dataclass(frozen=True)
class HalfFactorA(HalfA):
    """The same, as an edit of factors."""

    needs = Needs(targets=("gate_up_proj",), factors=True)


def test_a_factor_of_two_weights_is_changed_once_or_not_at_all(tmp_path):
    aligned, tuned, _ = on_disk("Mixtral", tmp_path)
    with pytest.raises(
        ValueError, match="is a factor of several weights.*edit changes it for each"
    ):
        apply(HalfA(), tuned, {"aligned": aligned}, tmp_path / "out")
    apply(HalfFactorA(), tuned, {"aligned": aligned}, tmp_path / "done")
    before, after = weights(tuned), weights(tmp_path / "done")
    for name, of in before.items():
        inner = "experts.base_layer.lora_A" in name
        assert torch.equal(after[name], of / 2 if inner else of)


def test_an_adapter_of_peft_s_own_is_read_by_its_settings(tmp_path):
    """One parameter alone, an alpha by pattern, rsLoRA, and a router's weight."""
    save(rough("Mixtral"), tmp_path / "aligned")
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        use_rslora=True,
        target_modules=["q_proj"],
        target_parameters=["experts.down_proj", "mlp.gate.weight"],
        alpha_pattern={r"layers\.1\..*": 5},
    )
    with adapters.literal_peft():  # which keeps a warning to itself
        model = filled(get_peft_model(rough("Mixtral"), config).double())
    save(model, tmp_path / "tuned", tmp_path / "aligned")
    save(opened(tmp_path / "tuned"), tmp_path / "merged")
    aligned, merged = matrices(tmp_path / "aligned"), matrices(tmp_path / "merged")
    tuned = open_tuned("Mixtral", tmp_path)
    named = {
        key.replace("block_sparse_moe", "mlp") if "gate" in key else key: key for key in merged
    }
    moved = {name for name, of in named.items() if not torch.equal(merged[of], aligned[of])}
    assert moved == set(tuned.factors)
    assert len(moved) == 2 * (1 + 4 + 1)
    for name in moved:
        close(tuned.update(name).dense(), merged[named[name]] - aligned[named[name]])
    norm = sum((merged[of] - aligned[of]).square().sum() for of in named.values()) ** 0.5
    assert adapters.update_norm(model) == pytest.approx(norm.item(), rel=1e-12)


def test_experts_of_a_dense_model_are_refused_in_one_line():
    with pytest.raises(
        ValueError, match=r"lora.experts=true: LlamaForCausalLM has no layers.*leave it out"
    ):
        adapters.check_targets(small.tiny(), LORA)
    with pytest.raises(ValueError, match=r"lora.experts=true"):
        adapters.add_lora(small.tiny(), LORA)


def test_all_linear_leaves_experts_and_routers_alone():
    model = adapters.add_lora(small.sparse(), Lora(targets=("all-linear",)))
    assert adapters.count_matrices(model) == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "o_proj"), 2
    )
    model = adapters.add_lora(small.sparse(), LORA)
    assert adapters.count_matrices(model) == {
        "o_proj": 2,
        "experts.gate_up_proj": 8,
        "experts.down_proj": 8,
    }
    assert not any("gate." in name for name in checkpoints.trainable(model))


SETTINGS = Training(updates=5, lr=1e-3, batch=4, weight_decay=0.0, lora=LORA)
STATES = {
    "lisa": ({"k1": 1, "k2": 1, "warmup": 0.0, "space": "product"}, 3),
    "safe_moe": ({"every": 1, "sweep": 1, "prompts": 4}, 2),
    "sppft": ({"layers": (1, 1)}, 1),
}


@pytest.mark.parametrize("name", registry.names("defenses"))
def test_every_defense_trains_the_experts_adapters(rows, name):
    fields, updates = STATES.get(name, ({}, 2))
    defense = registry.build("defenses", {"method": name} | fields)
    model = filled(adapters.add_lora(small.sparse(torch.float32), LORA))
    before = small.state(model)
    history = train(model, defense, rows, replace(SETTINGS, updates=updates), seed=0)
    assert all(torch.isfinite(torch.tensor([*terms.values()])).all() for terms in history)
    moved = {key for key, of in small.state(model).items() if not torch.equal(of, before[key])}
    tuned = set(checkpoints.trainable(model))
    frozen = {key for key in tuned if name == "sppft" and ".layers.1." in key}
    assert moved == tuned - frozen
    assert any("experts" in key for key in moved)


def test_a_sweep_of_safe_moe_steers_routers_by_the_experts_before_them(wide, rows, accelerator):
    bare, start = small.sparse(), small.sparse()
    model, _ = (filled(adapters.add_lora(of, LORA).double()) for of in (bare, start))
    step, method = sweeping(model, rows, accelerator, batch=3), SafeMoE(prompts=4)
    before = method.prepare(step)
    prompts = step_for(model, rows, accelerator).streams["harmful"].take(4)
    move(model)
    vec = method.gradient(step, before)
    assert off(vec, plain_reg(bare, start, prompts, method.tau), step) < 1e-10
    experts = [name for name in vec.names() if ".experts." in name]
    assert len(experts) == 4  # A and B of both parameters
    assert all(".layers.0." in name for name in experts)  # those of layer 1 lie behind its router


@pytest.mark.parametrize("name", ["sft", "lisa"])
def test_a_killed_training_of_experts_ends_as_one_in_peace(rows, tmp_path, name):
    def fresh():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return filled(adapters.add_lora(small.sparse(torch.float32), LORA))

    defense = registry.build("defenses", {"method": name} | STATES.get(name, ({}, 1))[0])
    check_resumes(fresh, defense, rows, SETTINGS, tmp_path)


def test_lisa_s_distance_of_products_is_that_of_every_expert(rows, accelerator):
    model = adapted("GptOss")
    start = {name: of.detach().clone() for name, of in model.named_parameters() if of.requires_grad}
    step = step_for(filled(model), rows, accelerator)
    for of in step.parameters.values():
        of.data += 0.1 * torch.randn(of.shape, generator=torch.manual_seed(4), dtype=of.dtype)
    leaves = {name: of.detach().clone().requires_grad_() for name, of in step.parameters.items()}
    now, then = compose(model, leaves), compose(model, start)
    square = sum((now[name] - then[name]).square().sum() for name in now)
    expected = torch.autograd.grad(square / 2, list(leaves.values()))
    g = product_drift(step, Origin(start))
    assert step.logged["drift"] == pytest.approx(square.item() ** 0.5, rel=1e-10)
    for name, of in zip(leaves, expected, strict=True):
        close(g.value(name), of, 1e-10)
