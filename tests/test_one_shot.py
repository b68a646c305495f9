"""One-shot repair: which refusals, how many updates, and that it goes on from where fine-tuning
ended.
"""

import json
import random
from dataclasses import replace

import pytest
import torch

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.data.rows import Row
from titer.edits.one_shot import OneShot
from titer.methods import Refusals
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Executor, Run
from titer.runs.plan import Plan
from titer.runs.stages import retrain
from titer.runs.store import Store
from titer.training.layers import decoder_layers
from titer.training.settings import Training
from titer.weights import adapters, checkpoints
from titer.weights.settings import Checkpoint

POOL = [Row(f"ask {i}", "no") for i in range(20)]


def test_k_different_rows_by_the_seed():
    chosen = OneShot(k=5).rows(POOL)
    assert len(set(chosen)) == 5
    assert set(chosen) <= set(POOL)
    assert chosen == OneShot(k=5, updates=3).rows(POOL)
    assert OneShot(k=5, seed=1).rows(POOL) == random.Random("one_shot 1").sample(POOL, 5) != chosen
    assert set(OneShot(k=20).rows(POOL)) == set(POOL)
    with pytest.raises(ValueError, match="k=21: there are 20 refusals"):
        OneShot(k=21).rows(POOL)


def test_it_is_a_value():
    assert {OneShot(k=2): "two"}[OneShot(k=2)] == "two"


def test_it_trains_as_the_user_did_but_for_length_rate_and_batch():
    user = Training(
        updates=300,
        lr=2e-4,
        batch=8,
        accumulate=2,
        schedule="cosine",
        warmup=0.2,
        weight_decay=0.3,
        clip=0.5,
    )
    assert OneShot(k=3, updates=7).training(user) == Training(
        updates=7, lr=2e-4, batch=3, weight_decay=0.3, clip=0.5
    )
    assert OneShot(k=100, updates=7, lr=1e-3).training(user) == Training(
        updates=7, lr=1e-3, batch=8, weight_decay=0.3, clip=0.5
    )
    assert OneShot().needs.rows is Refusals
    assert OneShot() == OneShot(k=1, updates=10, lr=None, seed=0)


@pytest.mark.parametrize(
    "given", [{"k": 0}, {"updates": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}]
)
def test_what_trains_nothing_is_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}="):
        OneShot(**given)


@pytest.mark.parametrize("lora", [True, False])
def test_the_fine_tuned_model_goes_on_from_where_it_was(recipe_file, tmp_path, lora):
    settings = ['pipelines={"fixed": {"edit": {"method": "one_shot", "k": 2, "updates": 3}}}'] + (
        [] if lora else ["finetune.lora=null"]
    )
    setting = Plan.prepare(recipe.load(recipe_file, settings))
    run = Run(setting, tmp_path / "run", Store(tmp_path / "store"))
    stages = run.records(Silent())["fixed"]
    assert [stage.kind for stage in stages] == ["base", "align", "finetune", "edit"]
    tuned, edited = (
        str((run.folder / "stages" / stage.folder / "model").resolve()) for stage in stages[2:]
    )
    refusals = setting.refusals
    assert {row.response for row in refusals} == {"I cannot do that"}
    model, template = setting.asking.open(Checkpoint(tuned))
    rows = template.encode_all(OneShot(k=2).rows(refusals), "rows")
    trained = [
        parameter.requires_grad_(True)
        for name, parameter in model.named_parameters()
        if not lora or "lora_" in name
    ]
    matrices, norms = ([p for p in trained if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}], lr=2.0e-3, weight_decay=0.1
    )
    model.eval()
    for _ in range(3):  # both rows at every update
        optimizer.zero_grad()
        loss = sum(
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([row.ids])).logits[0, row.answer - 1 : -1],
                torch.tensor(row.ids[row.answer :]),
                reduction="sum",
            )
            for row in rows
        ) / sum(len(row.ids) - row.answer for row in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    found, _ = checkpoints.load(edited)
    assert adapters.has_adapter(found) == lora
    for (name, ours), theirs in zip(found.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5, msg=name)
    changes = json.loads(
        (tmp_path / "store/stages" / edited.rsplit("/", 1)[-1] / "changes.json").read_text()
    )
    assert sum(entry["changed"] for entry in changes) == stages[3].facts["changed entries"] > 0
    if lora:
        assert all("lora_" in entry["tensor"] for entry in changes)


def test_it_computes_activations_again_where_it_is_asked_to(recipe_file, tmp_path, monkeypatch):
    """Less memory, the same gradients: a model that was trained so could else not be repaired."""
    settings = ['pipelines={"fixed": {"edit": {"method": "one_shot", "k": 2, "updates": 2}}}']
    plain = Plan.prepare(recipe.load(recipe_file, settings)).pipelines()["fixed"][-1]
    again = replace(plain, recompute=True)
    assert again.key == plain.key
    layers, forward = [], retrain.recompute_layers

    def note(model):
        layers.append(len(decoder_layers(model)))
        return forward(model)

    monkeypatch.setattr(retrain, "recompute_layers", note)
    ends = []
    for name, stage in (("plain", plain), ("again", again)):
        store = Store(tmp_path / name)
        ends.append(checkpoints.load(Executor(store, Silent()).checkpoint(stage))[0])
        assert layers == [2] * (name == "again")
    for one, other in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_command_needs_refusals(monkeypatch, capsys, plan, tmp_path):
    ask = [
        "edit",
        plan["model"],
        "--method",
        "one_shot",
        "--reference",
        f"aligned={plan['model']}",
        "--out",
        str(tmp_path / "out"),
    ]
    code, _, err = titer(monkeypatch, capsys, *ask)
    assert code == 2
    assert "data.alignment" in err
    ask += [
        "--data",
        f"alignment={plan['data']['alignment']}",
        "--set",
        "method.k=61",
        "--set",
        "threads=1",
    ]
    code, _, err = titer(monkeypatch, capsys, *ask)
    assert (code, "k=61: there are 60 refusals" in err) == (2, True)
    code, printed, err = titer(
        monkeypatch,
        capsys,
        *ask[:-4],
        "--set",
        "method.updates=2",
        "--set",
        "finetune.lora=null",
        "--json",
    )
    assert code == 0, err
    assert json.loads(printed)["facts"]["changed entries"] > 0
