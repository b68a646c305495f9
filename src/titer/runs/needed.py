"""Which rows a run needs: the roles that the methods and the scoring of its stages ask for."""

from __future__ import annotations

from collections.abc import Collection

from titer.methods import Defense, Kind
from titer.runs.recipe import Recipe

DEFENDERS = {
    Kind.HARMFUL,
    Kind.PAIRS,
    Kind.HELD_OUT,
}  # rows that the defender's own harmful ones are needed for


def needed_roles(recipe: Recipe, kinds: Collection[str]) -> frozenset[str]:
    """Name the roles whose rows stages of these kinds need: of a whole run all, of an evaluation
    alone those given.
    """
    data, found = recipe.data, set[str]()
    pipelines = recipe.pipelines.values()
    aligning = [each.align for each in pipelines if each.align and "align" in kinds]
    tuning = [
        each.finetune
        for each in pipelines
        if isinstance(each.finetune, Defense) and "finetune" in kinds
    ]
    streams = {kind for method in (*aligning, *tuning) for kind in method.needs.streams.values()}
    if aligning or Kind.REFUSALS in streams:
        found |= {"alignment"}
    if DEFENDERS & streams:
        found |= {"defense"}
    if tuning:
        found |= {"task"}
        found |= {"attack" if each.wants_harmful else "requests" for each in recipe.attacks}
    edits = [edit for each in pipelines for edit in each.edits if "edit" in kinds]
    released = [each.release for each in pipelines if each.release and "release" in kinds]
    needs = [edit.needs for edit in (*edits, *released)]
    asked = [rows for of in needs for rows in (of.rows, of.against) if rows]
    found |= {"calibration" if rows is Kind.HARMFUL else "alignment" for rows in asked}
    if (
        len(kinds) > 1 and "finetune" in kinds
    ):  # the models that an edit asks for are trained here; else they are given
        references = {name for edit in edits for name in edit.needs.references}
        found |= {
            role
            for name, role in (("safe", "alignment"), ("unsafe", "defense"))
            if name in references
        }
    if "evaluate" in kinds:
        given = {
            "harm": data.harm_test or data.harmful,
            "test": getattr(data, data.split),
            "lookalike": data.lookalike,
        }
        everything = len(kinds) > 1 or data.world is not None
        found |= given.keys() if everything else {role for role, source in given.items() if source}
        if not found:
            raise ValueError(
                "nothing to evaluate on: give at least one of data.harm_test, data.test, "
                "data.lookalike, or data.world"
            )
    return frozenset(found)
