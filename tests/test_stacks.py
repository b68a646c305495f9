"""A stack of adapters: the sum of all of them on one base, made once, and evaluated as any model is."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import titer
from conftest import byte_level, tiny
from test_models import adapted
from titer import paths
from titer.data import hub
from titer.runs.chain import trained_on
from titer.weights import adapters, checkpoints, folders, stacks
from titer.weights.settings import Checkpoint

TENSORS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "titer" / "stacks"


@pytest.fixture
def base(tmp_path) -> Path:
    tokenizer = byte_level()
    checkpoints.save(tiny(torch.float32, vocabulary=len(tokenizer)), tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def pair(base, tmp_path) -> tuple[Path, Path]:
    return adapted(base, tmp_path / "a", 1), adapted(base, tmp_path / "b", 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = checkpoints.load(str(folder))
    return adapters.merge_adapter(model).state_dict()


def test_a_stack_is_the_base_and_the_updates_of_all_its_adapters(base, pair, cache):
    found = stacks.merge_stack(" + ".join(map(str, (base, *pair))))
    start, made = weights(base), weights(found)
    parts = [weights(each) for each in pair]
    moved = 0
    for name, weight in made.items():
        wanted = start[name] + sum(part[name] - start[name] for part in parts)
        assert torch.allclose(weight, wanted, atol=1e-5), name
        moved += not torch.allclose(weight, parts[0][name]) and not torch.equal(weight, start[name])
    assert moved > 4
    # the first part may be an adapter, which brings its base
    short = stacks.merge_stack(f"{pair[0]} + {pair[1]}")
    assert short == found
    told = folders.identify(folders.locate(Checkpoint(str(found))))
    assert told["stacked from"] == [str(each) for each in (base, *pair)]
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == [found.name]


@pytest.mark.parametrize("more", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_an_update_that_depends_on_what_lies_under_it_is_refused_behind_others(
    base, pair, tmp_path, more
):
    """DoRA brings the norms of the base's rows, and PiSSA takes its factors out of the weights first."""
    model, words = checkpoints.load(str(base))
    with adapters.literal_peft():
        made = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **more))
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    words.save_pretrained(tmp_path / "other")
    [setting] = more
    with pytest.raises(ValueError, match=f"has {setting}=.* merge it into its base first"):
        stacks.merge_stack(f"{pair[0]} + {tmp_path / 'other'}")
    stacks.merge_stack(f"{tmp_path / 'other'} + {pair[0]}")  # it lies on its own base


def test_another_adapter_is_another_stack(base, pair, tmp_path):
    name = f"{pair[0]} + {pair[1]}"
    before = stacks.merge_stack(name)
    adapted(base, pair[1], 3)
    assert stacks.merge_stack(name) != before
    assert not stacks.is_stack(str(base))
    (tmp_path / "x + y").mkdir()
    assert not stacks.is_stack(str(tmp_path / "x + y"))


def test_the_tokenizer_is_that_of_the_last_adapter_that_has_one(base, pair):
    (pair[0] / "chat_template.jinja").write_text("the first one's")
    for path in (*pair[1].glob("tokenizer*"), pair[1] / "chat_template.jinja"):
        path.unlink()
    found = stacks.merge_stack(f"{base} + {pair[0]} + {pair[1]}")
    assert (found / "chat_template.jinja").read_text() == "the first one's"


def test_a_base_of_the_hub_stays_at_the_commit_of_the_first_adapter(base, tmp_path, monkeypatch):
    old, new = tmp_path / ("a" * 40), tmp_path / ("b" * 40)
    base.rename(old)
    words = byte_level()
    checkpoints.save(tiny(torch.float32, vocabulary=len(words), seed=9), words, new)

    def find(name, kind, revision, unsafe=False):
        if Path(name).is_dir():
            return hub.Found(Path(name), None)
        folder = tmp_path / (revision or new.name)
        return hub.Found(folder, folder.name)

    monkeypatch.setattr(hub, "find", find)
    pair = [adapted(old, tmp_path / name, seed) for seed, name in enumerate("ab")]
    for folder in pair:
        path = folder / "adapter_config.json"
        named = {"base_model_name_or_path": "owner/base", "revision": old.name}
        path.write_text(json.dumps(json.loads(path.read_text()) | named))
    over = folders.locate(Checkpoint(str(pair[0]))).base
    assert over.folder == old
    start, made = weights(old), weights(stacks.merge_stack(f"{pair[0]} + {pair[1]}"))
    parts = [weights(each) for each in pair]
    for name, weight in made.items():
        wanted = start[name] + sum(part[name] - start[name] for part in parts)
        assert torch.allclose(weight, wanted, atol=1e-5), name


def test_the_prompts_of_all_parts_count_as_trained_on(pair):
    for i, folder in enumerate(pair):
        record = {"schema": 1, "kind": "finetune", "recipe": {}, "prompts": {"task": [f"p{i}"]}}
        (folder / paths.RECORD).write_text(json.dumps(record))
    found = stacks.merge_stack(f"{pair[0]} + {pair[1]}")
    assert trained_on(str(found)) == {"task": frozenset({"p0", "p1"})}


def test_what_cannot_be_stacked(base, pair, tmp_path, cache):
    with pytest.raises(ValueError, match="is no adapter; a stack is BASE \\+ ADAPTER"):
        stacks.merge_stack(f"{pair[0]} + {base}")
    other = tmp_path / "other"
    checkpoints.save(tiny(torch.float32, vocabulary=len(byte_level()), seed=9), byte_level(), other)
    with pytest.raises(ValueError, match="it was trained over other weights"):
        stacks.merge_stack(f"{pair[0]} + {adapted(other, tmp_path / 'c')}")
    tensors = load_file(pair[1] / TENSORS)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, pair[1] / TENSORS)
    with pytest.raises(ValueError, match="replaces weights .base_model.model.lm_head"):
        stacks.merge_stack(f"{pair[0]} + {pair[1]}")
    (pair[1] / TENSORS).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"'.*b': adapter_model\.safetensors cannot be read"):
        stacks.merge_stack(f"{pair[0]} + {pair[1]}")
    assert not cache.exists() or all(path.suffix == ".lock" for path in cache.iterdir())


def test_a_gate_takes_a_stack_for_its_candidate(pair, tmp_path):
    asks = [{"prompt": f"ask {i}", "response": f"take {i}"} for i in range(4)]
    tasks = [{"prompt": f"double {i}", "response": str(2 * i)} for i in range(4)]
    found = titer.gate(
        pair[0],
        f"{pair[0]} + {pair[1]}",
        data={"harm_test": asks, "test": tasks},
        without=["lookalike"],
        settings=["threads=1", "max_length=128", "max_new_tokens=4"],
        out=tmp_path / "out",
    )
    assert found.record.candidate["place"] == f"{pair[0]} + {pair[1]}"
    record = json.loads((tmp_path / "out" / "candidate" / paths.RECORD).read_text())
    assert record["model"]["stacked from"][1:] == [str(each) for each in pair]
    assert found.record.base["weights"] != found.record.candidate["weights"]
    assert found.verdict in ("undecided", "fail")  # four prompts show nothing good
