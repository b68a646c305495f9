"""Checkpoints in and out: what is loaded is what was saved, adapters lie over their own base, and
incomplete ones are named.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import byte_level, tiny
from families import FAMILIES
from test_recipe import run as titer
from titer.data import hub
from titer.data.batches import Stream, collate
from titer.defenses.sft import SFT
from titer.training import train
from titer.training.settings import Training
from titer.weights import adapters, checkpoints, folders
from titer.weights.finetuned import FineTuned
from titer.weights.settings import Checkpoint, Lora

LORA = Lora(r=2, alpha=4, targets=("all-linear",))


@pytest.fixture
def base(tmp_path) -> Path:
    tokenizer = byte_level()
    checkpoints.save(tiny(torch.float32, vocabulary=len(tokenizer)), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, folder: Path, seed: int = 0) -> Path:
    """An adapter over the base, with no factor zero."""
    torch.manual_seed(seed)
    model, tokenizer = checkpoints.load(str(base))
    model = adapters.add_lora(model, LORA)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.b.normal_()
    checkpoints.save(model, tokenizer, folder, folders.locate(Checkpoint(str(base))))
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no \*.safetensors"),
        (
            lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
            "no usable tokenizer|no tokenizer",
        ),
        (
            lambda folder: rename(
                folder, "quantization_config", {"quant_method": "gptq", "bits": 4}
            ),
            r"has weights of 4 bits \(gptq\): .* give the model that it was made from",
        ),
        (
            lambda folder: (folder / "config.json").unlink(),
            "holds neither a config.json nor an adapter_config.json",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            "model.safetensors cannot be read",
        ),
        (lambda folder: index(folder, {}), "the weight_map of its .* names no files"),
        (lambda folder: index(folder, {"weight_map": {}}), "the weight_map of its .* names no"),
        (lambda folder: index(folder, {"weight_map": {"a": []}}), "the weight_map of its .* names"),
        (
            lambda folder: drop(folder, "model.layers.1.mlp.up_proj.weight"),
            "lack 1 weights, such as 'model.layers.1.mlp.up_proj.weight'",
        ),
        (
            lambda folder: rename(folder, "model_type", "nothing"),
            "cannot be loaded as a causal language model .*nothing",
        ),
        (
            lambda folder: rename(folder, "model_type", "t5"),
            "cannot be loaded as a causal language model",
        ),
    ],
)
def test_an_incomplete_checkpoint_is_named(base, spoil, message):
    spoil(base)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.load(str(base))
    assert repr(str(base)) in str(caught.value)


@pytest.mark.parametrize(
    ("rounding", "said"),
    [
        ({"load_in_8bit": True}, "weights of 8 bits (bitsandbytes)"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "weights of 4 bits (bitsandbytes)",
        ),
        ({"quant_method": "awq"}, "weights of 4 bits (awq)"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "quantized weights (fp8)"),
        ({"quant_method": "mxfp4"}, "quantized weights (mxfp4)"),
        ({"quant_method": "compressed-tensors"}, "quantized weights (compressed-tensors)"),
        ({"quant_method": "hqq"}, "quantized weights (hqq)"),
        ({"quant_method": "torchao"}, "quantized weights (torchao)"),
        ({"quant_method": "quanto", "weights": "int8"}, "quantized weights (quanto)"),
        ({"quant_method": "auto-round", "bits": 3}, "weights of 3 bits (auto-round)"),
        ({"quant_method": "of next year"}, "quantized weights (of next year)"),
    ],
)
def test_a_quantized_model_is_refused_in_one_line(base, rounding, said):
    rename(base, "quantization_config", rounding)
    for read in (checkpoints.load, lambda name: checkpoints.skeleton(Checkpoint(name))):
        with pytest.raises(ValueError, match="give the model that it was made from$") as caught:
            read(str(base))
        assert str(caught.value).startswith(f"model {str(base)!r} has {said}: no adapter can be")
        assert "\n" not in str(caught.value)


def test_a_model_whose_config_says_that_it_is_not_quantized_is_loaded(base):
    rename(base, "quantization_config", None)
    checkpoints.load(str(base))


def test_a_quantized_text_part_is_refused(base, monkeypatch):
    config, text = (AutoConfig.from_pretrained(base) for _ in range(2))
    config.text_config, text.quantization_config = text, {"quant_method": "fp8"}
    known = SimpleNamespace(from_pretrained=lambda *given, **options: config)
    monkeypatch.setattr(checkpoints, "AutoConfig", known)
    with pytest.raises(ValueError, match=r"has quantized weights \(fp8\)"):
        checkpoints.load(str(base))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(base, value):
    """Its answers would be empty, and count as harmless."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="'model.layers.1.mlp.up_proj.weight' holds values that"):
        checkpoints.load(str(base))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(base):
    other = byte_level()
    other.add_tokens(["<more>"])
    other.save_pretrained(base)
    with pytest.raises(ValueError, match="its tokenizer has a token .* do not belong together"):
        checkpoints.load(str(base))


def test_an_adapter_that_adds_tokens_brings_their_embeddings(base, tmp_path):
    """Made by PEFT alone: the base gets room for them, and answers as in memory."""
    words = byte_level()
    words.add_tokens(["<more>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    torch.manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1].normal_()
        model.get_output_embeddings().weight[-1].normal_()
    with adapters.literal_peft():
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    words.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, len(words) - 1, 7]])
    loaded, own = checkpoints.load(Checkpoint(str(tmp_path / "adapter"), base=str(base)))
    assert len(own) == len(words)
    assert torch.equal(loaded(ids).logits, adapted(ids).logits)
    # and so it does where it is trained further and written again
    files = folders.locate(Checkpoint(str(tmp_path / "adapter"), base=str(base)))
    held = FineTuned.of(files, None).whole
    brings = checkpoints.brings_embeddings(held)
    assert brings
    checkpoints.save(loaded, own, tmp_path / "again", files.base, brings)
    again, _ = checkpoints.load(str(tmp_path / "again"))
    assert torch.equal(again(ids).logits, adapted(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}, "cannot be loaded"),
        ({"peft_type": "NOTHING"}, "cannot be loaded .*NOTHING"),
        ({"r": 3}, "does not belong to the base .*size mismatch"),
        ({"base_model_name_or_path": 7}, "its base model 7 is no name: give it as model.base"),
        ({"target_modules": ["nowhere"]}, "does not belong to the base .*not found"),
    ],
)
def test_the_reason_of_an_adapter_that_does_not_load_is_pefts_own(base, tmp_path, change, message):
    folder = adapted(base, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        checkpoints.load(str(folder))


def test_an_adapter_in_a_pickle_is_refused_before_anything_opens_it(base, tmp_path):
    folder = adapted(base, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        checkpoints.load(str(folder))


def test_an_adapter_over_an_adapter_is_refused(base, tmp_path):
    first = adapted(base, tmp_path / "first")
    second = adapted(base, tmp_path / "second")
    with pytest.raises(ValueError, match="is an adapter itself: merge it into its base first"):
        checkpoints.load(Checkpoint(str(second), base=str(first)))


def test_learned_positions_are_known_and_computed_ones_have_no_bound():
    found = {name: checkpoints.learned_positions(make()) for name, make in FAMILIES.items()}
    learned = {name: count for name, count in found.items() if count is not None}
    assert "OPT" in learned
    for name, count in learned.items():
        assert count == FAMILIES[name]().config.max_position_embeddings
    assert found["Llama"] is None


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_head_is_merged_into_it_alone(target):
    """Merged into the one weight of both, it would change the other as well."""
    torch.manual_seed(0)
    model = tiny(torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with adapters.literal_peft():
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[target]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    ids = torch.tensor([[5, 9, 7]])
    expected = adapted(ids).logits
    merged = adapters.merge_adapter(adapted)
    assert torch.allclose(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert not merged.config.tie_word_embeddings


@pytest.mark.parametrize(("size", "low", "high"), [(1e-4, 0.3, 1.01), (1.0, 0.0, 0.1)])
def test_what_rounding_takes_from_a_merged_update_is_measured(size, low, high):
    model = adapters.add_lora(tiny(torch.bfloat16), LORA)
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.b.normal_().mul_(size)
    before = {name: of.detach().double().clone() for name, of in weights_under(model).items()}
    updates = {
        name: (of.scaling * (of.b.detach().double() @ of.a.detach().double()))
        for name, of in adapters.adapters(model).items()
    }
    error = adapters.merge_error(model)
    lost = whole = 0.0
    for name, weight in before.items():
        exact = weight + updates[name]
        lost += float((exact.bfloat16().double() - exact).square().sum())
        whole += float(updates[name].square().sum())
    assert error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert low <= error <= high


def weights_under(model) -> dict[str, torch.Tensor]:
    return {
        name: model.get_submodule(name).get_base_layer().weight for name in adapters.adapters(model)
    }


def drop(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def index(folder: Path, content: dict) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def rename(folder: Path, key: str, value: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))


def test_code_of_a_checkpoint_is_run_only_when_asked(base):
    config = json.loads((base / "config.json").read_text())
    auto = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (base / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto}))
    (base / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(
        ValueError, match="brings code of its own: set model.trust_remote_code=true"
    ):
        checkpoints.load(str(base))


def test_an_adapter_comes_back_unmerged_trainable_and_over_its_base(base, tmp_path):
    folder = adapted(base, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    model, tokenizer = checkpoints.load(str(folder))
    assert adapters.has_adapter(model)
    assert tokenizer.chat_template == byte_level().chat_template
    assert all("lora_" in name for name in checkpoints.trainable(model))
    first, _ = checkpoints.load(str(base))
    torch.manual_seed(0)
    expected = adapters.add_lora(first, LORA)
    torch.manual_seed(0)
    [saved] = [load_file(folder / "adapter_model.safetensors")]
    assert len(saved) == len(checkpoints.trainable(expected))
    found = adapters.adapters(model)
    for name, adapter in found.items():
        assert torch.equal(adapter.b, saved[f"{name}.lora_B.weight"])


def test_an_adapters_names_stand_in_one_order_in_every_process(base, tmp_path):
    """PEFT keeps them in a set; in another order the file has another hash."""
    model, tokenizer = checkpoints.load(str(base))
    model = adapters.add_lora(model, replace(LORA, targets=("all-linear",)))
    files = folders.locate(Checkpoint(str(base)))
    checkpoints.save(model, tokenizer, tmp_path / "adapter", files)
    names = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]
    assert len(names) == 14
    assert names == sorted(names)
    checkpoints.load(str(tmp_path / "adapter"))


def test_an_adapter_that_peft_made_is_taken_as_it_is(base, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(base)
    with adapters.literal_peft():  # which keeps its warning to itself
        made = get_peft_model(
            plain,
            LoraConfig(
                r=3, lora_alpha=12, target_modules=["q_proj"], lora_dropout=0.5, use_rslora=True
            ),
        )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    made.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    model, _ = checkpoints.load(str(tmp_path / "theirs"))  # its tokenizer is the base's
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, made.eval()(ids).logits)  # nothing is dropped
    assert all(
        adapter.scaling == pytest.approx(12 / 3**0.5)
        for adapter in adapters.adapters(model).values()
    )


def test_an_adapter_for_another_base_is_refused(base, tmp_path, monkeypatch, capsys):
    folder = adapted(base, tmp_path / "adapter")
    tokenizer = byte_level()
    others = {
        "weights": tiny(torch.float32, seed=1, vocabulary=len(tokenizer)),  # the same shapes
        "family": FAMILIES["GPTNeoX"](vocabulary=len(tokenizer)),
    }
    for name, other in others.items():
        checkpoints.save(other, tokenizer, tmp_path / name)
        with pytest.raises(
            ValueError,
            match=r"adapter .* does not belong to the base .*: it was trained over other weights",
        ):
            checkpoints.load(Checkpoint(str(folder), base=str(tmp_path / name)))
    (folder / "titer.json").unlink()  # an adapter that was made elsewhere
    with pytest.raises(ValueError, match=r"adapter .* does not belong to the base"):
        checkpoints.load(Checkpoint(str(folder), base=str(tmp_path / "family")))
    small = tiny(torch.float32, vocabulary=len(tokenizer))
    del small.model.layers[1]
    small.config.num_hidden_layers = 1
    checkpoints.save(small, tokenizer, tmp_path / "shallow")
    on = [
        "--set",
        f"model.base={tmp_path / 'shallow'}",
        "--data",
        "test=x.jsonl",
        "--out",
        str(tmp_path / "out"),
    ]
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    monkeypatch.chdir(tmp_path)
    code, _, err = titer(monkeypatch, capsys, "evaluate", str(folder), *on)
    assert code == 2
    assert "does not belong to the base" in err
    assert "of their tensors do not meet; give its own as model.base" in err
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_gone_is_named_with_the_mend(base, tmp_path):
    folder = adapted(base, tmp_path / "adapter")
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(ValueError, match="its base is not to be had .*; give it as model.base"):
        checkpoints.load(str(folder))
    model, _ = checkpoints.load(Checkpoint(str(folder), base=str(tmp_path / "moved")))
    assert adapters.has_adapter(model)


def test_an_adapter_over_a_hub_base_names_it_and_its_commit(base, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    shutil.move(base, tmp_path / commit)
    asked = []

    def find(name, kind, revision, unsafe=False):
        asked.append((name, revision))
        local = Path(name)
        return hub.Found(local, None) if local.is_dir() else hub.Found(tmp_path / commit, commit)

    monkeypatch.setattr(hub, "find", find)
    checkpoint = Checkpoint("owner/base")
    model, tokenizer = checkpoints.load(checkpoint)
    checkpoints.save(
        adapters.add_lora(model, LORA), tokenizer, tmp_path / "adapter", folders.locate(checkpoint)
    )
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", commit)
    checkpoints.load(str(tmp_path / "adapter"))
    assert asked[-1] == (
        "owner/base",
        commit,
    )  # the commit that it was trained over, whatever is newest


def test_what_determines_an_answer_is_in_the_digest(base, tmp_path):
    folder = adapted(base, tmp_path / "adapter")
    first = {
        name: folders.digest(folders.locate(Checkpoint(str(path))))
        for name, path in {"base": base, "adapter": folder}.items()
    }
    (folder / "stage.json").write_text("{}")
    assert folders.digest(folders.locate(Checkpoint(str(folder)))) == first["adapter"]
    (base / "chat_template.jinja").write_text("{{ messages }}")
    second = {
        name: folders.digest(folders.locate(Checkpoint(str(path))))
        for name, path in {"base": base, "adapter": folder}.items()
    }
    assert len({*first.values(), *second.values()}) == 4


def test_code_is_in_the_digest_and_is_not_what_an_adapter_was_trained_over(base, tmp_path):
    adapter = Checkpoint(str(adapted(base, tmp_path / "adapter")))
    first = folders.digest(folders.locate(adapter))
    (base / "mine.py").write_text("x = 1")  # from the hub it comes once somebody trusts it
    second = folders.digest(folders.locate(adapter))
    (base / "mine.py").write_text("x = 2")
    assert len({first, second, folders.digest(folders.locate(adapter))}) == 3
    assert adapters.has_adapter(checkpoints.load(adapter)[0])


def test_a_digest_reads_again_what_has_changed_alone(base, monkeypatch):
    read, file_digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, name: read.append(Path(file.name).name) or file_digest(file, name),
    )
    files = folders.locate(Checkpoint(str(base)))
    first = folders.digest(files)
    assert folders.digest(files) == first
    assert sorted(read) == sorted(path.name for path in folders.parts(files))
    weights = base / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1  # as long as before
    weights.write_bytes(changed)
    assert folders.digest(files) != first
    assert read.count("model.safetensors") == 2
    assert len(read) == len(folders.parts(files)) + 1


def test_coarse_weights_train_float32_adapters(base, rows):
    model, _ = checkpoints.load(Checkpoint(str(base), dtype="bfloat16"))
    model = adapters.add_lora(model, LORA)
    assert {parameter.dtype for parameter in checkpoints.trainable(model).values()} == {
        torch.float32
    }
    assert {
        parameter.dtype for name, parameter in model.named_parameters() if "lora_" not in name
    } == {torch.bfloat16}


def test_full_training_of_coarse_weights_keeps_small_updates(rows):
    """In bfloat16 an update of 1e-5 is lost at a weight of 1: here every one counts, and the passes
    still compute coarsely.
    """
    model, fine = tiny(torch.bfloat16), tiny(torch.float32)
    fine.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    before = {name: value.clone() for name, value in fine.state_dict().items()}
    settings = Training(updates=1, lr=1e-6, batch=4, weight_decay=0.0, lora=None)
    [terms] = train.train(fine, SFT(), {"rows": rows["rows"]}, settings, 0, autocast=torch.bfloat16)
    moved = {name: (fine.state_dict()[name] != before[name]).float().mean() for name in before}
    assert min(moved.values()) > 0.05
    exact = tiny(torch.float32)
    exact.load_state_dict(before)
    [expected] = train.train(exact, SFT(), {"rows": rows["rows"]}, settings, 0)
    assert terms["f"] == pytest.approx(expected["f"], rel=2e-2)
    assert terms["f"] != expected["f"]


def test_passes_may_be_coarser_than_the_weights(rows):
    """As in a loop of torch's own under its autocast; in float32 the same updates are others."""
    settings = Training(updates=3, lr=1e-3, batch=4, weight_decay=0.0, clip=None, lora=LORA)
    coarse = replace(settings, autocast="bfloat16")
    found = {}
    for name, of in {"coarse": coarse, "exact": settings}.items():
        torch.manual_seed(1)
        model = adapters.add_lora(tiny(torch.float32), LORA)
        terms = train.train(model, SFT(), {"rows": rows["rows"]}, of, 0)
        found[name] = checkpoints.trainable(model)
        assert {each.dtype for each in model.state_dict().values()} == {torch.float32}
        if name == "coarse":
            losses = [each["f"] for each in terms]
    torch.manual_seed(1)
    model = adapters.add_lora(tiny(torch.float32), LORA).eval()
    weights = list(checkpoints.trainable(model).values())
    optimizer, stream = (
        torch.optim.AdamW(weights, 1e-3, weight_decay=0.0),
        Stream("rows", rows["rows"], 0),
    )
    for expected in losses:
        batch = collate(stream.take(4), 0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100
        )
        assert expected == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    apart = {
        name: max(
            (found[name][key] - value).abs().max()
            for key, value in checkpoints.trainable(model).items()
        )
        for name in found
    }
    assert apart["coarse"] < apart["exact"] / 3
    assert apart["exact"] > 0


def test_dtypes_are_checked_against_the_device(base, monkeypatch):
    with pytest.raises(ValueError, match="dtype='float16': the CPU does not compute it"):
        checkpoints.load(Checkpoint(str(base), dtype="float16"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old GPU")
    with pytest.raises(
        ValueError, match="dtype='bfloat16': An old GPU cannot compute it; use float32"
    ):
        checkpoints.check_dtype("bfloat16", torch.device("cuda"))


def test_a_skeleton_has_the_layers_and_no_weights(base, tmp_path):
    for path in (base, adapted(base, tmp_path / "adapter")):
        bones = checkpoints.skeleton(Checkpoint(str(path)))
        assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
        adapters.check_targets(bones, LORA)
        with pytest.raises(ValueError, match="did you mean 'q_proj'"):
            adapters.check_targets(bones, replace(LORA, targets=("q_prj",)))
