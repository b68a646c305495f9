"""The command line: recipes, settings, and one clear line for what is wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import titer
from titer import cli, listing, registry
from titer.defenses.booster import Booster
from titer.edits.antidote import Antidote
from titer.edits.scale import Scale
from titer.runs import recipe


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["titer", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.lrr=1"], "unknown key 'finetune.lrr': did you mean 'finetune.lr'?"),
        (
            ["finetune.lora.rank=1"],
            "unknown key 'finetune.lora.rank': did you mean 'finetune.lora.r'?",
        ),
        (["dat.world=1"], "unknown key 'dat': did you mean 'data'?"),
        (["pipelines.booster.align.lamm=1"], "unknown key 'lamm': did you mean 'lam'?"),
        (["pipelines.boster.align.lam=1"], "'boster': did you mean 'booster'?"),
        (["pipelines.sft.edit=antidot"], "unknown edit 'antidot': did you mean 'antidote'?"),
        (["attack.method=harmfulmix"], "unknown attack 'harmfulmix': did you mean 'harmful_mix'?"),
        (["attack.p=1.5"], "p=1.5: the harmful ratio must lie between 0 and 1"),
        (["attack.p=-0.1"], "p=-0.1"),
        (["attack.n=5000"], "ask for 500 harmful rows but there are 144"),
        (
            ["finetune.lora.targets=[q_prj]"],
            "LoRA target 'q_prj' matches no linear layer: did you mean 'q_proj'?",
        ),
        (
            ["finetune.lora=null"],
            "works on the factors of the fine-tuning adapter, and there is none: set finetune.lora",
        ),
        (
            ["pipelines.sft.finetune=safe_moe"],
            "safe_moe works on how layers route tokens to experts, and all 6 layers of this model are",
        ),
        (["finetune.updates=many"], "finetune.updates='many': input should be a valid integer"),
        (["data.task=moood"], "did you mean 'mood'?"),
        (["model=nowhere"], "model 'nowhere': no such directory"),
        (["attack.p"], "give path.to.field=value"),
        (["seed=-3"], "seed=-3"),
        (["pipelines={}"], "pipelines is empty"),
    ],
)
def test_bad_settings_give_one_line_and_exit_code_two(
    monkeypatch, capsys, tmp_path, settings, message
):
    monkeypatch.chdir(tmp_path)
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, out, err = run(
        monkeypatch, capsys, "run", "lab", *arguments, "--out", str(tmp_path / "out")
    )
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_or_kind_is_named_with_the_nearest(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "run", "labb")
    assert code == 2
    assert "did you mean 'lab'" in err
    code, _, err = run(monkeypatch, capsys, "list", "defense")
    assert code == 2
    assert "did you mean 'defenses'" in err


def test_settings_are_typed_and_reach_methods_given_in_the_short_form():
    plan = recipe.load(
        "lab",
        [
            "finetune.lr=1e-3",
            "pipelines.sft.edit=antidote",
            "pipelines.sft.edit.alpha=0.3",
            "data.world=2",
        ],
        seed=4,
    )
    assert plan.finetune.lr == 1e-3
    assert plan.pipelines["sft"].edit == Antidote(alpha=0.3)
    assert (plan.data.world, plan.seed) == (2, 4)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_loads_and_round_trips(name, tmp_path):
    plan = recipe.load(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(recipe.describe(plan)))
    assert recipe.load(str(copy)) == plan


def test_a_recipe_extends_one_that_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "below.yaml").write_text("extends: lab\nseed: 3\n")
    (tmp_path / "mine.yaml").write_text("extends: below.yaml\nfinetune: {lr: 0.5}\n")
    found = recipe.load(str(tmp_path / "mine.yaml"))
    assert (found.seed, found.finetune.lr) == (3, 0.5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)  # else from where titer runs
    (tmp_path / "elsewhere/mine.yaml").write_text("extends: below.yaml\n")
    assert recipe.load("elsewhere/mine.yaml").seed == 3


def test_recipes_that_extend_one_another_are_named(tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("extends: b.yaml\n")
    b.write_text("extends: a.yaml\n")
    with pytest.raises(
        ValueError, match=re.escape(f"{a} -> {b} -> {a}: a recipe cannot extend itself")
    ):
        recipe.load(str(a))


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: lab\nfinetune: {lr: 0.5}\n")
    mine, lab = recipe.load(str(tmp_path / "mine.yaml")), recipe.load("lab")
    assert mine.finetune.lr == 0.5
    assert mine.finetune.updates == lab.finetune.updates
    assert mine.pipelines == lab.pipelines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "a recipe is a mapping"),
        ("a: [", "is it YAML"),
        ("extends: lab\nalign: 3", "align=3"),
    ],
)
def test_a_bad_recipe_file_is_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipe.load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_method_builds_with_its_defaults_round_trips_and_has_a_summary(kind):
    entries = listing.entries(kind)
    assert entries
    for entry in entries:
        method = registry.build(kind, entry.name)
        assert registry.build(kind, registry.describe(method)) == method
        assert registry.name_of(method) == entry.name
        assert hash(method) == hash(
            registry.build(kind, entry.name)
        )  # frozen: stages are shared by equal methods
        assert entry.summary.endswith((".", ","))  # a sentence, or its beginning
        if kind not in ("judges", "benchmarks"):
            assert method.paper in (registry.load(kind, entry.name).__doc__ or "")


def test_a_method_may_hold_another():
    built = registry.build(
        "edits", {"method": "scale", "match": {"method": "antidote", "alpha": 0.4}}
    )
    assert built == Scale(match=Antidote(alpha=0.4))
    of_match = {
        "method": "antidote",
        "alpha": 0.4,
        "target": "factors",
        "group": "row",
        "rounding": "exact",
        "targets": ["all"],
    }
    assert registry.describe(built)["match"] == of_match
    with pytest.raises(ValueError, match="match: unknown key 'alpa'"):
        registry.build("edits", {"method": "scale", "match": {"method": "antidote", "alpa": 0.4}})
    assert registry.build("defenses", {"method": "booster", "lam": "2.5"}) == Booster(lam=2.5)


def test_the_command_line_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, titer.cli; "
        "print({'torch', 'transformers', 'datasets', 'matplotlib', 'peft'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )


def test_what_is_known_of_the_hub_is_listed_and_a_revision_is_unset_before_a_download(
    monkeypatch, capsys
):
    code, out, _ = run(monkeypatch, capsys, "list", "hub", "--json")
    assert code == 0
    known = {entry["name"]: entry["facts"] for entry in json.loads(out)}
    assert known["openai/gsm8k"] == {
        "licence": "MIT",
        "commercial use": True,
        "gated": False,
        "revision": "unset",
    }
    assert known["PKU-Alignment/BeaverTails"]["commercial use"] is False
    assert known["LLM-Tuning-Safety/HEx-PHI"]["gated"] is True


def test_listing_is_quick_and_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, titer.listing as l; l.lines(None); print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_list_prints_every_method(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "list", "--json")
    assert code == 0
    listed = {(entry["kind"], entry["name"]) for entry in json.loads(out)}
    assert {
        ("defenses", "sft"),
        ("defenses", "booster"),
        ("edits", "antidote"),
        ("edits", "scale"),
        ("attacks", "harmful_mix"),
    } <= listed
    assert {("judges", "lab"), ("judges", "refusal"), ("recipes", "lab")} <= listed
    code, out, _ = run(monkeypatch, capsys, "list", "edits")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == sorted(
        path.stem for path in (Path(titer.__file__).parent / "edits").glob("*.py")
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "align.batch=9223372036854775808",
            "batch=9223372036854775808: must lie between 1 and 65536",
        ),
        ("align.updates=0", "updates=0: must lie between 1 and 100000000"),
        ("finetune.accumulate=1000000", "accumulate=1000000: must lie between 1 and 65536"),
        (
            "max_new_tokens=18446744073709551616",
            "max_new_tokens=18446744073709551616: must be at most",
        ),
    ],
)
def test_what_would_not_end_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        recipe.load("lab", [setting])


def test_what_an_alias_stands_for_is_set_at_one_place_alone(tmp_path):
    path = tmp_path / "aliases.yaml"
    path.write_text(
        "extends: lab\nalign: &t {updates: 10}\nfinetune: *t\n"
        "pipelines: {a: &p {align: {method: booster}}, b: *p}\n"
    )
    found = recipe.load(str(path), ["finetune.updates=99", "pipelines.b.align.lam=7"])
    assert (found.align.updates, found.finetune.updates) == (10, 99)
    assert (found.pipelines["a"].align.lam, found.pipelines["b"].align.lam) == (
        Booster().lam,
        7,
    )


def test_a_seed_is_not_given_in_two_ways():
    assert recipe.load("lab", ["seed=5"]).seed == 5
    with pytest.raises(
        ValueError, match=r"^--set seed=5: give a seed as --seed N, .*--seeds 0,1,2"
    ):
        recipe.load("lab", ["seed=5"], seed=0)


def test_a_stage_alone_loads_its_model_as_the_recipe_does(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: lab\nmodel: {path: a/b, revision: main, dtype: bfloat16, trust_remote_code: true}\n"
    )
    of = recipe.load_single(str(path), "evaluate", "here", None, ["model.base=under"])
    assert of.model == replace(
        recipe.load(str(path)).model, path="here", revision=None, base="under"
    )
    assert recipe.load_for(str(path), "there", [], 3).model.dtype == "bfloat16"
    for setting in ("model=other", "model.path=other"):
        with pytest.raises(ValueError, match=f"^--set {setting}: the model is 'here': leave"):
            recipe.load_single(str(path), "evaluate", "here", None, [setting])


def test_a_part_that_a_pipeline_does_not_have_yet_can_be_set():
    found = recipe.load(
        "lab", ["pipelines.sft.edit.method=antidote", "pipelines.sft.edit.alpha=.2"]
    )
    assert found.pipelines["sft"].edit == Antidote(alpha=0.2)
    with pytest.raises(ValueError, match=r"unknown pipeline part .*'edt'"):
        recipe.load("lab", ["pipelines.sft.edt.method=antidote"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("edit", "a", "--out", "b", "--bound", "5"),
            "--bound 5: it is of a search: give --search",
        ),
        (("card", "a", "b", "--diff", "--out", "c"), "leave --out and --ladder out"),
        (("sweep", "lab", "--grid", "attack.p=.1,0.1"), "--grid attack.p has a value twice"),
        (("sweep", "lab", "--grid", "seed=1,2"), "--set seed=1: give a seed as --seed N"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    monkeypatch, capsys, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert not [*tmp_path.iterdir()]


def test_what_a_run_would_do_is_json_where_that_is_asked_for(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, plain, _ = run(monkeypatch, capsys, "run", "lab", "--only", "sft", "--dry-run")
    assert code == 0
    _, told, _ = run(monkeypatch, capsys, "run", "lab", "--only", "sft", "--dry-run", "--json")
    lines = json.loads(told)
    assert (len(lines), lines[0]) == (len(plain.splitlines()), plain.splitlines()[0])
