"""Find prompts that stand in two roles, exactly or nearly, and rows that are copies within one.

A score on held-out prompts may owe something to having trained on them.

What the audit finds. *Exact*: the same words, however spaced or capitalized (`data.identity`).
*Near*: of the 5-word sequences that two prompts have together, at least 70 % are in both (Jaccard);
case, spacing and punctuation do not count. That is text with a word changed at its end, or in the
middle of a long prompt; copies with a sentence more; one template with the slot at its edge.
Candidates come from MinHash (48 bands of 6: 99.75 % of the pairs at Jaccard 0.7, more above), and
each is then compared exactly, so no reported pair is wrong and a pair at the threshold is missed
about once in four hundred.

What it does not find. Paraphrases, translations, and the same request in other words: they share no
five words in a row. One word changed in the middle of a prompt of fewer than 33 words, which breaks
five sequences: it is below the threshold, and so are templates whose slot is in the middle. A
prompt within a much longer one. A prompt of fewer than five words is a single sequence and is near
only to the same words; so is text written without spaces, a run of which is one word. So "nothing
found" means no copied prompts, not unrelated ones. On the other side a long instruction common to
all prompts of a task makes them near to one another: it is recorded, and for a reader to judge.
Exact sharing stops a run elsewhere (`data.check_disjoint`); nothing does here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from datasketch import MinHash, MinHashLSH

from titer.data.rows import Row, identity, whole_identity

SEQUENCE = 5  # words
NEAR = 0.7
# a pair of Jaccard J becomes a candidate with probability 1 - (1 - J^6)^48:
# 0.9975 at J = 0.7, 0.03 at J = 0.3
BANDS, ROWS = 48, 6
SEED = 1  # of the permutations: the same rows give the same audit
EXAMPLES = 3
EXCERPT = 60  # characters


@dataclass(frozen=True)
class Example:
    """A pair of prompts, one from each role: the SHA-256 of each identity, and their beginnings."""

    hashes: tuple[str, str]
    excerpts: tuple[str, str]
    jaccard: float  # 1 also where they differ in punctuation alone
    exact: bool


@dataclass(frozen=True)
class Overlap:
    """The prompts that two roles share, counted once each.

    Pairs of numbers are of the first and the second role.
    """

    roles: tuple[str, str]
    prompts: tuple[int, int]
    exact: int  # prompts that are in both
    # of the others, those of either side that are near a prompt of the other side,
    # shared ones included
    near: tuple[int, int]
    examples: tuple[Example, ...]  # of exact ones, then the closest of the near


def audit(roles: Mapping[str, Sequence[Row]]) -> list[Overlap]:
    """Return the pairs of roles that share prompts, exactly or nearly, in the order of `roles`.

    The list is empty where nothing is shared.
    """
    named = {role: _Prompts.of(rows) for role, rows in roles.items()}
    found = (_compare((a, b), named[a], named[b]) for a, b in combinations(named, 2))
    return [overlap for overlap in found if overlap.exact or any(overlap.near)]


@dataclass(frozen=True)
class Repeat:
    """An earlier row that a row is a copy of."""

    of: int  # its number, from 0
    exact: bool  # the same words in prompt and answer; else the prompts are near, or the same


def find_copies(rows: Sequence[Row]) -> list[Repeat | None]:
    """Return the first earlier row that each row is a copy of; None where there is none.

    A row is compared with those that are no copies themselves, so rows of one template are compared
    with the first of them alone.
    """
    same: dict[tuple[str, str], int] = {}
    index, first, found = _new_index(), dict[str, int](), list[Repeat | None]()
    said = [sequences(row.question) for row in rows]
    for i, (row, value) in enumerate(zip(rows, _hash_all(said), strict=True)):
        of = same.setdefault(whole_identity(row), i)
        near = [
            j
            for key in (index.query(value) if said[i] else ())
            if jaccard(said[i], said[j := first[key]]) >= NEAR
        ]
        if of < i:
            found.append(Repeat(of, exact=True))
        elif near:
            found.append(Repeat(min(near), exact=False))
        else:
            found.append(None)
            if said[i]:
                first[str(i)] = i
                index.insert(str(i), value)
    return found


def sequences(text: str) -> frozenset[str]:
    """Return the 5-word sequences of a text.

    A text of fewer words is one sequence; one without a word has none.
    """
    words = re.findall(r"\w+", text.lower())
    if not words:
        return frozenset()
    return frozenset(
        " ".join(words[i : i + SEQUENCE]) for i in range(max(len(words) - SEQUENCE + 1, 1))
    )


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the share of the sequences of both that both have; 0 where neither has any."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


@dataclass(frozen=True)
class _Prompts:
    """The distinct prompts of a role, by identity, with their sequences and an index of them."""

    excerpts: dict[str, str]
    sequences: dict[str, frozenset[str]]
    hashes: dict[str, MinHash]
    index: MinHashLSH

    @classmethod
    def of(cls, rows: Iterable[Row]) -> _Prompts:
        excerpts: dict[str, str] = {}
        for row in rows:
            question = " ".join(row.question.split())
            excerpts.setdefault(
                identity(row), question if len(question) <= EXCERPT else question[:EXCERPT] + "..."
            )
        found = {key: said for key in excerpts if (said := sequences(key))}
        hashes = dict(zip(found, _hash_all(found.values()), strict=True))
        index = _new_index()
        for key, value in hashes.items():
            index.insert(key, value)
        return cls(excerpts, found, hashes, index)


def _new_index() -> MinHashLSH:
    return MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))


def _hash_all(texts: Iterable[frozenset[str]]) -> Iterator[MinHash]:
    """Yield the hash of the sequences of every text."""
    encoded = ([sequence.encode() for sequence in sorted(said)] for said in texts)
    yield from MinHash.generator(encoded, num_perm=BANDS * ROWS, seed=SEED)


def _compare(roles: tuple[str, str], first: _Prompts, second: _Prompts) -> Overlap:
    shared = [key for key in first.excerpts if key in second.excerpts]
    near = []
    for a, value in first.hashes.items():
        for b in second.index.query(value):
            if a in second.excerpts and b in first.excerpts:
                continue  # both stand under `exact` already
            closeness = jaccard(first.sequences[a], second.sequences[b])
            if closeness >= NEAR:
                near.append((-closeness, a, b))
    near.sort()

    def example(a: str, b: str, closeness: float) -> Example:
        hashes = hashlib.sha256(a.encode()).hexdigest(), hashlib.sha256(b.encode()).hexdigest()
        return Example(hashes, (first.excerpts[a], second.excerpts[b]), closeness, a == b)

    examples = [example(key, key, 1.0) for key in sorted(shared)[:EXAMPLES]]
    examples += [example(a, b, -negative) for negative, a, b in near[:EXAMPLES]]
    # counted are those that are not shared themselves:
    # else one copied prompt would stand under both headings
    sides = (
        len({a for _, a, _ in near if a not in second.excerpts}),
        len({b for _, _, b in near if b not in first.excerpts}),
    )
    return Overlap(
        roles, (len(first.excerpts), len(second.excerpts)), len(shared), sides, tuple(examples)
    )
