"""Where a plan starts: at an aligned model, at a fine-tuned one or its adapter; and what another
judge costs.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer import api
from titer.judges.refusal import Refusal
from titer.progress import Silent
from titer.runs import execute, recipe
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.store import Store
from titer.weights import adapters, checkpoints


@pytest.fixture
def aligned(monkeypatch, capsys, plan, tmp_path) -> Path:
    """A model that was trained to refuse, outside of any run."""
    rows = [f"alignment={plan['data']['alignment']}", f"harmful={plan['data']['harmful']}"]
    options = [part for role in rows for part in ("--data", role)]
    how = ["align.updates=80", "align.lr=2e-3", "align.lora=null", "align.batch=8", "threads=1"]
    options += [part for setting in how for part in ("--set", setting)]
    out = tmp_path / "aligned"
    code, _, err = titer(monkeypatch, capsys, "align", plan["model"], *options, "--out", str(out))
    assert code == 0, err
    return out


@pytest.fixture
def adapter(aligned, tmp_path) -> Path:
    """A LoRA over the aligned model, made and filled by PEFT alone, whose base is called by another
    name.
    """
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with adapters.literal_peft():  # which only silences a warning here
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(aligned), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    config_file = tmp_path / "adapter/adapter_config.json"
    named = json.loads(config_file.read_text()) | {"base_model_name_or_path": "somebody/elses-name"}
    config_file.write_text(json.dumps(named))
    return tmp_path / "adapter"


def write(plan: dict, path: Path, model: Path, pipelines: dict) -> str:
    path.write_text(yaml.safe_dump(plan | {"model": str(model), "pipelines": pipelines}))
    return str(path)


def test_an_aligned_model_is_attacked_as_it_is(monkeypatch, capsys, plan, aligned, tmp_path):
    pipelines = {
        "plain": {"align": None},
        "repaired": {"align": None, "edit": {"method": "antidote", "alpha": 0.25}},
    }
    mine, out = write(plan, tmp_path / "mine.yaml", aligned, pipelines), tmp_path / "out"
    code, printed, err = titer(monkeypatch, capsys, "run", mine, "--out", str(out), "--json")
    assert code == 0, err
    documents = json.loads(printed)
    labels = [stage["label"] for stage in documents["repaired"]["stages"]]
    assert labels == ["align given", "finetune sft", "edit antidote"]
    first = documents["plain"]["stages"][0]
    assert first["scores"]["harm"]["value"] < 50  # it refuses
    assert first["weights"] == checkpoints.fingerprint(checkpoints.load(str(aligned))[0])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "align given" in page
    assert "There is no aligned and fine-tuned stage" not in page
    assert "Aligned HS " in page  # the verdict begins at the model that was given

    grid = ["--grid", "attack.p=0,0.2", "--seeds", "0", "--out", str(tmp_path / "sweep")]
    code, printed, err = titer(monkeypatch, capsys, "sweep", mine, *grid, "--json")
    assert code == 0, err
    bundle = json.loads(printed)
    assert bundle["missing"] == 0
    assert {*bundle["cells"][1]["pipelines"]} == {"plain", "repaired"}
    assert "repaired" in (tmp_path / "sweep/report.html").read_text(encoding="utf-8")


def test_a_fine_tuned_adapter_is_repaired_as_it_is(
    monkeypatch, capsys, plan, aligned, adapter, tmp_path
):
    pipelines = {
        "theirs": {"finetune": str(adapter)},
        "repaired": {"finetune": str(adapter), "edit": {"method": "wise_ft", "alpha": 0.5}},
        "ours": {"align": None},
    }
    mine, out = write(plan, tmp_path / "mine.yaml", aligned, pipelines), tmp_path / "out"
    code, printed, err = titer(monkeypatch, capsys, "run", mine, "--out", str(out), "--json")
    assert code == 0, err
    documents = json.loads(printed)
    labels = [stage["label"] for stage in documents["repaired"]["stages"]]
    assert labels == ["align given", "finetune given", "edit wise_ft"]
    given = documents["theirs"]["stages"][1]
    with adapters.literal_peft():
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(aligned)
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    assert given["weights"] == checkpoints.fingerprint(merged)
    edited = documents["repaired"]["stages"][2]
    assert (
        0
        < edited["facts"]["update norm after"]
        == pytest.approx(edited["facts"]["update norm before"] / 2, rel=1e-5)
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "finetune given" in page
    assert "repaired" in page
    grid = ["--grid", "pipelines.repaired.edit.alpha=0,0.25", "--out", str(tmp_path / "sweep")]
    code, printed, err = titer(monkeypatch, capsys, "sweep", mine, *grid, "--json")
    assert code == 0, err
    assert [cell["status"] for cell in json.loads(printed)["cells"]] == ["done", "done"]


def test_only_what_is_given_needs_no_rows_to_train_on(plan, aligned, adapter, tmp_path):
    data = {"harmful": plan["data"]["harmful"], "test": plan["data"]["test"]}
    fields = plan | {
        "model": str(aligned),
        "data": data,
        "pipelines": {"theirs": {"finetune": str(adapter)}},
    }
    found = Plan.prepare(recipe.from_mapping(json.loads(json.dumps(fields))))
    assert (found.sent, found.roles.alignment, found.roles.task) == ({}, [], [])
    assert [stage.label for stage in found.pipelines()["theirs"]] == [
        "align given",
        "finetune given",
    ]


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (
            {"align": "sft", "finetune": "./somewhere"},
            "finetune='./somewhere' was fine-tuned from a model",
        ),
        ({"release": "lox", "finetune": "./somewhere"}, "set release to null"),
        ({"finetune": "sfft"}, "unknown defense 'sfft': did you mean 'sft'"),
        (
            {"align": None, "release": "lox"},
            "needs the model that alignment started from, and align=null starts",
        ),
        (
            {"align": None, "edit": "safe_lora"},
            "needs the model that alignment started from, and align=null starts",
        ),
        ({"finetune": "./nowhere"}, "model './nowhere': no such directory"),
    ],
)
def test_what_does_not_go_together_is_refused(plan, pipeline, message):
    fields = json.loads(json.dumps(plan | {"pipelines": {"one": pipeline}}))
    with pytest.raises(ValueError, match=message):
        Plan.prepare(recipe.from_mapping(fields)).pipelines()


def test_another_judge_reads_the_answers_that_are_there(recipe_file, tmp_path):
    store = Store(tmp_path / "store")
    first = recipe.load(recipe_file, ['pipelines={"sft": {"edit": "scale"}}'])
    Run(Plan.prepare(first), tmp_path / "one", store).records(Silent())

    def counts() -> Counter[str]:
        return Counter(entry.about["kind"] for entry in store.entries())

    before = counts()
    assert (before["answer"], before["margin"], before["judge"]) == (4, 4, 4)
    other = recipe.load(
        recipe_file,
        ['pipelines={"sft": {"edit": "scale"}}', "judge={method: refusal, phrases: gcg}"],
    )
    found = Run(Plan.prepare(other), tmp_path / "two", store).records(Silent())["sft"]
    after = counts()
    assert after - before == Counter(
        judge=4, margin=4
    )  # its refusals begin otherwise: the margin does too
    assert after["answer"] == before["answer"]
    assert Plan.prepare(other).judge == Refusal("gcg")
    said = (tmp_path / "two/stages/00-base/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["response"] for line in said] == [
        json.loads(line)["response"]
        for line in (tmp_path / "one/stages/00-base/answers.jsonl").read_text().splitlines()
    ]
    assert len(found) == 4


def test_another_judge_of_a_single_evaluation_generates_nothing(
    monkeypatch, capsys, plan, tmp_path
):
    data = [f"harmful={plan['data']['harmful']}", f"test={plan['data']['test']}"]
    options = [part for role in data for part in ("--data", role)]
    options += ["--set", "threads=1", "--set", "max_new_tokens=12", "--json"]
    for judge in ("refusal", "lenient"):
        asked = (
            ["--judge", "refusal"]
            if judge == "refusal"
            else ["--set", "judge={method: refusal, phrases: xstest}"]
        )
        arguments = ["evaluate", plan["model"], *options, *asked, "--out", str(tmp_path / judge)]
        code, printed, err = titer(monkeypatch, capsys, *arguments)
        assert code == 0, err
        document = json.loads(printed)
        assert document["kind"] == "evaluate"
        assert set(document["outcomes"]) == {"harm", "prefill", "task"}
    kinds = Counter(entry.about["kind"] for entry in Store(tmp_path / "store").entries())
    assert kinds == Counter(answer=1, margin=2, judge=2)


def test_what_an_evaluation_has_begun_is_kept_from_gc(monkeypatch, plan, tmp_path):
    data = {name: plan["data"][name] for name in ("harmful", "test")}
    options = {"settings": ["threads=1", "max_new_tokens=2", "data.limit=4"], "judge": "refusal"}
    store, answered = Store(tmp_path / "store"), execute.compute

    def interrupted(errand, work):
        answered(errand, work)  # the answers lie in the folder, which is not finished
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.evaluate(plan["model"], data=data, out=tmp_path / "out", **options)
    monkeypatch.undo()
    assert store.gc() == 0
    assert list((tmp_path / "store/partial").glob("*/answers.jsonl"))
    api.evaluate(plan["model"], data=data, out=tmp_path / "out", **options)
    assert list((tmp_path / "store/runs").iterdir()) == []
