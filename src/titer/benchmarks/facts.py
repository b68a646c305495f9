"""Facts of smol-v1: an answer is right if it names the fact that the question asks for.

A fact stands as a whole word, in any case.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.data.rows import Row
from titer.lab import knowledge
from titer.methods import About, Benchmark, Fidelity, Match


@dataclass(frozen=True)
class NamedFacts(Benchmark):
    """Questions of smol-v1, each with a fact."""

    about: ClassVar[About] = About(
        title="facts of smol-v1", fidelity=Fidelity(equation="tests/test_smol.py")
    )

    def match(self, row: Row, answer: str) -> Match:
        asked = knowledge.asked(row.question)
        if asked is None:
            raise ValueError(f"{row.question[:60]!r} asks for no fact of {knowledge.VERSION}")
        return Match(asked.told_in(answer))
