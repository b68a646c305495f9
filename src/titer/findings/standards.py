"""The things that standards ask of a release, and where a tamper card answers them.

The EU's Code of Practice for general-purpose AI models, chapter Safety and Security, and PE2,
robustness to modifications that undo safeguards, of arXiv 2606.19890. The words are our own; what a
card cannot know is left to a person.
"""

from __future__ import annotations

from pydantic import Field

from titer.findings.records import Document

PERSON = "to be filled by a person"
CODE = "EU GPAI Code of Practice, Safety and Security"


class StandardField(Document):
    """Something that a standard asks of a release, and where this card answers it."""

    standard: str
    asks: str
    answer: str
    at: str | None = Field(None, description="JSON pointer into this card; null: a person has to")


def _field(standard: str, asks: str, answer: str, at: str | None) -> StandardField:
    return StandardField(standard=standard, asks=asks, answer=answer, at=at)


STANDARDS = [
    _field(
        f"{CODE}, Measure 5.1",
        "mitigations hold under adversarial pressure, fine-tuning included, given how the "
        "model is released",
        "the conditions of resistance, of an attacker with the weights",
        "/conditions",
    ),
    _field(
        f"{CODE}, Appendix 1.3.3",
        "how easily safeguards are removed",
        "the cost to break",
        "/cost to break",
    ),
    _field(
        f"{CODE}, Appendix 2.2",
        "the model is similarly safe as another, by a margin",
        "the conditions beside the original, each with its threshold",
        "/conditions",
    ),
    _field(
        f"{CODE}, Appendix 3.1",
        "internal validity and reproducibility",
        "controls, seeds, protocol and versions",
        "/controls",
    ),
    _field(
        f"{CODE}, Appendix 3.2",
        "elicitation by an adversary of a stated strength, fine-tuning included",
        "the attacks and their budget",
        "/protocol",
    ),
    _field(
        f"{CODE}, Appendix 3.3",
        "do mitigations work, and can they be circumvented",
        "the worst case",
        "/worst case",
    ),
    _field(
        f"{CODE}, Appendix 3.4",
        "evaluators are qualified and have what they need",
        PERSON,
        None,
    ),
    _field(
        f"{CODE}, Model Report 7.1",
        "the version of the model, what it must refuse, its system prompt",
        f"the model and its hash; what it must refuse: {PERSON}",
        "/model",
    ),
    _field(
        f"{CODE}, Model Report 7.2",
        "why the risk is acceptable, with a margin, and when that no longer holds",
        PERSON,
        None,
    ),
    _field(
        f"{CODE}, Model Report 7.3",
        "how evaluations were run and scored, with five random samples of each",
        "protocol, judge, and samples by hash and verdict; their text is with whoever ran them",
        "/samples",
    ),
    _field(
        f"{CODE}, Model Report 7.4",
        "reports of external evaluators",
        PERSON,
        None,
    ),
    _field(
        f"{CODE}, Model Report 7.5",
        "changes of the landscape of risks since the last report",
        PERSON,
        None,
    ),
    _field(
        f"{CODE}, Model Report 7.6",
        "what would call for an update",
        PERSON,
        None,
    ),
    _field(
        "PE2 (arXiv 2606.19890)",
        "robustness to modifications that undo safeguards",
        "the conditions of immunization and the cost to break",
        "/conditions",
    ),
]
