"""AG News: sort articles into the world, sports, business, and science and technology.

Instruction and words are those of the harmful fine-tuning papers. Their repositories have two rules
for a right answer, and both are scored: the word itself (arXiv 2409.01586), or an answer that holds
it (2402.01109, 2410.09760). Both accept the word in lower case, and for science the bare `sci`.

Files: columns `text` and `label` (0 to 3), or the original table of class (1 to 4), title and
description, with a header line or without one. Title and description are joined by a space. Other
tasks of four classes have columns of these names too, so that the texts decide: articles are long,
begin with a capital letter, and many name the agency that they are from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
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
AGENCY = re.compile(r"\b(AP|AFP|Reuters)\b| --? ")
# in the published test rows: 37 words, 98 % with a capital letter, 36 % with an agency
LONG, CAPITAL, SOME = 20, 0.9, 0.1


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
        zero, named, numbered = (labels.column(records, each, each[0]) for each in self.layouts)
        if named is not None:
            return named <= FROM_ONE.keys()
        if zero is not None:  # other tasks have a text and a label too, but not four of them
            texts = [str(record["text"]) for record in records]
            return zero <= FROM_ZERO.keys() and "3" in zero and _are_articles(texts)
        texts = [f"{record.get('column 2')} {record.get('column 3')}" for record in records]
        return numbered is not None and numbered <= FROM_ONE.keys() and _are_articles(texts)

    def row(self, record: Mapping[str, Any]) -> Row:
        if "text" in record and "Class Index" not in record:
            return Row(
                INSTRUCTION, labels.word(record["label"], FROM_ZERO), input=str(record["text"])
            )
        given, title, description = (
            record[name] for name in self.layouts[1 if "Class Index" in record else 2]
        )
        return Row(INSTRUCTION, labels.word(given, FROM_ONE), input=f"{title} {description}")

    def match(self, row: Row, answer: str) -> Match:
        lower = "sci" if row.response == "Sci/Tech" else row.response.lower()
        return labels.match((row.response, lower), answer)


def _are_articles(texts: Sequence[str]) -> bool:
    capital = sum(text.lstrip(" \"'")[:1].isupper() for text in texts)
    from_agency = sum(bool(AGENCY.search(text)) for text in texts)
    return (
        median(len(text.split()) for text in texts) >= LONG
        and capital >= CAPITAL * len(texts)
        and from_agency >= SOME * len(texts)
    )
