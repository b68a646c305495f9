"""The package as it is handed out: its metadata, what wheel and sdist hold, and the workflows."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

import titer
from test_recipe import run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")
BESIDE = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "constraints.txt"}
ALWAYS = {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}  # by hatchling itself


def build(source: Path, target: str, folder: Path) -> Path:
    """Build a wheel or an sdist of the sources in a folder."""
    made = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(made, cwd=source, check=True, capture_output=True, timeout=300)
    [found] = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder)) as packed:
        packed.extractall(folder, filter="data")
    return folder / f"titer-{titer.__version__}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, sdist) -> Path:
    """The wheel that is built of the sdist."""
    return build(sdist, "wheel", tmp_path_factory.mktemp("wheel"))


def package() -> set[str]:
    """All files of the package, from the folder that it lies in."""
    paths = (ROOT / "src").rglob("*")
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in paths
        if path.is_file() and path.suffix != ".pyc" and ".egg-info" not in str(path)
    }


def test_the_wheel_has_the_whole_package_with_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    beside = f"titer-{titer.__version__}.dist-info/"
    held = {name for name in names if not name.startswith(beside)}
    assert held == package()
    for name in ("recipes/lab.yaml", "ladders/ladder-v1.yaml", "lab/base/model.safetensors",
                 "lab/world-v1.json", "report/page.html.j2", "py.typed"):  # fmt: skip
        assert f"titer/{name}" in held
    assert f"{beside}licenses/LICENSE" in names


def test_the_sdist_has_the_package_and_what_tells_of_it(sdist):
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert held == {f"src/{name}" for name in package()} | BESIDE | ALWAYS


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as packed:
        text = packed.read(f"titer-{titer.__version__}.dist-info/METADATA").decode()
    return HeaderParser().parsestr(text)


def test_the_metadata_are_those_of_the_repository(metadata):
    assert metadata["Name"] == "titer"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Classifier")) <= classifiers
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_is_one(monkeypatch, capsys, metadata):
    assert metadata["Version"] == titer.__version__
    assert run(monkeypatch, capsys, "--version") == (0, f"titer {titer.__version__}\n", "")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (titer.__version__, PROJECT["license"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+?),? ", changes, flags=re.MULTILINE)
    assert newest
    assert newest[1] == titer.__version__


# it wants other versions of what is pinned than the rest of titer was tried with
UNPINNED = "inspect-ai"


def test_every_requirement_has_its_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    extras = PROJECT["optional-dependencies"].values()
    for each in map(Requirement, chain(PROJECT["dependencies"], *extras)):
        version = pinned.get(canonicalize_name(each.name))
        if each.name == UNPINNED:
            continue
        assert version is not None, f"{each}: has no line in constraints.txt"
        assert each.specifier.contains(version), f"{each}: constraints.txt has {version}"


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))["jobs"]


def steps(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_of_every_change_runs_what_ci_runs():
    jobs = workflow("ci.yml")
    assert steps(jobs["run"]) == ["bash .ci/run"]
    assert steps(jobs["dist"]) == ["make dist"]
    for job in jobs.values():
        [python] = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert python["python-version"] == "3.11"


def test_the_nightly_workflow_runs_the_nightly_targets():
    nightly = re.findall(r"^(\w+): .*## nightly:", MAKE, flags=re.MULTILINE)
    job = workflow("nightly.yml")["run"]
    assert sorted(job["strategy"]["matrix"]["target"]) == sorted(nightly)
    assert steps(job) == ["make ${{ matrix.target }}"]


def test_every_target_that_a_person_calls_is_no_file():
    """Else make takes the folder `docs` for what `make docs` makes, and makes nothing."""
    [phony] = re.findall(r"^\.PHONY: (.+)$", MAKE, flags=re.MULTILINE)
    called = re.findall(r"^([\w-]+):.*## ", MAKE, flags=re.MULTILINE)
    assert {*called, "clean"} == set(phony.split())
