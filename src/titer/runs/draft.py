"""A first recipe for a person's model and rows: what the rows allow to be seen, and the time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from titer.defenses.sft import SFT
from titer.progress import span
from titer.runs import recipe as recipes
from titer.runs.needed import needed_roles
from titer.runs.plan import ALL, Plan
from titer.runs.preview import tell_rows
from titer.runs.recipe import Recipe
from titer.runs.roles import roles
from titer.scoring.generate import answer
from titer.training.train import train
from titer.weights import adapters

PIPELINES: Mapping[str, dict[str, Any]] = {  # what is compared where the rows allow it
    "sft": {},
    "booster": {"align": {"method": "booster"}},
    "sft+antidote": {"edit": {"method": "antidote"}},
}
NOTES = {
    "sft": "no defense: what the others are compared with",
    "booster": "a defense in the alignment; `titer list defenses` has the others",
    "sft+antidote": "a repair after the attack; `titer list edits` has the others",
}
UPDATES, ANSWERS = 3, 4  # of the probe
SHARE, MOST = 0.1, 1000  # of harmful rows among the user's, and of those rows


def draft(
    model: str, data: Mapping[str, Any], probe: bool, say: Callable[[str], None] = lambda _: None
) -> str:
    """Write the YAML of a recipe, with comments on what it will show and how long it will take.

    Raises where the model or the rows do not make a recipe.
    """
    aligned = not data.get("alignment")
    pipelines = {
        name: {"align": None, **parts} if aligned else dict(parts)
        for name, parts in PIPELINES.items()
        if (not aligned or "align" not in parts) and (data.get("harmful") or not parts)
    }
    raw: dict[str, Any] = {
        "extends": "checkpoint",
        "model": {"path": model},
        "data": dict(data),
        "pipelines": pipelines,
    }
    raw["attack"] = _attack(recipes.from_extending({**raw}))
    plan = Plan.prepare(recipes.from_extending({**raw}))
    cost = _probe(plan, say) if probe else []
    lines = [
        "# A recipe of titer: `titer run THIS_FILE`; `--dry-run` checks it and computes nothing.",
        "extends: checkpoint   # settings to start from: titer/recipes/checkpoint.yaml",
        f"model: {{path: {json.dumps(model)}}}",
        "data:",
        *(f"  {role}: {json.dumps(source)}" for role, source in data.items()),
        *(f"  # {line}" for line in tell_rows(plan)),
        f"attack: {json.dumps(raw['attack'])}   # share of harmful rows, and how many rows in all",
        "pipelines:",
        *(f"  {name}: {json.dumps(parts)}   # {NOTES[name]}" for name, parts in pipelines.items()),
        *_settings(plan),
        *cost,
    ]
    return "\n".join(lines) + "\n"


def _attack(recipe: Recipe) -> dict[str, Any]:
    """Size the attack to the rows that there are, at most to a thousand."""
    found = roles(recipe.data, recipe.benchmark, needed_roles(recipe, ALL))
    n = min(MOST, int(len(found.attack) / SHARE), int(len(found.task) / (1 - SHARE)))
    return {"method": "harmful_mix", "p": SHARE, "n": max(n, 1)}


def _settings(plan: Plan) -> list[str]:
    """Repeat the settings that one would change first, as comments."""
    of = plan.recipe
    return [
        "# What one would change first, as it stands now:",
        f"# align: {{updates: {of.align.updates}, lr: {of.align.lr:g}, batch: {of.align.batch}}}",
        f"# finetune: {{updates: {of.finetune.updates}, lr: {of.finetune.lr:g}, "
        f"batch: {of.finetune.batch}}}   # the user's, and the attacker's",
        f"# max_new_tokens: {of.max_new_tokens}   # of an answer",
    ]


def _probe(plan: Plan, say: Callable[[str], None]) -> list[str]:
    """Time some updates and some answers, and say what plain fine-tuning will take with them."""
    say(f"a short probe: {UPDATES + 1} updates and {ANSWERS} answers")
    recipe, asked = plan.recipe, [row for rows in plan.benchmarks.values() for row in rows]
    model, template = plan.asking.open(recipe.model)
    attacked = plan.user.rows if plan.user else []
    rows = template.encode_all(attacked or plan.roles.alignment, "rows")
    seconds_update, clock = 0.0, [time.perf_counter()]
    if rows:
        training = replace(recipe.finetune, updates=UPDATES + 1)
        trained = adapters.add_lora(model, training.lora) if training.lora else model
        train(
            trained,
            SFT(),
            {"rows": rows},
            training,
            seed=0,
            watch=lambda *_: clock.append(time.perf_counter()),
        )
        seconds_update = (clock[-1] - clock[2]) / (UPDATES - 1)  # but the first, which warms up
        model = trained
    start = time.perf_counter()
    answer(model.eval(), template, asked[:ANSWERS], recipe.max_new_tokens, ANSWERS)
    seconds_answer = (time.perf_counter() - start) / max(len(asked[:ANSWERS]), 1)
    updates = recipe.finetune.updates * bool(attacked)
    updates += recipe.align.updates * bool(plan.roles.alignment)
    trains, scores = updates * seconds_update, len(asked) * seconds_answer
    return [
        f"# Time on this machine: {seconds_update:.2g} s an update, {seconds_answer:.2g} s an answer, so",
        f"# about {span(trains)} to train `sft` and at most {span(scores)} to ask a model its "
        f"{len(asked)} prompts.",
        "# A defense takes its number of passes times as long an update: `titer show METHOD`.",
    ]
