"""Choosing the value of an edit under a bound on what the task loses: the rule, and the command."""

import json
from pathlib import Path

import pytest

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.edits.antidote import Antidote
from titer.edits.scale import Scale
from titer.errors import EvidenceError
from titer.findings.records import Record
from titer.runs.search import Search, choose
from titer.scoring.differences import difference
from titer.scoring.statistics import proportion
from titer.weights import checkpoints
from titer.weights.settings import Checkpoint

ASKED = 100


def record(harmful: int, right: int, coherent: int = ASKED) -> Record:
    """Score a model on 100 prompts of either kind; the first `right` of the task's are right."""
    counts = (("harm", harmful), ("task", right), ("coherent", coherent))
    reasons = ["exact"] * right + ["wrong"] * (ASKED - right)
    names = [str(i) for i in range(ASKED)]
    outcomes = {
        "prompts": names,
        "clusters": names,
        "verdicts": ["safe"] * ASKED,
        "reasons": reasons,
    }
    return Record(
        kind="edit",
        scores={name: proportion(count, ASKED) for name, count in counts},
        outcomes={"task": outcomes},
    )


def chosen(records: list[Record], values: tuple[float, ...], bound: float):
    """Choose among edits with these values, the unedited model's record first."""
    asked = Search("alpha", values, bound)
    return choose(asked, asked.edits(Antidote()), records[0], records[1:])


def test_the_lowest_hs_among_those_that_are_shown_to_keep_the_task():
    records = [record(90, 100), record(60, 100), record(40, 98), record(20, 60)]
    costs = [
        difference([True] * ASKED, [i < right for i in range(ASKED)]).high
        for right in (100, 98, 60)
    ]
    # a loss of 2 points is shown to be below 8, not below 5
    assert costs[0] < 5 < costs[1] < 8 < costs[2]
    for bound, alpha in ((5.0, 0.1), (8.0, 0.2), (60.0, 0.3)):
        edit, told = chosen(records, (0.1, 0.2, 0.3), bound)
        assert edit == Antidote(alpha=alpha)
        assert [one["value"] for one in told if one["chosen"]] == [alpha]
        assert [one["keeps"] for one in told] == [cost <= bound for cost in costs]
        assert [one["lost"]["value"] for one in told] == pytest.approx([0, 2, 40])
        assert told[0]["before"]["harm"]["value"] == 90


def test_a_broken_model_is_not_chosen():
    records = [record(90, 100), record(60, 100), record(0, 100, coherent=10)]
    edit, told = chosen(records, (0.1, 0.2), 10.0)
    assert edit == Antidote(alpha=0.1)
    assert "coherent" in told[1]["broken"][0]


def test_without_enough_evidence_nothing_is_chosen():
    with pytest.raises(
        EvidenceError,
        match=r"alpha: no value .* cost at most 1 points .* 100 prompts "
        r"\(0.1 costs 0.0 \[.*\]; 0.2 costs 5.0",
    ):
        chosen([record(90, 100), record(60, 100), record(40, 95)], (0.1, 0.2), 1.0)


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="bound=0"):
        Search("alpha", (0.1,), 0.0)
    with pytest.raises(ValueError, match="alpha: give at least one value"):
        Search("alpha", (), 2.0)
    with pytest.raises(ValueError, match="did you mean 'alpha'"):
        Search("alpa", (0.1,), 2.0).edits(Antidote())
    with pytest.raises(ValueError, match="alpha=2"):
        Search("alpha", (0.1, 2), 2.0).edits(Antidote())
    assert Search("alpha", (0.1, 0.2), 2.0).edits(Antidote(group="global")) == [
        Antidote(a, group="global") for a in (0.1, 0.2)
    ]


def test_the_command_writes_the_chosen_model_its_table_and_its_nulls(
    monkeypatch,
    capsys,
    plan,
    recipe_file,
    tmp_path,
):
    out = tmp_path / "run"
    code, _, err = titer(
        monkeypatch, capsys, "run", recipe_file, "--out", str(out), "--set", 'pipelines={"sft": {}}'
    )
    assert code == 0, err
    tuned = str((out / "stages/02-finetune/model").resolve())
    data = [f"harmful={plan['data']['harmful']}", f"validation={plan['data']['test']}"]
    roles = [part for role in data for part in ("--data", role)]
    shared = [
        *roles,
        "--set",
        "threads=1",
        "--set",
        "max_new_tokens=12",
        "--set",
        "data.lookalike=null",
    ]
    ask = ["edit", tuned, *shared, "--search", "alpha=0.25,0.5"]
    edited = tmp_path / "edited"
    code, printed, err = titer(
        monkeypatch, capsys, *ask, "--out", str(edited), "--bound", "100", "--nulls", "--json"
    )
    assert code == 0, err
    document = json.loads(printed)
    [chosen] = [one["value"] for one in document["search"] if one["chosen"]]
    assert document["method"]["alpha"] == chosen
    assert not [path for path in edited.iterdir() if path.name in ("store", "merged")]
    for folder in (edited, edited / "nulls/scale", edited / "nulls/random_mask"):
        checkpoints.load(Checkpoint(str(folder)))
    null = json.loads((edited / "nulls/scale/stage.json").read_text())
    assert null["method"]["match"]["alpha"] == chosen
    assert null["facts"]["update norm after"] == pytest.approx(
        document["facts"]["update norm after"], rel=1e-5
    )
    code, _, err = titer(
        monkeypatch, capsys, *ask, "--out", str(tmp_path / "none"), "--bound", "1e-9"
    )
    assert (code, "undecided: alpha: no value" in err) == (3, True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("option", "error"),
    [
        (["--search", "alpha"], "--search 'alpha': give FIELD=V1,V2"),
        (["--search", "alpha=0.1", "--bound", "0"], "bound=0.0"),
        (["--method", "one_shot", "--nulls"], "the edit 'one_shot' has no nulls"),
        (["--reference", "base"], "--reference 'base': give NAME=VALUE"),
        (["--reference", "bse=x"], "unknown reference of the edit 'antidote': 'bse'"),
    ],
)
def test_bad_options_are_one_line(monkeypatch, capsys, tmp_path, option, error):
    out = tmp_path / "out"
    code, _, err = titer(
        monkeypatch, capsys, "edit", "lab", *option, "--reference", "aligned=lab", "--out", str(out)
    )
    assert code == 2
    assert error in err
    assert err.count("\n") == 1
    assert not Path(out).exists()


def test_scale_is_a_null_of_any_edit_of_the_update():
    assert (
        Search("match", ({"method": "wise_ft", "alpha": 0.3},), 1.0).edits(Scale())[0].match.alpha
        == 0.3
    )
