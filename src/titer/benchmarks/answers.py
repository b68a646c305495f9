"""Answers by their text, for any rows of prompts and responses.

An answer is right if it is the response, without regard to white space around it.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match


@dataclass(frozen=True)
class Answers(Benchmark):
    """A task whose right answer is exactly the response."""

    about: ClassVar[About] = About(
        title="answers", fidelity=Fidelity(equation="tests/test_sources.py")
    )

    def match(self, row: Row, answer: str) -> Match:
        return Match(row.response.strip() == answer.strip())
