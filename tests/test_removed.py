"""The share of the update's energy that an edit removed, against a dense computation row by row."""

import pytest
import torch

from conftest import byte_level, tiny
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.data.batches import Batch
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.store import Store
from titer.weights import adapters, checkpoints, energy, folders
from titer.weights.finetuned import PREFIX, FineTuned
from titer.weights.settings import Checkpoint, Lora


@pytest.fixture
def saved(tmp_path):
    """An aligned model, and adapters over it: B scaled by c."""
    aligned = tiny(torch.float64)
    checkpoints.save(aligned, byte_level(), tmp_path / "aligned")
    over = folders.locate(Checkpoint(str(tmp_path / "aligned")))

    def tuned(c: float, but: str = "nothing"):
        model = adapters.add_lora(
            tiny(torch.float64), Lora(r=4, alpha=8, targets=("q_proj", "down_proj"))
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for name, adapter in adapters.adapters(model).items():
                adapter.a.copy_(0.1 * torch.randn_like(adapter.a))
                adapter.b.copy_((1.0 if but in name else c) * torch.randn_like(adapter.b))
        folder = tmp_path / f"tuned{c}{but}"
        checkpoints.save(model, byte_level(), folder, over)
        return model, FineTuned.of(folders.locate(Checkpoint(str(folder))), None)

    return tuned


def share(saved, rows, c, but="nothing"):
    model, before = saved(1.0)
    _, after = saved(c, but)
    layers = {
        name: model.get_submodule(PREFIX + name.removesuffix(".weight")) for name in before.factors
    }
    batch = Batch.of("rows", [rows["harmful"][:3], rows["harmful"][3:5]], 0)
    return energy.removed_energy(model, layers, before, after, batch)


def test_against_dense_updates_row_by_row(saved, rows):
    model, before = saved(1.0)
    _, after = saved(0.3, but="layers.0")
    total = gone = 0.0
    inputs: dict[str, torch.Tensor] = {}
    for name in before.factors:
        layer = model.get_submodule(PREFIX + name.removesuffix(".weight"))
        layer.register_forward_pre_hook(lambda _, x, name=name: inputs.__setitem__(name, x[0][0]))
    for row in rows["harmful"][:5]:
        with torch.no_grad():
            model(input_ids=torch.tensor([row.ids]))
        for name, x in inputs.items():
            w, kept = before.update(name).dense(), after.update(name).dense()
            total += float((x @ w.T).square().sum())
            gone += float((x @ (w - kept).T).square().sum())
    assert share(saved, rows, 0.3, but="layers.0") == pytest.approx(gone / total, rel=1e-9)
    assert 0 < gone < total


@pytest.mark.parametrize(("c", "expected"), [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75**2), (-1.0, 4.0)])
def test_scaling_removes_the_square_of_what_it_takes_on_any_input(saved, rows, c, expected):
    assert share(saved, rows, c) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_with_probes_records_it_on_harmful_and_task_rows(recipe_file, tmp_path, lora):
    edit = ['pipelines={"half": {"edit": {"method": "wise_ft", "alpha": 0.5}}}', "probes=6"]
    setting = Plan.prepare(
        recipe.load(recipe_file, edit if lora else [*edit, "finetune.lora=null"])
    )
    stages = Run(setting, tmp_path / "run", Store(tmp_path / "store")).records(Silent())["half"]
    assert stages[3].facts["removed energy"] == pytest.approx(
        {"harm": 0.25, "task": 0.25}, rel=1e-4
    )


def test_an_update_that_does_nothing_has_nothing_to_remove(saved, rows):
    model, before = saved(0.0)
    layers = {
        name: model.get_submodule(PREFIX + name.removesuffix(".weight")) for name in before.factors
    }
    assert (
        energy.removed_energy(
            model, layers, before, before, Batch.of("rows", [rows["harmful"][:2]], 0)
        )
        == 0.0
    )
    assert not any(layer._forward_pre_hooks for layer in layers.values())
