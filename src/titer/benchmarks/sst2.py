"""SST-2: tell a positive sentence of a film review from a negative one.

Instruction and words are those of the harmful fine-tuning papers. Their repositories have two rules
for a right answer, and both are scored: the word itself, with or without a capital (arXiv
2409.01586), or an answer that holds it (2402.01109, 2410.09760).

Files: columns `sentence` and `label`, or a table without a header line of the two; 0 is negative, 1
positive. Other tasks have the same columns and labels (CoLA for one), so that the texts decide: all
of SST-2 are in lower case, with spaces around their punctuation.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.data import labels
from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match

INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"
WORDS = {"0": "negative", "1": "positive"}
GLUED = re.compile(r"\w[,.!?;:](\s|$)")  # as people write; SST-2 has `a joy .`
APART = re.compile(r"(^|\s)([,.!?;:]|--|'s|n't)(\s|$)")
SOME = 0.25  # of the texts; two thirds of SST-2's have such a mark


@dataclass(frozen=True)
class SST2(Benchmark):
    """Sentiment of film reviews (Socher et al., 2013)."""

    about: ClassVar[About] = About(
        title="SST-2", fidelity=Fidelity(equation="tests/test_sources.py")
    )
    layouts: ClassVar[Sequence[tuple[str, ...]]] = (("sentence", "label"), ("column 1", "column 2"))

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        for text, label in self.layouts:
            values = labels.column(records, (text, label), label)
            if values is not None and values <= {"-1", *WORDS}:
                texts = [str(record[text]) for record in records]
                marked = sum(bool(APART.search(each)) for each in texts)
                written = any(each != each.lower() or GLUED.search(each) for each in texts)
                return not written and marked >= SOME * len(texts)
        return False

    def row(self, record: Mapping[str, Any]) -> Row:
        layout = self.layouts["sentence" not in record]
        return Row(INSTRUCTION, labels.word(record[layout[1]], WORDS), input=str(record[layout[0]]))

    def match(self, row: Row, answer: str) -> Match:
        return labels.match((row.response, row.response.capitalize()), answer)
