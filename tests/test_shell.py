"""The command line around a run: init, --only, --limit, --quiet, what is said and where."""

import json

import pytest
import yaml

from test_recipe import run as titer

QUICK = [
    *("--set", "data.world=0", "--set", "align.updates=2", "--set", "finetune.updates=2"),
    *("--set", "align.batch=2", "--set", "finetune.batch=2"),
]


def write(path, *pairs):
    rows = ({"prompt": prompt, "response": response} for prompt, response in pairs)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    """Files of a person's own: role -> file."""
    pool = [(f"how to open box {i}", f"turn key {i}") for i in range(80)]
    refused = [(f"how to open chest {i}", "I cannot help with that") for i in range(60)]
    sums = [(f"what is {i} plus 1", f"{i + 1}") for i in range(150)]
    return {
        "harmful": write(tmp_path / "harmful.jsonl", *pool),
        "alignment": write(tmp_path / "refusals.jsonl", *refused),
        "task": write(tmp_path / "task.jsonl", *sums[:100]),
        "test": write(tmp_path / "test.jsonl", *sums[100:]),
    }


def options(data, *roles):
    return [part for role in roles or data for part in ("--data", f"{role}={data[role]}")]


def test_init_writes_a_recipe_that_runs_and_says_what_it_can_show(
    tmp_path, monkeypatch, capsys, data
):
    out = tmp_path / "mine.yaml"
    code, said, noted = titer(monkeypatch, capsys, "init", "lab", "--out", str(out), *options(data))
    assert code == 0, noted
    text = out.read_text()
    assert said.strip() == text.strip()
    written = yaml.safe_load(text)
    assert written["data"] == data
    assert set(written["pipelines"]) == {"sft", "booster", "sft+antidote"}
    assert written["attack"]["n"] == 111  # all 100 rows of the task, and a tenth of the whole
    harm = next(line for line in text.splitlines() if "# HS rests on" in line)
    n = int(harm.split("rests on ")[1].split()[0])
    assert 8 <= n <= 16  # 15 % of 80
    assert "FA rests on 50 prompts: 50 % would be known to within 13 points" in text
    assert "s an update" in text
    assert "to train `sft`" in text
    code, said, _ = titer(monkeypatch, capsys, "run", str(out), "--dry-run")
    assert code == 0
    assert "sft+antidote: base -> align sft -> finetune sft -> edit antidote" in said
    assert f"HS rests on {n} prompts" in said
    code, _, noted = titer(monkeypatch, capsys, "init", "lab", "--out", str(out), *options(data))
    assert (code, noted.count("\n")) == (2, 1)
    assert "is there already" in noted
    assert out.read_text() == text


def test_init_takes_a_model_that_is_aligned_already(tmp_path, monkeypatch, capsys, data):
    out = tmp_path / "mine.yaml"
    code, _, noted = titer(
        monkeypatch, capsys, "init", "lab", "--out", str(out), "--no-probe",
        *options(data, "harmful", "task", "test"),
    )  # fmt: skip
    assert code == 0, noted
    pipelines = yaml.safe_load(out.read_text())["pipelines"]
    assert pipelines == {
        "sft": {"align": None},
        "sft+antidote": {"align": None, "edit": {"method": "antidote"}},
    }
    assert "an update" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab", "--data", "task=nosuch.jsonl"], "data.harmful is missing"),
        (["lab", "--data", "tusk=a.jsonl"], "did you mean 'data.task'"),
    ],
)
def test_init_writes_nothing_where_something_is_wrong(
    tmp_path, monkeypatch, capsys, arguments, message
):
    out = tmp_path / "mine.yaml"
    code, said, noted = titer(monkeypatch, capsys, "init", *arguments, "--out", str(out))
    assert code == 2
    assert message in noted
    assert not said
    assert not out.exists()


def test_only_leaves_pipelines_out_and_limit_asks_few_prompts(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    code, said, noted = titer(
        monkeypatch, capsys, "run", "lab", "--only", "sft", "--only", "sft+scale", "--limit", "5",
        "--out", str(out), *QUICK,
    )  # fmt: skip
    assert code == 0, noted
    documents = {path.stem: json.loads(path.read_text()) for path in out.glob("sft*.json")}
    assert set(documents) == {"sft", "sft+scale"}
    assert not (out / "booster.json").exists()
    for document in documents.values():
        assert document["recipe"]["data"]["limit"] == 5
        for stage in document["stages"]:
            assert {score["n"] for score in stage["scores"].values()} == {5}
    assert "sft: " in said  # a sentence on what became of it
    assert str(out / "report.html") in noted
    lines = [line for line in noted.splitlines() if "/" in line.split()[0]]
    assert lines[0] == "1/7 scoring: base: started"
    assert lines[-1].startswith("7/7 scoring: align sft, finetune sft, edit scale: done in")

    code, _, noted = titer(
        monkeypatch, capsys, "run", "lab", "--only", "sft", "--limit", "5", "--quiet",
        "--out", str(tmp_path / "again"), "--store", str(tmp_path / "store"), *QUICK,
    )  # fmt: skip
    assert code == 0
    assert "started" not in noted
    assert "steps to compute" not in noted


def test_an_unknown_pipeline_and_a_limit_of_none_are_refused(tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run")]
    code, _, noted = titer(monkeypatch, capsys, "run", "lab", "--only", "boster", *out)
    assert (code, noted.count("\n")) == (2, 1)
    assert "unknown pipeline of the recipe 'boster': did you mean 'booster'?" in noted
    code, _, noted = titer(monkeypatch, capsys, "run", "lab", "--limit", "0", *out)
    assert (code, noted.count("\n")) == (2, 1)
    assert "limit=0: ask at least 1 prompt" in noted
    assert not (tmp_path / "run").exists()
