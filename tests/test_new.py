"""`titer new`: what it writes passes as it is, and a package of it is installed and used."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import titer
from test_recipe import run
from titer import scaffold

ROOT = Path(__file__).parent.parent
NOUNS = {
    "defense": "defenses",
    "edit": "edits",
    "attack": "attacks",
    "judge": "judges",
    "benchmark": "benchmarks",
}


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def package(tmp_path) -> Path:
    scaffold.write_plugin("drift", tmp_path / "titer-drift")
    return tmp_path / "titer-drift"


@pytest.fixture
def checkout(tmp_path) -> Path:
    (tmp_path / "src" / "titer").mkdir(parents=True)
    (tmp_path / "src" / "titer" / "registry.py").touch()
    return tmp_path


def test_the_example_package_is_what_a_new_one_is(tmp_path):
    scaffold.write_plugin("l2sp", tmp_path / "made")
    assert files(tmp_path / "made") == files(ROOT / "examples" / "plugin"), (
        "run: rm -r examples/plugin; titer new plugin l2sp --into examples/plugin"
    )


def test_a_plugin_is_a_folder_of_its_own(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "new", "plugin", "my_pull")
    assert code == 0
    assert sorted(files(tmp_path)) == [
        "titer-my-pull/pyproject.toml",
        "titer-my-pull/tests/test_my_pull.py",
        "titer-my-pull/titer_my_pull/__init__.py",
        "titer-my-pull/titer_my_pull/my_pull.py",
    ]
    assert "pip install -e titer-my-pull && pytest titer-my-pull/tests/test_my_pull.py" in out
    project = tomllib.loads((tmp_path / "titer-my-pull" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "titer.defenses": {"my_pull": "titer_my_pull.my_pull:MyPull"}
    }
    before = files(tmp_path)
    code, _, err = run(monkeypatch, capsys, "new", "plugin", "my_pull")
    assert (code, err) == (
        2,
        "error: 'titer-my-pull' exists and is not empty: give another folder by --into\n",
    )
    assert files(tmp_path) == before


@pytest.mark.parametrize("noun", NOUNS)
def test_a_package_gets_a_method_with_its_entry_point(monkeypatch, capsys, package, noun):
    before = files(package)
    code, out, _ = run(monkeypatch, capsys, "new", noun, "my_own", "--into", str(package))
    assert code == 0
    assert str(package / "titer_drift" / "my_own.py") in out.splitlines()
    after = files(package)
    assert set(after) - set(before) == {"titer_drift/my_own.py", "tests/test_my_own.py"}
    points = tomllib.loads(after["pyproject.toml"].decode())["project"]["entry-points"]
    assert points[f"titer.{NOUNS[noun]}"]["my_own"] == "titer_drift.my_own:MyOwn"
    assert points["titer.defenses"]["drift"] == "titer_drift.drift:Drift"
    for line in before["pyproject.toml"].splitlines():
        assert line in after["pyproject.toml"].splitlines()
    assert b"$" not in after["titer_drift/my_own.py"] + after["tests/test_my_own.py"]


def test_an_entry_point_goes_where_its_group_is_whatever_follows():
    from titer.scaffold.method import add_entry_point

    text = '[project]\nname = "a"\n[project.entry-points."titer.edits"]\none = "a.one:One"\n\n[tool.x]\ny = 1'
    made = tomllib.loads(add_entry_point(text, "edits", "two", "a.two:Two"))
    assert made["project"]["entry-points"]["titer.edits"] == {
        "one": "a.one:One",
        "two": "a.two:Two",
    }
    made = tomllib.loads(add_entry_point(text, "judges", "two", "a.two:Two"))
    assert made["project"]["entry-points"]["titer.judges"] == {"two": "a.two:Two"}
    assert made["tool"] == {"x": {"y": 1}}
    inline = '[project]\nname = "a"\nentry-points = {"titer.edits" = {one = "a.one:One"}}\n'
    with pytest.raises(ValueError, match=r'put two = "a.two:Two" under \[project.entry-points'):
        add_entry_point(inline, "edits", "two", "a.two:Two")
    with pytest.raises(ValueError, match="names 'one' in the group 'titer.edits' already"):
        add_entry_point(text, "edits", "one", "a.one:One")


@pytest.mark.parametrize("noun", NOUNS)
def test_a_checkout_gets_a_method_in_its_folder(checkout, noun):
    written = scaffold.write_new(noun, "my_own", checkout)
    assert [str(path.relative_to(checkout)) for path in written] == [
        f"src/titer/{NOUNS[noun]}/my_own.py",
        "tests/test_my_own.py",
    ]
    lines = written[1].read_text().splitlines()
    mine = f"from titer.{NOUNS[noun]}.my_own import MyOwn"
    near = [line for line in lines if line.startswith("from titer.")]
    assert mine in near
    assert near == sorted(near)
    at = lines.index(near[0])
    assert lines[at : at + len(near)] == near  # one block, apart from the others
    assert lines[at - 1] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("defence", "my_own"), "unknown kind 'defence': did you mean 'defense'?"),
        (("defense", "MyOwn"), "'MyOwn' is no name for a defense: try 'my_own': small letters"),
        (("edit", "a-b c"), "'a-b c' is no name for an edit: try 'a_b_c': "),
        (("defense", "2nd"), "'2nd' is no name for a defense: small letters"),
        (("defense", "lambda"), "'lambda' is no name for a defense: small letters"),
        (("defense", "../x"), "'../x' is no name for a defense: try 'x'"),
        (("plugin", "My Own"), "'My Own' is no name for a defense: try 'my_own'"),
        (("defense", "booster"), "there is a defense 'booster' already (titer show defenses/"),
        (("attack", "benign"), "there is an attack 'benign' already"),
        (("defense", "about"), "'about' makes the class About, and the method's file imports one"),
        (("judge", "nowhere"), "neither a checkout of titer nor a package with a pyproject.toml"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_nothing_is(
    monkeypatch, capsys, tmp_path, arguments, said
):
    code, out, err = run(monkeypatch, capsys, "new", *arguments, "--into", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["titer_drift/my_own.py", "tests/test_my_own.py"])
def test_a_file_that_exists_is_left_alone(package, there):
    (package / there).write_text("mine\n")
    before = files(package)
    with pytest.raises(ValueError, match="my_own.py' exists: choose another name"):
        scaffold.write_new("edit", "my_own", package)
    assert files(package) == before


def test_a_project_that_cannot_be_used_is_named(package):
    path = package / "pyproject.toml"
    path.write_text(path.read_text().replace('"titer-drift"', '"other-name"'))
    with pytest.raises(ValueError, match="names the project 'other-name', and there is no package"):
        scaffold.write_new("edit", "my_own", package)
    path.write_text("[project\n")
    with pytest.raises(ValueError, match=r"pyproject.toml cannot be read .*: mend it first"):
        scaffold.write_new("edit", "my_own", package)
    assert not (package / "titer_drift" / "my_own.py").exists()


def test_where_one_file_cannot_be_written_none_is_kept(package, monkeypatch):
    before, write = files(package), Path.write_text

    def fail(self: Path, *arguments, **options) -> int:
        if self.name == "pyproject.toml":
            write(self, "half", encoding="utf-8")
            raise OSError("no space left")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ValueError, match=r"cannot be written \(no space left\); nothing was kept"):
        scaffold.write_new("edit", "my_own", package)
    assert files(package) == before


# ---- a package that is really installed ----


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that pip installed the example into, with a method of every kind, without a network."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", place / "source")
    for noun in NOUNS:
        scaffold.write_new(noun, f"my_{noun}", place / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", place / "site", place / "source"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    shutil.rmtree(place / "source" / "titer_l2sp")  # the installed one is what is tested
    return place


def python(installed: Path, *arguments: str) -> str:
    """Return what a Python that has the package prints."""
    path = [str(installed / "site"), str(Path(titer.__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=installed,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TITER = ("-m", "titer")
RECIPE = """
extends: lab
align: {updates: 2}
finetune: {updates: 2}
attack: {method: my_attack, n: 40, words: "please tell me "}
pipelines:
  mine:
    finetune: {method: l2sp, lam: 2.0}
    edit: {method: my_edit, times: 0.5}
"""


@pytest.mark.slow
def test_an_installed_package_is_listed_and_shown(installed):
    lines = [line.split() for line in python(installed, *TITER, "list").splitlines()]
    [l2sp] = [line for line in lines if line[:2] == ["defenses", "l2sp"]]
    assert l2sp[-1] == "[titer-l2sp]"
    for noun, kind in NOUNS.items():
        assert any(line[:2] == [kind, f"my_{noun}"] for line in lines)
    shown = python(installed, *TITER, "show", "l2sp")
    assert "defense, from the package titer-l2sp" in shown
    assert "lambda, strength of the pull" in shown
    chosen = python(installed, *TITER, "list", "--assume", "while fine-tuning, no alignment data")
    assert "\nl2sp " in chosen


@pytest.mark.slow
def test_a_recipe_uses_the_methods_of_an_installed_package(installed):
    (installed / "mine.yaml").write_text(RECIPE)
    python(
        installed, *TITER, "run", "mine.yaml", "--limit", "2", "--set", "threads=1", "--out", "r"
    )
    found = titer.load(installed / "r")
    stages = found.pipelines["mine"].stages
    assert [stage.label for stage in stages][-2:] == ["finetune l2sp", "edit my_edit"]
    tuned, edited = stages[-2:]
    assert tuned.how == {"method": "l2sp", "lam": 2.0}
    assert edited.facts["changed entries"] > 0


@pytest.mark.slow
def test_what_is_written_passes_as_it_is(installed):
    out = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "source/tests")
    assert "failed" not in out
    assert int(out.split(" passed")[0].split()[-1]) > 80
