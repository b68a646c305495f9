"""Commands that compute nothing load no torch and take little time."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_report import document

SHARE = 0.5  # of the processor time that importing torch alone takes here


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory) -> Iterator[None]:
    """Let Python keep its compiled modules, as it does where titer is installed.

    An environment may forbid it, and then every start compiles titer's modules anew.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        titer("run", "nosuch")
        yield


def run(code: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run code in a new process, and return what came of it and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def bound() -> float:
    """The CPU seconds that a command which computes nothing may take on this machine."""
    return SHARE * min(run("import torch")[1] for _ in range(3))


def titer(*arguments: str) -> tuple[int, str, str, bool, float]:
    """Run the command line; return its exit code, output, errors, True if torch was loaded,
    seconds.
    """
    code = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
from titer.cli import main
main()
"""
    found, seconds = run(code, *arguments)
    *errors, torch = found.stderr.strip().splitlines()
    return found.returncode, found.stdout, "\n".join(errors), torch == "True", seconds


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished run of two pipelines."""
    for name, harm in (("sft", [100, 0, 86, 86]), ("booster", [100, 0, 60, 20])):
        made = document(name, harm)
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    return tmp_path


def test_an_unknown_recipe_is_refused_without_torch():
    code, _, errors, torch, _ = titer("run", "nosuch")
    assert code == 2
    assert "nosuch" in errors
    assert not torch


def test_an_unknown_ladder_or_rung_is_refused_without_torch():
    for options, named in ((("--ladder", "v9"), "v9"), (("--rungs", "aks"), "did you mean 'ask'")):
        code, _, errors, torch, _ = titer("attack", "model", "--out", "nowhere", *options)
        assert code == 2
        assert named in errors
        assert not torch


def test_an_unknown_recipe_is_refused_at_once(bound):
    assert min(titer("run", "nosuch")[-1] for _ in range(3)) <= bound


def test_a_report_is_made_without_torch(finished):
    code, out, _, torch, _ = titer("report", str(finished))
    assert code == 0, out
    assert (finished / "report.html").is_file()
    assert not torch


def test_a_report_whose_figures_are_drawn_is_made_at_once(finished, bound):
    assert titer("report", str(finished))[0] == 0  # a run does as much when it ends
    page = (finished / "report.html").read_text()
    assert min(titer("report", str(finished))[-1] for _ in range(3)) <= bound
    assert (finished / "report.html").read_text() == page


def test_figures_of_other_scores_are_drawn_again(finished):
    from titer import report

    report.write(report.read(finished), finished)
    first = (finished / "figures.json").read_text()
    (finished / "sft.json").write_text(json.dumps(document("sft", [100, 0, 40, 30])))
    report.write(report.read(finished), finished)
    assert (finished / "figures.json").read_text() != first
    (finished / "figures.json").write_text("{")
    path = report.write(report.read(finished), finished)
    assert path.read_text() == report.page(report.read(finished))
