"""Answers by their text: any rows of prompts and responses; an answer is right when it is the response.

The text must be the same but for white space around it.
"""

from dataclasses import dataclass
from typing import ClassVar

from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match


@dataclass(frozen=True)
class Answers(Benchmark):
    """The response itself, exactly."""

    about: ClassVar[About] = About(
        title="answers", fidelity=Fidelity(equation="tests/test_sources.py")
    )

    def match(self, row: Row, answer: str) -> Match:
        return Match(row.response.strip() == answer.strip())
