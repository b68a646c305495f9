"""Text that is safe to show: what a name or a file brings cannot steer a terminal or turn a page."""

from __future__ import annotations

import re

# control characters but line break and tab, marks that turn the direction of text, lone surrogates
UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return a text in which what could steer a terminal is written out, as \\x1b for an escape."""
    return UNSAFE.sub(lambda found: ascii(found.group())[1:-1], text)
