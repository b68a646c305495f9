"""Methods by name: plug-ins that work, plug-ins that are refused, and what is known of a method."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from test_recipe import run
from titer import listing, registry
from titer.data import sources
from titer.data.files import RawRecord
from titer.defenses.booster import Booster
from titer.defenses.sft import SFT
from titer.runs import recipe

HALF = (
    '"""Halves everything."""\n'
    "from dataclasses import dataclass\nfrom titer.methods import Defense\n"
    "@dataclass(frozen=True)\nclass Half(Defense):\n    share: float = 0.5  # how much\n"
    "    def gradient(self, step, state):\n        return self.share * step.grad(step.batch('rows'))\n"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package: its name, its entry points by group, its modules."""
    made: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, points: dict[str, list[str]], modules: dict[str, str]) -> None:
        for module, text in modules.items():
            path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            made.append(module)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "".join(f"[titer.{kind}]\n" + "\n".join(of) + "\n" for kind, of in points.items())
        )
        registry.refresh()

    yield install
    for module in made:
        for name in (module, module.split(".")[0]):
            sys.modules.pop(name, None)
    monkeypatch.undo()
    registry.refresh()


def listed(name: str) -> list[listing.Listing]:
    return [entry for entry in listing.entries("defenses") if entry.name == name]


def test_a_package_adds_a_method_and_is_shown_with_it(package):
    package("elsewhere", {"defenses": ["half = elsewhere:Half"]}, {"elsewhere": HALF})
    half = registry.build("defenses", {"method": "half", "share": 0.25})
    assert registry.describe(half) == {"method": "half", "share": 0.25}
    assert registry.describe(Booster(align=half))["align"] == {"method": "half", "share": 0.25}
    [entry] = listed("half")
    assert (entry.source, entry.summary, entry.error) == ("elsewhere", "Halves everything.", None)
    assert str(entry) == "Halves everything. [elsewhere]"
    facts = listing.describe_method("half")
    assert (facts.package, facts.kind) == ("elsewhere", "defenses")
    assert facts.fields == (listing.Hyperparameter("share", "float", 0.5, False, "how much"),)


def test_a_plug_in_with_the_name_of_a_built_in_is_refused(package, monkeypatch, capsys):
    package("evil", {"defenses": ["sft = evil:Half", "half = evil_too:Half"]}, {"evil": HALF})
    line = (
        "defense 'sft' is given by titer itself and by the package 'evil' (evil:Half), and a name has one "
        "owner: rename the entry point in the group 'titer.defenses' of 'evil', or uninstall it"
    )
    with pytest.raises(ValueError, match="uninstall") as refused:
        registry.build("defenses", "sft")
    assert str(refused.value) == line
    assert registry.names("defenses").count("sft") == 1
    assert [(entry.source, entry.error) for entry in listed("sft")] == [
        ("titer", None),
        ("evil", line),
    ]
    assert registry.name_of(SFT()) == "sft"
    assert type(registry.build("defenses", "vaccine")).__name__ == "Vaccine"  # others go on
    code, out, _ = run(monkeypatch, capsys, "list", "defenses")
    assert code == 0
    assert line in out
    code, _, err = run(monkeypatch, capsys, "show", "sft")
    assert (code, err) == (2, f"error: {line}\n")


def test_two_plug_ins_of_one_name_are_refused_both(package):
    package("one", {"defenses": ["half = one:Half"]}, {"one": HALF})
    package("two", {"defenses": ["half = two:Half"]}, {"two": HALF})
    for name in ("'one' (one:Half)", "'two' (two:Half)", "rename"):
        with pytest.raises(ValueError, match=name.replace("(", r"\(").replace(")", r"\)")):
            registry.load("defenses", "half")
    assert registry.names("defenses").count("half") == 1
    assert all("'one'" in (entry.error or "") for entry in listed("half"))
    from one import Half

    with pytest.raises(ValueError, match="a name has one owner"):
        registry.name_of(Half())


PLAIN = "class Half:\n    pass\n"
FAULTS = {  # entry point, source; what loading says; whether the source alone shows it
    "module": ("broken", HALF, "names a module; name a class in it, as module:Class", True),
    "function": ("broken:half", "def half(): ...\n", "names a function, not a class", True),
    "value": ("broken:half", "half = 3\n", "names a int, not a class", False),
    "attribute": ("broken:Nope", HALF, "'Nope'", True),
    "no module": ("absent:Half", HALF, "cannot be imported", True),
    "dependency": ("broken:Half", "import absent_one\n" + HALF, "'absent_one'", True),
    "inner": ("broken:Half", HALF + "from broken import absent\n", "cannot import name", False),
    "syntax": ("broken:Half", "class Half(:\n", "SyntaxError", True),
    "raises": ("broken:Half", HALF + "1 / 0\n", "ZeroDivisionError", False),
    "exits": ("broken:Half", HALF + "raise SystemExit(3)\n", "SystemExit", False),
    "malformed": ("!!", HALF, "cannot be imported", True),
    "kind": ("broken:Half", PLAIN, "names a class that is no Defense; derive it", False),
    "base": ("broken:Defense", HALF, "names an abstract class, which lacks gradient", False),
    "plain": (
        "broken:Half",
        HALF.replace("@dataclass(frozen=True)", "@dataclass"),
        "no frozen dataclass of its own; put @dataclass",
        False,
    ),
    "titer's": ("broken:SFT", "from titer.defenses.sft import SFT\n", "another package", False),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plug_in_that_cannot_be_used_is_one_line_and_stops_nothing_else(
    package, fault, monkeypatch, capsys
):
    value, text, message, shown = FAULTS[fault]
    package("mishap", {"defenses": [f"half = {value}"]}, {"broken": text})
    with pytest.raises(ValueError, match="uninstall") as refused:
        registry.load("defenses", "half")
    said = str(refused.value)
    assert message in said
    assert said.startswith("defense 'half' of the package 'mishap' cannot be used: its entry point")
    assert said.endswith("or uninstall 'mishap'")
    assert "\n" not in said
    assert "half" not in registry.usable("defenses")
    assert registry.usable("defenses")
    code, out, _ = run(monkeypatch, capsys, "list", "defenses")
    assert code == 0
    [line] = [line for line in out.splitlines() if line.split()[1] == "half"]
    assert ("cannot be used" in line) == shown
    assert "mishap" in line
    assert recipe.load("lab").pipelines
    code, _, err = run(monkeypatch, capsys, "show", "half")
    assert (code, err.count("\n")) == (2, 1)
    assert err == f"error: {said}\n"


def test_the_source_says_the_same_of_a_fault_as_loading_does(package):
    value, text, _, _ = FAULTS["module"]
    package("mishap", {"defenses": [f"half = {value}"]}, {"broken": text})
    with pytest.raises(ValueError, match="uninstall") as refused:
        registry.load("defenses", "half")
    assert [entry.error for entry in listed("half")] == [str(refused.value)]


def test_a_broken_benchmark_does_not_stop_the_reading_of_data(package):
    package("mishap", {"benchmarks": ["half = broken:Half"]}, {"broken": "1 / 0\n"})
    found = sources.recognize([RawRecord("here", {"sentence": "a fine film .", "label": 1})])
    assert registry.name_of(found) == "sst2"


def test_a_class_is_known_by_the_name_of_its_entry_point_wherever_it_is_defined(package):
    package(
        "elsewhere",
        {"defenses": ["half = elsewhere:Half"]},
        {"elsewhere.__init__": "from elsewhere.sft import Half\n", "elsewhere.sft": HALF},
    )
    from elsewhere.sft import Half

    assert registry.name_of(Half()) == "half"
    assert registry.build("defenses", registry.describe(Half(0.1))) == Half(0.1)


def test_two_names_for_a_class_are_refused(package):
    points = ["half = elsewhere:Half", "moiety = elsewhere:Half"]
    package("elsewhere", {"defenses": points}, {"elsewhere": HALF})
    with pytest.raises(
        ValueError, match="is the class that 'moiety' names too; keep one of the two"
    ):
        registry.load("defenses", "half")
    from elsewhere import Half

    with pytest.raises(ValueError, match="names too"):
        registry.name_of(Half())


def test_a_method_that_no_one_registered_is_named_by_its_class(package):
    package("elsewhere", {}, {"sft": HALF})
    from sft import Half  # not titer's sft

    assert registry.name_of(Half()) == "sft:Half"
    with pytest.raises(ValueError, match="unknown defense 'sft:Half'"):
        registry.build("defenses", registry.describe(Half()))


def test_the_registry_reaches_neither_the_hub_nor_torch():
    heavy = ("torch", "titer.data.hub", "titer.data.catalog")
    code = f"import sys, titer.registry; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- what is known of a method ----


def test_show_tells_all_of_a_method(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "show", "booster")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Booster"
    told = {line[:15].strip(): line[15:].strip() for line in lines}
    assert told["kind"] == "defense, from the package titer"
    assert told["stage"] == "align, finetune"
    assert told["meant for"] == "align"
    assert told["rows"] == "rows: refusals; harmful"
    assert told["passes"] == "1 + 2/tau an update"
    assert told["paper"] == "arXiv 2409.01586 (https://arxiv.org/abs/2409.01586)"
    assert told["equation"] == "tests/test_booster.py"
    assert "6421918c" in told["authors' code"]
    assert told["real model"] == "never"
    fields = [
        line.split(None, 3) for line in lines[lines.index("fields, with their defaults") + 1 :]
    ]
    assert fields[0] == [
        "alpha",
        "float",
        "0.1",
        "alpha, length of the simulated harmful step in weight space",
    ]
    assert [field[0] for field in fields] == ["alpha", "lam", "every", "align"]
    assert fields[3][:3] == ["align", "Defense", "sft"]


def test_show_gives_json(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "show", "edits/antidote", "--json")
    assert code == 0
    facts = json.loads(out)
    assert (facts["name"], facts["kind"], facts["rows"]) == (
        "antidote",
        "edits",
        {"rows": "harmful"},
    )
    assert (facts["adapter"], facts["sparse"]) == (True, False)
    assert facts["fields"][1]["default"] == "factors"
    assert facts["fields"][1]["type"] == "Literal['factors', 'update', 'base']"


def test_show_says_which_models_alone_a_method_works_on(monkeypatch, capsys):
    for name, said in (
        ("safe_moe", "mixtures of experts alone"),
        ("antidote", "an adapter's factors alone"),
    ):
        _, out, _ = run(monkeypatch, capsys, "show", name)
        assert f"works on       {said}" in out
    _, out, _ = run(monkeypatch, capsys, "show", "anchor")
    assert "works on" not in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boster", "unknown method 'boster': did you mean 'booster'?"),
        ("defenses/boster", "unknown defense 'boster': did you mean 'booster'?"),
        ("edits/booster", "unknown edit 'booster'"),
        ("defense/booster", "unknown kind 'defense': did you mean 'defenses'?"),
    ],
)
def test_an_unknown_method_is_named_with_the_nearest(monkeypatch, capsys, name, message):
    code, out, err = run(monkeypatch, capsys, "show", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_name_of_two_kinds_asks_which(package, monkeypatch, capsys):
    shrink = (
        "from dataclasses import dataclass\nfrom titer.methods import UpdateEdit\n"
        "@dataclass(frozen=True)\nclass Shrink(UpdateEdit):\n"
        "    def edit(self, weight, state):\n        return 0.5 * weight.update\n"
    )
    package("elsewhere", {"edits": ["booster = shrinking:Shrink"]}, {"shrinking": shrink})
    code, _, err = run(monkeypatch, capsys, "show", "booster")
    assert (code, err) == (
        2,
        "error: 'booster' is a defense and an edit: give defenses/booster or edits/booster\n",
    )
    code, out, _ = run(monkeypatch, capsys, "show", "edits/booster")
    assert code == 0
    assert "edit, from the package elsewhere" in out


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_what_a_source_says_of_a_method_is_what_its_class_says(kind):
    for name in registry.builtin(kind):
        cls = registry.load(kind, name)
        tree = ast.parse(Path(sys.modules[cls.__module__].__file__).read_text())
        assert listing.read_about(tree) == cls.about, name
        facts = listing.describe_method(f"{kind}/{name}")
        assert facts.title
        assert facts.summary
        assert {field.name for field in facts.fields} == {f.name for f in dataclasses.fields(cls)}


@pytest.mark.parametrize("page", ["methods.md", "choose.md"])
def test_the_pages_that_are_made_from_methods_are_current(page):
    committed = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    assert committed == listing.pages()[page], "run: python -m titer.listing docs"
