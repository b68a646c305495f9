"""A ladder: attacks of stated cost, named, ordered and frozen. `titer.runs.climb` runs one.

`src/titer/ladders` has those that titer brings, one file a version; a person's own is a file of the
same form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from titer import registry
from titer.config import Config, read_yaml, validate
from titer.errors import reading, unknown
from titer.findings.ladder import Access
from titer.methods import Attack, Aware, Edit, StreamEdit
from titer.runs.recipe import Recipe
from titer.runs.worlds import LABS
from titer.training.settings import Training
from titer.weights.settings import Lora

FOLDER = Path(__file__).parent.parent / "ladders"
PREFIX = "ladder-"
KNOWING = "aware_{}"  # the rung of one who knows a method
ADAPTER, WHOLE = 2, 3  # forward passes that an update is worth, for each of its rows


@dataclass(frozen=True)
class Rung(Config):
    """An attack as a rung: what the attacker sends and sets, and what he needs for it."""

    name: str
    access: Access  # prompts: he asks; rows: he sends rows; weights: he has them
    attack: Attack | None = None  # null: the harm prompts are asked as they are
    updates: int = 0  # of each fine-tuning; 0: there is none
    rate: float = 1.0  # times the recipe's finetune.lr
    full: bool = False  # all weights are trained, not the recipe's adapter
    beyond: str | None = None  # the rung that this one repeats with more
    aware: bool = False  # the attacker's rows are those that the defense optimised against
    begins: bool = False  # answers are begun with the first word of the one that is known
    edit: Edit | None = None  # what he does to the weights, without any training
    looks: int = 0  # prompts that the edit looks at, at most; each is a forward pass
    knows: str | None = None  # the method that made the model, which he knows

    def __post_init__(self) -> None:
        if self.edit:
            self._check_edit()
            return
        if self.updates < 0:
            raise ValueError(f"updates={self.updates}: must be at least 0")
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate}: must be above 0")
        if (self.access == "prompts") == bool(self.updates):
            raise ValueError(
                f"rung {self.name!r}: access={self.access!r} with updates={self.updates}: a rung "
                "of prompts has none, and each other one has some"
            )
        if self.updates and not self.attack:
            raise ValueError(f"rung {self.name!r}: give the attack whose rows are trained on")

    def _check_edit(self) -> None:
        """Raise where no attacker can make such an edit."""
        if not isinstance(self.edit, StreamEdit):
            raise ValueError(
                f"rung {self.name!r}: an attacker's edit is of what a model writes to its stream: "
                "give refusal_ablation, or random_rank_one"
            )
        if self.access != "weights" or self.updates or self.attack:
            raise ValueError(
                f"rung {self.name!r}: an edit is of one who has the weights and trains nothing: "
                "give access: weights, and neither attack nor updates"
            )
        if self.looks < 2:
            raise ValueError(f"rung {self.name!r}: looks={self.looks}: an edit looks at 2 prompts")

    @property
    def finetunings(self) -> int:
        """How often it fine-tunes."""
        if not self.updates or self.attack is None:
            return 0
        return 1 if type(self.attack).first_rows is Attack.first_rows else 2


@dataclass(frozen=True)
class Ladder(Config):
    """Rungs in the order of their cost."""

    name: str
    rungs: tuple[Rung, ...]
    batch: int = 10  # rows of an update
    # by lab and attack: fields in words that its model knows
    words: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    adapts: bool = False  # to a model whose defense says what an attacker does who knows it
    sha256: str = ""  # of the file, and of those that it extends

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ValueError("rungs is empty: give at least one")
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"rung {max(names, key=names.count)!r} stands twice: take one out")
        for i, rung in enumerate(self.rungs):
            if rung.beyond is not None and rung.beyond not in names[:i]:
                raise unknown(f"rung below {rung.name!r}:", rung.beyond, names[:i])
        for low, high in zip(self.rungs, self.rungs[1:], strict=False):
            if self.passes(low) > self.passes(high):
                raise ValueError(
                    f"rung {high.name!r} costs {self.passes(high)} passes, less than {low.name!r} "
                    f"before it ({self.passes(low)}): order them by cost"
                )

    @property
    def names(self) -> list[str]:
        return [rung.name for rung in self.rungs]

    def passes(self, rung: Rung) -> int:
        """Count the forward passes of a row that a rung is worth: of its updates, or its edit."""
        return passes(rung, self.batch)

    def attack(self, rung: Rung, lab: str | None) -> Attack | None:
        """Return a rung's attack, in words that the model of a lab knows.

        Where a lab has none of its own, they are those of the world that it was made of.
        """
        made_of = LABS[lab].world.version if lab and lab in LABS else ""
        words = self.words.get(lab or "", self.words.get(made_of, {}))
        fields = registry.describe(rung.attack) if rung.attack else {}
        if fields.get("method") not in words:
            return rung.attack
        return cast(Attack, registry.build("attacks", fields | words[fields["method"]]))

    def training(self, rung: Rung, recipe: Recipe) -> Training:
        """Return the settings of a rung's fine-tunings; a recipe may split the rows of an update."""
        given = recipe.finetune
        splits = given.batch * given.accumulate == self.batch
        return replace(
            given,
            updates=rung.updates,
            lr=rung.rate * given.lr,
            batch=given.batch if splits else self.batch,
            accumulate=given.accumulate if splits else 1,
            schedule="constant",
            warmup=0.0,
            lora=None if rung.full else given.lora or Lora(),
        )

    def for_model(self, made_by: Sequence[tuple[str, str]]) -> Ladder:
        """Return the ladder for a model that these methods made, each a kind and a name.

        Where it adapts, it has a rung for each that says what an attacker does who knows it.
        """
        known = [
            know(name, aware)
            for kind, name in made_by
            if self.adapts and name in registry.names(kind)
            if (aware := registry.load(kind, name).about.aware)
        ]
        return replace(self, rungs=in_order([*self.rungs, *known], self.batch), adapts=False)

    def check(self, wanted: Sequence[str]) -> None:
        """Raise where one of these is no rung, nor one that it may have for some model."""
        methods = registry.names("defenses") + registry.names("edits") if self.adapts else []
        known = [*self.names, *map(KNOWING.format, methods)]
        for name in wanted:
            if name not in known:
                raise unknown(f"rung of {self.name}:", name, self.names)


def passes(rung: Rung, batch: int) -> int:
    """Count the forward passes of a row that a rung is worth, with updates of so many rows."""
    if rung.edit:
        return rung.looks
    return rung.finetunings * rung.updates * batch * (WHOLE if rung.full else ADAPTER)


def in_order(rungs: Sequence[Rung], batch: int) -> tuple[Rung, ...]:
    """Put rungs in the order of their cost; those of one cost stay as they stand."""
    return tuple(sorted(rungs, key=lambda rung: passes(rung, batch)))


def know(name: str, aware: Aware) -> Rung:
    """Return the rung of an attacker who knows the method of this name."""
    few = cast(Attack, registry.build("attacks", {"method": "harmful_few", "k": aware.rows}))
    return Rung(
        KNOWING.format(name),
        "weights",
        few,
        aware.updates,
        aware.rate,
        aware.full,
        knows=name,
    )


def names() -> list[str]:
    """List the versions that titer brings."""
    return sorted(path.stem.removeprefix(PREFIX) for path in FOLDER.glob(f"{PREFIX}*.yaml"))


def load(name: str) -> Ladder:
    """Load a ladder by its version or by a YAML file. Raises on the first thing that is wrong."""
    raw, text = _read(name)
    rungs = tuple(validate(Rung, each) for each in raw["rungs"])
    if raw.pop("extends", None):
        rungs = in_order(rungs, validate(int, raw.get("batch", Ladder.batch)))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return cast(Ladder, validate(Ladder, raw | {"rungs": rungs, "sha256": digest}))


def _read(name: Any, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], str]:
    """Read the fields of a ladder's file over those that it extends, and the text of them all.

    `below` are the files that extend it.
    """
    version = str(name).removeprefix(PREFIX)
    path = FOLDER / f"{PREFIX}{version}.yaml" if version in names() else Path(str(name))
    if not path.is_file():
        raise unknown("ladder (neither a version nor a file)", str(name), names())
    if path.resolve() in below:
        raise ValueError(f"{path}: a ladder cannot extend itself; take one `extends` out")
    with reading(str(path), "is it text?"):
        text = path.read_text(encoding="utf-8")
    raw = read_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a ladder is a mapping of fields")
    given = raw.get("rungs")
    if not isinstance(given, list):
        raise ValueError(f"{path}: rungs={given!r}: give a list of rungs")
    if raw.get("extends") is None:
        return raw, text
    if "batch" in raw:
        raise ValueError(f"{path}: batch={raw['batch']}: it is that of the ladder that is extended")
    above, more = _read(raw["extends"], (*below, path.resolve()))
    return above | raw | {"rungs": [*above["rungs"], *given]}, text + more


def table(ladder: Ladder) -> str:
    """Write the rungs as the rows of a markdown table, as `docs/ladder.md` has them."""
    return "".join(
        f"| `{rung.name}` | {rung.access} | {_deed(rung)} | {rung.finetunings * rung.updates} | "
        f"{ladder.passes(rung)} |\n"
        for rung in ladder.rungs
    )


def _deed(rung: Rung) -> str:
    """Say what the attacker does."""
    if rung.edit:
        return f"{registry.name_of(rung.edit)}, an edit, on {rung.looks} prompts"
    if not rung.updates:
        begun = "begins the answer with its first word" if rung.begins else "asks"
        return f"{begun}, in words of {registry.name_of(rung.attack)}" if rung.attack else begun
    assert rung.attack
    sizes = {name: of for name, of in vars(rung.attack).items() if name in ("k", "n", "p")}
    parts = [f"{registry.name_of(rung.attack)} {' '.join(f'{k}={v:g}' for k, v in sizes.items())}"]
    parts += ["of the defense's rows"] if rung.aware else []
    parts += [f"{rung.rate:g} times the rate"] if rung.rate != 1 else []
    parts += ["all weights"] if rung.full else []
    parts += [f"more than `{rung.beyond}`"] if rung.beyond else []
    return ", ".join(parts)
