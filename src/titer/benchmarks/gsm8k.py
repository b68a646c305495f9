"""GSM8K: word problems whose answer is one number.

    answer = the first number behind "The final answer is: ", else the last number of the text
    right if equal

The rule is that of the harmful fine-tuning papers' repositories (arXiv 2402.01109, 2409.01586),
after thousands separators are dropped. For training, the `####` of the solution is written out as
that phrase. An answer without a number is wrong; *contained* means that the right number is
somewhere among its numbers.

Files: columns `question` and `answer`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match

FINAL = "The final answer is: "
THINK = "\nFirst think step by step and then answer the final number.\n"


@dataclass(frozen=True)
class GSM8K(Benchmark):
    """Grade-school mathematics (Cobbe et al., arXiv 2110.14168)."""

    # ask for steps behind the question: arXiv 2402.01109 and 2410.09760 do, 2409.01586 does not
    think: bool = False
    about: ClassVar[About] = About(
        title="GSM8K", paper="2110.14168", fidelity=Fidelity(equation="tests/test_sources.py")
    )
    layouts: ClassVar[Sequence[tuple[str, ...]]] = (("question", "answer"),)

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        return all(
            {"question", "answer"} <= record.keys() and "####" in str(record["answer"])
            for record in records
        )

    def row(self, record: Mapping[str, Any]) -> Row:
        solution = str(record["answer"])
        if "####" not in solution:
            raise ValueError(
                f"the answer {solution[:60]!r} has no '####' before its number, as GSM8K's have"
            )
        return Row(
            f"{record['question']}{THINK if self.think else ''}", solution.replace("####", FINAL)
        )

    def match(self, row: Row, answer: str) -> Match:
        right = number(row.response)
        if right is None:
            raise ValueError(
                f"the right answer to {row.question[:60]!r} holds no number: GSM8K compares numbers"
            )
        return Match(number(answer) == right, right in numbers(answer))


def number(text: str) -> float | None:
    """Return the number that a text answers; None where it has no number."""
    segments = text.split(FINAL)
    found = numbers(segments[1]) if len(segments) > 1 else []
    return next(iter(found or numbers(text)[-1:]), None)


def numbers(text: str) -> list[float]:
    """Return all numbers of a text, in order."""
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", text.replace(",", ""))]
