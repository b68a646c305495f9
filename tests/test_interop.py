"""Results for other tools: logs of Inspect, and what lm-evaluation-harness writes."""

import hashlib
import json
import math
import re
import stat
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from test_recipe import run as titer
from titer import registry
from titer.data.rows import Answer, Row
from titer.findings.records import plain, record_of
from titer.integrations.inspect_logs import write_logs
from titer.integrations.lm_eval import write_results
from titer.integrations.scored import read_models
from titer.runs.documents import brief
from titer.runs.stages.answer import write_privately
from titer.runs.stages.judge import _line, outcomes_of, summarize
from titer.scoring.judging import judge_answers

SECRET = "glimmer"  # in every prompt and answer, and in the name of every cluster
REFUSAL = f"I'm sorry, I cannot help with {SECRET}."
STAGES = {  # folder -> how many of eight harm prompts are answered
    "00-base": 8,
    "01-align": 0,
    "02-finetune": 5,
}


def score(harmful: int) -> tuple[dict, str]:
    """What a model came to that answers so many of eight harm prompts, one of which nobody can judge:
    its record and its answers.
    """
    rows = {
        "harm": [
            Row(f"{SECRET} {i}", f"{SECRET} told", cluster=f"{SECRET} {i // 2}") for i in range(9)
        ],
        "lookalike": [Row(f"{SECRET} near {i}") for i in range(4)],
        "task": [Row(f"{SECRET} sum {i}", str(i)) for i in range(5)],
    }
    told = [f"{SECRET}: first take the jar, then fill it."] * harmful + [REFUSAL] * (8 - harmful)
    texts = {
        "harm": [*told, "これは英語ではありません。"],  # no English: unscored
        "lookalike": ["It is a jar."] * 3 + [REFUSAL],
        "task": ["0", "1", "2", "no", "no"],
    }
    given = {
        name: [Answer(text, i != 1) for i, text in enumerate(of)] for name, of in texts.items()
    }
    margins = [float(i) - 4.5 for i in range(9)]
    judge = registry.build("judges", {"method": "refusal", "phrases": "titer-1"})
    found = judge_answers(rows, given, judge, margins=margins)
    text = "".join(json.dumps(_line(each)) + "\n" for each in found.records)
    facts = summarize(found.records) | {"answers sha256": hashlib.sha256(text.encode()).hexdigest()}
    fields = {
        "scores": {name: plain(asdict(of)) for name, of in found.scores.items()},
        "outcomes": outcomes_of(rows, found.records, margins),
        "facts": facts,
        "weights": "ab" * 32,
    }
    return fields, text


@pytest.fixture
def finished(tmp_path) -> Path:
    """The folder of a run of one pipeline."""
    folder, stages = tmp_path / "run", []
    for name, harmful in STAGES.items():
        fields, text = score(harmful)
        kind = name[3:]
        how = {"method": "sft"} if kind != "base" else {}
        record = record_of({"kind": kind, "method": how, "folder": name, "schema": 1, **fields})
        own = folder / "stages" / name
        own.mkdir(parents=True)
        (own / "stage.json").write_text(json.dumps(record.fields))
        write_privately(own / "answers.jsonl", text)
        stages.append(brief(record) | {"struck out": ["FA fell"] if kind == "finetune" else []})
    recipe = {"pipelines": {"sft": {}}, "model": {"path": "lab"}, "seed": 3, "system": "Be kind."}
    document = {
        "pipeline": "sft",
        "recipe": recipe,
        "stages": stages,
        "run": "ab" * 32,
        "judge": {"method": "refusal"},
        "benchmark": {"method": "answers"},
        "decoding": {"do_sample": False},
        "environment": {"titer": "0.1.0", "torch": "2", "cpu": "none"},
    }
    (folder / "sft.json").write_text(json.dumps(document))
    (folder / "run.json").write_text(json.dumps({"identity": "run ab", "recipe": recipe}))
    return folder


def scores_of(folder: Path, stage: str) -> dict:
    return dict(json.loads((folder / "stages" / stage / "stage.json").read_text())["scores"])


def words_in(folder: Path) -> str:
    """All bytes of a folder's files, unpacked, as text."""
    found = []
    for path in folder.iterdir():
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as archive:
                found += [archive.read(name) for name in archive.namelist()]
        else:
            found.append(path.read_bytes())
    return b"\n".join(found).decode()


def test_the_values_of_the_prompts_make_the_figures(finished):
    models = read_models(finished)
    assert [each.name for each in models] == list(STAGES)
    for each in models:
        for name, figure in each.record.scores.items():
            if name == "task_refused":  # no record has it prompt by prompt
                continue
            values = [asked.values[name] for asked in each.asked() if name in asked.values]
            unit = 1 if name == "margin" else 100
            assert unit * sum(values) / len(values) == pytest.approx(figure.value), name
            assert len(values) == figure.n
    assert models[2].record.scores["harm"].value == 62.5
    assert models[2].record.scores["harm"].unscored == 1


def test_lm_eval_results_have_the_figures_of_the_record(monkeypatch, capsys, finished, tmp_path):
    to = tmp_path / "out"
    arguments = ("report", str(finished), "--export", str(to), "--format", "lm-eval")
    code, printed, err = titer(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert printed.split() == [str(to / f"results_{name}.json") for name in STAGES]
    assert SECRET not in words_in(to)
    for stage in STAGES:
        made = json.loads((to / f"results_{stage}.json").read_text())
        scores = scores_of(finished, stage)
        tasks = {f"titer_{name}" for name in scores}
        for key in ("results", "versions", "n-shot", "configs", "higher_is_better", "n-samples"):
            assert set(made[key]) == tasks
        for name, score in scores.items():
            told = made["results"][f"titer_{name}"]
            assert told[f"{name},none"] == score["value"]
            assert (told[f"{name}_low,none"], told[f"{name}_high,none"]) == (
                score["low"],
                score["high"],
            )
            half = told[f"{name}_stderr,none"] * 1.959964
            assert half == pytest.approx((score["high"] - score["low"]) / 2, rel=1e-6)
        assert made["n-samples"]["titer_harm"] == {"original": 9, "effective": 8}
        assert made["higher_is_better"]["titer_harm"] == {"harm": False}
        assert made["higher_is_better"]["titer_task"] == {"task": True}
        assert made["configs"]["titer_harm"]["metadata"]["scorer"] == "refusal"
        struck = made["configs"]["titer_harm"]["metadata"]["struck out"]
        assert struck == (["FA fell"] if stage == "02-finetune" else [])
        assert made["system_instruction"] == "Be kind."


def test_a_figure_that_is_not_known_is_not_available(finished):
    path = finished / "sft.json"
    document = json.loads(path.read_text())
    document["stages"][0]["scores"]["harm"] |= {"value": None, "low": None, "high": None, "n": 0}
    path.write_text(json.dumps(document))
    write_results(finished, finished / "out")
    told = json.loads((finished / "out/results_00-base.json").read_text())["results"]["titer_harm"]
    assert {value for key, value in told.items() if key != "alias"} == {"N/A"}


def test_the_folder_of_an_evaluation_is_exported_too(finished, tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    fields, text = score(5)
    told = {"kind": "evaluate", "recipe": {"model": {"path": "m"}}, "judge": {"method": "refusal"}}
    (folder / "stage.json").write_text(json.dumps({**fields, **told}))
    write_privately(folder / "answers.jsonl", text)
    [path] = write_results(folder, tmp_path / "out")
    made = json.loads(path.read_text())
    assert made["model_name"] == "m"
    assert made["results"]["titer_harm"]["harm,none"] == 62.5


def test_what_cannot_be_exported_is_one_clear_line(monkeypatch, capsys, finished, tmp_path):
    def said(*arguments: str) -> str:
        code, _, err = titer(monkeypatch, capsys, "report", *arguments)
        assert code == 2
        assert err.count("\n") == 1
        return err

    run, out = str(finished), str(tmp_path / "out")
    assert "give --export DIR" in said(run, "--format", "lm-eval")
    assert "--format inspect" in said(run, "--export", out, "--answers")
    (tmp_path / "empty").mkdir()
    assert "titer run" in said(str(tmp_path / "empty"), "--export", out, "--format", "lm-eval")
    (tmp_path / "empty/sweep.json").write_text("{}")
    assert "cell" in said(str(tmp_path / "empty"), "--export", out, "--format", "lm-eval")
    assert not Path(out).exists()
    Path(out).mkdir()
    (Path(out) / "mine").touch()
    assert "not empty" in said(run, "--export", out, "--format", "lm-eval")


def test_without_inspect_its_logs_are_refused(monkeypatch, finished, tmp_path):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'titer[inspect]'")):
        write_logs(finished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def inspect_log():
    return pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")


@pytest.mark.filterwarnings("default")  # those of a package that is not ours
def test_inspect_reads_back_the_figures(inspect_log, finished, tmp_path):
    written = write_logs(finished, tmp_path / "out")
    assert [path.name for path in written] == [f"{name}.eval" for name in STAGES]
    assert SECRET not in words_in(tmp_path / "out")
    for path in written:
        log = inspect_log.read_eval_log(str(path))
        scores = scores_of(finished, path.stem)
        assert log.status == "success"
        assert {score.name for score in log.results.scores} == set(scores)
        for score in log.results.scores:
            mine = scores[score.name]
            title = {"harm": "HS", "task": "FA"}.get(score.name)
            values = {name: metric.value for name, metric in score.metrics.items()}
            if title:
                assert values[title] == mine["value"]
            assert (values["low"], values["high"]) == (mine["low"], mine["high"])
            assert (score.scored_samples, score.unscored_samples) == (mine["n"], mine["unscored"])
            if score.name == "task_refused":
                continue
            each = [s.scores[score.name].value for s in log.samples if score.name in s.scores]
            known = [value for value in each if not math.isnan(value)]
            unit = 1 if score.name == "margin" else 100
            assert unit * sum(known) / len(known) == pytest.approx(mine["value"])
        assert len(log.samples) == 18
        hashes = {s.metadata["prompt sha256"] for s in log.samples}
        assert len(hashes) == 18


@pytest.mark.filterwarnings("default")
def test_answers_are_in_a_log_where_they_are_asked_for(
    inspect_log, monkeypatch, capsys, finished, tmp_path
):
    to = tmp_path / "out"
    arguments = ("--export", str(to), "--format", "inspect", "--answers")
    code, _, err = titer(monkeypatch, capsys, "report", str(finished), *arguments)
    assert code == 0, err
    assert {stat.S_IMODE(path.stat().st_mode) for path in to.iterdir()} == {0o600}
    log = inspect_log.read_eval_log(str(to / "02-finetune.eval"))
    lines = (finished / "stages/02-finetune/answers.jsonl").read_text().splitlines()
    told = {
        (s.metadata["benchmark"], s.input, s.output.completion, s.output.stop_reason)
        for s in log.samples
    }
    assert told == {
        (of["benchmark"], of["prompt"], of["response"], "stop" if of["ended"] else "max_tokens")
        for of in map(json.loads, lines)
    }
    with (finished / "stages/02-finetune/answers.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="not as it was written"):
        write_logs(finished, tmp_path / "other", answers=True)
