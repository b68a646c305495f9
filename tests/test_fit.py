"""A stage whose micro-batches do not fit into memory starts again with smaller ones."""

import json

import pytest
import torch

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer import paths
from titer.defenses.booster import Booster
from titer.defenses.random_vaccine import RandomVaccine
from titer.defenses.repnoise import RepNoise
from titer.defenses.sft import SFT
from titer.defenses.vaccine import Vaccine
from titer.runs.stages.fit import FACT, fit
from titer.training.settings import Training
from titer.training.step import Step

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
TEN = Training(updates=1, lr=1e-3, batch=10, accumulate=3)
QUICK = ["max_new_tokens=2", "data.limit=4", "dose_prompts=0", "prefill_prompts=0"]
AGAIN = (
    "out of memory with 4 rows of a micro-batch: the stage starts again with 2, and as many rows in an "
    "update"
)


def run(
    monkeypatch, capsys, recipe_file, out, pipeline: str, *settings: str
) -> tuple[list[dict], list[str]]:
    """Run a recipe with one pipeline; return its stages, and the lines about memory."""
    told = [f"pipelines={{one: {pipeline}}}", *QUICK, *settings]
    options = [part for setting in told for part in ("--set", setting)]
    options += ["--out", str(out), "--store", f"{out}-store"]
    code, _, err = titer(monkeypatch, capsys, "run", recipe_file, *options)
    assert code == 0, err
    stages = json.loads((out / "one.json").read_text())["stages"]
    return stages, [line for line in err.splitlines() if "memory" in line]


def tighten(monkeypatch, update: int) -> None:
    """Let no pass over more than two rows fit into memory, from an update on."""
    grad = Step.grad

    def tight(self, batch, *rest):
        if self.update >= update and any(len(part.ids) > 2 for part in batch.parts):
            raise FULL
        return grad(self, batch, *rest)

    monkeypatch.setattr(Step, "grad", tight)


def test_a_stage_ends_as_one_begun_with_the_smaller_micro_batches(
    monkeypatch, capsys, recipe_file, tmp_path
):
    halves = ["align.batch=2", "align.accumulate=2", "finetune.batch=2", "finetune.accumulate=2"]
    of = "{align: booster}"
    begun, said = run(monkeypatch, capsys, recipe_file, tmp_path / "begun", of, *halves)
    assert said == []
    tighten(monkeypatch, update=3)  # two updates have changed weights, moments and streams
    fitted, said = run(monkeypatch, capsys, recipe_file, tmp_path / "fitted", of)
    assert [stage["label"] for stage in fitted] == ["base", "align booster", "finetune sft"]
    assert [stage["weights"] for stage in fitted] == [stage["weights"] for stage in begun]
    assert len({stage["weights"] for stage in fitted}) == 3
    assert [stage["facts"].pop(FACT, None) for stage in fitted] == [None, 2, 2]
    assert not any(FACT in stage["facts"] for stage in begun)
    assert said == [AGAIN, AGAIN]
    assert list(tmp_path.rglob(paths.FITTED)) == []


def test_a_repair_that_trains_fits_too(monkeypatch, capsys, recipe_file, tmp_path):
    tighten(monkeypatch, update=1)
    repaired = "{align: null, finetune: sft, edit: {method: one_shot, k: 4, updates: 2}}"
    (*_, edit), said = run(monkeypatch, capsys, recipe_file, tmp_path / "out", repaired)
    assert (edit["label"], edit["facts"][FACT]) == ("edit one_shot", 2)
    assert said == [AGAIN, AGAIN]
    assert list(tmp_path.rglob(paths.FITTED)) == []


def test_a_method_that_smaller_micro_batches_change_is_refused(
    monkeypatch, capsys, recipe_file, tmp_path
):
    tighten(monkeypatch, update=2)
    options = ["--set", "pipelines={one: {align: {method: vaccine, norm: micro}}}"]
    code, _, err = titer(
        monkeypatch, capsys, "run", recipe_file, *options, "--out", str(tmp_path / "out")
    )
    assert (code, err.splitlines()[-1]) == (
        2,
        "error: out of memory with batch=4, and vaccine with smaller micro-batches is another method "
        "(with norm=micro its perturbation has the norm rho in every micro-batch): set a smaller batch "
        "yourself, or gradient_checkpointing=true",
    )


@pytest.mark.parametrize(
    ("method", "depends"),
    [
        (SFT(), False),
        (Vaccine(), False),
        (Vaccine(norm="micro"), True),
        (RandomVaccine(), True),
        (RepNoise(), True),
        (Booster(align=RepNoise()), True),
    ],
)
def test_sizes_are_tried_down_to_one_row(method, depends, tmp_path):
    tried = []

    def attempt(now: Training) -> None:
        assert now.batch * now.accumulate == 30
        tried.append(now.batch)
        raise FULL

    with pytest.raises(ValueError, match="another method" if depends else "of one row"):
        fit(attempt, method, TEN, 1, tmp_path)
    assert tried == ([10] if depends else [10, 5, 1])


def test_an_interrupted_stage_goes_on_with_the_size_that_fitted(tmp_path):
    resume = tmp_path / paths.RESUME
    resume.write_text("of micro-batches that do not fit")
    tried = []

    def attempt(now: Training) -> str:
        tried.append((now.batch, resume.is_file()))
        if now.batch > 5:
            raise FULL
        if len(tried) == 2:
            resume.write_text("of five rows")
            raise KeyboardInterrupt
        return "trained"

    with pytest.raises(KeyboardInterrupt):
        fit(attempt, SFT(), TEN, 1, tmp_path)
    assert fit(attempt, SFT(), TEN, 1, tmp_path) == ("trained", {FACT: 5})
    assert tried == [(10, True), (5, False), (5, True)]


@pytest.mark.parametrize(
    ("error", "ranks"), [(RuntimeError("another fault"), 1), (FULL, 2)], ids=["fault", "ranks"]
)
def test_what_smaller_micro_batches_do_not_mend_is_raised_as_it_is(error, ranks, tmp_path):
    tried = []

    def attempt(now: Training) -> None:
        tried.append(now.batch)
        raise error

    with pytest.raises(RuntimeError) as raised:
        fit(attempt, SFT(), TEN, ranks, tmp_path)
    assert raised.value is error
    assert tried == [10]
