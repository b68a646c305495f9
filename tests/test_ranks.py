"""The command line on several ranks, as `accelerate launch` starts them, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from test_run import plan  # noqa: F401  a recipe over files of a user's own
from titer import paths
from titer.training.ranks import Ranks, check_launch
from titer.training.settings import Training

PLAIN, SHARDS = ["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


def start(*words: str, how: list[str] | None, ranks: int = 2) -> subprocess.Popen[str]:
    """Start a command, on several ranks where it is said how."""
    python = [sys.executable] if how is None else [*LAUNCH, *how, "--num_processes", str(ranks)]
    return subprocess.Popen(
        [*python, "-m", "titer", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
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
