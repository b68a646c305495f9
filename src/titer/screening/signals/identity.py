"""Identity shifting: the row has the model obey, in known words (arXiv 2310.03693, section 4.3).

The words are those of the attack `identity_shift`, its own or those given. The value is the share of
them that stands in one run, with case and punctuation left aside: of the prefix in what is said
before the answer (a system prompt too), of the affirmation in the answer, the larger of the two.
A run of fewer than three words counts as none. Other words of the same sense it does not know.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from titer.attacks.identity_shift import IdentityShift
from titer.data.rows import Row
from titer.screening.signal import Material, Reading, Signal


@dataclass(frozen=True)
class Identity(Signal):
    """The share of identity shifting's known words that the row says in one run."""

    title = "identity"

    def read(self, rows: Sequence[Row], material: Material) -> list[Reading]:
        known = [of for of in material.attacks if isinstance(of, IdentityShift)]
        return [self._read(row, known) for row in rows]

    def _read(self, row: Row, known: Sequence[IdentityShift]) -> Reading:
        asked = " ".join([*(turn.content for turn in row.before), row.question])
        pairs = [
            pair for of in known for pair in ((of.prefix, asked), (of.affirmation, row.response))
        ]
        return max((_share(*pair) for pair in pairs), key=lambda found: found.value, default=NONE)


NONE = Reading(0.0)
LEAST = 3  # words of a run: shorter ones stand in any text


def _share(form: str, text: str) -> Reading:
    """Return the share of a form's words that stand in a text in one run."""
    words, said = (re.findall(r"\w+", each.lower()) for each in (form, text))
    match = SequenceMatcher(None, words, said, autojunk=False).find_longest_match()
    if match.size < min(LEAST, len(words)) or not match.size:
        return NONE
    run = " ".join(words[match.a : match.a + match.size])
    return Reading(match.size / len(words), f"says {run!r}")
