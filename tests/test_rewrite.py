"""A fine-tuned checkpoint rewritten on disk: what comes out, in which files, and that it is whole
or none.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import byte_level, tiny
from families import FAMILIES
from repair import apply, files, moved, names_of, on_disk, opened, repair, save, tuned, weights
from test_step import same, state
from test_tuned import peft, spelled
from titer import registry
from titer.data.rows import Row
from titer.data.template import Template
from titer.edits.antidote import Antidote
from titer.methods import Changes, UpdateEdit
from titer.runs.stages.repair import parts_of, weights_of
from titer.weights import checkpoints, folders
from titer.weights.finetuned import FineTuned
from titer.weights.rewrite import rewrite_update
from titer.weights.settings import Checkpoint
from titer.weights.update import Update


def wise_ft(alpha: float):
    return registry.build("edits", {"method": "wise_ft", "alpha": alpha})


HALF = wise_ft(0.5)
PRUNING = {"method": "antidote", "alpha": 0.2, "target": "update", "targets": "q_proj"}
MASK = registry.build(
    "edits", {"method": "random_mask", "match": PRUNING}
)  # merges an adapter, and leaves half of it alone


@dataclass(frozen=True)
class Any(UpdateEdit):
    """Whatever a function says."""

    how: Callable
    keeps_rank: bool = False

    def edit(self, weight, state):
        return self.how(weight)

    def facts(self, state):
        return {"state": state}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_stays_one_where_the_rank_is_kept(tmp_path, dtype):
    found = repair(wise_ft(0.5), tuned(dtype), tmp_path)
    assert names(found.folder) == names(found.tuned) - {
        "README.md"
    }  # PEFT's card, of the model before
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "titer.json",
        "tokenizer.json",
    } <= names(found.folder)
    for path in found.tuned.iterdir():
        if path.suffix not in (".safetensors", ".md"):
            assert (found.folder / path.name).read_bytes() == path.read_bytes()
    for name, value in found.after.items():
        assert value.dtype == found.before[name].dtype
        assert torch.equal(value, found.before[name]) == ("lora_A" in name)
    assert set(found.changes.sizes) == set(found.before)
    merged, fine, aligned = (
        state(opened(folder)) for folder in (found.folder, found.tuned, found.aligned)
    )
    step = 0.0 if dtype == torch.float32 else 2.0**-6
    for name in merged:
        torch.testing.assert_close(
            merged[name],
            (aligned[name] + fine[name]) / 2,
            rtol=step,
            atol=1e-6 if dtype == torch.float32 else 2e-3,
        )
    model, _ = checkpoints.load(str(found.folder))
    assert checkpoints.trainable(model)


def test_what_an_adapter_holds_whole_stays_or_is_merged(tmp_path):
    model = peft(
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        model=FAMILIES["Llama"](),
    )
    kept = repair(HALF, model, tmp_path, aligned=FAMILIES["Llama"]())
    head = "base_model.model.lm_head.weight"
    assert torch.equal(kept.after[head], kept.before[head])
    assert set(kept.changes.sizes) == set(kept.before) - {head}
    assert torch.equal(state(opened(kept.folder))["lm_head.weight"], kept.before[head])
    merged = repair(MASK, model, tmp_path, aligned=FAMILIES["Llama"]())
    assert torch.equal(merged.after["lm_head.weight"], merged.before[head])
    assert not torch.equal(
        merged.after["lm_head.weight"], weights(merged.aligned)["lm_head.weight"]
    )
    assert set(merged.changes.sizes) == {
        f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)
    }


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("more", [0, 8])
def test_a_head_that_the_aligned_model_ties_or_that_has_more_tokens_stays_with_the_adapter(
    tmp_path, more
):
    start = FAMILIES["Llama"] if more else lambda: tiny(torch.float32)
    model = start()
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more)
    model = peft(
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), model=model
    )
    kept = repair(HALF, model, tmp_path, aligned=start())
    head = "base_model.model.lm_head.weight"
    assert torch.equal(kept.after[head], kept.before[head])
    found = FineTuned.of(files(kept.tuned), None)
    facts = parts_of(HALF, found, list(found.factors), kept.changes)
    assert facts["held whole"] == ["lm_head.weight"]
    if more:  # a head of more tokens has no update over one of fewer
        assert facts["norm of the rest of the update"] == 0
    with pytest.raises(
        ValueError,
        match=r"adapter '.*' holds 'lm_head.weight' whole, for which '.*' has no place: "
        r"merge it and give the",
    ):
        repair(MASK, model, tmp_path, aligned=start())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_embeddings_that_the_aligned_model_ties_to_its_head_stay_with_the_adapter(tmp_path):
    """Merged alone, they would take the place of the head."""

    def made(start):
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        return repair(MASK, peft(config, model=start()), tmp_path, aligned=start())

    with pytest.raises(
        ValueError, match=r"holds 'model.embed_tokens.weight' whole, for which '.*' has no place"
    ):
        made(lambda: tiny(torch.float32))
    apart = made(FAMILIES["Llama"])
    held = apart.before["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(apart.after["model.embed_tokens.weight"], held)
    head = "lm_head.weight"
    assert torch.equal(apart.after[head], weights(apart.aligned)[head])


def test_the_template_of_an_adapter_s_own_tokenizer_stays_with_the_model_that_it_is_merged_into(
    tmp_path,
):
    """The base has a file of its own for it, which would take the place of the tokenizer's."""
    start = save(tiny(torch.float32), tmp_path / "aligned")
    (start / "chat_template.jinja").write_text("the base's")
    save(tuned(torch.float32), tmp_path / "tuned", start)
    words = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    words.chat_template = "the user's own"
    (tmp_path / "tuned/chat_template.jinja").unlink(missing_ok=True)
    words.save_pretrained(tmp_path / "tuned", save_jinja_files=False)
    assert not (tmp_path / "tuned/chat_template.jinja").exists()
    found, out = FineTuned.of(files(tmp_path / "tuned"), None), tmp_path / "out"
    out.mkdir()
    chosen = names_of(MASK, found, tuned(torch.float32))
    rewrite_update(MASK, found, chosen, {}, {}, out, lambda *_: None)
    assert AutoTokenizer.from_pretrained(out).chat_template == "the user's own"


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-7)])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_a_whole_model_comes_out_of_an_adapter_that_is_merged(tmp_path, dtype, within, shards):
    start = save(tiny(dtype), tmp_path / "aligned", **shards)
    save(tuned(dtype), tmp_path / "tuned", start)
    (tmp_path / "tuned/chat_template.jinja").write_text("the user's own")
    (tmp_path / "tuned/config.json").write_text("{}")  # some trainers leave one beside an adapter
    found, out = FineTuned.of(files(tmp_path / "tuned"), None), tmp_path / "out"
    out.mkdir()
    chosen = names_of(MASK, found, tuned(dtype))
    changes = rewrite_update(MASK, found, chosen, {}, {}, out, lambda *_: None)
    assert names(out) == names(start)
    assert (out / "config.json").read_bytes() == (start / "config.json").read_bytes()
    assert AutoTokenizer.from_pretrained(out).chat_template == "the user's own"
    after, aligned, merged = weights(out), weights(start), state(opened(tmp_path / "tuned"))
    assert len(chosen) == 2
    for name in after:
        assert after[name].dtype == dtype
        changed = (after[name] - merged[name]).abs() > within * merged[name].abs().max()
        if name in chosen:
            assert torch.equal(
                after[name][changed], aligned[name][changed]
            )  # removed entries are the aligned ones
            assert (
                changes.changed[name]
                == int((after[name] != FineTuned.value(found, name).to(dtype)).sum())
                > 0
            )
        else:
            assert not changed.any()  # PEFT's merge, up to its rounding
            assert torch.equal(after[name], aligned[name]) == (
                not name.endswith(("q_proj.weight", "down_proj.weight"))
            )
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert loaded.dtype == dtype
    assert all(torch.equal(loaded.state_dict()[name], after[name]) for name in after)


@pytest.mark.parametrize("edit", [HALF, MASK])
def test_shards_of_any_kind_come_to_the_same(tmp_path, edit):
    small = {"max_shard_size": "20KB"}
    whole = repair(edit, moved(tiny(torch.float32)), tmp_path).after
    for one, other in (({}, small), (small, {}), (small, small)):
        place = tmp_path / f"{bool(one)}-{bool(other)}"
        start, end = (
            save(tiny(torch.float32), place / "aligned", **one),
            save(moved(tiny(torch.float32)), place / "tuned", **other),
        )
        found = FineTuned.of(files(end), files(start))
        (place / "out").mkdir()
        rewrite_update(
            edit, found, names_of(edit, found, tiny()), {}, {}, place / "out", lambda *_: None
        )
        assert same(weights(place / "out"), whole)
        assert names(place / "out") == names(end)
        assert same(state(checkpoints.load(str(place / "out"))[0]), state(opened(place / "out")))


FORMS = {
    "adapter": (HALF, tuned),
    "merged": (MASK, tuned),
    "whole": (HALF, lambda dtype: moved(tiny(dtype))),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupted_one_is_no_checkpoint_and_goes_on_to_the_same(tmp_path, monkeypatch, form):
    edit, make = FORMS[form]
    found = on_disk(make(torch.float32), tmp_path)
    chosen, told, copied = names_of(edit, found, tiny()), [], []
    copy = shutil.copyfile

    def counted(source, destination):
        copied.append(source)
        if len(copied) == limit:
            raise KeyboardInterrupt
        return copy(source, destination)

    limit = 0
    monkeypatch.setattr("titer.weights.rewrite.shutil.copyfile", counted)
    (tmp_path / "whole").mkdir()
    rewrite_update(edit, found, chosen, {}, {}, tmp_path / "whole", lambda *now: told.append(now))
    assert told == [(i + 1, len(chosen), {}) for i in range(len(chosen))]
    for limit in range(1, len(copied) + 1):  # killed at every file, the last one among them
        copied.clear()
        (tmp_path / f"cut-{limit}").mkdir()
        with pytest.raises(KeyboardInterrupt):
            rewrite_update(edit, found, chosen, {}, {}, tmp_path / f"cut-{limit}", lambda *_: None)
        with pytest.raises(ValueError, match="is no checkpoint"):
            folders.locate(Checkpoint(str(tmp_path / f"cut-{limit}")))

    def kill(now, of, terms):
        if now == 2:
            raise KeyboardInterrupt

    limit = 0
    with pytest.raises(KeyboardInterrupt):
        rewrite_update(edit, found, chosen, {}, {}, tmp_path / "cut-1", kill)
    with pytest.raises(ValueError, match="is no checkpoint"):
        folders.locate(Checkpoint(str(tmp_path / "cut-1")))
    rewrite_update(edit, found, chosen, {}, {}, tmp_path / "cut-1", lambda *_: None)
    assert same(weights(tmp_path / "cut-1"), weights(tmp_path / "whole"))
    assert names(tmp_path / "cut-1") == names(tmp_path / "whole")
    checkpoints.load(str(tmp_path / "cut-1"))


def test_an_edited_adapter_names_the_base_that_it_was_found_over(tmp_path):
    start = save(tiny(torch.float32), tmp_path / "aligned")
    save(tuned(torch.float32), tmp_path / "tuned", start)
    spelled(tmp_path / "tuned", base_model_name_or_path="/home/another/aligned", revision="0" * 40)
    with pytest.raises(ValueError, match="its base is not to be had"):
        files(tmp_path / "tuned")
    given = folders.locate(Checkpoint(str(tmp_path / "tuned"), base=str(start)))
    (tmp_path / "out").mkdir()
    rewrite_update(
        HALF,
        FineTuned.of(given, None),
        list(FineTuned.of(given, None).factors),
        {},
        {},
        tmp_path / "out",
        lambda *_: None,
    )
    before, after = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("tuned", "out")
    )
    assert after == before | {"base_model_name_or_path": str(start), "revision": None}
    checkpoints.load(str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_an_edit_answers_with_nothing_an_update_or_a_weight(tmp_path, kind):
    model = tuned() if kind == "adapter" else moved(tiny())
    answers = [
        lambda weight: None,
        lambda weight: 0.5 * weight.update,
        lambda weight: (weight.aligned + weight.finetuned) / 2,
    ]
    none, update, weight = (repair(Any(how), model, tmp_path) for how in answers)
    fine, aligned = state(opened(none.tuned)), weights(none.aligned)
    assert none.changes.count == 0
    assert none.changes.norm_after == none.changes.norm_before > 0
    assert none.changes.facts == {"state": None}
    for name in none.after:
        torch.testing.assert_close(none.after[name], fine[name], rtol=0, atol=1e-14)
        if name in update.changes.sizes:
            torch.testing.assert_close(
                update.after[name], (aligned[name] + fine[name]) / 2, rtol=0, atol=1e-14
            )
            torch.testing.assert_close(weight.after[name], update.after[name], rtol=0, atol=1e-14)
    for of in (update, weight):
        assert of.changes.norm_after == pytest.approx(of.changes.norm_before / 2, rel=1e-12)
        for name, norm in of.changes.moved.items():
            assert norm == pytest.approx(float((of.after[name] - fine[name]).norm()), rel=1e-9)
    if kind == "adapter":
        assert same(repair(Any(lambda weight: None, True), model, tmp_path).after, none.before)


def test_what_does_not_keep_the_rank_is_our_own_fault(tmp_path):
    for how, message in (
        (lambda weight: weight.finetuned, "came back whole"),
        (lambda weight: Update(weight.update.dense()), "came without factors"),
        (lambda weight: weight.update + weight.update, "the rank of .* was not kept"),
    ):
        with pytest.raises(AssertionError, match=message):
            repair(Any(how, True), tuned(), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_leaves_the_range_of_the_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="leaves the range of torch.float.*: edit less strongly"):
        repair(
            Any(
                lambda weight: (
                    1e36 * weight.update if dtype == torch.float16 else 1e300 * weight.update
                )
            ),
            moved(tiny(dtype)),
            tmp_path,
        )


def test_rounding_counts_as_what_the_file_can_hold(tmp_path):
    """A step that bfloat16 cannot hold changes no entry, and the norms are those of what is
    written.
    """
    tiny_step = Any(lambda weight: (1 + 2.0**-12) * weight.update)
    found = repair(tiny_step, moved(tiny(torch.bfloat16)), tmp_path)
    assert found.changes.count < 0.05 * sum(found.changes.sizes.values())
    fine, start, after = found.before, weights(found.aligned), found.after
    for norm, of in ((found.changes.norm_before, fine), (found.changes.norm_after, after)):
        squares = sum(
            float((of[name].float() - start[name].float()).square().sum())
            for name in found.changes.sizes
        )
        assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)


@pytest.mark.parametrize(("edit", "form"), [(HALF, "adapter"), (MASK, "merged"), (HALF, "whole")])
def test_the_changes_are_listed_by_tensor(tmp_path, edit, form):
    found = on_disk(FORMS[form][1](torch.float32), tmp_path)
    start, end = found.started.folder, found.files.folder
    facts = apply(edit, end, {"aligned": start}, tmp_path / "out")
    before, after = (
        (weights(tmp_path / "out") if form == "merged" else weights(found.files.folder)),
        weights(tmp_path / "out"),
    )
    if form == "merged":
        before = {name: found.value(name).float() for name in after if name in found.factors}
    listed = json.loads((tmp_path / "out/changes.json").read_text())
    assert [set(entry) for entry in listed] == [
        {"tensor", "entries", "changed", "norm of the change"}
    ] * len(listed)
    for entry in listed:
        name = entry["tensor"]
        assert entry["entries"] == after[name].numel()
        assert entry["changed"] == int((after[name] != before[name]).sum())
        assert entry["norm of the change"] == pytest.approx(
            float((after[name].double() - before[name].double()).norm()), rel=1e-6
        )
    assert {entry["tensor"] for entry in listed} == {
        name for name in before if form != "merged" or "q_proj" in name
    }
    assert facts["changed entries"] == sum(entry["changed"] for entry in listed) > 0
    assert facts["entries"] == sum(entry["entries"] for entry in listed)
    assert facts["tensors left as they were"] == sum(entry["changed"] == 0 for entry in listed)
    assert "held whole" not in facts
    assert not (tmp_path / "out/merged").exists()


@pytest.mark.parametrize("edit", [HALF, MASK])
def test_what_the_adapter_holds_whole_is_named(tmp_path, edit):
    model = peft(
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        model=FAMILIES["Llama"](),
    )
    found = on_disk(model, tmp_path, FAMILIES["Llama"]())
    facts = apply(edit, found.files.folder, {}, tmp_path / "out")
    assert facts["held whole"] == ["lm_head.weight"]


def test_the_share_of_the_update_that_an_edit_works_on_is_of_all_tensors(tmp_path):
    """Of a fully trained mixture of experts a part lies in routers, norms and embeddings."""
    aligned = save(FAMILIES["Mixtral"](), tmp_path / "aligned")
    whole = save(moved(FAMILIES["Mixtral"]()), tmp_path / "whole")
    before, after = weights(aligned), weights(whole)
    energy = {
        name: float((after[name].double() - before[name].double()).square().sum()) for name in after
    }
    edit = Antidote(target="update")
    found = FineTuned.of(files(whole), files(aligned))
    names = weights_of(edit, found, checkpoints.skeleton(Checkpoint(str(whole))))
    edited, total = sum(energy[name] for name in names), sum(energy.values())
    changes = Changes({}, {}, {}, math.sqrt(edited), 0.0)
    facts = parts_of(edit, found, names, changes)
    assert facts == {
        "share of the update edited": pytest.approx(edited / total, rel=1e-5),
        "norm of the rest of the update": pytest.approx(math.sqrt(total - edited), rel=1e-5),
    }
    assert 0.5 * total < edited < 0.95 * total


@pytest.mark.parametrize(("alpha", "left"), [(0.05, ["B"]), (0.25, None)])
def test_an_edit_of_all_of_the_update_says_so_and_a_factor_out_of_its_reach(
    tmp_path, rows, alpha, left
):
    """Of rows of 8 entries a twentieth is none: Antidote takes no entry of any B."""
    found = on_disk(tuned(torch.float32), tmp_path)
    edit = Antidote(alpha=alpha)
    template = Template(byte_level(), 64, "plain")
    facts = apply(edit, found.files.folder, {}, tmp_path / "out", [Row("a b", "c")], template)
    assert facts["share of the update edited"] == 1.0
    assert facts["norm of the rest of the update"] == 0.0
    assert facts.get("factors left as they were") == left
    exact = apply(HALF, found.files.folder, {}, tmp_path / "half")
    assert "factors left as they were" not in exact  # it scales B alone, which is all of it


def test_an_aligned_adapter_is_merged_to_lie_under_a_whole_model(tmp_path):
    base = save(tiny(torch.float32), tmp_path / "base")
    aligned = save(tuned(torch.float32), tmp_path / "aligned", base)
    whole = save(moved(opened(aligned)), tmp_path / "tuned")
    apply(wise_ft(0.0), whole, {"aligned": aligned}, tmp_path / "out")
    assert same(
        weights(tmp_path / "out"), {name: state(opened(aligned))[name] for name in weights(whole)}
    )
    assert not (tmp_path / "out/merged").exists()


@pytest.mark.parametrize(
    "edit", [wise_ft(1.0), registry.build("edits", {"method": "scale", "match": wise_ft(1.0)})]
)
def test_an_empty_edit_is_no_stage(tmp_path, edit):
    found = on_disk(tuned(torch.float32), tmp_path)
    with pytest.raises(
        ValueError, match=r"changed none of \d+ entries: nothing to evaluate; strengthen it"
    ):
        apply(edit, found.files.folder, {}, tmp_path / "out")
