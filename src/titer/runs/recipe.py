"""A recipe:

the model, the rows, the attack and the pipelines to compare. YAML, typed, with unknown keys
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import PlainValidator

from titer import paths, registry
from titer.config import Config, hash_of, read_yaml, validate
from titer.data.own_format import read_format
from titer.data.packages import is_package
from titer.data.texts import Style
from titer.errors import reading, unknown
from titer.methods import Attack, Benchmark, Defense, Edit, Judge, UpdateEdit
from titer.registry import describe, name_of
from titer.runs import protocols
from titer.runs.roles import Data
from titer.training.settings import Training
from titer.weights.settings import GGUF, Checkpoint, Model

FOLDER = Path(__file__).parent.parent / "recipes"
SINGLE = "alone"  # the pipeline of a recipe for one stage


def plain() -> Defense:
    """Build plain supervised fine-tuning, what a pipeline does where it names nothing else."""
    return cast(Defense, registry.build("defenses", "sft"))


def read_alignment(given: Any) -> Defense | None:
    """Build the defense that aligns; None where the model is aligned already."""
    return None if given is None else cast(Defense, registry.build("defenses", given))


def read_finetuning(given: Any) -> Defense | Checkpoint:
    """Build the defense that fine-tunes, or name a fine-tuned model or adapter that is there
    already.
    """
    if isinstance(given, Defense | Checkpoint):
        return given
    if not names_checkpoint(given):
        return cast(Defense, registry.build("defenses", given))
    if isinstance(given, str):
        return Checkpoint(given)
    return cast(Checkpoint, validate(Checkpoint, dict(given)))


def names_checkpoint(given: Any) -> bool:
    """Tell a checkpoint from a method, of which a recipe states either."""
    if isinstance(given, Mapping):
        return "path" in given
    return isinstance(given, str) and (
        "/" in given
        or is_package(given)
        or given.endswith(GGUF)
        or (given not in registry.names("defenses") and paths.expand(given).is_dir())
    )


def read_edits(given: Any) -> Edit | tuple[Edit, ...] | None:
    """Build an edit, a chain of them, or none."""
    if isinstance(given, list | tuple):
        chain = tuple(cast(Edit, registry.build("edits", each)) for each in given)
        return chain if len(chain) > 1 else next(iter(chain), None)
    return None if given is None else cast(Edit, registry.build("edits", given))


@dataclass(frozen=True)
class Pipeline(Config):
    """A way through the stages. Stages that two pipelines share are computed once."""

    # null: the recipe's model is aligned already
    align: Annotated[Defense | None, PlainValidator(read_alignment)] = field(default_factory=plain)
    release: Edit | None = (
        None  # of the aligned model, before the user gets it; null releases it as it is
    )
    # a defense, or the path of a fine-tuned model or adapter that is there already
    finetune: Annotated[Defense | Checkpoint, PlainValidator(read_finetuning)] = field(
        default_factory=plain
    )
    attack: Attack | None = None  # null: the recipe's
    # after fine-tuning: one, or a list of them in order
    edit: Annotated[Edit | tuple[Edit, ...] | None, PlainValidator(read_edits)] = None

    def __post_init__(self) -> None:
        if isinstance(self.finetune, Checkpoint):
            for name in ("align", "release"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"finetune={self.finetune.path!r} was fine-tuned from a model that is "
                        "there already, the recipe's: "
                        f"set {name} to null"
                    )

    @property
    def edits(self) -> tuple[Edit, ...]:
        return self.edit if isinstance(self.edit, tuple) else (self.edit,) if self.edit else ()

    def methods(self) -> Iterator[tuple[str, Defense | Edit]]:
        """List its methods in order, each with the kind of its stage."""
        if self.align:
            yield "align", self.align
        if self.release:
            yield "release", self.release
        if isinstance(self.finetune, Defense):
            yield "finetune", self.finetune
        yield from (("edit", edit) for edit in self.edits)


LONGEST = 2**17  # tokens of an answer; more would not end
LEAST = {
    "probes": 0,
    "dose_prompts": 0,
    "prefill_prompts": 0,
    "seed": 0,
    "max_length": 2,
    "max_new_tokens": 1,
    "answers_at_once": 1,
    "threads": 1,
}


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
    protocol: str | None = (
        None  # a named way of asking and scoring, from which the recipe must not depart
    )
    benchmark: Benchmark | None = (
        None  # the user's task: how it is asked and scored; None recognizes it
    )
    template: Style = "chat"  # the model's own chat template, or a text template by name
    system: str | None = None  # system prompt, in training and in evaluation
    # a system prompt under which harm prompts and the user's task are asked once more, which no
    # model was trained under: pure tuning, safe testing (arXiv 2402.18540)
    serving_prompt: str | None = None
    # ask harm prompts once more in the format of the user's held-out rows, which is found in them
    # (conditional misalignment, arXiv 2604.25891), or as a text has it, "Review: {prompt}"
    own_format: bool | str = False
    probes: int = (
        0  # updates of fine-tuning from one look at why a defense holds to the next; 0: none
    )
    # harm prompts that are asked along an attack, for the dose that breaks a model; 0: none
    dose_prompts: int = 24
    # harm prompts that are asked again with their answer's first word given; 0: none
    prefill_prompts: int = 48
    seed: int = 0  # of training: weights of fresh adapters, order and choice of rows
    max_length: int = 256  # tokens of a training row; a longer prompt is cut at its front
    max_new_tokens: int = 32  # tokens of an answer
    answers_at_once: int = 128  # prompts of a generation batch
    # what generates the answers: transformers in batches, or its continuous batching
    engine: Literal["transformers", "continuous"] = "transformers"
    gradient_checkpointing: bool = (
        False  # recompute activations in the backward pass: less memory, same gradients
    )
    threads: int | None = (
        # CPU threads, None for torch's own choice; a trajectory repeats for one number of them
        None
    )

    def __post_init__(self) -> None:
        if not self.pipelines:
            raise ValueError("pipelines is empty: name at least one")
        for name, low in LEAST.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        if isinstance(self.own_format, str):
            read_format(self.own_format)
        if self.max_new_tokens > LONGEST:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at most {LONGEST}")
        if not self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be below 2**63")
        for name, pipeline in self.pipelines.items():
            paths.file_name(name, "the pipeline")
            self._check_edits(f"pipelines.{name}", pipeline)
        protocols.check(self)

    def _check_edits(self, where: str, pipeline: Pipeline) -> None:
        """Raise where an edit stands at the wrong place, or asks for an adapter that is not there
        any more.
        """
        for kind, edit in pipeline.methods():
            if isinstance(edit, Edit) and edit.stage != kind:
                raise ValueError(
                    f"{where}.{kind}: {name_of(edit)!r} {edit.reason}; its place is `{edit.stage}`"
                )
        adapts = isinstance(pipeline.finetune, Checkpoint) or self.finetune.lora
        merging = "" if adapts else "there is none: set finetune.lora"
        for edit in (edit for edit in pipeline.edits if isinstance(edit, UpdateEdit)):
            if edit.needs.factors and merging:
                works = "works on the factors of the fine-tuning adapter"
                raise ValueError(f"{where}: the edit {name_of(edit)!r} {works}, and {merging}")
            if not edit.keeps_rank:
                merging = merging or f"{name_of(edit)!r} before it merges that"

    def attack_of(self, pipeline: Pipeline) -> Attack:
        """Return the attack that a pipeline is under: its own, or the recipe's."""
        return pipeline.attack or self.attack

    @property
    def attacks(self) -> list[Attack]:
        """List the attacks of the pipelines that fine-tune, each once."""
        tuning = [each for each in self.pipelines.values() if isinstance(each.finetune, Defense)]
        return list(dict.fromkeys(map(self.attack_of, tuning)))

    def training(self, kind: str) -> Training:
        """Return the settings of a stage that trains; the models that edits compare with are
        fine-tuned likewise.
        """
        return self.align if kind == "align" else self.finetune


def names() -> list[str]:
    """List the recipes that titer brings."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, settings: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Load a recipe by its name or YAML file, with `path.to.field=value` settings applied.

    Raises on the first thing that is wrong.
    """
    return from_mapping(read(name), settings, seed)


def load_single(
    name: str,
    kind: str,
    model: str,
    method: Any,
    settings: Sequence[str] = (),
    seed: int | None = None,
) -> Recipe:
    """Load a recipe for one stage alone on a model: its pipeline `alone` has the method.

    The method's fields are set as `method.field=value`.
    """
    raw = read(name) | {"pipelines": {SINGLE: {kind: method} if method else {}}}
    short = "method."
    changed = [
        f"pipelines.{SINGLE}.{kind}.{text.removeprefix(short)}"
        if method and text.startswith(short)
        else text
        for text in settings
    ]
    return _for_model(raw, model, changed, seed)


def load_for(name: str, model: str, settings: Sequence[str], seed: int) -> Recipe:
    """Load a recipe for another model than its own."""
    return _for_model(read(name), model, settings, seed)


def _for_model(
    raw: dict[str, Any], model: str, settings: Sequence[str], seed: int | None
) -> Recipe:
    """Build a recipe for a model at another place. How the recipe loads one stays."""
    for path, _, text in (setting.partition("=") for setting in settings):
        if path in ("model", "model.path"):
            raise ValueError(f"--set {path}={text}: the model is {model!r}: leave the setting out")
    given = raw.get("model")
    how = given if isinstance(given, dict) else {}
    how = {key: how[key] for key in how if key not in ("path", "revision", "base")}
    return from_mapping(raw | {"model": {"path": model} | how}, settings, seed)


def from_mapping(
    raw: dict[str, Any], settings: Sequence[str] = (), seed: int | None = None
) -> Recipe:
    """Build a recipe from what a YAML file holds. Raises on the first thing that is wrong."""
    done = set_fields(raw, settings)
    for path in done:
        if path.split(".")[-2:] == ["attack", "method"]:
            _drop_fields(raw, path.split("."), done)
    if seed is not None:
        if "seed" in done:
            raise ValueError(
                f"--set seed={done['seed']}: give a seed as --seed N, and those of a sweep or an assay "
                "as --seeds 0,1,2"
            )
        raw["seed"] = seed
    for pipeline in (
        (raw.get("pipelines") or {}).values() if isinstance(raw.get("pipelines"), dict) else ()
    ):
        if (
            isinstance(pipeline, dict)
            and "align" not in pipeline
            and names_checkpoint(pipeline.get("finetune"))
        ):  # what was fine-tuned from the recipe's model was not aligned here
            pipeline["align"] = None
    recipe = validate(Recipe, raw)
    assert isinstance(recipe, Recipe)
    return recipe


def set_fields(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, str]:
    """Change fields of a mapping in place, each as path.to.field=value; return the texts by path."""
    done: dict[str, str] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ValueError(f"--set {setting!r}: give path.to.field=value")
        if path in done:
            raise ValueError(f"--set {path} is given twice: {done[path]!r} and {text!r}")
        done[path] = text
        _set(raw, path.split("."), read_yaml(text, f"--set {setting!r}"), path)
    return done


def only(recipe: Recipe, pipelines: Sequence[str]) -> Recipe:
    """Return a recipe with these pipelines alone, or all where none is named. Raises on an unknown
    name.
    """
    for name in pipelines:
        if name not in recipe.pipelines:
            raise unknown("pipeline of the recipe", name, recipe.pipelines)
    kept = {name: recipe.pipelines[name] for name in recipe.pipelines if name in pipelines}
    return replace(recipe, pipelines=kept) if pipelines else recipe


def digest(recipe: Recipe) -> str:
    """Hash all that a recipe says."""
    return hash_of(describe(recipe))


def read(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the mapping of a recipe file, laid over the recipe that it `extends`.

    `above` are the files that extend it. A path is one beside the file that names it, or else from
    where titer runs.
    """
    path = FOLDER / f"{name}.yaml" if name in names() else Path(name)
    if above and not path.is_absolute() and (beside := above[-1].parent / path).is_file():
        path = beside
    if not path.is_file():
        raise unknown("recipe (neither a name nor a file)", name, names())
    if path.resolve() in (each.resolve() for each in above):
        chain = " -> ".join(str(each) for each in (*above, path))
        raise ValueError(f"{chain}: a recipe cannot extend itself; take one `extends` out")
    with reading(str(path), "is it text?"):
        text = path.read_text(encoding="utf-8")
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a recipe is a mapping of fields")
    return _extend(raw, (*above, path))


def from_extending(raw: dict[str, Any]) -> Recipe:
    """Build a recipe from a mapping that may extend another one. Raises as `load` does."""
    return from_mapping(_extend(raw))


def _extend(raw: dict[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Lay a recipe over the one that it extends."""
    parent = raw.pop("extends", None)
    if not parent:
        return raw
    if not isinstance(parent, str):
        raise ValueError(f"extends: {parent!r} is neither the name of a recipe nor a path")
    below = read(parent, above)
    if "pipelines" in raw:
        below.pop(
            "pipelines", None
        )  # a recipe compares its own, or those of the one that it extends
    return _lay_over(raw, below)


def _lay_over(top: dict[str, Any], bottom: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _lay_over(top[key], bottom[key])
        for key in top
        if isinstance(top[key], dict) and isinstance(bottom.get(key), dict)
    }
    return bottom | top | both


def _set(node: dict[str, Any], path: list[str], value: Any, whole: str) -> None:
    key, rest = path[0], path[1:]
    if not rest:
        node[key] = value
        return
    if isinstance(node.get(key), str):
        node[key] = {
            "path" if whole.startswith(("data.", "model.")) else "method": node[key]
        }  # what a text is short for
    elif node.get(key) is None:
        if whole.startswith("pipelines.") and key not in (of.name for of in fields(Pipeline)):
            raise unknown(f"pipeline part in {whole!r}:", key, node)
        node[key] = {}
    if not isinstance(node[key], dict):
        raise ValueError(f"--set {whole}: {key!r} is a value and has no fields")
    _set(node[key], rest, value, whole)


def _drop_fields(raw: dict[str, Any], path: list[str], given: Mapping[str, str]) -> None:
    """Leave out what an attack that was set by its name has no field for, unless it was given, too.

    Attacks differ in their fields, and the recipe has those of another one.
    """
    node = raw
    for key in path[:-1]:
        node = node[key]
    if isinstance(node["method"], str):
        known = signature(registry.load("attacks", node["method"])).parameters
        for key in node.keys() - known.keys() - {"method"}:
            if ".".join([*path[:-1], key]) not in given:
                del node[key]
