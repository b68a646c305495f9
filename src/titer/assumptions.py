"""The words by which a person says what a defender has, and what each of them rules out.

`titer list --assume "no harmful data, adapter only"` reads them, and docs/choose.md has their table.
A method's traits are facts of it: `titer.listing.choose` reads them off its needs. They are what the
survey of harmful fine-tuning (arXiv 2409.18169) tells defenses apart by: when they act, which rows and
checkpoints they assume, and what they cost.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from titer.errors import unknown


class Trait(enum.StrEnum):
    """A fact of a defense or an edit that may be in a defender's way, in a few words."""

    ALIGN = "acts while the model is aligned"
    RELEASE = "edits the model before its release"
    FINETUNE = "acts while the user's rows are trained on"
    EDIT = "edits the model after fine-tuning"
    HARMFUL = "needs harmful rows"
    ALIGNMENT = "needs alignment rows"
    BASE = "needs the model before alignment"
    ALIGNED = "needs the model that fine-tuning started from"
    OTHER = "needs another fine-tuned model"
    FACTORS = "works on an adapter alone"
    WHOLE = "leaves a whole model"
    SPARSE = "works on mixtures of experts alone"
    PASSES = "takes more than one pass an update"
    TRAINS = "trains"
    RUNS = "runs the model on rows"


STAGES = {  # of a pipeline; a method acts at one of these at least
    "align": Trait.ALIGN,
    "release": Trait.RELEASE,
    "finetune": Trait.FINETUNE,
    "edit": Trait.EDIT,
}


@dataclass(frozen=True)
class Word:
    """A word of `--assume`."""

    meaning: str
    excludes: frozenset[Trait]
    names_stage: bool = False  # of several that do, what either allows is allowed


def _stage(meaning: str, *allowed: Trait) -> Word:
    return Word(meaning, frozenset(STAGES.values()) - {*allowed}, names_stage=True)


def _word(meaning: str, *excluded: Trait) -> Word:
    return Word(meaning, frozenset(excluded))


WORDS = {
    "before release": _stage("you act before users fine-tune", Trait.ALIGN, Trait.RELEASE),
    "while fine-tuning": _stage("you run the users' fine-tuning", Trait.FINETUNE),
    "after fine-tuning": _stage("you get what fine-tuning left", Trait.EDIT),
    "open weights": _word(
        "others fine-tune it: nothing done later counts",
        *(Trait.FINETUNE, Trait.EDIT),
    ),
    "no harmful data": _word("you have no harmful rows, nor models trained on them", Trait.HARMFUL),
    "no alignment data": _word("you have no refusals, nor models trained on them", Trait.ALIGNMENT),
    "no base model": _word("you lack the model before alignment", Trait.BASE),
    "no aligned model": _word("you lack the model that fine-tuning started from", Trait.ALIGNED),
    "no other model": _word(
        "you have the aligned and the fine-tuned one at most", Trait.BASE, Trait.OTHER
    ),
    "adapter only": _word("an adapter is trained and handed on, no whole model", Trait.WHOLE),
    "whole model": _word("fine-tuning trained the whole model, no adapter", Trait.FACTORS),
    "dense model": _word("the model's layers route no tokens to experts", Trait.SPARSE),
    "one pass": _word("an update takes one forward and backward pass", Trait.PASSES),
    "no training": _word("you train nothing", Trait.TRAINS),
    "weights alone": _word("you cannot run the model", Trait.TRAINS, Trait.RUNS),
}


def read_assumptions(text: str) -> list[str]:
    """Read the words of a list with commas between them, each once.

    Raises for an unknown one, with the nearest and with all that there are.
    """
    given = [" ".join(part.lower().split()) for part in text.split(",")]
    found = list(dict.fromkeys(word for word in given if word))
    if not found:
        raise ValueError(f"--assume {text!r} says nothing: give some of {', '.join(WORDS)}")
    for word in found:
        if word not in WORDS:
            raise unknown("assumption", word, WORDS)
    return found


def find_obstacles(traits: Collection[Trait], words: Sequence[str]) -> list[Trait]:
    """Return the traits that are in the way under some assumptions; none where the method fits."""
    of = [WORDS[word] for word in words]
    excluded = {trait for word in of if not word.names_stage for trait in word.excludes}
    named = [word.excludes for word in of if word.names_stage]
    excluded |= frozenset.intersection(*named) if named else frozenset()
    stages = [trait for trait in traits if trait in STAGES.values()]
    found = [trait for trait in traits if trait in excluded and trait not in stages]
    return [*stages, *found] if excluded.issuperset(stages) else found
