"""The house's figures; `tools/house.py` notices what is planted in a copy of the package."""

import itertools
import shutil
from pathlib import Path

import pytest

from tools.house import BOUNDS, LAYERS, PACKAGE, House, main


@pytest.fixture(scope="module")
def figures():
    return {figure.name: figure for figure in House(PACKAGE).figures()}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_package_keeps_every_bound(figures, name):
    figure = figures[name]
    assert figure.value <= BOUNDS[name], "\n".join(figure.places)


def tree(folder: Path) -> Path:
    """A small house without faults."""
    files = {
        "__init__.py": "",
        "errors.py": '"""Say what is wrong."""\n\n\nclass EvidenceError(Exception): ...\n',
        "config.py": "from titer.errors import EvidenceError\n",
        "methods.py": "import torch\n\nfrom titer import config\n",
        "findings/__init__.py": "",
        "findings/rules.py": (
            "from typing import TYPE_CHECKING\n\nfrom titer.errors import EvidenceError\n\n"
            "if TYPE_CHECKING:\n    import torch\n\n\n"
            "def judge():\n    import torch\n"
        ),
        "runs/__init__.py": "",
        "runs/plan.py": "from titer.findings import rules\n",
        "report/__init__.py": "from titer.findings.rules import judge\n",
        "cli.py": "from titer import report\nfrom titer.runs import plan\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_house_without_faults_passes(tmp_path, capsys):
    assert main([str(tree(tmp_path))]) == 0
    assert "MISSED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "text", "figure", "place"),
    [
        (
            "findings/rules.py",
            "\n\ndef late():\n    from titer.runs import plan\n",
            "imports against the order",
            "findings/rules.py:14: titer.findings imports titer.runs.plan",
        ),
        (
            "strangers.py",
            "",
            "imports against the order",
            "strangers.py:1: titer.strangers stands in no wing",
        ),
        (
            "findings/rules.py",
            "\nfrom titer.methods import torch\n",
            "modules of findings and report that load torch",
            "titer.report -> titer.findings.rules -> titer.methods -> torch",
        ),
        (
            "errors.py",
            "\n\ndef late():\n    from titer import config\n",
            "circles of modules",
            "titer.config -> titer.errors -> titer.config",
        ),
        (
            "errors.py",
            "\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import titer.config\n",
            "circles of modules with those under TYPE_CHECKING",
            "titer.config -> titer.errors -> titer.config",
        ),
        (
            "findings/rules.py",
            "\n\ndef late():\n    from titer import cli\n",
            "circles of wings",
            "titer.cli -> titer.report -> titer.findings -> titer.cli",
        ),
        (
            "runs/plan.py",
            "\n\nclass EvidenceError: ...\n",
            "class names that stand twice",
            "EvidenceError: ",
        ),
        (
            "runs/plan.py",
            "\n\ndef _planned():\n    pass\n",
            "function names that are past participles, percent",
            "runs/plan.py:4: _planned",
        ),
        (
            "runs/plan.py",
            '\n\ndef plan():\n    """Whether it is planned."""\n',
            "docstrings that open with What, Whether or Of, percent",
            "runs/plan.py:4: Whether",
        ),
        (
            "runs/plan.py",
            f"\n# {'x' * 109}\n",
            "length of the longest line",
            "runs/plan.py:3",
        ),
    ],
)
def test_a_planted_fault_is_found(tmp_path, capsys, path, text, figure, place):
    folder = tree(tmp_path)
    with (folder / path).open("a") as file:
        file.write(text)
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.endswith(f"{figure}  MISSED"))
    places = itertools.takewhile(lambda line: line.startswith("    "), lines[head + 1 :])
    assert any(place in line for line in places)


def test_a_violation_planted_in_a_copy_of_the_package_is_found(tmp_path):
    copy = tmp_path / "titer"
    shutil.copytree(
        PACKAGE,
        copy,
        ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
    )
    before = {figure.name: figure.value for figure in House(copy).figures()}
    with (copy / "findings" / "rules.py").open("a") as file:
        file.write("\nfrom titer.report import html\nimport torch\n")
    after = {figure.name: figure for figure in House(copy).figures()}
    for name in ("imports against the order", "modules of findings and report that load torch"):
        assert after[name].value > before[name]
        assert any("findings/rules.py" in place for place in after[name].places)


def test_every_wing_of_the_order_is_named_once():
    wings = [wing for wings in LAYERS for wing in wings]
    assert len(wings) == len(set(wings))
