"""`titer attack --search` at a small model: trials from the store, an interruption, bad input."""

import json
from functools import partial
from pathlib import Path

import pytest

import titer as package
from test_attack import SETTINGS, Kill, Until, aligned  # noqa: F401  fixtures
from test_recipe import run as titer
from test_run import plan  # noqa: F401  a fixture
from titer.runs.stages.train import TrainStage

pytest.importorskip("optuna")
MIX = ["attack={method: harmful_mix, p: 0.5, n: 24}", "finetune.updates=8", "prefill_prompts=0"]
RANGES = {"lr": (1e-4, 8e-3), "updates": (4, 16)}


def search_in(folder: Path, plan: dict, model: Path, out: str = "out", **options):
    """Search the attack on the aligned model, three trials."""
    data = {role: plan["data"][role] for role in ("harmful", "task", "test")}
    data["validation"] = data["test"]
    options = {"trials": 3, "margin": 100.0, "ranges": RANGES, "data": data} | options
    settings = [*SETTINGS, *MIX, "data.limit=12"]
    return package.search_attack(model, settings=settings, out=folder / out, **options)


@pytest.fixture
def search(plan, aligned, tmp_path):
    return partial(search_in, tmp_path, plan, aligned)


@pytest.fixture(scope="module")
def whole(plan, aligned, tmp_path_factory):
    """A search that nothing interrupted, over a store of its own."""
    return search_in(tmp_path_factory.mktemp("whole"), plan, aligned)


def without_times(record) -> dict:
    told = record.model_dump(by_alias=True, mode="json")
    told["budget"].pop("seconds")
    for each in (*told["trials"], told["test"]):
        each.pop("seconds")
    return told


def test_a_search_is_of_validation_prompts_and_its_result_of_test_prompts(whole):
    record = whole.record
    assert (len(record.trials), record.budget["trials"]) == (3, 3)
    assert record.trials[0].settings == {"lr": 2e-3, "updates": 8, "p": 0.5}  # the recipe's own
    assert {trial.state for trial in record.trials} == {"feasible"}
    best = max(trial.harm.value for trial in record.trials)
    assert record.validation.value == best
    assert record.trials[record.chosen].harm.value == best
    assert (record.seed, record.test.seed) == (0, 1)
    assert record.test.curse.value == pytest.approx(best - record.test.harm.value)
    assert record.space["p"] == (0.03, 1.0)  # the rows allow any share that is a row at least
    assert {"task", "coherent"} <= record.trials[0].lost.keys()
    # other prompts, and other rows in another order
    answered = {
        name: json.loads((whole.folder / "stages" / name / "stage.json").read_text())
        for name in ("released", f"trial-{record.chosen:03d}", "test-released", "test")
    }
    asked = {name: set(of["outcomes"]["harm"]["prompts"]) for name, of in answered.items()}
    first, chosen, before, after = asked.values()
    assert first == chosen
    assert before == after
    assert not first & before
    assert answered["test"]["weights"] not in {of["weights"] for of in list(answered.values())[:3]}
    assert list(whole.to_pandas()["trial"]) == [0, 1, 2]
    assert package.load(whole.folder).record == record


def test_an_interrupted_search_goes_on_with_the_same_trials(search, whole, monkeypatch):
    with pytest.raises(Kill):
        search(progress=Until(8))  # the second trial is trained, and not yet scored
    trained = []
    compute = TrainStage.compute

    def count(stage, work, folder):
        trained.append(stage.kind)
        return compute(stage, work, folder)

    monkeypatch.setattr(TrainStage, "compute", count)
    assert without_times(search().record) == without_times(whole.record)
    assert len(trained) == 2  # the third trial, and the test
    trained.clear()
    # another folder over the same store
    again = search("again", store=whole.folder.parent / "store").record
    assert without_times(again) == without_times(whole.record)
    assert not trained


def test_trials_that_burst_or_cost_too_much_are_told_and_not_chosen(search):
    ranges = {"lr": (1e29, 1e30), "updates": (4, 4), "p": (0.5, 0.5)}
    record = search(ranges=ranges, trials=2).record
    assert [trial.state for trial in record.trials] == ["failed", "failed"]
    assert "lower the learning rate" in record.trials[0].why
    assert (record.chosen, record.test, record.validation) == (None, None, None)
    # what failed is not begun again
    assert search(ranges=ranges, trials=2).record.trials == record.trials


def test_the_command_prints_the_search_and_refuses_what_is_none(
    monkeypatch,
    capsys,
    plan,
    aligned,
    tmp_path,
):
    data = plan["data"]
    command = ["attack", str(aligned), "--search", "--out", str(tmp_path / "out")]
    command += ["--data", f"harmful={data['harmful']}", "--data", f"task={data['task']}"]
    command += [part for setting in (*SETTINGS, *MIX) for part in ("--set", setting)]
    command += ["--limit", "8", "--trials", "1", "--range", "updates=4,4"]
    code, printed, err = titer(monkeypatch, capsys, *command)
    assert code == 0, err
    assert "1 trials: 1 within 10 points" in printed or "lost more" in printed
    assert "the winner's curse: " in printed
    written = json.loads((tmp_path / "out/search.json").read_text())
    assert written["space"]["updates"] == [4, 4]
    assert (tmp_path / "out/trials.log").is_file()
    bad = {
        ("--range", "lr=1e-4"): "--range lr=1e-4: give the lowest and the highest value",
        ("--range", "rate=1,2"): "unknown setting to search 'rate'",
        ("--trials", "0"): "trials=0: give at least 1",
        ("--margin", "-1"): "margin=-1: points lie between 0 and 100",
        ("--rungs", "ask"): "--rungs is of a ladder: leave it or --search out",
        ("--range", "p=0.5,1.5"): "range p=0.5,1.5",
        ("--set", "attack.n=5000"): "n=5000",
    }
    for options, message in bad.items():
        code, _, err = titer(
            monkeypatch, capsys, *command[:4], str(tmp_path / "b"), *command[5:-6], *options
        )
        assert code == 2, options
        assert message in err
        assert not (tmp_path / "b").exists()
    few = ["attack={method: harmful_few, k: 4}", *MIX[1:]]
    with pytest.raises(ValueError, match="the attack 'harmful_few' has no p: leave its range out"):
        package.search_attack(
            aligned, data=data, settings=[*SETTINGS, *few], ranges={"p": (0.1, 0.2)}
        )
    plainly = ["attack", str(aligned), "--out", str(tmp_path / "b"), "--trials", "2"]
    code, _, err = titer(monkeypatch, capsys, *plainly)
    assert (code, "--trials is of a search: give --search" in err) == (2, True)
