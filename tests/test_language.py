"""Models that read pictures too: their language layers alone are trained, adapted and edited."""

import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from conftest import byte_level
from families import WRAPPERS
from repair import apply, files, moved, weights
from titer import registry
from titer.data.rows import Row
from titer.data.template import Template
from titer.edits.antidote import Antidote
from titer.edits.lox import LoX
from titer.edits.scale import Scale
from titer.runs.stages.train import widen
from titer.training.settings import Training
from titer.training.train import train
from titer.weights import adapters, checkpoints, language, rewrite
from titer.weights.settings import ALL_LINEAR, Checkpoint, Lora

wrappers = pytest.mark.parametrize("family", WRAPPERS)
EYES = ("vision", "visual", "projector", "merger")
ROWS = [Row("a b c", "d e"), Row("f g", "h i j k"), Row("l", "m n")]


def sees(name: str) -> bool:
    return any(eye in name for eye in EYES)


def saved(family, folder, model=None):
    """A checkpoint with its tokenizer."""
    words = byte_level()
    checkpoints.save(model or WRAPPERS[family](vocabulary=len(words)), words, folder)
    return folder


@wrappers
def test_towers_are_what_text_never_reaches(family):
    """No gradient of a text's loss gets there, and one gets to everything else."""
    model = WRAPPERS[family]()
    beside = language.towers(model)
    assert {name for name, _ in model.named_parameters() if sees(name)} == set(beside)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in beside), name


@wrappers
@pytest.mark.parametrize("targets", [(ALL_LINEAR,), ("q_proj", "down_proj")])
def test_an_adapter_is_on_language_layers_alone_and_is_read_back(tmp_path, family, targets):
    place = saved(family, tmp_path / "model")
    model, words = checkpoints.load(str(place))
    model = adapters.add_lora(model, Lora(r=2, alpha=4.0, targets=targets))
    adapted = list(adapters.adapters(model))
    assert adapted
    assert not any(sees(name) for name in adapted)
    if targets == (ALL_LINEAR,):
        linear = [
            name
            for name, layer in model.get_base_model().named_modules()
            if isinstance(layer, nn.Linear) and "lora" not in name and not sees(name)
        ]
        assert len(adapted) == len([name for name in linear if "lm_head" not in name])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    base = files(place)
    checkpoints.save(model, words, tmp_path / "adapter", base)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        again, _ = checkpoints.load(str(tmp_path / "adapter"))
        torch.testing.assert_close(again(input_ids=ids, attention_mask=mask).logits, expected)
        plain, _ = checkpoints.load(str(place))
        with adapters.literal_peft():
            theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
        torch.testing.assert_close(theirs(input_ids=ids, attention_mask=mask).logits, expected)


@wrappers
def test_training_of_all_weights_leaves_the_towers_alone(tmp_path, family):
    model, words = checkpoints.load(str(saved(family, tmp_path / "model")))
    assert widen(model) is None
    before = {name: of.detach().clone() for name, of in model.named_parameters()}
    template = Template(words, 64, "plain")
    rows = {"rows": template.encode_all(ROWS, "rows")}
    train(model, registry.build("defenses", "sft"), rows, Training(updates=2, lr=1e-2, batch=2), 0)
    for name, of in model.named_parameters():
        assert torch.equal(of, before[name]) == sees(name), name


@wrappers
def test_edits_of_a_whole_model_work_on_its_language_layers_by_their_own_inputs(tmp_path, family):
    aligned = saved(family, tmp_path / "aligned")
    whole, _ = checkpoints.load(str(aligned))
    saved(family, tmp_path / "tuned", moved(whole, but=tuple(language.towers(whole))))
    template = Template(byte_level(), 64, "plain")
    under = {"aligned": aligned}
    edit = Antidote(target="update", alpha=0.25)
    facts = apply(edit, tmp_path / "tuned", under, tmp_path / "out", ROWS, template)
    before, after = weights(tmp_path / "tuned"), weights(tmp_path / "out")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert not any(sees(name) for name in changed)
    assert facts["share of the update edited"] > 0.2
    assert all(name.endswith("_proj.weight") for name in changed)
    assert len(changed) == 2 * 7  # of both layers q, k, v, o, gate, up and down
    scaled = apply(Scale(edit), tmp_path / "tuned", under, tmp_path / "scaled", ROWS, template)
    assert scaled["update norm after"] == pytest.approx(facts["update norm after"], rel=1e-6)


@wrappers
def test_lox_leaves_the_towers_alone(tmp_path, family):
    base = saved(family, tmp_path / "base")
    model, _ = checkpoints.load(str(base))
    beside = language.towers(model)
    aligned = saved(family, tmp_path / "aligned", moved(model))
    place = tmp_path / "out"
    place.mkdir()
    unread = language.unread(rewrite.open_tensors(files(aligned)), model)
    assert len(unread) == len(beside)
    rewrite.rewrite_tensors(LoX(k=2), files(aligned), files(base), place, lambda *_: None, unread)
    before, after = weights(aligned), weights(place)
    for name in before:
        kept = sees(name) or before[name].ndim < 2
        assert torch.equal(before[name], after[name]) == kept, name


def test_positions_of_pictures_are_no_limit_of_a_prompt(tmp_path):
    model, _ = checkpoints.load(str(saved("Gemma3", tmp_path / "model")))
    assert checkpoints.learned_positions(model) is None


def test_a_configuration_with_more_layers_than_tensors_is_refused_at_once(tmp_path):
    place = saved("Llava", tmp_path / "model")
    config = json.loads((place / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**12
    (place / "config.json").write_text(json.dumps(config))
    wrong = r"num_hidden_layers=1000000000000, and its files hold \d+ tensors in all"
    for way in (checkpoints.load, lambda of: checkpoints.skeleton(Checkpoint(of))):
        with pytest.raises(ValueError, match=wrong):
            way(str(place))
