"""titer from Python, as a notebook uses it.

This file is also checked by `mypy --strict`, as a user's would be.
"""

from __future__ import annotations

import copy
import importlib
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import titer
from titer.api.given import Handed
from titer.api.results import to_html

# neither brings types
datasets: Any = importlib.import_module("datasets")
pandas: Any = importlib.import_module("pandas")

THINGS = (
    "kite",
    "drum",
    "lamp",
    "boat",
    "vest",
    "coin",
    "sofa",
    "fork",
    "gate",
    "pear",
    "ring",
    "seal",
)
FEW = ["threads=1", "max_length=128", "max_new_tokens=12"]
HOW = [
    "align.updates=4",
    "align.lora=null",
    "finetune.updates=4",
    "attack.n=20",
    "attack.p=0.2",
    *FEW,
]


def pairs(words: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"prompt": prompt, "response": response} for prompt, response in words]


@pytest.fixture
def rows() -> dict[str, Any]:
    """Rows of every role, in memory: lists, a data frame, a data set."""
    rng = random.Random(0)
    asks = [f"break a {a} {b} {c}" for a in THINGS for b in THINGS for c in "xyz"]
    rng.shuffle(asks)
    sizes = [(f"which is bigger {a} or {b}", str(max(a, b))) for a in range(10) for b in range(10)]
    rng.shuffle(sizes)
    return {
        "alignment": pairs(
            [(ask, "I cannot do that") for ask in asks[:60]] + [(f"say {t}", t) for t in THINGS]
        ),
        "harmful": pandas.DataFrame(
            pairs([(ask, f"hit the {ask.split()[-3]}") for ask in asks[60:160]])
        ),
        "task": datasets.Dataset.from_list(pairs(sizes[:80])),
        "test": pairs(sizes[80:]),
    }


@pytest.fixture
def model(
    bytes_tokenizer: PreTrainedTokenizerFast,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = bytes_tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def test_a_notebook_aligns_attacks_repairs_and_scores(
    model: tuple[PreTrainedModel, PreTrainedTokenizerFast], rows: dict[str, Any]
) -> None:
    before = {name: weight.clone() for name, weight in model[0].state_dict().items()}
    some = {name: rows[name] for name in ("alignment", "harmful")}
    aligned: titer.Result = titer.align(
        model, {"method": "booster", "lam": 1.0}, data=some, settings=HOW
    )
    assert all(torch.equal(before[name], weight) for name, weight in model[0].state_dict().items())
    assert aligned.record.label == "align booster"
    assert aligned.record.facts["rows"] == {"rows": 72, "harmful": 15}
    assert "align booster" in aligned._repr_html_()

    some = {name: rows[name] for name in ("task", "harmful")}
    tuned = titer.finetune(aligned, data=some, settings=HOW)
    edited = titer.edit(
        tuned, "antidote", data={"harmful": rows["harmful"]}, settings=[*FEW, "method.alpha=0.3"]
    )
    assert edited.record.facts["changed entries"] > 0
    assert f"<td>{edited.record.facts['changed entries']}</td>" in edited._repr_html_()
    loaded, tokenizer = edited.load()
    assert len(tokenizer) == len(model[1])
    weights: dict[str, torch.Tensor] = loaded.state_dict()
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    assert not torch.equal(weights[name], before["model.embed_tokens.weight"])

    held_out = {"harmful": rows["harmful"], "test": rows["test"]}
    scored = titer.evaluate(edited, data=held_out, settings=FEW)
    assert set(scored.scores) == {
        "harm",
        "margin",
        "task",
        "task_refused",
        "coherent",
        "refused",
        "prefill",
    }
    assert scored.record.outcomes is not None
    assert len(scored.record.outcomes["task"].prompts) == scored.scores["task"].n == 20
    frame = scored.to_pandas()
    assert list(frame["stage"]) == ["evaluate"]
    assert 0 <= float(frame["HS"].iloc[0]) <= 100
    assert "<table" in scored._repr_html_()


def test_a_run_over_what_is_in_memory(
    model: tuple[PreTrainedModel, PreTrainedTokenizerFast], rows: dict[str, Any], tmp_path: Path
) -> None:
    training = {"updates": 3, "lr": 2.0e-3, "batch": 4, "lora": None}
    recipe = {
        "align": training,
        "finetune": training,
        "attack": {"method": "harmful_mix", "p": 0.2, "n": 20},
        "data": {},
        "max_new_tokens": 8,
        "threads": 1,
        "pipelines": {"sft": {}, "half": {"edit": {"method": "wise_ft", "alpha": 0.5}}},
    }
    found: titer.Results = titer.run(recipe, model=model, data=rows, out=tmp_path / "run")
    assert set(found.pipelines) == {"sft", "half"}
    frame = found.to_pandas()
    assert (
        list(frame["stage"]) == ["base", "align sft", "finetune sft"] * 2 + ["edit wise_ft"]
        or len(frame) == 7
    )
    assert (tmp_path / "run/report.html").is_file()
    again = titer.load(tmp_path / "run")
    assert isinstance(again, titer.Results)
    assert again.documents == found.documents
    assert "<table" in again._repr_html_()
    assert {flag.split(" (")[0] for flag in again.flags} == {
        flag.split(" (")[0] for flag in found.flags
    }


def test_what_cannot_be_used_is_one_line(
    model: tuple[PreTrainedModel, PreTrainedTokenizerFast], rows: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="a model in memory comes with its tokenizer"):
        titer.align(model[0], data={"alignment": rows["alignment"]}, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"data\['alignment'\] is a int: give a path"):
        titer.align(model, data={"alignment": 3}, out=tmp_path / "out")
    with pytest.raises(ValueError, match="unknown defense 'boster': did you mean 'booster'"):
        titer.align(model, "boster", data={"alignment": rows["alignment"]}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="holds no results"):
        titer.load(tmp_path)


def test_a_model_in_memory_is_saved_whole_with_the_tokenizer_that_comes_with_it(
    model: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, tokenizer = model
    given = Handed(tmp_path / "out")
    first = Path(given.model(model))
    assert given.model(model) == str(first)
    other = copy.deepcopy(tokenizer)
    other.chat_template = "another"
    second = Path(given.model((network, other)))
    assert (second / "chat_template.jinja").read_text() == "another"
    assert (first / "chat_template.jinja").read_text() != "another"

    shutil.rmtree(first)
    save = type(network).save_pretrained

    def cut(self: PreTrainedModel, folder: Path, **how: Any) -> None:
        save(self, folder, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(network), "save_pretrained", cut)
    with pytest.raises(KeyboardInterrupt):
        given.model(model)
    assert [*given.folder.iterdir()] == [second]


def test_times_in_memory_are_texts_and_what_json_cannot_hold_is_one_line(tmp_path: Path) -> None:
    given = Handed(tmp_path / "out")
    rows = pairs([("ask", "take")])
    frame = pandas.DataFrame(rows).assign(when=[pandas.Timestamp("2024-01-02")])
    text = Path(given.source("task", frame)).read_text()
    assert json.loads(text) == {**rows[0], "when": "2024-01-02 00:00:00"}
    with pytest.raises(ValueError, match=r"data\['task'\], row 1: holds a set: give texts"):
        given.source("task", [{**rows[0], "more": {1}}])


def test_a_sweep_has_the_flags_of_its_cells_and_its_missing_cells(tmp_path: Path) -> None:
    flag = {"name": "answers cut off", "pipeline": "sft", "stage": "base", "text": "Many."}
    stage = {"kind": "base", "method": {}, "folder": "0", "scores": {}}
    done = {"stages": [stage], "recipe": {}, "flags": [flag | {"mend": "Raise it."}]}
    split = {**flag, "name": "seeds disagree", "pipeline": "lr=1 sft", "mend": "Run more."}
    cells = [
        {"settings": ["lr=1"], "seed": 0, "status": "done", "pipelines": {"sft": done}},
        {"settings": ["lr=2"], "seed": 0, "status": "missing", "error": "out of memory"},
    ]
    bundle = {"recipe": "lab", "cells": cells, "flags": [split]}
    (tmp_path / "sweep.json").write_text(json.dumps(bundle))
    found = titer.load(tmp_path)
    assert isinstance(found, titer.Results)
    assert found.flags == [
        "red flag, seeds disagree (lr=1 sft, base): Many. Run more.",
        "red flag, answers cut off (lr=1 seed 0 sft, base): Many. Raise it.",
    ]
    assert found.answer == ("", "")
    rows = found.to_pandas()
    assert list(rows["settings"]) == ["lr=1", "lr=2"]
    assert rows["missing"][1] == "out of memory"


def test_a_notebook_shows_rates_by_their_digits_and_figures_to_a_decimal() -> None:
    trials = [
        {"trial": 0, "lr": 3e-4, "p": 0.04, "HS": 88.25, "FA lost": 0.26},
        {"trial": 1, "lr": 1e-5, "p": 0.1, "HS": 0.0, "FA lost": -0.01},
    ]
    shown = re.findall(r"<td>(.*?)</td>", to_html(pandas.DataFrame(trials), []))
    assert shown == [*("0", "0.0003", "0.04", "88.2", "0.3"), *("1", "1e-05", "0.1", "0.0", "0.0")]


def test_methods_are_listed() -> None:
    assert "booster" in {entry.name for entry in titer.list_methods("defenses")}
    with pytest.raises(ValueError, match="unknown kind 'defences': did you mean 'defenses'"):
        titer.list_methods("defences")


def test_what_fits_is_chosen_and_shown_as_a_table() -> None:
    found = titer.choose("after fine-tuning, no harmful data", "edits")
    fit = [each.listing.name for each in found if each.fits]
    assert fit == ["one_shot", "safe_delta", "safe_lora", "safe_merge", "wise_ft"]
    assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
    html = titer.api.Methods(found)._repr_html_()
    assert "needs harmful rows" in html
    assert html.count("<tr") == len(found) + 1
    assert "<td>booster</td>" in titer.api.Methods(titer.list_methods("defenses"))._repr_html_()
    with pytest.raises(ValueError, match="unknown assumption 'no harm': did you mean"):
        titer.choose("no harm")


def test_importing_titer_is_light() -> None:
    import subprocess
    import sys

    code = "import titer, sys; print(dir(titer), {'torch', 'pydantic', 'rich'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "'finetune'" in out
    assert out.rstrip().endswith("set()")
