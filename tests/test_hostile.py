"""Names, texts and stores that somebody else made: nothing of them leaves its place, steers the
terminal, or is dropped in silence.
"""

import json
import re
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table

from test_recipe import run as titer
from titer import paths
from titer.cli import screen
from titer.config import read_yaml
from titer.errors import reading
from titer.printable import printable
from titer.report import contents
from titer.runs.store import Store

ESCAPE = "\x1b[31mred\x1b[0m"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../escaped", "holds a slash"),
        ("/etc/x", "holds a slash"),
        ("a\\b", "holds a slash"),
        (".hidden", "begins with a dot"),
        ("..", "begins with a dot"),
        ("", "is empty"),
        (" ", "is empty"),
        (ESCAPE, "holds characters that cannot be seen"),
        ("a\nb", "holds characters that cannot be seen"),
        ("\u202eabc", "holds characters that cannot be seen"),
        ("x" * 101, "is longer than 100 bytes"),
        ("run", "is the name of another file there"),
        ("Figures", "is the name of another file there"),
        ("sweep", "is the name of another file there"),
    ],
)
def test_a_pipelines_name_is_that_of_a_file_in_the_runs_folder(
    monkeypatch, capsys, tmp_path, name, why
):
    with pytest.raises(ValueError, match=f"the pipeline .* {why}"):
        paths.file_name(name, "the pipeline")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"extends": "lab", "pipelines": {name: {}}}))
    out = tmp_path / "deep" / "out"
    code, _, said = titer(monkeypatch, capsys, "run", str(recipe), "--out", str(out))
    assert (code, said.count("\n")) == (2, 1)
    assert why in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_ordinary_names_of_pipelines_are_kept():
    for name in ("sft", "booster+lox", "mine (2)", "é", "a.b", "running"):
        assert paths.file_name(name, "the pipeline") == name


def test_text_from_outside_is_written_out():
    assert printable(ESCAPE) == "\\x1b[31mred\\x1b[0m"
    assert printable("a\rb\x07\x9bc\u202ed\ud800") == "a\\rb\\x07\\x9bc\\u202ed\\ud800"
    assert printable("é \t\n中 👩‍🔬") == "é \t\n中 👩‍🔬"


def test_a_console_shows_names_as_they_are():
    shown = StringIO()
    console = screen.console(shown)
    table = Table(title="[b]title[/b]")
    table.add_column(f"[red]{ESCAPE}")
    table.add_row("[/b] :smile:")
    console.print(table)
    console.print("[/i] text")
    assert "\x1b" not in shown.getvalue()
    for text in ("[b]title[/b]", "[red]\\x1b[31m", "[/b] :smile:", "[/i] text"):
        assert text in shown.getvalue()


def test_an_error_is_one_line_whatever_it_names(monkeypatch, capsys):
    code, out, said = titer(monkeypatch, capsys, "run", f"{ESCAPE}\n[/b]")
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert "\x1b" not in said
    assert "[/b]" in said


def test_a_page_writes_out_what_could_steer(tmp_path):
    environment = contents.template("page.html.j2").environment
    made = environment.from_string("{{ name }}").render(name=f"<b>{ESCAPE}")
    assert made == "&lt;b&gt;\\x1b[31mred\\x1b[0m"


def test_debug_shows_where_an_error_was_raised(monkeypatch, capsys):
    _, _, said = titer(monkeypatch, capsys, "run", "nosuch")
    assert "Traceback" not in said
    code, _, said = titer(monkeypatch, capsys, "run", "nosuch", "--debug")
    assert code == 2
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("error: unknown recipe")


def test_an_error_of_a_library_names_the_input_and_the_cause():
    told = r"^the file x cannot be read \(KeyError: 'y'\): mend$"
    with pytest.raises(ValueError, match=told), reading("the file x", "mend"):
        raise KeyError("y")
    with pytest.raises(ValueError, match=r"^it cannot be read \(RecursionError\)$"), reading("it"):
        raise RecursionError


# what is given twice


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "lab", "--set", "seed=1", "--set", "seed=2"),
        ("align", "lab", "--data", "alignment=a", "--data", "alignment=b", "--out", "o"),
        ("release", "lab", "--reference", "base=lab", "--reference", "base=lab", "--out", "o"),
        ("sweep", "lab", "--grid", "attack.p=0", "--grid", "attack.p=0.1"),
    ],
)
def test_what_is_given_twice_is_refused(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, said = titer(monkeypatch, capsys, *arguments)
    assert (code, said.count("\n")) == (2, 1)
    assert "is given twice" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a: {b: 1, b: 1}", "line 1: the key 'b' stands twice"),
        ("1: x", "line 1: the key '1' is no text"),
        ("a: &a [*a]", "more than 100000 values"),
        ("[" * 5000, "is it YAML?"),
        ("a: !!python/object/apply:os.system [x]", "is it YAML?"),
        ("a: [", "is it YAML?"),
        ("a: \x00", "is it YAML?"),
    ],
)
def test_yaml_that_no_recipe_has_is_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_yaml(text, "mine.yaml")


def test_aliases_that_grow_without_bound_are_refused_at_once():
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    with pytest.raises(ValueError, match="more than 100000 values"):
        read_yaml("\n".join(lines), "mine.yaml")


def test_yaml_means_what_a_person_means():
    text = "lr: 4e-4\nwhen: 2026-11-28\nlist: [1, .5, -1E3, yes]\nbase: &b {x: 1}\nmore: {<<: *b, x: 2}"
    assert read_yaml(text, "it") == {
        "lr": 4e-4,
        "when": "2026-11-28",
        "list": [1, 0.5, -1000.0, True],
        "base": {"x": 1},
        "more": {"x": 2},
    }


# the store


@pytest.fixture
def store(tmp_path) -> Path:
    """A store with a finished stage, and with things that somebody else left in it."""
    root = tmp_path / "store"

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    kept = Store(root)
    kept.stage("a" * 32, {"kind": "finetune", "method": {"method": "sft"}}, fill)
    (root / "stages/notes.txt").write_text("mine")
    (root / "stages/link").symlink_to("nowhere")
    (root / "stages/folder").mkdir()
    (root / "partial").mkdir(exist_ok=True)
    (root / "partial/stray").write_text("x")
    (root / "runs").mkdir(exist_ok=True)
    (root / "runs/broken.json").write_text('{"no": "list"}')
    return root


STRAYS = ("runs/broken.json", "stages/folder", "stages/link", "stages/notes.txt", "partial/stray")


@pytest.mark.parametrize("command", ["ls", "du", "verify", "gc"])
def test_what_is_not_titers_in_a_store_is_named_and_passed_over(
    monkeypatch, capsys, store, command
):
    code, out, said = titer(monkeypatch, capsys, "store", command, str(store))
    assert code == 0
    assert out
    named = re.findall(r"passed over, no stage of titer's: (.*)", said)
    assert [str(Path(path).relative_to(store)) for path in named] == list(STRAYS)
    assert (store / "stages/notes.txt").read_text() == "mine"
    assert (store / "partial/stray").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"files": 3, "dropped": [], "about": {}},
        {"files": {"../../../outside": "x"}, "dropped": [], "about": {"kind": "finetune"}},
        {"files": {"/etc/x.safetensors": "x"}, "dropped": [], "about": {"kind": "finetune"}},
        {"files": {}, "dropped": [], "about": {"kind": 7, "method": "x"}},
    ],
)
def test_a_manifest_of_another_shape_is_a_broken_stage(
    monkeypatch, capsys, store, tmp_path, manifest
):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (store / "stages" / ("a" * 32) / "manifest.json").write_text(json.dumps(manifest))
    for command in ("ls", "du", "verify", "gc"):
        code, _, said = titer(monkeypatch, capsys, "store", command, str(store))
        assert code in (0, 1)
        assert "error" not in said
    assert outside.read_text() == "mine"


def test_a_run_that_fails_leaves_no_folder_and_one_that_was_there_stays(monkeypatch, tmp_path):
    """A full disk, say: what was begun is removed, what was finished before is kept."""
    from titer.runs import execute
    from titer.runs import recipe as recipes
    from titer.runs.plan import Plan

    plan = Plan.read(recipes.load("lab", ["pipelines={sft: {}}"]))
    with pytest.raises(OSError, match="full"), execute.claim(tmp_path / "out", plan):
        raise OSError("the disk is full")
    assert not (tmp_path / "out").exists()
    with execute.claim(tmp_path / "out", plan):
        (tmp_path / "out/done").write_text("x")
    with pytest.raises(ValueError, match="later"), execute.claim(tmp_path / "out", plan):
        raise ValueError("later")
    assert (tmp_path / "out/done").exists()
    link, real = tmp_path / "link", tmp_path / "real"
    real.mkdir()
    link.symlink_to(real)
    with pytest.raises(ValueError, match="bad rows"), execute.claim(link, plan):
        raise ValueError("bad rows")
    assert link.is_symlink()
    assert not [*real.iterdir()]


@pytest.mark.parametrize("place", ["stages", "partial"])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("no room")])
def test_a_command_that_fails_keeps_what_it_computed(tmp_path, place, error):
    from titer.runs import execute
    from titer.runs import recipe as recipes
    from titer.runs.plan import Plan

    plan = Plan.read(recipes.load("lab", ["pipelines={sft: {}}"]))
    work = tmp_path / "out" / "store" / place / ("0" * 32) / "checkpoint.safetensors"

    def fail():
        with execute.claim(tmp_path / "out", plan):
            work.parent.mkdir(parents=True)
            work.write_text("hours of it")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert work.is_file()
    with execute.claim(tmp_path / "out", plan):  # the next attempt goes on
        pass


def test_the_module_is_the_command(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["titer", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("titer", run_name="__main__")
    assert capsys.readouterr().out.startswith("titer ")
