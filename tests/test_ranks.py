"""The command line on several ranks, as `accelerate launch` starts them, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from test_run import plan  # noqa: F401  a recipe over files of a user's own
from titer import paths
from titer.defenses.constrained_sft import ConstrainedSFT
from titer.defenses.kl import KL
from titer.defenses.ldifs import LDIFS
from titer.defenses.random_vaccine import RandomVaccine, noise
from titer.defenses.sft import SFT
from titer.defenses.tar import TAR
from titer.edits.one_shot import OneShot
from titer.runs.crew import COMMANDS
from titer.testing import rows, state, step_for, tiny
from titer.testing.ranks import run_on_ranks
from titer.training.ranks import Ranks, check_launch
from titer.training.settings import DRAWN, Training
from titer.training.sharding import copy_shards, take_back
from titer.training.train import accelerator_for, train

PLAIN, SHARDS = ["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


def start(
    *words: str, how: list[str] | None, ranks: int = 2, **environment: str
) -> subprocess.Popen[str]:
    """Start a command, on several ranks where it is said how."""
    python = [sys.executable] if how is None else [*LAUNCH, *how, "--num_processes", str(ranks)]
    return subprocess.Popen(
        [*python, "-m", "titer", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: str, how: list[str] | None = None, ranks: int = 2) -> tuple[int, str, str]:
    process = start(*words, how=how, ranks=ranks)
    out, error = process.communicate(timeout=600)
    return process.returncode, out, error


def compute(*words: str, how: list[str] | None = None, ranks: int = 2) -> dict:
    """Run a command that succeeds; return the JSON that it prints, once."""
    code, out, error = run(*words, "--json", how=how, ranks=ranks)
    assert code == 0, error
    return json.loads(out)


@pytest.fixture(scope="module")
def recipe(plan, tmp_path_factory) -> str:
    """A recipe of one pipeline, whose updates several ranks can share."""
    mine = plan | {
        "pipelines": {
            "mine": {
                "align": {"method": "booster", "alpha": 0.01, "lam": 1},
                "edit": {"method": "antidote", "alpha": 0.25},
            }
        },
        "probes": 3,
    }
    path = tmp_path_factory.mktemp("ranks") / "mine.yaml"
    path.write_text(yaml.safe_dump(mine))
    return str(path)


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    [file] = (run / paths.STAGES / stage / paths.MODEL).glob("*.safetensors")
    return load_file(file)


def are_near(one: dict, other: dict) -> bool:
    """Tell whether tensors differ by rounding, as their update sees it."""
    apart = [(one[name].double() - other[name].double()).norm() for name in one]
    size = torch.stack([tensor.double().norm() for tensor in one.values()]).norm()
    return one.keys() == other.keys() and bool(torch.stack(apart).norm() < 1e-5 * size)


def figures(document: dict) -> dict:
    """Return all figures of a run, and the terms and probes of its trainings, by stage."""
    return {
        stage["label"]: {
            **{name: score["value"] for name, score in stage["scores"].items()},
            **stage["facts"].get("terms at the last update", {}),
            **{
                k: v for k, v in (stage["facts"].get("probes") or [{}])[-1].items() if k != "layers"
            },
        }
        for stage in document["stages"]
    }


def test_ranks_share_the_rows_of_an_update():
    whole = Training(updates=1, lr=1.0, batch=6, accumulate=4)
    assert whole.among(1) == whole
    for ranks, batch, accumulate in ((2, 6, 2), (4, 6, 1), (8, 3, 1), (3, 2, 4), (24, 1, 1)):
        each = whole.among(ranks)
        assert (each.batch, each.accumulate) == (batch, accumulate)
    with pytest.raises(
        ValueError, match=r"batch=6, accumulate=4: 5 ranks cannot share the 24 rows of an update"
    ):
        whole.among(5)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_ranks_may_share_rows_unevenly(batch, accumulate):
    whole = Training(updates=1, lr=1.0, batch=batch, accumulate=accumulate)
    assert whole.spread(1) == whole
    rows = batch * accumulate
    for ranks in range(1, 12):
        each = whole.spread(ranks)
        assert each.batch <= batch
        share = each.batch * each.accumulate
        assert share * ranks >= rows  # they hold the update, a micro-batch more at most
        assert share < rows / ranks + each.accumulate + 1


REPAIR = """
import sys

import torch
from safetensors.torch import save_file

from test_ranks import repair
from titer.training.train import accelerator_for

torch.set_num_threads(1)
accelerator = accelerator_for("cpu")
for k in (1, 3):
    weights = repair(k, accelerator)
    if accelerator.is_main_process:
        save_file(weights, f"{sys.argv[1]}/{k}.safetensors")
"""


def repair(k: int, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Return the weights after a repair of one_shot on k rows."""
    training = OneShot(k=k, updates=3).training(Training(updates=9, lr=1e-3, batch=4, lora=None))
    model = tiny()
    trained = copy_shards(model, accelerator)
    told = train(
        trained, SFT(), {"rows": rows()["alignment"][:k]},
        training.spread(accelerator.num_processes), 0,
        accelerator=accelerator, rows=training.batch * training.accumulate,
    )  # fmt: skip
    assert not any(DRAWN in terms for terms in told)  # an update had all of its rows
    take_back(model, trained)
    return state(model)


@pytest.mark.parametrize("shards", [False, True], ids=["plain", "shards"])
def test_a_repair_on_fewer_rows_than_ranks_is_that_of_one_process(tmp_path, shards):
    run_on_ranks(REPAIR, tmp_path, imports=Path(__file__).parent, shards=shards)
    for k in (1, 3):
        one, two = repair(k, accelerator_for("cpu")), load_file(tmp_path / f"{k}.safetensors")
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "method",
    [LDIFS(), KL(on="rows"), ConstrainedSFT(), SFT()],
    ids=lambda method: type(method).__name__,
)
def test_a_rank_without_a_micro_batch_adds_nothing(method, accelerator):
    step = step_for(tiny(), rows(), accelerator)
    prepared = method.prepare(step)
    step._batches["rows"] = replace(step.draw("rows"), parts=())
    assert method.gradient(step, prepared).names() == []
    assert step.logged
    assert set(step.logged.values()) == {0.0}


@pytest.mark.parametrize(
    "method",
    [
        LDIFS(lam=3.0),
        LDIFS(lam=3.0, axis="tokens"),
        TAR(k=0),
        KL(on="rows"),
        ConstrainedSFT(),
        RandomVaccine(),
    ],
    ids=lambda method: type(method).__name__,
)
def test_an_idle_micro_batch_adds_nothing(method, accelerator):
    """As of a rank that makes a pass because others do: `Step.collate` where weights are sharded."""
    found = []
    for idle in (0, 1, 7):
        model = tiny()
        step = step_for(model, rows(), accelerator, batch=2, accumulate=2)
        prepared = method.prepare(step)
        for weight in model.parameters():  # else nothing is far from the start
            weight.data.mul_(1.01)
        batch = step.draw("rows")
        more = [batch.parts[0].idle] * idle
        step._batches["rows"] = replace(batch, parts=(*batch.parts, *more))
        found.append((method.gradient(step, prepared), step.logged))
    for g, logged in found[1:]:
        assert (g - found[0][0]).norm() < 1e-12 * g.norm()
        assert logged == pytest.approx(found[0][1], rel=1e-12)


class Rank(Accelerator):
    """One of several ranks, as far as what it draws goes."""

    num_processes, process_index = 1, 0

    def __init__(self, count: int, rank: int):
        super().__init__(cpu=True)
        self.num_processes, self.process_index = count, rank

    def reduce(self, tensor, reduction):
        return tensor


@pytest.mark.parametrize(("batch", "count"), [(2, 6), (2, 5), (2, 2), (3, 7)])
def test_the_noise_of_a_micro_batch_is_that_of_its_place_on_any_number_of_ranks(batch, count):
    def drawn(ranks: int) -> list[dict[int, torch.Tensor]]:
        found = []
        for rank in range(ranks):
            step = step_for(tiny(), rows(), Rank(ranks, rank), batch=batch)
            found += noise(step, step.draw("rows", count)).parts
        return found

    one = drawn(1)
    for ranks in (2, 3, 5):
        for mine, whole in zip(drawn(ranks), one, strict=True):
            assert all(torch.equal(mine[layer], whole[layer]) for layer in whole)


def test_ranks_share_items_and_shards_make_equal_numbers_of_passes():
    items = list("abcde")
    assert [Ranks(rank, 2).share(items) for rank in (0, 1)] == [["a", "c", "e"], ["b", "d"]]
    assert [Ranks(rank, 2, sharded=True).share(items) for rank in (0, 1)] == [
        ["a", "c", "e"],
        ["b", "d", "e"],
    ]
    assert [Ranks(rank, 4, sharded=True).share([7]) for rank in range(4)] == [[7]] * 4
    assert Ranks().share(items) == items


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "asks for DeepSpeed, whose engine makes the updates",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1: give --fsdp_version 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "give --fsdp_offload_params false",
        ),
        ({"WORLD_SIZE": "auto"}, "WORLD_SIZE='auto' is no number of ranks"),
    ],
)
def test_a_launch_that_asks_for_another_engine_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_launch()


@pytest.mark.slow
@pytest.mark.parametrize("how", [PLAIN, SHARDS], ids=["plain", "shards"])
def test_two_ranks_run_a_recipe_as_one_process_does(recipe, tmp_path, how):
    one = compute("run", recipe, "--out", str(tmp_path / "one"))["mine"]
    two = compute("run", recipe, "--out", str(tmp_path / "two"), how=how)["mine"]
    assert (one["environment"]["ranks"], two["environment"]["ranks"]) == (1, 2)
    assert two["environment"]["sharded"] is (how is SHARDS)
    for name, told in figures(one).items():
        assert figures(two)[name] == pytest.approx(told, rel=1e-4, abs=1e-6), name
    for stage in ("01-align", "02-finetune", "03-edit"):
        files = [weights(tmp_path / name, stage) for name in ("one", "two")]
        assert are_near(*files), stage
    left = {str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*")}
    assert left == {
        str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*")
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", [PLAIN, SHARDS], ids=["plain", "shards"])
def test_a_repair_on_one_row_is_computed_by_two_ranks(recipe, tmp_path, how):
    words = ["run", recipe, "--set", 'pipelines={"mine": {"edit": {"method": "one_shot"}}}']
    one = compute(*words, "--out", str(tmp_path / "one"))["mine"]
    two = compute(*words, "--out", str(tmp_path / "two"), how=how)["mine"]
    assert [stage["label"] for stage in one["stages"]][-1] == "edit one_shot"
    for name, told in figures(one).items():
        assert figures(two)[name] == pytest.approx(told, rel=1e-4, abs=1e-6), name
    assert are_near(*(weights(tmp_path / name, "03-edit") for name in ("one", "two")))


def kill_one(process: subprocess.Popen[str], rank: int) -> None:
    """Kill a rank of a launch."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank) and "titer" in child.cmdline():
            child.send_signal(signal.SIGKILL)
            return
    raise AssertionError(f"there is no rank {rank}")


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "rank"), [(PLAIN, 1), (SHARDS, 0)], ids=["plain", "shards"])
def test_a_rank_that_is_killed_stops_all_and_the_run_goes_on_bit_for_bit(
    recipe, tmp_path, how, rank
):
    words = ["run", recipe, "--set", "align.updates=110", "--set", "pipelines.mine.align=sft"]
    compute(*words, "--out", str(tmp_path / "whole" / "run"), how=how)
    process = start(*words, "--out", str(tmp_path / "killed" / "run"), how=how)
    left = tmp_path / "killed" / paths.STORE / paths.PARTIAL
    wait_for(lambda: any(left.glob(f"*/{paths.RESUME}")), process)
    kill_one(process, rank)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(left.glob(f"*/{paths.RESUME}"))
    compute(*words, "--out", str(tmp_path / "killed" / "run"), how=how)
    for stage in ("01-align", "02-finetune", "03-edit"):
        whole, killed = (weights(tmp_path / name / "run", stage) for name in ("whole", "killed"))
        assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.slow
def test_single_stages_on_two_ranks_are_those_of_one_process(recipe, tmp_path):
    data = yaml.safe_load(Path(recipe).read_text())
    model, of = data["model"], data["data"]
    shared = ["--recipe", recipe, "--data", f"harmful={of['harmful']}"]

    def chain(folder: Path, how: list[str] | None) -> dict:
        aligned, tuned = str(folder / "aligned"), str(folder / "tuned")
        rows = ["--data", f"alignment={of['alignment']}"]
        compute("align", model, "--out", aligned, "--method", "booster", *shared, *rows, how=how)
        rows = ["--data", f"task={of['task']}"]
        # probes want alignment rows, which this stage has none of
        few = ("--set", "probes=0")
        compute("finetune", aligned, "--out", tuned, *shared, *rows, *few, how=how)
        rows = ["--data", f"test={of['test']}"]
        scores = str(folder / "scores")
        return compute("evaluate", tuned, "--out", scores, *shared, *rows, how=how)

    one, two = chain(tmp_path / "one", None), chain(tmp_path / "two", PLAIN)
    for name, score in one["scores"].items():
        assert two["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-5), name
    for stage in ("aligned", "tuned"):
        files = [
            load_file(next((tmp_path / of / stage).glob("*.safetensors"))) for of in ("one", "two")
        ]
        assert are_near(*files), stage
        assert (tmp_path / "two" / stage / paths.RECORD).is_file()
        record = json.loads((tmp_path / "two" / stage / paths.RECORD).read_text())
        assert record["environment"]["ranks"] == 2


@pytest.mark.slow
def test_an_error_is_one_line_of_the_first_rank(recipe, tmp_path):
    out = tmp_path / "out"
    for words, ranks, message in (
        (["run", recipe, "--set", "align.lrr=1"], 2, "unknown key 'align.lrr'"),
        (["run", recipe], 3, "batch=4, accumulate=1: 3 ranks cannot share the 4 rows of an update"),
        (["run", recipe, "--set", "align.lr=1e30"], 2, "at update"),
        (["sweep", recipe, "--seeds", "0,1"], 2, "`titer sweep` runs in one process"),
    ):
        code, printed, error = run(*words, "--out", str(out), how=PLAIN, ranks=ranks)
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert code != 0
        assert len(lines) == 1, error
        assert message in lines[0]
        assert not printed
        assert not out.exists()


@pytest.mark.slow
def test_the_first_rank_tells_of_an_error_though_another_finds_it_sooner(recipe, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(4)\n"
    )
    launch = start("sweep", recipe, "--seeds", "0,1", how=PLAIN, PYTHONPATH=str(tmp_path))
    _, error = launch.communicate(timeout=600)
    assert launch.returncode != 0
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        "error: `titer sweep` runs in one process, and the launch has 2: leave the launcher out "
        f"(several ranks compute {', '.join(COMMANDS)})"
    ]


@pytest.mark.slow
def test_a_method_that_needs_a_whole_model_is_refused_before_anything_is_computed(recipe, tmp_path):
    words = [
        "run",
        recipe,
        "--set",
        "pipelines.mine.align=repnoise",
        "--out",
        str(tmp_path / "out"),
    ]
    code, _, error = run(*words, how=SHARDS)
    assert code != 0
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert (
        "pipelines.mine.align: 'repnoise' cannot train a model that is divided among ranks" in line
    )
    assert not (tmp_path / paths.STORE).exists()
