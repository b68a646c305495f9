"""A fine-tuned model beside its aligned one on disk: updates and values are PEFT's, and what is
something else is refused.
"""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from conftest import tiny
from families import FAMILIES
from repair import files, moved, on_disk, opened, save, tuned, weights
from test_step import state
from titer.weights import adapters
from titer.weights.finetuned import FineTuned, Weight, find_unadded
from titer.weights.settings import Lora
from titer.weights.targets import select
from titer.weights.tensors import open_tensors

QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


def peft(config, dtype=torch.float64, model=None):
    """A model under an adapter of PEFT's own, all of whose parameters were trained."""
    with adapters.literal_peft():
        model = get_peft_model(tiny(dtype) if model is None else model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


PATTERNS = {
    "one rank": {},
    "rank of a name": {"rank_pattern": {"q_proj": 2}},
    "rank of a layer": {"rank_pattern": {"layers.1.mlp.down_proj": 6, "q_proj": 3}},
    "alpha of a name": {"alpha_pattern": {"down_proj": 3}},
    "both": {
        "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 32},
        "alpha_pattern": {"^model.layers.0.*q_proj": 5},
    },
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_values_are_what_peft_merges(tmp_path, pattern, rslora):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "down_proj"],
        use_rslora=rslora,
        **PATTERNS[pattern],
    )
    found = on_disk(peft(config), tmp_path)
    merged, aligned = state(opened(found.files.folder)), weights(found.started.folder)
    assert set(found.factors) == {
        name for name in aligned if name.endswith(("q_proj.weight", "down_proj.weight"))
    }
    for name in found.factors:
        weight = Weight(name, found, {})
        torch.testing.assert_close(weight.finetuned, merged[name], rtol=0, atol=1e-14)
        torch.testing.assert_close(
            weight.update.dense(), merged[name] - aligned[name], rtol=0, atol=1e-13
        )
        assert torch.equal(weight.aligned, aligned[name])
        assert weight.shape == merged[name].shape == found.factors[name].shape
        assert not torch.equal(merged[name], aligned[name])


def test_of_a_whole_model_the_update_is_the_difference(tmp_path):
    found = on_disk(moved(tiny()), tmp_path)
    after, aligned = weights(found.files.folder), weights(found.started.folder)
    for name in aligned:
        assert torch.equal(found.value(name), after[name])
        assert torch.equal(found.update(name).dense(), after[name] - aligned[name])
        assert found.update(name).a is None
    assert not found.factors


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_what_is_read_is_computed_in_twice_the_width(tmp_path, dtype, wide):
    for model in (tuned(dtype), moved(tiny(dtype))):
        found = on_disk(model, tmp_path)
        weight = Weight(QUERY, found, {})
        assert {
            of.dtype
            for of in (weight.aligned, weight.finetuned, weight.update.b, weight.update.dense())
        } == {wide}


def test_tensors_that_an_adapter_holds_whole_are_its_values(tmp_path):
    aligned = FAMILIES["Llama"]()
    model = peft(
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        model=FAMILIES["Llama"](),
    )
    found = on_disk(model, tmp_path, aligned)
    assert set(found.whole) == {"lm_head.weight"}
    merged = state(opened(found.files.folder))
    assert torch.equal(found.value("lm_head.weight").float(), merged["lm_head.weight"])
    assert not torch.equal(merged["lm_head.weight"], state(aligned)["lm_head.weight"])
    assert "lm_head.weight" not in select(found.factors, ("all",))


def spelled(folder, **fields):
    """Change settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


Q = {"r": 2, "target_modules": ["q_proj"]}
OTHERS = {
    "DoRA": (LoraConfig(**Q, use_dora=True), "it has use_dora=True"),
    "biases": (LoraConfig(**Q, bias="all"), "it has bias='all'"),
    "bias of B": (LoraConfig(**Q, lora_bias=True), "it has lora_bias=True"),
    "embedding": (
        LoraConfig(r=2, target_modules=["embed_tokens"]),
        "it has 'base_model.model.model.embed_tokens.lora_embedding_A'",
    ),
    "tokens": (
        LoraConfig(**Q, trainable_token_indices=[1, 2]),
        r"it has trainable_token_indices=\[1, 2\]",
    ),
    "PiSSA": (LoraConfig(**Q, init_lora_weights="pissa"), "it has init_lora_weights='pissa'"),
    "OLoRA": (LoraConfig(**Q, init_lora_weights="olora"), "it has init_lora_weights='olora'"),
    "no LoRA": (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "but IA3: train one"),
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # that a bias of B is saved
@pytest.mark.parametrize("kind", OTHERS)
def test_an_adapter_that_is_more_is_refused_in_one_line(tmp_path, kind):
    config, message = OTHERS[kind]
    model = peft(config, model=FAMILIES["Llama"]())
    with pytest.raises(
        ValueError,
        match=rf"adapter '.*' is not W \+ \(alpha / r\) B A of linear layers and experts alone.*{message}",
    ):
        on_disk(model, tmp_path, FAMILIES["Llama"]())


def test_transposed_layers_are_refused(tmp_path):
    save(tiny(torch.float32), tmp_path / "aligned")
    save(tuned(torch.float32), tmp_path / "tuned", tmp_path / "aligned")
    spelled(tmp_path / "tuned", fan_in_fan_out=True)
    with pytest.raises(ValueError, match="it has fan_in_fan_out=True; train one that is"):
        FineTuned.of(files(tmp_path / "tuned"), None)


def test_an_adapter_of_a_kind_that_is_not_known_is_one_line(tmp_path):
    save(tiny(torch.float32), tmp_path / "aligned")
    save(tuned(torch.float32), tmp_path / "tuned", tmp_path / "aligned")
    spelled(tmp_path / "tuned", peft_type="NEXT")
    for read in (lambda of: FineTuned.of(of, None), find_unadded):
        with pytest.raises(ValueError, match=r"adapter '.*tuned': its adapter_config.json .*NEXT"):
            read(files(tmp_path / "tuned"))


def test_a_model_that_was_not_fine_tuned_from_the_aligned_one_is_refused(tmp_path):
    save(tiny(), tmp_path / "aligned")
    save(tuned(), tmp_path / "adapter", tmp_path / "aligned")
    save(moved(tiny()), tmp_path / "whole")
    for other, message in (
        (tiny(vocabulary=300), "whose 'model.embed_tokens.weight' is 300 x 32, not 400 x 32"),
        (tiny(layers=1), "which has no 'model.layers.1"),
    ):
        start = files(save(other, tmp_path / f"other-{len(list(tmp_path.iterdir()))}"))
        with pytest.raises(
            ValueError, match=f"model '.*whole' was not fine-tuned from '.*other.*', {message}"
        ):
            FineTuned.of(files(tmp_path / "whole"), start)
        with pytest.raises(
            ValueError,
            match="adapter '.*adapter' was not fine-tuned from '.*other.*', whose weights are others",
        ):
            FineTuned.of(files(tmp_path / "adapter"), start)
    (tmp_path / "adapter/titer.json").unlink()  # it does not say over which weights
    with pytest.raises(ValueError, match="which has no 'model.layers.1"):
        FineTuned.of(files(tmp_path / "adapter"), start)
    with pytest.raises(
        ValueError, match="'.*whole' is no adapter, so it does not name the aligned model"
    ):
        FineTuned.of(files(tmp_path / "whole"), None)


def test_other_models_are_read_beside_it(tmp_path):
    base = save(moved(tiny(torch.float32), seed=5), tmp_path / "base")
    found = on_disk(tuned(torch.bfloat16), tmp_path)
    start = found.started.folder
    safe = FineTuned.of(
        files(save(moved(tiny(torch.bfloat16), seed=6), tmp_path / "safe")), files(start)
    )
    narrow = adapters.add_lora(tiny(torch.bfloat16), Lora(r=2, targets=("q_proj",)))
    unsafe = FineTuned.of(files(save(narrow, tmp_path / "unsafe", start)), None)
    weight = Weight(
        QUERY, found, {"base": open_tensors(files(base)), "safe": safe, "unsafe": unsafe}
    )
    assert torch.equal(
        weight.base, weights(base)[QUERY].bfloat16().float()
    )  # rounded as alignment began
    assert torch.equal(
        weight.update_of("safe").dense(),
        (weights(tmp_path / "safe")[QUERY].float() - weights(start)[QUERY].float()),
    )
    assert weight.update_of("unsafe").norm() == 0.0
    with pytest.raises(
        ValueError,
        match=f"the adapter '.*unsafe' has no factors for '{DOWN}': train one on the same layers",
    ):
        Weight(DOWN, found, weight.references).update_of("unsafe")
    lacking = {name: of for name, of in open_tensors(files(base)).items() if name != QUERY}
    for wrong in (
        lacking,
        open_tensors(files(save(tiny(torch.float32, vocabulary=300), tmp_path / "small")))
        | lacking
        | {QUERY: lacking[DOWN]},
    ):
        with pytest.raises(
            ValueError,
            match=r"the base is not the model that alignment started from: "
            rf"it has no '{QUERY}' of shape \[32, 32\]",
        ):
            _ = Weight(QUERY, found, {"base": wrong}).base


def test_layers_are_chosen_by_the_end_of_their_names():
    names = [QUERY, DOWN, "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"]
    assert select(names, ("all",)) == names
    assert select(names, ("q_proj",)) == [QUERY, names[2]]
    assert select(names, ("lm_head", "layers.1.self_attn.q_proj")) == [names[2], "lm_head.weight"]
    assert select(names, ("q_proj", "all")) == names
    for targets, message in (
        (("proj",), "unknown target 'proj'"),
        (("q_prj",), "did you mean 'q_proj'"),
        ((), "targets is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            select(names, targets)
