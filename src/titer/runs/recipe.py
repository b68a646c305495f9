"""A recipe: the model, the rows, the attack and the pipelines to compare. YAML, typed, with unknown keys refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import PlainValidator

from titer.runs import protocols
from titer import registry
from titer.config import validate
from titer.errors import unknown
from titer.defenses.sft import SFT
from titer.methods import Attack, Benchmark, Defense, Edit, Judge, Method, UpdateEdit
from titer.config import Config
from titer.weights.settings import Checkpoint, Model
from titer.runs.roles import Data
from titer.data.texts import Style
from titer.training.settings import Training

FOLDER = Path(__file__).parent.parent / "recipes"


def chained(given: Any) -> Edit | tuple[Edit, ...] | None:
    """An edit, a chain of them, or none, from what a recipe says."""
    if isinstance(given, list | tuple):
        chain: tuple[Edit, ...] = tuple(registry.build("edits", each) for each in given)  # type: ignore[misc]
        return chain if len(chain) > 1 else next(iter(chain), None)
    return None if given is None else registry.build("edits", given)  # type: ignore[return-value]


@dataclass(frozen=True)
class Pipeline(Config):
    """A way through the stages. Stages that two pipelines share are computed once."""

    align: Defense = field(default_factory=SFT)
    release: Edit | None = None  # of the aligned model, before the user gets it; None releases it as it is
    finetune: Defense = field(default_factory=SFT)
    edit: Annotated[Edit | tuple[Edit, ...] | None, PlainValidator(chained)] = None  # after fine-tuning: one, or a list of them in order

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.edit if isinstance(self.edit, tuple) else (self.edit,) if self.edit else ()


@dataclass(frozen=True)
class Recipe(Config):
    """Everything that determines a run."""

    data: Data
    align: Training
    finetune: Training
    attack: Attack
    pipelines: dict[str, Pipeline]
    model: Model = field(default_factory=Checkpoint)
    judge: Judge | None = None  # None: the exact one for the lab's prompts, `refusal` for others
    protocol: str | None = None  # a named way of asking and scoring, from which the recipe must not depart
    benchmark: Benchmark | None = None  # the user's task: how it is asked and scored; None recognizes it by its columns
    template: Style = "chat"  # the model's own chat template, or a text template by name
    system: str | None = None  # system prompt, in training and in evaluation
    probes: int = 0  # updates of fine-tuning from one look at why a defense holds to the next; 0: none
    seed: int = 0  # of training: weights of fresh adapters, order and choice of rows
    max_length: int = 256  # tokens of a training row; a longer prompt is cut at its front
    max_new_tokens: int = 32  # tokens of an answer
    answers_at_once: int = 128  # prompts of a generation batch
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, same gradients
    threads: int | None = None  # CPU threads, None for torch's own choice; a trajectory is repeatable for one number of them

    def __post_init__(self) -> None:
        if not self.pipelines:
            raise ValueError("pipelines is empty: name at least one")
        for name, low in (("probes", 0), ("seed", 0), ("max_length", 2), ("max_new_tokens", 1), ("answers_at_once", 1), ("threads", 1)):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        for name, pipeline in self.pipelines.items():
            for kind, edit in (
                *((("release", pipeline.release),) if pipeline.release else ()),
                *(("edit", edit) for edit in pipeline.edits),
            ):
                if edit.stage != kind:
                    raise ValueError(f"pipelines.{name}.{kind}: {registry.name_of(edit)!r} {edit.reason}; its place is `{edit.stage}`")
            merging = "" if self.finetune.lora else "there is none: set finetune.lora"
            for edit in (edit for edit in pipeline.edits if isinstance(edit, UpdateEdit)):
                if edit.needs.factors and merging:
                    works = "works on the factors of the fine-tuning adapter"
                    raise ValueError(f"pipelines.{name}: the edit {registry.name_of(edit)!r} {works}, and {merging}")
                if not edit.keeps_rank:
                    merging = merging or f"{registry.name_of(edit)!r} before it merges that"
        protocols.check(self)

    def training(self, kind: str) -> Training | None:
        """The settings of a stage that trains."""
        return {"align": self.align, "finetune": self.finetune, "safe": self.finetune, "unsafe": self.finetune}.get(kind)


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, settings: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """A recipe by its name or YAML file, with `path.to.field=value` settings applied. Raises on the first thing that is wrong."""
    return _built(_read(name), settings, seed)


def stage(name: str, kind: str, model: str, method: str | None, settings: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """A recipe for one stage alone on a model: its pipeline `alone` has the method, whose fields are set as `method.field=value`."""
    raw = _read(name) | {"model": {"path": model}, "pipelines": {"alone": {kind: method} if method else {}}}
    short = "method."
    paths = [f"pipelines.alone.{kind}.{text.removeprefix(short)}" if method and text.startswith(short) else text for text in settings]
    return _built(raw, paths, seed)


def _built(raw: dict[str, Any], settings: Sequence[str], seed: int | None) -> Recipe:
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ValueError(f"--set {setting!r}: give path.to.field=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--set {setting!r}: {text!r} is no YAML value") from None
        _set(raw, path.split("."), value, path)
    if seed is not None:
        raw["seed"] = seed
    recipe = validate(Recipe, raw)
    assert isinstance(recipe, Recipe)
    return recipe


def describe(value: Any) -> Any:
    """A recipe, or a part of it, as the plain mapping that it can be loaded from again."""
    if isinstance(value, Method):
        return registry.describe(value)
    if dataclasses.is_dataclass(value):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: describe(entry) for key, entry in value.items()}
    return [describe(entry) for entry in value] if isinstance(value, tuple | list) else value


def digest(recipe: Recipe) -> str:
    """SHA-256 of all that a recipe says."""
    return hashlib.sha256(json.dumps(describe(recipe), sort_keys=True).encode()).hexdigest()


def _read(name: str) -> dict[str, Any]:
    """The mapping of a recipe file, laid over the recipe that it `extends`."""
    path = FOLDER / f"{name}.yaml" if name in names() else Path(name)
    if not path.is_file():
        raise unknown("recipe (neither a name nor a file)", name, names())
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a recipe is a mapping of fields")
    parent = raw.pop("extends", None)
    if not parent:
        return raw
    below = _read(parent)
    if "pipelines" in raw:
        below.pop("pipelines", None)  # a recipe compares its own, or those of the one that it extends
    return _laid_over(raw, below)


def _laid_over(top: dict[str, Any], bottom: dict[str, Any]) -> dict[str, Any]:
    both = {key: _laid_over(top[key], bottom[key]) for key in top if isinstance(top[key], dict) and isinstance(bottom.get(key), dict)}
    return bottom | top | both


def _set(node: dict[str, Any], path: list[str], value: Any, whole: str) -> None:
    key, rest = path[0], path[1:]
    if not rest:
        node[key] = value
        return
    if isinstance(node.get(key), str):
        node[key] = {"path" if whole.startswith(("data.", "model.")) else "method": node[key]}  # what a text is short for
    elif node.get(key) is None:
        if whole.startswith("pipelines."):
            raise unknown(f"pipeline part in {whole!r}:", key, node)
        node[key] = {}
    if not isinstance(node[key], dict):
        raise ValueError(f"--set {whole}: {key!r} is a value and has no fields")
    _set(node[key], rest, value, whole)
