"""Every pair of a method that holds another and what it may hold, over the whole registry.

No method is imported by name: a mutant of one is for its own tests to notice.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import tiny
from repair import files, layers_of, moved, names_of, on_disk, save, tuned
from test_contract import SHORTER
from test_step import same, state
from titer import registry
from titer.composition import COMPOSITIONS, Matched, MatchedStream, find_held
from titer.data.batches import Batch
from titer.lab.world import World
from titer.methods import Defense, Method, UpdateEdit
from titer.runs.roles import Roles
from titer.testing.small import sparse
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.finetuned import FineTuned
from titer.weights.rewrite import rewrite_update
from titer.weights.tensors import open_tensors

SETTINGS = Training(updates=4, lr=1e-3, batch=2, weight_decay=0.3, lora=None)
QUICK = SHORTER | {"t_vaccine": {"gamma": 1, "resample": 2}}


def holding(kind: str) -> dict[str, str]:
    """The field that holds another method, by the name of every method that has one."""
    found = {}
    for name in registry.names(kind):
        method = registry.build(kind, name)
        for each in dataclasses.fields(method):
            if isinstance(getattr(method, each.name), Method):
                found[name] = each.name
    return found


PAIRS = [
    (kind, wrapper, where, held)
    for kind in ("defenses", "edits")
    for wrapper, where in holding(kind).items()
    for held in registry.names(kind)
]


def built(kind: str, wrapper: str, where: str, held: str) -> Method:
    return registry.build(kind, {"method": wrapper, where: {"method": held} | QUICK.get(held, {})})


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_a_method_that_holds_another_is_composed(kind):
    for name in holding(kind):
        assert isinstance(registry.build(kind, name), COMPOSITIONS)


def test_what_is_refused_is_refused_when_it_is_built():
    refused, said = set(), []
    for kind, wrapper, where, held in PAIRS:
        try:
            built(kind, wrapper, where, held)
        except ValueError as error:
            refused.add((wrapper, held))
            said.append((where, str(error)))
    assert all(
        re.fullmatch(rf"{where}=\w+: .+", text) for where, text in said
    )  # a line that names it
    nulls = {"random_term", "random_vaccine", "safe_mix", "sft"}
    harmless = nulls | {
        "constrained_sft",
        "ema",
        "ewc",
        "kl",
        "ldifs",
        "lisa",
        "safe_moe",
        "safegrad",
        "sppft",
        "t_vaccine",
        "vaccine",
    }
    edits = set(registry.names("edits"))
    assert refused == {("booster", "booster")} | {("random_term", held) for held in harmless} | {
        ("scale", held)
        for held in (
            "lox",
            "random_lox",
            "one_shot",
            "scale",
            "refusal_ablation",
            "random_rank_one",
        )
    } | {("random_rank_one", held) for held in edits - {"refusal_ablation"}} | {
        ("random_mask", held) for held in edits - {"antidote"}
    } | {("random_lox", held) for held in edits - {"lox"}}


def ends(defense: Defense, template, small: Callable) -> dict[str, torch.Tensor]:
    """Return where some updates lead, on rows that are found by its needs, as in a run."""
    world, model = World(0), small(torch.float32)
    roles = Roles(alignment=world.alignment, defense=world.harmful)
    rows = roles.streams(defense.needs.streams, world.alignment)
    train(
        model,
        defense,
        {name: [template.encode(row) for row in those] for name, those in rows.items()},
        SETTINGS,
        seed=0,
    )
    return state(model)


@pytest.fixture(scope="module")
def plain(template) -> dict[tuple[str, Callable], dict[str, torch.Tensor]]:
    """Plain fine-tuning, and what a wrapper comes to over it, on a dense model and on a sparse one."""
    return {
        (name, small): ends(registry.build("defenses", name), template, small)
        for name in ("sft", "booster")
        for small in (tiny, sparse)
    }


@pytest.mark.parametrize(
    ("wrapper", "where", "held"),
    [pair[1:] for pair in PAIRS if pair[0] == "defenses" and pair[3] != "sft"],
)
def test_a_pair_of_defenses_trains_otherwise_than_over_sft_or_is_refused(
    template, plain, wrapper, where, held
):
    try:
        method = built("defenses", wrapper, where, held)
    except ValueError:
        return
    small = sparse if method.needs.sparse else tiny
    over_sft = plain[wrapper if wrapper == "booster" else "sft", small]
    assert not same(ends(method, template, small), over_sft)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[FineTuned, dict, dict]:
    """A fine-tuned adapter, the other models that edits ask for, and both models in memory."""
    folder = tmp_path_factory.mktemp("models")
    model, aligned = tuned(), moved(tiny(), 1e-2)
    found = on_disk(model, folder, aligned)
    others: dict = {"base": open_tensors(files(save(tiny(), folder / "base")))}
    for seed, name in enumerate(("safe", "unsafe"), 5):
        path = save(moved(tuned(), seed=seed), folder / name, found.started.folder)
        others[name] = FineTuned.of(files(path), found.started)
    return found, others, {"finetuned": model, "aligned": aligned}


def rewrite(edit: UpdateEdit, models, batches, folder: Path):
    found, others, live = models
    needs, names = edit.needs, names_of(edit, found, live["finetuned"])
    seen = {}
    if needs.watches:
        model = live[needs.watches]
        seen = edit.observe(model, layers_of(model, names), batches)
    folder.mkdir()
    references = {name: others[name] for name in needs.references}
    return rewrite_update(edit, found, names, references, seen, folder, lambda *_: None)


@pytest.mark.parametrize(
    ("wrapper", "where", "held"), [pair[1:] for pair in PAIRS if pair[0] == "edits"]
)
def test_a_pair_of_edits_changes_something_or_is_refused(
    models, rows, tmp_path, wrapper, where, held
):
    try:
        edit = built("edits", wrapper, where, held)
    except ValueError:
        return
    if isinstance(edit, MatchedStream):
        assert edit.needs == edit.held.needs
        return
    if not isinstance(edit, Matched):
        assert (wrapper, held) == ("random_lox", "lox")
        shapes = {"q_proj.weight": (8, 8)}
        assert edit.select(shapes) == find_held(edit, type(registry.build("edits", "lox"))).select(
            shapes
        )
        return
    batches = [Batch.of("calibration", [rows["harmful"][:4]], 0)]
    if held == "safe_lora":
        edit = dataclasses.replace(edit, match=dataclasses.replace(edit.match, layers=2))
    if held == "safe_merge":
        edit = dataclasses.replace(edit, match=dataclasses.replace(edit.match, tau=1.0))
    made = rewrite(edit, models, batches, tmp_path / "made")
    theirs = rewrite(edit.held, models, batches, tmp_path / "theirs")
    assert made.count > 0
    assert theirs.count > 0
    if wrapper == "scale":
        assert made.norm_after == pytest.approx(theirs.norm_after, rel=1e-9)
    else:
        assert made.count == theirs.count
