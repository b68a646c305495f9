"""AG News: sort articles into the world, sports, business, and science and technology.

Instruction and words are those of the harmful fine-tuning papers. Their repositories have two rules
for a right answer, and both are scored: the word itself (arXiv 2409.01586), or an answer that holds
it (2402.01109, 2410.09760). Both accept the word in lower case, and for science the bare `sci`.

Files: columns `text` and `label` (0 to 3), or the original table of class (1 to 4), title and
description, with a header line or without one. Title and description are joined by a space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.data import labels
from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match

INSTRUCTION = (
    "Categorize the news article given in the input into one of the 4 categories:\n\n"
    "World\nSports\nBusiness\nSci/Tech\n"
)
WORDS = ("World", "Sports", "Business", "Sci/Tech")
FROM_ZERO = {str(i): word for i, word in enumerate(WORDS)}
FROM_ONE = {str(i): word for i, word in enumerate(WORDS, 1)}


@dataclass(frozen=True)
class AGNews(Benchmark):
    """Topics of news articles (Zhang et al., arXiv 1509.01626)."""

    about: ClassVar[About] = About(
        title="AG News", paper="1509.01626", fidelity=Fidelity(equation="tests/test_sources.py")
    )
    layouts: ClassVar[Sequence[tuple[str, ...]]] = (
        ("label", "text"),
        ("Class Index", "Title", "Description"),
        ("column 1", "column 2", "column 3"),
    )

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        zero, *one = (labels.column(records, layout, layout[0]) for layout in self.layouts)
        if zero is not None:  # other tasks have a text and a label too, but not four of them
            return zero <= FROM_ZERO.keys() and "3" in zero
        return any(values is not None and values <= FROM_ONE.keys() for values in one)

    def row(self, record: Mapping[str, Any]) -> Row:
        if "text" in record:
            return Row(
                INSTRUCTION, labels.word(record["label"], FROM_ZERO), input=str(record["text"])
            )
        given, title, description = (
            record[name] for name in self.layouts[1 if "Title" in record else 2]
        )
        return Row(INSTRUCTION, labels.word(given, FROM_ONE), input=f"{title} {description}")

    def match(self, row: Row, answer: str) -> Match:
        lower = "sci" if row.response == "Sci/Tech" else row.response.lower()
        return labels.match((row.response, lower), answer)
