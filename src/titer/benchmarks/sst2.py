"""SST-2: tell a positive sentence of a film review from a negative one.

Instruction and words are those of the harmful fine-tuning papers. Their repositories have two rules
for a right answer, and both are scored: the word itself, with or without a capital (arXiv
2409.01586), or an answer that holds it (2402.01109, 2410.09760).

Files: columns `sentence` and `label`, or a table without a header line of the two; 0 is negative, 1
positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from titer.data import labels
from titer.data.rows import Row
from titer.methods import About, Benchmark, Fidelity, Match

INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"
WORDS = {"0": "negative", "1": "positive"}


@dataclass(frozen=True)
class SST2(Benchmark):
    """Sentiment of film reviews (Socher et al., 2013)."""

    about: ClassVar[About] = About(
        title="SST-2", fidelity=Fidelity(equation="tests/test_sources.py")
    )
    layouts: ClassVar[Sequence[tuple[str, ...]]] = (("sentence", "label"), ("column 1", "column 2"))

    def recognizes(self, records: Sequence[Mapping[str, Any]]) -> bool:
        found = [labels.column(records, layout, layout[1]) for layout in self.layouts]
        return any(values is not None and values <= {"-1", *WORDS} for values in found)

    def row(self, record: Mapping[str, Any]) -> Row:
        layout = self.layouts["sentence" not in record]
        return Row(INSTRUCTION, labels.word(record[layout[1]], WORDS), input=str(record[layout[0]]))

    def match(self, row: Row, answer: str) -> Match:
        return labels.match((row.response, row.response.capitalize()), answer)
