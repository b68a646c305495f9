"""Every model family: roles, recomputation, generation, and one update by every method."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CohereConfig, GraniteConfig, LlamaConfig, PhiConfig, PreTrainedModel

from families import COMMON, FAMILIES, SPARSE, build
from repair import apply, moved, weights
from test_step import state
from titer import registry
from titer.data.batches import IGNORED, collate
from titer.data.rows import Row
from titer.lab.world import World
from titer.methods import Retraining, UpdateEdit
from titer.scoring.generate import answer
from titer.training.layers import decoder_layers, head, layers, recompute_layers
from titer.training.losses import answer_logits, answer_states, cross_entropy
from titer.training.settings import Training
from titer.training.train import train
from titer.weights import adapters, checkpoints, folders
from titer.weights.settings import Checkpoint, Lora

ALL_LINEAR = Lora(r=2, alpha=4.0, targets=("all-linear",))
POST_NORM = ("Gemma2", "Gemma3", "Olmo2")  # a norm between the writers and the residual stream

families = pytest.mark.parametrize("family", FAMILIES)


def adapted(model):
    """Under an adapter on every linear layer whose B is not zero, so that A has a gradient too."""
    model = adapters.add_lora(model, ALL_LINEAR)
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.b.normal_(std=0.1)
    return model


def part_of(encoded):
    return collate(encoded[:3] + encoded[-3:], 0)


def residual(model):
    """Watch what goes into and comes out of every layer: [(before, after)], each (B, T, D)."""
    seen = []
    handles = [
        layer.register_forward_hook(lambda _, x, out: seen.append((x[0], out)))
        for layer in decoder_layers(model)
    ]
    with torch.no_grad():
        model(torch.arange(2, 34).reshape(2, 16))
    for handle in handles:
        handle.remove()
    return seen


def residual_of(model, part):
    """The residual stream after the last layer, of a micro-batch: (B, T, D)."""
    seen = []
    handle = decoder_layers(model)[-1].register_forward_hook(lambda _, x, out: seen.append(out))
    model(input_ids=part.ids, attention_mask=part.mask)
    handle.remove()
    return seen[0]


def unchanged(model):
    return all(torch.equal(before, after) for before, after in residual(model))


@families
@pytest.mark.parametrize("lora", [False, True])
def test_what_writes_to_the_residual_stream_is_found_exactly(family, lora):
    model = adapted(FAMILIES[family]()) if lora else FAMILIES[family]()
    writers = {name: writer for layer in layers(model) for name, writer in layer.writers().items()}
    named = dict(model.named_parameters())
    assert all(named[name] is writer.parameter for name, writer in writers.items())
    saved = {
        name: torch.randn_like(writer.parameter) for name, writer in writers.items()
    }  # some biases are born 0
    with torch.no_grad():
        for name in writers:
            writers[name].parameter.zero_()
        assert unchanged(model)  # none is missing
        for name in writers:
            if "lora_B" in name:
                continue  # writes where its base does
            writers[name].parameter.copy_(saved[name])
            assert not unchanged(model), name  # none is there without need
            writers[name].parameter.zero_()


@families
@pytest.mark.parametrize("lora", [False, True])
def test_the_axis_of_a_writer_faces_the_residual_stream(family, lora):
    model = adapted(FAMILIES[family]()) if lora else FAMILIES[family]()
    writers = [writer for layer in layers(model) for writer in layer.writers().values()]
    assert all(
        writer.parameter.shape[writer.axis] == model.config.hidden_size for writer in writers
    )
    if family in POST_NORM:
        return
    u = nn.functional.normalize(torch.randn(model.config.hidden_size), dim=0)
    with torch.no_grad():
        for writer in writers:
            facing = writer.parameter.movedim(writer.axis, -1)
            facing.sub_((facing @ u)[..., None] * u)
    for before, after in residual(model):
        assert ((after - before) @ u).abs().max() < 1e-5 < (after - before).norm(dim=-1).min()


@families
def test_the_parts_are_as_the_config_says(family):
    model = FAMILIES[family]()
    found = layers(model)
    assert [layer.module for layer in found] == decoder_layers(model)
    assert len(found) == model.config.num_hidden_layers
    assert [model.get_submodule(layer.name) for layer in found] == decoder_layers(model)
    assert tuple(i for i, layer in enumerate(found) if layer.router is not None) == SPARSE.get(
        family, ()
    )
    seen = {}
    for i, layer in enumerate(found):
        for role, module in (
            ("attention", layer.attention),
            ("mlp", layer.mlp[-1]),
            ("router", layer.router),
        ):
            if module is not None:
                module.register_forward_hook(
                    lambda _, x, out, key=(i, role): seen.__setitem__(key, out)
                )
    with torch.no_grad():
        model(torch.arange(2, 32).reshape(3, 10))
    for i, layer in enumerate(found):
        mlp = seen[i, "mlp"][0] if isinstance(seen[i, "mlp"], tuple) else seen[i, "mlp"]
        assert seen[i, "attention"][0].shape == (3, 10, model.config.hidden_size)
        assert mlp.shape == (
            (30, model.config.hidden_size) if family == "OPT" else (3, 10, model.config.hidden_size)
        )
        assert layer.router is None or [tuple(out.shape) for out in seen[i, "router"]] == [
            (30, 4),
            (30, 2),
            (30, 2),
        ]


class Layerless(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(config.num_hidden_layers))


def test_a_model_whose_layers_are_not_found_is_refused_by_name():
    with pytest.raises(ValueError, match="Layerless: found 0 of its 2 decoder layers"):
        decoder_layers(Layerless(LlamaConfig(num_hidden_layers=2)))
    with pytest.raises(ValueError, match="Linear is no model of transformers"):
        layers(nn.Linear(2, 2))
    model = FAMILIES["Llama"]()
    del model.model.layers[0]
    with (
        pytest.raises(ValueError, match="LlamaForCausalLM: found 1 of its 2 decoder layers"),
        recompute_layers(model),
    ):
        pass


@pytest.mark.parametrize(
    ("family", "part", "missing"),
    [("Llama", "self_attn", "attention"), ("OPT", "fc1", "MLP"), ("Mixtral", "mlp.gate", "router")],
)
def test_a_layer_without_a_known_part_is_refused_by_name(family, part, missing):
    model = FAMILIES[family]()
    layer = decoder_layers(model)[1]
    owner, _, last = part.rpartition(".")
    module = layer.get_submodule(owner)
    module.renamed = module._modules.pop(last)
    if family == "OPT":
        layer.other = layer._modules.pop("fc2")
    with pytest.raises(ValueError, match=f"{type(model).__name__}: layer '.*1' has no {missing}"):
        layers(model)


def test_a_matrix_of_unknown_role_is_refused_by_name():
    model = FAMILIES["Llama"]()
    decoder_layers(model)[0].extra = nn.Linear(4, 4)
    found = layers(model)  # only who asks for the writers needs its role
    with pytest.raises(
        ValueError, match="LlamaDecoderLayer has a matrix 'extra.weight' of unknown role"
    ):
        found[0].writers()


def test_experts_of_unknown_orientation_are_refused_by_name():
    model = FAMILIES["Mixtral"]()
    del model.model.layers[0].mlp.experts.is_transposed
    with pytest.raises(
        ValueError,
        match="MixtralDecoderLayer: 'mlp.experts.down_proj' does not say which of its axes",
    ):
        layers(model)[0].writers()


def calls(model):
    """How often the attention of every layer runs: a list that counts on."""
    counted = [0] * len(decoder_layers(model))

    def count(i):
        counted[i] += 1

    for i, layer in enumerate(layers(model)):
        layer.attention.register_forward_pre_hook(lambda *_, i=i: count(i))
    return counted


@families
@pytest.mark.parametrize("lora", [False, True])
def test_recomputation_gives_the_same_gradients_without_dropout(rows, family, lora):
    model = FAMILIES[family](vocabulary=400)
    model = adapted(model) if lora else model
    part, counted = part_of(rows["rows"]), calls(model)
    gradients = []
    for context in (nullcontext(), recompute_layers(model)):
        with context:
            model.eval()  # as the training loop does
            loss = cross_entropy(model, part)
            loss.backward()
            assert not any(module.training for module in model.modules())
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            | {"loss": loss.detach()}
        )
        model.zero_grad()
    assert counted == [3] * len(counted)  # once without, twice with
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def whole_loss(model, part):
    """The loss of a head applied to every token, as models do by themselves."""
    logits = model(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), part.labels[:, 1:].flatten(), reduction="sum"
    )


SCALED = {  # what the families do not have: logits scaled, a bias of the head
    "Cohere": partial(
        build, CohereConfig, COMMON | {"logit_scale": 0.25, "tie_word_embeddings": True}
    ),
    "Granite": partial(build, GraniteConfig, COMMON | {"logits_scaling": 4.0}),
    "Phi": partial(build, PhiConfig, COMMON | {"num_key_value_heads": 4}),
}


@pytest.mark.parametrize("family", [*FAMILIES, *SCALED])
@pytest.mark.parametrize("lora", [False, True])
def test_a_head_at_answers_alone_has_the_loss_and_gradients_of_the_whole(rows, family, lora):
    model = (FAMILIES | SCALED)[family](vocabulary=400)
    if lora:  # the head adapted too, where it is not tied
        model = adapters.add_lora(model, Lora(r=2, alpha=4.0, targets=("all-linear",)))
    part = part_of(rows["rows"])
    if family == "Phi":
        assert model.get_output_embeddings().bias is not None
    gradients = []
    for loss in (whole_loss, cross_entropy):
        model.eval()
        value = loss(model, part)
        value.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
        model.zero_grad()
        gradients[-1] = torch.cat([gradients[-1], value.detach()[None]])
    whole, ours = gradients
    assert (ours - whole).norm() < 1e-6 * whole.norm()
    assert answer_logits(model, part).shape == (int((part.labels != IGNORED).sum()), 400)


@families
def test_the_dropout_of_the_config_would_show(rows, family):
    """Else the test above could not see that dropout acts."""
    model, part = FAMILIES[family](vocabulary=400), part_of(rows["rows"])
    with torch.no_grad():
        expected = cross_entropy(model, part)
        assert cross_entropy(model, part) == expected
        for layer in layers(model):
            layer.module.train()
        assert cross_entropy(model, part) != expected


def test_recomputation_is_for_a_backward_pass_alone(rows):
    model, part = FAMILIES["Llama"](vocabulary=400), part_of(rows["rows"])
    with recompute_layers(model):
        with torch.no_grad():  # generation, say
            assert (
                model(part.ids, use_cache=True).past_key_values.get_seq_length()
                == part.ids.shape[1]
            )
        with pytest.raises(ValueError, match="pass use_cache=False"):
            model(part.ids, use_cache=True)


def test_recomputation_ends_with_its_context_also_after_an_exception():
    def wrapped():
        return sum("forward" in vars(layer) for layer in decoder_layers(model))

    def fail():
        assert wrapped() == 2
        raise RuntimeError("stop")

    model = FAMILIES["Llama"]()
    with pytest.raises(RuntimeError, match="stop"), recompute_layers(model):
        fail()
    assert wrapped() == 0
    with recompute_layers(model):
        with recompute_layers(model):
            pass
        assert wrapped() == 2


def test_a_model_that_cannot_be_recomputed_is_refused_by_name():
    model = FAMILIES["Llama"]()
    model.supports_gradient_checkpointing = False
    with (
        pytest.raises(ValueError, match="LlamaForCausalLM does not support gradient checkpointing"),
        recompute_layers(model),
    ):
        pass


NEW, END = 8, 1  # new tokens at most; the token that ends an answer


def greedy(model, ids):
    """Answer one prompt without mask and cache: tokens, and the gap of the two best logits."""
    tokens, gaps = [], []
    while len(tokens) < NEW and END not in tokens:
        with torch.no_grad():
            best = model(torch.tensor([ids + tokens]), use_cache=False).logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return tokens, gaps


@families
def test_batched_answers_equal_one_by_one(template, tokenizer, family):
    model = FAMILIES[family](vocabulary=len(tokenizer))
    known = [row.prompt for row in World(0).alignment]
    asked = [
        Row(" ".join(prompt.split()[: 2 + i % 9]))
        for i, prompt in enumerate(known[:: len(known) // 20])
    ]
    encoded = [template.prompt_ids(row) for row in asked]
    assert any(
        greedy(model, [0] * 6 + ids)[0] != greedy(model, ids)[0] for ids in encoded
    )  # an unmasked pad would show
    answers = answer(model, template, asked, NEW, batch=len(asked) - 1)
    close = 0
    for ids, found in zip(encoded, answers, strict=True):
        tokens, gaps = greedy(model, ids)
        texts = [
            tokenizer.decode(tokens[:i], skip_special_tokens=True).strip()
            for i in range(1, len(tokens) + 1)
        ]
        if found.text == texts[-1]:
            assert found.ended == (tokens[-1] == END)
            continue
        first = next(
            (i for i, text in enumerate(texts) if not found.text.startswith(text)), len(texts) - 1
        )
        assert gaps[first] < 1e-4, (found.text, texts[-1], gaps)
        close += 1
    assert close <= 1


@families
def test_all_linear_is_every_linear_layer_but_the_head_and_reloads(tmp_path, tokenizer, family):
    model = FAMILIES[family](vocabulary=len(tokenizer))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {
        "lm_head",
        "embed_out",
    }
    checkpoints.save(model, tokenizer, tmp_path / "base")
    model, _ = checkpoints.load(str(tmp_path / "base"))
    model = adapted(model)
    assert {name.removeprefix("base_model.model.") for name in adapters.adapters(model)} == linear
    assert all(".lora_" in name for name in checkpoints.trainable(model))
    checkpoints.save(
        model, tokenizer, tmp_path / "adapter", folders.locate(Checkpoint(str(tmp_path / "base")))
    )
    again, _ = checkpoints.load(str(tmp_path / "adapter"))
    ids = torch.arange(2, 34).reshape(2, 16)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


SETTINGS = Training(updates=1, lr=1e-3, batch=4, weight_decay=0.0, lora=ALL_LINEAR)
STATES = {  # a method of two states, and updates that see both; layers of which the model has others
    "lisa": ({"k1": 1, "k2": 1, "warmup": 0.0}, 3),
    "safe_moe": ({"every": 1, "sweep": 1, "prompts": 4}, 2),
    "sppft": ({"layers": (1, 1)}, 1),
}


@families
@pytest.mark.parametrize("name", registry.names("defenses"))
def test_every_defense_runs_an_update(rows, family, name):
    fields, updates = STATES.get(name, ({}, 1))
    defense = registry.build("defenses", {"method": name} | fields)
    model = adapted(FAMILIES[family](vocabulary=400))
    if defense.needs.sparse and family not in SPARSE:
        with pytest.raises(ValueError, match=r"all \d layers of this model are dense"):
            train(model, defense, rows, SETTINGS, seed=0)
        return
    tuned = set(checkpoints.trainable(model))
    before = state(model)
    history = train(model, defense, rows, replace(SETTINGS, updates=updates), seed=0)
    after = state(model)
    assert all(torch.isfinite(torch.tensor([*terms.values()])).all() for terms in history)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert moved <= tuned


ANYWHERE: dict[str, dict[str, object]] = {  # where the defaults are for adapters alone
    "antidote": {"target": "update"},
    "random_mask": {"match": {"method": "antidote", "target": "update"}},
    "scale": {"match": {"method": "antidote", "target": "update"}},
}


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, tokenizer):
    """Folders of a family's aligned model, of an adapter on all of its linear layers, and of a
    whole model that was trained from it.
    """

    @cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        aligned = FAMILIES[family](vocabulary=len(tokenizer))
        checkpoints.save(aligned, tokenizer, folder / "aligned")
        checkpoints.save(
            moved(checkpoints.load(str(folder / "aligned"))[0]), tokenizer, folder / "whole"
        )
        checkpoints.save(
            adapted(aligned),
            tokenizer,
            folder / "adapter",
            folders.locate(Checkpoint(str(folder / "aligned"))),
        )
        return folder

    return made


def apart(tensors):
    """The tensors of a checkpoint, those of all experts of a layer one by one."""
    found = {}
    for name, of in tensors.items():
        path, _, last = name.rpartition(".")
        found |= (
            {f"{path}.{i}.{last}": part for i, part in enumerate(of)}
            if of.ndim == 3
            else {name: of}
        )
    return found


@families
@pytest.mark.parametrize("kind", ["adapter", "whole"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in registry.names("edits")
        if issubclass(registry.load("edits", name), UpdateEdit)
    ],
)
def test_every_edit_of_what_fine_tuning_added_changes_that_alone(
    finetuned, template, tmp_path, family, kind, name
):
    folder, calibration = finetuned(family), World(0).harmful[:6]
    few = {"safe_lora": {"layers": 4}, "safe_merge": {"tau": 1.0, "weights": (0.5, 0.2)}}.get(
        name, {}
    )  # of the small models' eight
    edit = registry.build(
        "edits", {"method": name} | few | (ANYWHERE.get(name, {}) if kind == "whole" else {})
    )
    references = dict.fromkeys(edit.needs.references, folder / kind) | {
        "aligned": folder / "aligned"
    }
    seen = edit.rows(calibration) if isinstance(edit, Retraining) else calibration
    facts = apply(edit, folder / kind, references, tmp_path, seen, template)
    before, after = (
        apart(weights(folder / (kind if kind == "whole" or edit.keeps_rank else "aligned"))),
        apart(weights(tmp_path)),
    )
    changes = {of["tensor"]: of for of in json.loads((tmp_path / "changes.json").read_text())}
    assert 0 < facts["changed entries"] == sum(of["changed"] for of in changes.values())
    assert 0 < facts["entries"] == sum(before[of].numel() for of in changes)
    if kind == "whole" or edit.keeps_rank:
        assert {of: int((before[of] != after[of]).sum()) for of in before} == dict.fromkeys(
            before, 0
        ) | {of: change["changed"] for of, change in changes.items()}
    else:
        assert all(torch.equal(before[of], after[of]) for of in before if of not in changes)
    linear = {
        name for name, module in FAMILIES[family]().named_modules() if isinstance(module, nn.Linear)
    } - {"lm_head", "embed_out"}
    edited = {
        of.removeprefix("base_model.model.").split(".lora_")[0].removesuffix(".weight")
        for of in changes
    }
    expert = {of.removesuffix(".weight") for of in before if ".mlp.experts." in of}
    expert |= {of.removesuffix(".weight") for of in before if ".block_sparse_moe.experts." in of}
    expert -= {of for of in expert if of.endswith("_bias")}
    assert edited == (linear | expert if kind == "whole" else linear) or (
        edit.needs.whole and kind == "whole" and set(changes) == set(before)
    )
    model = checkpoints.load(str(tmp_path))[0]
    assert adapters.has_adapter(model) == (kind == "adapter" and edit.keeps_rank)
    with torch.no_grad():
        assert model(torch.arange(2, 34).reshape(2, 16)).logits.isfinite().all()


@families
@pytest.mark.parametrize("lora", [False, True])
def test_states_are_what_the_head_makes_logits_of(rows, family, lora):
    model = FAMILIES[family](vocabulary=400)
    model = adapted(model) if lora else model
    part, top = part_of(rows["rows"]), head(model)
    with torch.no_grad():
        states = answer_states(model, part)
        logits = top.unembedding(states)
        capped = logits if top.softcap is None else top.softcap * torch.tanh(logits / top.softcap)
        torch.testing.assert_close(capped, answer_logits(model, part))
        seen = residual_of(model, part)
        torch.testing.assert_close(states, top.norm(seen.flatten(0, 1)[part.answered]))
    assert states.shape == (len(part.targets), model.config.hidden_size)


@families
def test_the_head_makes_the_logits_of_the_last_residual_stream(family):
    model = adapted(FAMILIES[family]())
    with torch.no_grad():
        torch.testing.assert_close(
            head(model)(residual(model)[-1][1]), model(torch.arange(2, 34).reshape(2, 16)).logits
        )
