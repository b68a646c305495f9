"""The code of a stage: each module is changed once, and exactly the keys that rest on it move."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from titer import registry
from titer.judges.lab import Lab
from titer.judges.refusal import Refusal
from titer.runs import keys
from titer.runs.stages.answer import AnswerStage
from titer.runs.stages.judge import JudgeStage
from titer.runs.stages.margin import MarginStage
from titer.runs.stages.release import ReleaseStage
from titer.runs.stages.repair import RepairStage
from titer.runs.stages.retrain import RetrainStage
from titer.runs.stages.train import TrainStage

PACKAGE = Path(keys.__file__).parent.parent


def method(kind: str, name: str, **fields):
    return registry.build(kind, {"method": name, **fields})


STAGES = {
    "sft": (TrainStage, method("defenses", "sft")),
    "vaccine": (TrainStage, method("defenses", "vaccine")),
    "booster": (TrainStage, method("defenses", "booster")),
    "booster over vaccine": (TrainStage, method("defenses", "booster", align="vaccine")),
    "lox": (ReleaseStage, method("edits", "lox")),
    "antidote": (RepairStage, method("edits", "antidote")),
    "wise_ft": (RepairStage, method("edits", "wise_ft")),
    "scale of safe_lora": (RepairStage, method("edits", "scale", match="safe_lora")),
    "one_shot": (RetrainStage, method("edits", "one_shot")),
    "answers": (AnswerStage,),
    "margin": (MarginStage,),
    "scores by phrases": (JudgeStage, Refusal(), method("benchmarks", "sst2")),
    "scores in the lab": (JudgeStage, Lab(1), method("benchmarks", "answers")),
}


def code() -> dict[str, str]:
    return {name: keys.code_key(*parts) for name, parts in STAGES.items()}


def modules() -> list[str]:
    """Every module of titer, by its name."""
    names = (
        ".".join(["titer", *path.relative_to(PACKAGE).with_suffix("").parts])
        for path in PACKAGE.rglob("*.py")
    )
    return sorted(name.removesuffix(".__init__") for name in names)


@cache
def loaded(*names: str) -> frozenset[str]:
    """What Python itself loads of titer for these modules, and what their functions import: another
    way to the closure.
    """
    code = "import sys, json; [*map(__import__, sys.argv[1:])]; print(json.dumps([*sys.modules]))"
    found, left = set[str](), set(names)
    while left:
        out = subprocess.run(
            [sys.executable, "-c", code, *sorted(left)], capture_output=True, text=True, check=True
        )
        new = {name for name in json.loads(out.stdout) if name.split(".")[0] == "titer"} - found
        found |= new
        left = {name for module in new for name in imported_in_functions(module)} - found
    return frozenset(found)


def imported_in_functions(module: str) -> set[str]:
    """The modules of titer that the functions of a module import when they run."""
    path = PACKAGE.parent / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():  # a folder of methods
        return set()
    functions = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    ]
    nodes = [node for of in functions for node in ast.walk(of) if isinstance(node, ast.ImportFrom)]
    known = set(modules())
    named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} | {
        node.module for node in nodes
    }
    return {name for name in named if name in known and name != "titer"}


@pytest.mark.slow
def test_each_module_moves_exactly_the_keys_that_rest_on_it(monkeypatch):
    before, tree = code(), keys._tree
    expected = {
        name: loaded(*dict.fromkeys(module for part in parts for module in keys.defining(part)))
        for name, parts in STAGES.items()
    }
    moved_by: dict[str, set[str]] = {}
    statements = keys.statements
    for module in modules():
        with monkeypatch.context() as patch:
            text = keys._text
            patch.setattr(  # of the others what they said stands
                keys,
                "statements",
                lambda name, m=module: (statements.__wrapped__ if name == m else statements)(name),
            )
            patch.setattr(
                keys,
                "_text",
                lambda name, m=module, t=text: t(name) + ("\nchanged = 1\n" if name == m else ""),
            )
            after = code()
        moved_by[module] = {name for name in before if before[name] != after[name]}
    assert tree is keys._tree
    for module, found in moved_by.items():
        packaged = (PACKAGE.parent / Path(*module.split("."))).is_dir()
        if (
            packaged or module == "titer.version"
        ):  # which compute nothing, and are loaded with any other
            continue
        assert found == {name for name, closure in expected.items() if module in closure}, module
    assert moved_by["titer.defenses.sft"] == {"sft", "booster", "booster over vaccine", "one_shot"}
    assert moved_by["titer.defenses.vaccine"] == {"vaccine", "booster over vaccine"}
    assert moved_by["titer.edits.safe_lora"] == {"scale of safe_lora"}
    assert moved_by["titer.edits.antidote"] == {"antidote", "scale of safe_lora"}  # scale's default
    assert moved_by["titer.scoring.generate"] >= {"answers", "scores by phrases"}
    assert moved_by["titer.scoring.likelihood"] >= {"margin", "scores by phrases"}
    assert not {"sft", "antidote", "one_shot"} & moved_by["titer.scoring.generate"]
    assert moved_by["titer.lab.world"] == {"scores in the lab"}
    for module in (
        "titer.cli",
        "titer.api",
        "titer.runs.plan",
        "titer.runs.execute",
        "titer.runs.recipe",
    ):
        assert moved_by.get(module, set()) == set(), module
    for module in (
        "titer.findings.rules",
        "titer.report.html",
        "titer.runs.store",
        "titer.runs.sweep",
    ):
        assert moved_by[module] == set(), module


def test_what_says_nothing_to_python_moves_no_key(monkeypatch):
    before, text = code(), keys._text
    keys.statements.cache_clear()

    def commented(name: str) -> str:
        said = text(name)
        tree = ast.parse(said)
        if ast.get_docstring(tree) is not None:  # another docstring, another layout, a comment
            body = said.split("\n")[tree.body[0].end_lineno :]
            return '"""Another story."""\n\n\n# and a comment\n' + "\n".join(body)
        return "# a comment\n" + said

    monkeypatch.setattr(keys, "_text", commented)
    assert code() == before
    keys.statements.cache_clear()


def test_a_plug_in_rests_on_its_own_package_too(tmp_path, monkeypatch):
    package = tmp_path / "plugged"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "strength.py").write_text("STRENGTH = 2.0\n")
    (package / "twice.py").write_text(
        '"""Twice (arXiv 0000.00000)."""\nfrom dataclasses import dataclass\n'
        "from titer.methods import Defense\n"
        "from . import strength\nfrom titer.errors import EvidenceError\nimport titer\n\n"
        "@dataclass(frozen=True)\nclass Twice(Defense):\n    def gradient(self, step, state):\n"
        "        return strength.STRENGTH * step.grad(step.batch('rows'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = keys.closure("plugged.twice")
    assert {"plugged.twice", "plugged.strength", "titer.methods", "titer.errors", "titer"} <= found
    from plugged.twice import Twice

    first = keys.code_key(TrainStage, Twice())
    (package / "strength.py").write_text("STRENGTH = 3.0\n")
    for kept in (keys._text, keys.statements, keys._tree, keys.imports):
        kept.cache_clear()
    assert keys.code_key(TrainStage, Twice()) != first


def test_a_method_of_a_script_is_sent_into_a_module(monkeypatch):
    method = type("Mine", (), {"__module__": "__main__", "held_methods": {}})()
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(
        ValueError, match=r"^a method is defined in __main__, a script: put it into a"
    ):
        keys.code_key(method)
