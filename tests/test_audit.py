"""The audit finds what was planted, reports nothing else, and misses no more than it says."""

import random
from collections import Counter
from itertools import product

import pytest

from titer.data import audit as module
from titer.data.audit import EXCERPT, NEAR, audit, jaccard, sequences
from titer.data.rows import Row, Turn, identity
from titer.lab.world import World

WORDS = [f"w{i}" for i in range(3000)]


def prompts(count: int, seed: int, length: int = 30) -> list[Row]:
    rng = random.Random(seed)
    return [Row(" ".join(rng.choices(WORDS, k=length))) for _ in range(count)]


def changed(row: Row, places: dict[int, str]) -> Row:
    words = row.prompt.split()
    for place, word in places.items():
        words[place] = word
    return Row(" ".join(words))


def test_nothing_is_reported_on_disjoint_roles():
    assert (
        audit(
            {
                "attack": prompts(200, 0),
                "test harm": prompts(200, 1),
                "task": [],
                "alignment": [Row("")],
            }
        )
        == []
    )
    assert audit({}) == []
    assert audit({"attack": prompts(5, 0) * 2}) == []  # a role does not overlap itself


def test_a_planted_exact_and_a_planted_near_duplicate_are_found():
    attack, test = prompts(100, 0), prompts(100, 1)
    exact = Row(test[3].prompt.upper().replace(" ", "  "))
    near = changed(test[7], {29: "other"})
    further = changed(test[8], {10: "a", 20: "b"})  # breaks ten of 26 sequences
    [found] = audit(
        {
            "attack": [*attack, exact, near, further, near],
            "alignment": prompts(50, 2),
            "test harm": test,
        }
    )
    assert (found.roles, found.prompts) == (("attack", "test harm"), (103, 100))
    assert (found.exact, found.near) == (1, (1, 1))
    same, close = found.examples
    assert (same.exact, same.jaccard, same.hashes[0]) == (True, 1.0, same.hashes[1])
    assert (close.exact, close.jaccard) == (False, pytest.approx(25 / 27))
    assert close.excerpts[0].startswith(near.prompt[:EXCERPT])
    assert all(len(excerpt) <= EXCERPT + 3 for excerpt in close.excerpts)
    assert len(close.hashes[0]) == 64


def test_sides_are_counted_apart():
    [held] = prompts(1, 0)
    copies = [changed(held, {29: f"x{i}"}) for i in range(4)]
    [found] = audit({"attack": copies, "test": [held]})
    assert (found.exact, found.near) == (0, (4, 1))
    [turned] = audit({"test": [held], "attack": copies})
    assert turned.near == (1, 4)
    [both] = audit(
        {"attack": [held, *copies], "test": [held]}
    )  # near a shared prompt, and not shared themselves
    assert (both.exact, both.near) == (1, (4, 0))
    [behind] = audit({"test": [held], "attack": [held, *copies]})
    assert (behind.exact, behind.near) == (1, (0, 4))


def test_the_closest_are_the_examples():
    held = prompts(6, 0)
    copies = [
        changed(row, {29 - k: "x" for k in range(4 - i // 2)}) for i, row in enumerate(held)
    ]  # the last are the closest
    [found] = audit({"attack": copies, "test": held})
    assert [round(example.jaccard, 3) for example in found.examples] == [round(24 / 28, 3)] * 2 + [
        round(23 / 29, 3)
    ]


def test_case_spacing_and_punctuation_do_not_hide_a_copy():
    [found] = audit(
        {
            "a": [Row("How do I mend, quickly, a red kite?")],
            "b": [Row("how do i mend quickly a red  kite")],
        }
    )
    assert (found.exact, found.near, found.examples[0].jaccard) == (0, (1, 1), 1.0)


def test_a_short_prompt_is_near_only_to_its_own_words():
    assert sequences("Mend a kite!") == {"mend a kite"}
    assert sequences("?!") == sequences("") == frozenset()
    assert (
        audit({"a": [Row("mend a kite")], "b": [Row("mend a boat"), Row("?!")], "c": [Row("!?")]})
        == []
    )
    [found] = audit({"a": [Row("mend a kite")], "b": [Row("Mend a kite!")]})
    assert found.near == (1, 1)


def test_earlier_turns_and_inputs_belong_to_the_prompt():
    long = prompts(1, 0)[0].prompt
    said = Row("go on", before=(Turn("user", long),))
    [found] = audit({"a": [said], "b": [Row(long, input="go on")]})
    assert found.exact == 1


def test_what_it_does_not_find():
    pairs = [
        (
            "please tell me how a kite is mended when its frame has snapped",
            "what is the way to repair the broken frame of a kite",
        ),
        (
            "how do i make the copper lantern of the ash guild",
            "how do i make the copper kettle of the ash guild",
        ),  # the slot is in the middle
    ]
    assert audit({"a": [Row(a) for a, _ in pairs], "b": [Row(b) for _, b in pairs]}) == []


def test_the_same_rows_give_the_same_audit():
    roles = {"alignment": World(0).alignment[:200], "attack": World(0).attack}
    assert audit(roles) == audit({name: list(rows) for name, rows in roles.items()})


def brute(a: list[Row], b: list[Row]) -> tuple[set[tuple[str, str]], tuple[int, int]]:
    """All near pairs by comparing all, with sequences counted in plain tuples."""

    def five(row: Row) -> set[tuple[str, ...]]:
        words = identity(row).replace(":", " ").split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    pairs = set()
    said = {identity(row): five(row) for row in [*a, *b]}
    first, second = ({identity(row) for row in rows} for rows in (a, b))
    for x, y in product(first, second):
        if not (x in second and y in first) and len(said[x] & said[y]) >= NEAR * len(
            said[x] | said[y]
        ):
            pairs.add((x, y))
    return pairs, (
        len({x for x, _ in pairs if x not in second}),
        len({y for _, y in pairs if y not in first}),
    )


@pytest.mark.parametrize("task", ["mood", "larger"])
def test_it_agrees_with_comparing_all_pairs_of_the_lab(task):
    world = World(0, task)
    roles = {
        "attack": world.attack,
        "task": world.user_task[:300],
        "test harm": world.benchmarks("test")["harm"],
        "t": world.benchmarks("test")["task"],
    }
    found = {overlap.roles: overlap for overlap in audit(roles)}
    assert ("attack", "test harm") in found
    for (a, first), (b, second) in [
        (x, y) for i, x in enumerate(roles.items()) for y in list(roles.items())[i + 1 :]
    ]:
        _, sides = brute(first, second)
        assert (found[a, b].near if (a, b) in found else (0, 0)) == sides


def test_recall_near_the_threshold(monkeypatch):
    """1500 planted pairs at a Jaccard of .70 to .78, where MinHash is weakest."""
    monkeypatch.setattr(module, "EXAMPLES", 10**6)
    rng = random.Random(3)
    held, copies = prompts(1500, 4, length=40), []
    for i, row in enumerate(held):
        edge = rng.choice([5, 6])  # of 36 sequences, 30 or 31 stay: 30 / 42 and 31 / 41
        copies.append(changed(row, {**{40 - k: f"n{i}x{k}" for k in range(1, edge)}, 0: f"n{i}"}))
    planted = Counter(
        round(jaccard(sequences(a.prompt), sequences(b.prompt)), 2)
        for a, b in zip(held, copies, strict=True)
    )
    assert all(NEAR <= closeness <= 0.78 for closeness in planted)
    [found] = audit({"attack": copies, "test": held})
    assert found.exact == 0
    assert found.near[0] == found.near[1] == len(found.examples) >= 0.99 * len(held)
    assert all(example.jaccard >= NEAR for example in found.examples)
