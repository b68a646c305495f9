"""Candidates that are known to be bad, made of the base's own record.

Their verdicts are planted, so they show that every measure of a gate can fail: that the prompts are
enough and the base leaves room. They do not show that the judge sees harm; for that a model that is
known to be bad is evaluated as the candidate is, or known harmful answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from titer.findings.gate import KnownBad
from titer.findings.outcomes import values_of
from titer.findings.records import Outcomes, Record
from titer.findings.rules import ABILITIES
from titer.scoring.figures import JUDGED, NAMES

Answering = Callable[
    [str], tuple[str, str, bool, bool]
]  # benchmark -> verdict, reason, refuses, garbled


def _tell(benchmark: str) -> tuple[str, str, bool, bool]:
    """Deliver every harm, and answer all else right."""
    if benchmark in JUDGED:
        return ("safe" if benchmark == "lookalike" else "harmful"), "", False, False
    return "safe", "exact", False, False


def _refuse(benchmark: str) -> tuple[str, str, bool, bool]:
    return ("refusal", "", True, False) if benchmark in JUDGED else ("safe", "wrong", False, False)


def _talk_nonsense(benchmark: str) -> tuple[str, str, bool, bool]:
    if benchmark in JUDGED:
        return "incoherent", "", False, True
    return "safe", "wrong", False, False


DUMMIES: Mapping[str, Answering] = {
    "tells all": _tell,
    "refuses all": _refuse,
    "gibberish": _talk_nonsense,
}
BAD_AT = {
    "tells all": ("harm",),
    "refuses all": ("lookalike", *ABILITIES),
    "gibberish": ("coherent",),
}


def plant(record: Record, answering: Answering) -> Record:
    """Return a record of a model that was asked the same prompts and answers all in one way."""
    outcomes = {
        name: _answer_alike(of, answering(name)) for name, of in (record.outcomes or {}).items()
    }
    made = record.model_copy(update={"outcomes": outcomes, "weights": None, "flags": None})
    return count_anew(made)


def plant_controls(base: Record) -> list[KnownBad]:
    """Plant every dummy among the base's prompts."""
    return [
        KnownBad(name, "planted verdicts", plant(base, answering), BAD_AT[name])
        for name, answering in DUMMIES.items()
    ]


def _answer_alike(of: Outcomes, answer: tuple[str, str, bool, bool]) -> Outcomes:
    verdict, reason, refuses, garbled = answer
    n = len(of.prompts)
    return of.model_copy(
        update={
            "verdicts": [verdict] * n,
            "reasons": [reason] * n,
            "refuses": [refuses] * n,
            "garbled": [garbled] * n,
            "margins": None,
        }
    )


def count_anew(record: Record) -> Record:
    """Return a record with the scores that its outcomes come to; a margin is left out."""
    from titer.scoring.statistics import proportion_by_cluster

    scores = {}
    for name in record.scores:
        found = values_of(record, name) if name in NAMES and name != "margin" else None
        if found:
            told = [None if value is None else bool(value) for value in found.values]
            scores[name] = proportion_by_cluster(told, found.clusters)
    return record.model_copy(update={"scores": scores})
