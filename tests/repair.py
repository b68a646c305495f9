"""Fine-tuned models on disk, and what edits make of them: how the tests of edits edit."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType, SimpleNamespace

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import byte_level, tiny
from titer.data.batches import Batch
from titer.data.rows import Row
from titer.data.template import Template
from titer.methods import Changes, Edit, Needs, Retraining, UpdateEdit
from titer.progress import Silent
from titer.runs.stages import asking as askings
from titer.runs.stages.repair import RepairStage
from titer.runs.stages.retrain import RetrainStage
from titer.runs.stages.stage import Given
from titer.weights import adapters, checkpoints, folders
from titer.weights.finetuned import PREFIX, FineTuned
from titer.weights.folders import Files
from titer.weights.rewrite import rewrite_update
from titer.weights.settings import Checkpoint, Lora
from titer.weights.targets import select

TARGETS = ("q_proj", "down_proj")


def tuned(
    dtype: torch.dtype = torch.float64, r: int = 8, targets: tuple[str, ...] = TARGETS
) -> PreTrainedModel:
    """A model with a fine-tuned adapter: B is no longer zero."""
    return filled(adapters.add_lora(tiny(dtype), Lora(r=r, alpha=2.0 * r, targets=targets)))


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """The model with other factors in its adapter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.a.copy_(torch.randn_like(adapter.a) * 0.1)
            adapter.b.copy_(torch.randn_like(adapter.b) * 0.1)
    return model


def moved(
    model: PreTrainedModel, size: float = 1e-2, but: tuple[str, ...] = (), seed: int = 1
) -> PreTrainedModel:
    """The model after a training that moved all its weights but some."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(but or "nothing"):
                parameter.add_(size * torch.randn_like(parameter.float()).to(parameter.dtype))
    return model


def save(model: PreTrainedModel, folder: Path, under: Path | None = None, **how) -> Path:
    """A checkpoint folder: of a whole model, or of the adapter over the model `under` it."""
    if under is None:
        model.save_pretrained(folder, **how)
        byte_level().save_pretrained(folder)
    else:
        checkpoints.save(model, byte_level(), folder, files(under))
    return folder


def files(folder: Path) -> Files:
    return folders.locate(Checkpoint(str(folder)))


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint or an adapter, by their names in the files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def opened(folder: Path) -> PreTrainedModel:
    """The model of a folder with its adapter merged, by transformers and PEFT alone and in the
    dtype of its files.
    """
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with adapters.literal_peft():
        under = AutoModelForCausalLM.from_pretrained(files(folder).base.folder, dtype="auto")
        return PeftModel.from_pretrained(under, folder).merge_and_unload()


@dataclass(frozen=True)
class Asking(UpdateEdit):
    """The safe update in the place of the user's, and what else it asks for looked at."""

    needs = Needs(references=("base", "safe", "unsafe"))
    keeps_rank = True

    def prepare(self, weights):
        return {
            "alignment": math.hypot(*((weight.aligned - weight.base).norm() for weight in weights)),
            "unsafe": math.hypot(*(weight.update_of("unsafe").norm() for weight in weights)),
        }

    def edit(self, weight, state):
        return weight.update_of("safe")

    def facts(self, state):
        return state


@dataclass(frozen=True)
class Repaired:
    """A model and what an edit made of it."""

    aligned: Path
    tuned: Path
    folder: Path  # of the edited model
    changes: Changes

    @property
    def before(self) -> dict[str, Tensor]:
        return weights(self.tuned)

    @property
    def after(self) -> dict[str, Tensor]:
        return weights(self.folder)


def on_disk(
    model: PreTrainedModel, folder: Path, aligned: PreTrainedModel | None = None
) -> FineTuned:
    """A fine-tuned model, saved beside the aligned one under it: `tiny` if none is given."""
    place = Path(mkdtemp(dir=folder))
    start = save(tiny(model.dtype) if aligned is None else aligned, place / "aligned")
    return FineTuned.of(
        files(save(model, place / "tuned", start if adapters.has_adapter(model) else None)),
        files(start),
    )


def names_of(edit: UpdateEdit, found: FineTuned, model: PreTrainedModel) -> list[str]:
    """The tensors that an edit works on."""
    linear = [
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    ]
    return select(
        found.factors or (found.whole if edit.needs.whole else linear), edit.needs.targets
    )


def layers_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, nn.Module]:
    """The layers of these weights."""
    prefix = PREFIX if adapters.has_adapter(model) else ""
    return {name: model.get_submodule(prefix + name.removesuffix(".weight")) for name in names}


def repair(
    edit: UpdateEdit,
    model: PreTrainedModel,
    folder: Path,
    batches: Sequence[Batch] = (),
    aligned: PreTrainedModel | None = None,
) -> Repaired:
    """Save a fine-tuned model with the aligned one under it, and edit it there."""
    found = on_disk(model, folder, aligned)
    names = names_of(edit, found, model)
    seen = edit.observe(model, layers_of(model, names), batches) if edit.needs.watches else {}
    out = Path(mkdtemp(dir=folder))
    changes = rewrite_update(edit, found, names, {}, seen, out, lambda *_: None)
    return Repaired(found.started.folder, found.files.folder, out, changes)


def apply(
    edit: Edit,
    model: Path | str,
    references: Mapping[str, Path | str],
    folder: Path,
    rows: Sequence[Row] = (),
    template: Template | None = None,
    whole: bool = False,
    looks: Mapping[str, Sequence[Row]] = MappingProxyType({}),
) -> dict:
    """Compute the stage of an edit of what fine-tuning added; return its facts.

    The folder then has the edited model.
    """
    folder.mkdir(exist_ok=True)
    asking = askings.Asking(Checkpoint(str(model)), "chat", None, 512)
    if template is not None:
        asking = SimpleNamespace(open=lambda of: (checkpoints.load(of)[0], template), at=asking.at)

    def given(of: Path | str) -> Given:
        return Given("given", None, None, asking, Checkpoint(str(of)))

    kind = RetrainStage if isinstance(edit, Retraining) else RepairStage
    others = {name: given(of) for name, of in references.items()}
    stage = kind("edit", given(model), edit, asking, others, rows, whole, looks)
    work = SimpleNamespace(checkpoint=lambda of: of.checkpoint, progress=Silent())
    return stage.compute(work, folder)
