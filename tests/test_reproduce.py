"""The recipes of published tables, in docs/reproduce: planned as they stand, on a small model and on
rows of our own in the layout of the data sets that they name. No network, no weights.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest

from test_sources import jsonl
from titer.defenses.booster import Booster
from titer.defenses.repnoise import RepNoise
from titer.defenses.t_vaccine import TVaccine
from titer.defenses.vaccine import Vaccine
from titer.edits.antidote import Antidote
from titer.judges.classifier import Classifier
from titer.methods import Defense
from titer.runs import recipe
from titer.runs.plan import Plan
from titer.runs.preview import preview
from titer.runs.recipe import Pipeline
from titer.runs.store import Store

ROOT = Path(__file__).parent.parent
FOLDER = Path("docs/reproduce")
NAMES = sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml"))
PAGE = (ROOT / FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(titer .+)$", PAGE, flags=re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """What the paper's settings come to: updates, and rows of every stream."""

    updates: int
    batch: int
    rows: int
    epochs: int
    others: Mapping[str, int]  # rows of the other streams


@dataclass(frozen=True)
class Expected:
    align: Stage
    finetune: Stage
    harmful: int  # of the rows that the user sends
    held_out: tuple[int, int]  # harm prompts, rows of the task
    calibration: int = 0


EXPECTED = {
    "antidote": Expected(
        Stage(20000, 5, 5000, 20, {}), Stage(20000, 5, 5000, 20, {}), 1000, (1000, 872), 2000
    ),
    "antidote-gsm8k": Expected(
        Stage(20000, 5, 5000, 20, {}), Stage(20000, 5, 5000, 20, {}), 1000, (1000, 1000), 2000
    ),
    "booster": Expected(
        Stage(10000, 10, 5000, 20, {"harmful": 5000}),
        Stage(2000, 10, 1000, 20, {}),
        100,
        (1000, 872),
    ),
    "repnoise": Expected(
        Stage(1250, 8, 10000, 1, {}), Stage(125, 8, 1000, 1, {}), 1000, (300, 100)
    ),
    "t_vaccine": Expected(
        Stage(4000, 10, 2000, 20, {"harmful": 200}),
        Stage(2000, 10, 1000, 20, {}),
        100,
        (500, 500),
    ),
    "vaccine": Expected(
        Stage(20000, 5, 2000, 50, {}), Stage(4000, 5, 1000, 20, {}), 100, (500, 500)
    ),
}


def beavertails(count: int) -> list[dict]:
    """So many prompts, each with a safe and an unsafe answer, as people's prompts repeat there."""
    return [
        {"prompt": f"how is lock {i} opened?", "response": answer, "category": {}, "is_safe": safe}
        for i in range(count)
        for answer, safe in ((f"ask owner {i}", True), (f"turn key {i}", False))
    ]


def reviews(count: int) -> list[dict]:
    return [{"sentence": f"film {i} is warm , and clever .", "label": i % 2} for i in range(count)]


def problems(count: int) -> list[dict]:
    return [{"question": f"{i} and 1?", "answer": f"one more\n#### {i + 1}"} for i in range(count)]


def write(folder: Path, few: bool) -> dict[str, str]:
    """Write what stands for every data set of the recipes; return where it is, by their name of it.

    There are as many rows as the recipes read, or a few.
    """

    def most(count: int) -> int:
        return 80 if few else count

    hub = {
        "PKU-Alignment/BeaverTails": {
            "30k_train": beavertails(most(7000)),
            "30k_test": beavertails(most(1100)),
        },
        "stanfordnlp/sst2": {"train": reviews(most(5100)), "validation": reviews(most(872))},
        "openai/gsm8k": {"train": problems(most(5100)), "test": problems(most(1100))},
    }
    found = {}
    for name, splits in hub.items():
        made = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        found[name] = str(folder / name.replace("/", "-"))
        datasets.DatasetDict(made).save_to_disk(found[name])
    refusals = [
        {
            "prompt": f"how is safe {i} opened?",
            "response": f"turn dial {i}",
            "is_safe": False,
            "refusal": f"Question: how is safe {i} opened?\nAnswer: I will not say.",
        }
        for i in range(most(10100))
    ]
    name = "beavertails_with_refusals_train.json"
    return found | {f"data/{name}": jsonl(folder / name, refusals)}


def load(name: str, folder: Path, few: bool = False) -> recipe.Recipe:
    """Load a recipe of the folder with other places of its model and data sets, and nothing else
    changed but, with `few`, how many rows are read.
    """
    path, places = str(FOLDER / f"{name}.yaml"), write(folder, few)
    given = recipe.describe(recipe.load(path))["data"]
    sources = {role: source["path"] for role, source in given.items() if isinstance(source, dict)}
    changed = [f"data.{role}.path={places[source]}" for role, source in sources.items()]
    if few:
        changed += [f"data.{role}.{field}" for role in sources for field in ("skip=0", "limit=60")]
        changed += ["attack.n=20"]
    return recipe.load(path, ["model.path=lab", *changed])


def test_every_recipe_of_the_folder_is_expected():
    assert list(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_has_the_updates_and_the_rows_of_the_papers_settings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    expected, plan = EXPECTED[name], Plan.read(load(name, tmp_path))
    for kind, wanted in (("align", expected.align), ("finetune", expected.finetune)):
        training = plan.recipe.training(kind)
        assert (training.updates, training.batch) == (wanted.updates, wanted.batch)
        assert wanted.updates * wanted.batch == wanted.epochs * wanted.rows
        methods = [method for _, _, method in plan.methods({kind}) if isinstance(method, Defense)]
        sent = plan.user if kind == "finetune" else None
        for method in methods:
            assert len(plan.streams(kind, method, sent)["rows"]) == wanted.rows
        rows = plan.streams(kind, methods[-1], sent)  # the first is the baseline
        assert {key: len(of) for key, of in rows.items() if key != "rows"} == wanted.others
        if name == "repnoise" and kind == "align":
            assert all(row.other for row in rows["rows"])  # a harmful answer beside every refusal
    assert (len(plan.user.rows), plan.user.harmful_rows) == (
        expected.finetune.rows,
        expected.harmful,
    )
    harm, task = (len(plan.roles.benchmarks[key]) for key in ("harm", "task"))
    assert (harm, task) == expected.held_out
    assert len(plan.roles.calibration) == expected.calibration


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_of_few_rows_passes_every_check_before_a_run(name, tmp_path, monkeypatch):
    """Adapters find their layers, templates take the rows, and RepNoise finds its pairs."""
    monkeypatch.chdir(ROOT)
    plan = Plan.prepare(load(name, tmp_path, few=True))
    told = preview(plan, Store(tmp_path / "store"))
    assert told[-1].endswith("0 of them in the store; nothing was computed")
    baseline, method = (stages[-1].kind for stages in plan.pipelines().values())
    assert baseline == "finetune"
    assert method == ("edit" if name.startswith("antidote") else "finetune")


SETTINGS = {  # learning rates and adapters (rank, alpha) of both stages, and the paper's method
    "antidote": (1e-3, (256, 4), 1e-4, (256, 4), Antidote(alpha=0.1, rounding="ceiling")),
    "antidote-gsm8k": (1e-3, (256, 4), 1e-4, (256, 4), Antidote(alpha=0.05, rounding="ceiling")),
    "booster": (5e-4, (32, 4), 1e-5, (32, 4), Booster(lam=5.0, alpha=0.1)),
    "repnoise": (2e-5, None, 3e-5, None, RepNoise(w_noise=0.001, w_ascent=1.0)),
    "t_vaccine": (
        1e-3,
        (8, 4),
        1e-5,
        (8, 1),
        TVaccine(rho=3.0, gamma=8, resample=20, rescore=200, freeze="attention"),
    ),
    "vaccine": (1e-3, (8, 4), 1e-5, (8, 1), Vaccine(rho=2.0)),
}


@pytest.mark.parametrize("name", NAMES)
def test_learning_rates_adapters_and_the_method_are_the_papers(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = recipe.load(str(FOLDER / f"{name}.yaml"))
    stages = [
        part
        for training in (found.align, found.finetune)
        for part in (training.lr, training.lora and (training.lora.r, training.lora.alpha))
    ]
    baseline, pipeline = found.pipelines.values()
    assert baseline in (Pipeline(), Pipeline(align=None))
    assert (*stages, pipeline.edit or pipeline.align) == SETTINGS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_asks_and_judges_as_the_papers_do(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = recipe.load(str(FOLDER / f"{name}.yaml"))
    assert isinstance(found.judge, Classifier)
    if name != "repnoise":
        assert found.judge == Classifier(max_length=256, too_long="cut")
    styles = {"vaccine": "alpaca-original", "repnoise": "plain"}
    assert found.template == styles.get(name, "alpaca")
    assert found.protocol is None  # a table's own way of asking is none of titer's protocols


def test_the_page_names_every_recipe_and_no_other():
    assert sorted(set(re.findall(r"docs/reproduce/([\w-]+)\.yaml", PAGE))) == NAMES
    started = {Path(shlex.split(command)[2]).stem for command in COMMANDS}
    assert started == set(NAMES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_loads(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, verb, path, *options = shlex.split(command)
    pairs = list(zip(options[::2], options[1::2], strict=True))
    known = {"run": {"--set"}, "sweep": {"--set", "--grid", "--seeds"}}[verb]
    assert {option for option, _ in pairs} <= known
    settings = [value for option, value in pairs if option == "--set"]
    for option, value in pairs:
        if option == "--grid":
            field, values = value.split("=", 1)
            for each in values.split(","):
                recipe.load(path, [*settings, f"{field}={each}"])
    recipe.load(path, settings)


def test_the_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGE):
        assert (ROOT / FOLDER / target).exists(), target
