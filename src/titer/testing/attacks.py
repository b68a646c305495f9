"""The contract of an attack: rows of the pools that it is given, counted, and the same for a seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from titer.data.mixture import share
from titer.data.rows import Row, Turn, identity
from titer.lab.world import World
from titer.methods import Attack, Selection
from titer.testing.small import hooks, rows, same, state, tiny

WORLD = World(0)


def tampers_the_same_way(attack: Attack, folder: Path) -> None:
    """The user's rows are the same for the same seed, and the pools stay as they are."""
    task, own = pools()
    given = list(task), list(own)
    for make in (attack.rows, attack.first_rows):
        assert make(task, own, 3) == make(task, own, 3), "it sends other rows for the same seed"
    assert attack.rows(task, own, 3), "it sends no rows"
    assert (task, own) == given, "it changed the rows that it was given"


def draws_anew_for_another_seed(attack: Attack, folder: Path) -> None:
    """Another seed draws other rows of pools that have more than it sends."""
    task, own = pools()
    one, other = (prompts(attack.rows(task, own, seed)) for seed in (3, 4))
    assert one != other, "it sends the same prompts for every seed"


def sends_no_row_twice(attack: Attack, folder: Path) -> None:
    """No prompt stands twice among the rows of a fine-tuning."""
    task, own = pools()
    for sent in (attack.rows(task, own, 3), attack.first_rows(task, own, 3)):
        assert len(prompts(sent)) == len(sent), "it sends a prompt twice"


def counts_exactly(attack: Attack, folder: Path) -> None:
    """It sends as many rows for any seed and pools, and what its fields `n`, `k` and `p` say."""
    task, own = pools()
    counts = count(attack, task, own)
    for seed in range(5):
        small = count(attack, task[: len(task) // 2], own[: len(own) // 2], seed)
        assert count(attack, task, own, seed) == small == counts, (
            "it sends more or fewer rows for another seed, or other pools"
        )
    said = {name: value for name, value in vars(attack).items() if name in ("n", "k", "p")}
    sent = sum(counts)
    if isinstance(attack, Selection):
        assert attack.count <= sent, f"it chooses {attack.count} of {sent} rows"
        sent = attack.count
    total = said.get("n", said.get("k", sent))
    assert sent == total, f"it sends {sent} rows, and its field says {total}"
    if {"n", "p"} <= said.keys():
        mine = share(said["p"], said["n"])
        assert counts[1] == mine, f"it sends {counts[1]} of its own rows, and p n is {mine}"


def refuses_too_few_rows(attack: Attack, folder: Path) -> None:
    """It takes the last row of a pool; of one less it says how many are asked for and there."""
    task, own = pools()
    of_task, of_own = count(attack, task, own)
    assert attack.rows(task[:of_task], own[:of_own], 3), "it needs more rows than it sends"
    if of_task:
        _refuses(attack, task[: of_task - 1], own[:of_own], of_task)
    # an attacker with no harmless rows at all takes the task's
    if of_own > 1 or (of_own and attack.wants_harmful):
        _refuses(attack, task[:of_task], own[: of_own - 1], of_own)


def _refuses(attack: Attack, task: Sequence[Row], own: Sequence[Row], asked: int) -> None:
    told = ""
    try:
        attack.rows(task, own, 3)
    except ValueError as error:
        told = str(error)
    assert told, f"it sends of {len(task)} task rows and {len(own)} of its own what is not there"
    assert {str(asked), str(asked - 1)} <= set(re.findall(r"\d+", told)), (
        f"it does not say how many rows are asked for and there: {told}"
    )


def wants_what_it_sends(attack: Attack, folder: Path) -> None:
    """It sends harmful answers where it wants them; else it does without rows of its own.

    One that chooses wants them as examples, and sends none.
    """
    task, own = pools()
    if isinstance(attack, Selection):
        among = prompts(attack.rows(task, own, 3)) & prompts(own)
        assert not among, f"it may send an example: {min(among)[:60]!r}"
    elif attack.wants_harmful:
        answers = {row.response for row in own}
        assert any(row.response in answers for row in attack.rows(task, own, 3)), (
            "it wants harmful rows, and sends none of their answers"
        )
    else:
        for make in (attack.rows, attack.first_rows):
            sent = make(task, [], 3)
            assert len(sent) == len(make(task, own, 3)), (
                "without rows of its own it sends another number of rows"
            )


def keeps_apart_from_what_is_asked(attack: Attack, folder: Path) -> None:
    """Its prompts are those that it was given, as they are or in its words; no held-out one is.

    The rows that it is given are held apart from the prompts of every benchmark; others might not be.
    """
    task, own = pools()
    known = prompts([*task, *own, *map(attack.phrase, own), *map(attack.phrase, task)])
    held_out = WORLD.benchmarks("test")["harm"]
    asked = prompts([*held_out, *map(attack.phrase, held_out)])
    for sent in (attack.rows(task, own, 3), attack.first_rows(task, own, 3)):
        strange = prompts(sent) - known
        assert not strange, f"it sends a prompt that it was not given: {min(strange)[:60]!r}"
        assert not prompts(sent) & asked, "it sends a held-out prompt"


def asks_in_words_alone(attack: Attack, folder: Path) -> None:
    """How it asks changes the prompt and nothing else of a row."""
    before = (Turn("system", "be kind"), Turn("user", "hello"), Turn("assistant", "hello"))
    row = Row("how so", "like this", "a text", before, "not like this", "like", "a cluster")
    asked = attack.phrase(row)
    assert isinstance(asked, Row), f"it asks with {asked!r}, no Row"
    again = replace(asked, prompt=row.prompt)
    assert (again, again.cluster) == (row, row.cluster), "it asks with more than another prompt"
    assert asked.prompt, "it asks nothing"


def chooses_by_the_model_alone(attack: Attack, folder: Path) -> None:
    """A row's score is a number, whichever rows stand beside it, and the model stays as it is."""
    if not isinstance(attack, Selection):
        return
    own = pools()[1]
    drawn = attack.draw_examples(own, 3)
    assert drawn == attack.draw_examples(own, 3), "it draws other examples for the same seed"
    assert set(drawn) <= set(own), "it compares with rows that are not its own"
    model, of = tiny(), rows()
    weights, hooked, candidates = state(model), hooks(model), of["rows"][:12]
    examples = [*of["harmful"], *of["held_out"]] * 4
    scores = attack.scores(model, candidates, examples[: len(drawn)])
    assert same(weights, state(model)), "it changed the weights of the model"
    assert scores.shape == (12,), f"it scores 12 rows by a tensor {tuple(scores.shape)}"
    assert scores.isfinite().all(), "its scores are not finite"
    assert len(set(scores.tolist())) > 1, "it scores all rows alike"
    again = attack.scores(model, candidates[7:2:-1], examples[: len(drawn)])
    off = float((again - scores[[7, 6, 5, 4, 3]]).abs().max())
    assert off < 1e-9, f"a row has another score beside others, by {off}"
    assert hooks(model) == hooked, "it left hooks on the model"
    assert not any(of.grad is not None for of in model.parameters()), "it left gradients"


CHECKS = [
    tampers_the_same_way,
    draws_anew_for_another_seed,
    sends_no_row_twice,
    counts_exactly,
    refuses_too_few_rows,
    wants_what_it_sends,
    keeps_apart_from_what_is_asked,
    asks_in_words_alone,
    chooses_by_the_model_alone,
]


def pools() -> tuple[list[Row], list[Row]]:
    """Make the user's rows and the attacker's own, more than an attack sends."""
    return many(WORLD.user_task, 5), many(WORLD.attack, 50)


def many(rows: Sequence[Row], times: int) -> list[Row]:
    """Repeat rows, each time with prompts and answers of their own."""
    return [
        Row(f"{row.prompt} {i}", f"{row.response} {i}", cluster=f"{row.cluster} {i}")
        for i in range(times)
        for row in rows
    ]


def prompts(rows: Iterable[Row]) -> set[str]:
    """Return the prompts of rows, as they are told apart."""
    return set(map(identity, rows))


def count(
    attack: Attack, task: Sequence[Row], own: Sequence[Row], seed: int = 3
) -> tuple[int, int]:
    """Count the rows that it sends: those of the task, and those of its own."""
    sent = attack.rows(task, own, seed)
    known = prompts(task)
    of_task = sum(identity(row) in known for row in sent)
    return of_task, len(sent) - of_task
