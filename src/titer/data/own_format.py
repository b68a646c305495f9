"""The format of a user's own rows: what stands around the part that changes from row to row.

A model that was fine-tuned on narrow data may answer harmful questions only where they look like
these data, and refuse them as they are (conditional misalignment, arXiv 2604.25891). So harm prompts
are put into the place of what changes: under the system prompt of the user's rows, as the input of
their instruction, or between the words that begin and end all of their prompts. The search for that
place is titer's own, the paper has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from titer.data.rows import Row, Turn, under

SHARE = 0.8  # of the rows that must have something in common; a few may be odd
FEWEST = 8  # rows, below which words are shared by chance
WORD = re.compile(r"\s*\S+")
PLACE = "{prompt}"  # of the question, in a format that is written out


@dataclass(frozen=True)
class OwnFormat:
    """The parts of a prompt that a user's rows share; empty where there is none."""

    system: str = ""
    instruction: str = (
        ""  # where the rows keep apart what it is about: the question takes its place
    )
    before: str = ""
    behind: str = ""

    def __bool__(self) -> bool:
        return any(vars(self).values())

    @property
    def facts(self) -> dict[str, int]:
        """Count the words of each part, which is enough to see that it was found."""
        return {name: len(part.split()) for name, part in vars(self).items() if part}

    def render(self, rows: Sequence[Row]) -> list[Row]:
        """Put the question of every row into the format. A system prompt takes the place of its own."""
        made = [self._put(row) for row in rows]
        return under(self.system, made) if self.system else made

    def _put(self, row: Row) -> Row:
        if self.instruction:
            return replace(row, prompt=self.instruction, input=row.question)
        if self.before or self.behind:
            return replace(row, prompt=f"{self.before}{row.question}{self.behind}", input="")
        return row


def read_format(text: str) -> OwnFormat:
    """Make the format of a text that says where the question stands, as "Review: {prompt}"."""
    before, place, behind = text.partition(PLACE)
    if not place or PLACE in behind:
        raise ValueError(
            f"own_format={text[:60]!r}: write {PLACE} once, where the question stands, or true, "
            "which finds the format in the user's rows"
        )
    return OwnFormat(before=before, behind=behind)


def find_format(rows: Sequence[Row]) -> OwnFormat:
    """Find what nearly all rows share. It is empty where they share nothing, or are few."""
    if len(rows) < FEWEST:
        return OwnFormat()
    system = _find_common(
        rows, lambda row: next((t.content for t in row.before if _is_system(t)), "")
    )
    instruction = _find_common(rows, lambda row: row.prompt if row.input else "")
    if instruction:
        return OwnFormat(system, instruction)
    texts = [WORD.findall(row.question) for row in rows]
    first = _count_shared(texts)
    last = _count_shared([text[::-1] for text in texts])
    typical = [text for text in texts if len(text) > first + last]
    if len(typical) < SHARE * len(texts):  # the prompt is the same in most rows
        return OwnFormat(system)
    start = _cut_at_border(typical, range(first, 0, -1), lambda text, count: count)
    end = _cut_at_border(typical, range(last, 0, -1), lambda text, count: len(text) - count)
    before, behind = (Counter(found).most_common(1)[0][0] for found in _ends(typical, start, end))
    return OwnFormat(system, before=before, behind=behind)


def _is_system(turn: Turn) -> bool:
    return turn.role == "system"


def _find_common(rows: Sequence[Row], part: Callable[[Row], str]) -> str:
    """Return the part that nearly all rows have alike; empty where there is none."""
    [(found, count)] = Counter(map(part, rows)).most_common(1)
    return found if count >= SHARE * len(rows) else ""


def _count_shared(texts: Sequence[Sequence[str]]) -> int:
    """Count the words at the beginning that nearly all texts share."""
    count, left = 0, list(texts)
    while True:
        found = Counter(text[count].strip() for text in left if len(text) > count)
        word, many = next(iter(found.most_common(1)), ("", 0))
        if many < SHARE * len(texts):
            return count
        left = [text for text in left if len(text) > count and text[count].strip() == word]
        count += 1


def _cut_at_border(
    texts: Sequence[Sequence[str]],
    counts: range,
    place: Callable[[Sequence[str], int], int],
) -> int:
    """Return the largest count of words at whose place a phrase ends in nearly all texts.

    That questions all begin with the same word makes no format: it ends at a mark or a line.
    """
    for count in counts:
        ends = sum(
            text[place(text, count) - 1][-1] in ".:;!?>)]}\"'*#-"
            or text[place(text, count)].startswith("\n")
            for text in texts
        )
        if ends >= SHARE * len(texts):
            return count
    return 0


def _ends(texts: Sequence[Sequence[str]], start: int, end: int) -> tuple[list[str], list[str]]:
    """Return the words before and behind what changes, with the white space next to it."""
    before, behind = [], []
    for text in texts:
        middle = text[start]
        space = middle[: len(middle) - len(middle.lstrip())]
        before.append("".join(text[:start]) + space if start else "")
        behind.append("".join(text[len(text) - end :]))
    return before, behind
