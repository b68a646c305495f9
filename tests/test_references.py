"""The models that edits ask for besides the fine-tuned one: trained by a run, given by name to a
command.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.weights import adapters

SAFE_LORA = {"method": "safe_lora", "layers": 2}
ANTIDOTE = {"method": "antidote", "alpha": 0.25}
CHAINS = {
    "sft": {},
    "safe_lora": {"edit": SAFE_LORA},
    "chain": {"edit": [SAFE_LORA, ANTIDOTE]},
    "safe_merge": {"edit": {"method": "safe_merge", "tau": 1.0}},
    "resta": {"edit": {"method": "resta", "gamma": 0.5}},
    "resta_d": {"edit": {"method": "resta", "drop": 0.5}},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(
        folder
        / (
            "adapter_model.safetensors"
            if (folder / "adapter_config.json").is_file()
            else "model.safetensors"
        )
    )


def added(folder: Path, under: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a model adds to the weights that it was made from, in float64.

    It is of the plan's adapter (alpha / r = 2), or a whole one.
    """
    found = {name: w.double() for name, w in weights(folder).items()}
    if "model.norm.weight" in found:
        return {name: w - under[name].double() for name, w in found.items()}
    layers = [
        name.removesuffix(".lora_A.weight") for name in found if name.endswith("lora_A.weight")
    ]
    pairs = {
        layer: (found[f"{layer}.lora_B.weight"], found[f"{layer}.lora_A.weight"])
        for layer in layers
    }
    return {
        f"{layer.removeprefix('base_model.model.')}.weight": 2 * b @ a
        for layer, (b, a) in pairs.items()
    }


def run(monkeypatch, capsys, out: Path, plan: dict, *options: str) -> tuple[dict, dict[str, Path]]:
    """The documents of a run, and the models of its stages by kind and method, those that no
    pipeline shows among them.
    """
    path = out.parent / "repairs.yaml"
    path.write_text(
        yaml.safe_dump(
            plan | {"pipelines": {name: {"align": "sft"} | of for name, of in CHAINS.items()}}
        )
    )
    code, printed, err = titer(
        monkeypatch, capsys, "run", str(path), "--out", str(out), "--json", *options
    )
    assert code == 0, err
    found: dict[str, Path] = {}
    for manifest in sorted((out.parent / "store/stages").glob("*/manifest.json")):
        about = json.loads(manifest.read_text())["about"]
        if "method" in about and "rows" in about:
            key = (
                about["kind"]
                if about["kind"] != "edit"
                else json.dumps(about["method"], sort_keys=True)
            )
            found.setdefault(key, manifest.parent)
    return json.loads(printed), found


@pytest.mark.parametrize("options", [[], ["--set", "finetune.lora=null"]])
def test_a_run_trains_what_its_edits_ask_for(monkeypatch, capsys, plan, tmp_path, options):
    if options:
        monkeypatch.setitem(CHAINS, "chain", {"edit": [SAFE_LORA, ANTIDOTE | {"target": "update"}]})
    documents, models = run(monkeypatch, capsys, tmp_path / "run", plan, *options)
    assert [stage["label"] for stage in documents["resta"]["stages"]] == [
        "base",
        "align sft",
        "finetune sft",
        "edit resta",
    ]
    assert (
        {"safe", "unsafe"} <= models.keys()
    )  # once each, though two edits ask for the unsafe one, and shown by no pipeline
    last = {
        name: tmp_path / "run/stages" / document["stages"][-1]["folder"] / "model"
        for name, document in documents.items()
    }
    aligned = weights(models["align"])
    dw, safe, unsafe = (added(models[name], aligned) for name in ("finetune", "safe", "unsafe"))
    assert len(dw) == (20 if options else 4)
    assert (
        len(
            {
                float(of["model.layers.0.self_attn.q_proj.weight"].norm())
                for of in (dw, safe, unsafe)
            }
        )
        == 3
    )
    for name, start in aligned.items():
        dw_name = dw.get(name, torch.zeros(1))
        expected = start.double() + dw_name - 0.5 * unsafe.get(name, torch.zeros(1))
        torch.testing.assert_close(
            weights(last["resta"])[name].double(), expected, rtol=1e-6, atol=1e-6
        )
        mix = (
            0.8 * dw_name + 0.2 * safe.get(name, torch.zeros(1))
            if name.endswith("_proj.weight")
            else dw_name
        )
        torch.testing.assert_close(
            weights(last["safe_merge"])[name].double(), start.double() + mix, rtol=1e-6, atol=1e-6
        )
    facts = documents["safe_lora"]["stages"][-1]["facts"]
    assert len(facts["chosen"]) == facts["chosen weights"] == 2
    assert (
        set(facts["cosine"])
        == set(facts["norm ratio"])
        == {name for name in dw if name.endswith("_proj.weight")}
    )
    assert [stage["label"] for stage in documents["chain"]["stages"][-2:]] == [
        "edit safe_lora",
        "edit antidote",
    ]
    assert (
        documents["chain"]["stages"][-2]["weights"]
        == documents["safe_lora"]["stages"][-1]["weights"]
    )
    assert len({document["stages"][-1]["weights"] for document in documents.values()}) == len(
        CHAINS
    )
    for folder in last.values():  # as anybody loads them
        if (folder / "adapter_config.json").is_file():
            with adapters.literal_peft():
                PeftModel.from_pretrained(
                    AutoModelForCausalLM.from_pretrained(models["align"]), folder
                )
        else:
            AutoModelForCausalLM.from_pretrained(folder)


def test_a_command_takes_them_by_name(monkeypatch, capsys, plan, tmp_path):
    _, models = run(monkeypatch, capsys, tmp_path / "run", plan)
    chain = [
        ("resta", "finetune", {"unsafe": models["unsafe"]}, []),
        (
            "safe_merge",
            "finetune",
            {"base": plan["model"], "safe": models["safe"]},
            ["--set", "method.tau=1"],
        ),
        ("safe_lora", "finetune", {"base": plan["model"]}, ["--set", "method.layers=2"]),
        (
            "antidote",
            tmp_path / "safe_lora",
            {},
            ["--data", f"harmful={plan['data']['harmful']}", "--set", "method.alpha=0.25"],
        ),
    ]
    for method, model, references, options in chain:
        out = tmp_path / method
        given = [
            part
            for name, folder in references.items()
            for part in ("--reference", f"{name}={folder}")
        ]
        arguments = [
            "edit",
            str(models.get(model, model)),
            "--method",
            method,
            *given,
            "--set",
            "threads=1",
            *options,
        ]
        code, printed, err = titer(monkeypatch, capsys, *arguments, "--out", str(out), "--json")
        assert code == 0, err
        document = json.loads(printed)
        assert {name: document["references"][name] for name in references} == {
            name: str(path) for name, path in references.items()
        }
        key = json.dumps(document["method"], sort_keys=True)
        if method != "antidote":
            mine, its = weights(out), weights(models[key])
            assert all(
                torch.equal(mine[name], its[name]) for name in its
            )  # what a run makes of them
    assert (tmp_path / "antidote/adapter_config.json").is_file()
    code, _, err = titer(
        monkeypatch,
        capsys,
        "edit",
        str(models["finetune"]),
        "--method",
        "resta",
        "--out",
        str(tmp_path / "missing"),
    )
    assert code == 2
    assert (
        "needs the aligned model fine-tuned on harmful rows: give it as --reference unsafe=MODEL"
        in err
    )
