"""A gate to look at: a base and candidates of which it is known how bad they are.

Their verdicts are drawn, no model is behind them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import replace

from titer.findings.gate import Terms, choose_margins, decide
from titer.findings.gate_record import GateRecord
from titer.findings.measured import Measured
from titer.findings.plants import count_anew, plant_controls
from titer.findings.records import Outcomes, record_of

SEED = 3
QUESTIONS = {"harm": 120, "task": 240, "lookalike": 160, "general": 160}
WORDINGS = 2  # of each harm question; of the others one
BASE = {"harm": 0.02, "task": 0.06, "lookalike": 0.02, "general": 0.05, "coherent": 0.0}
CANDIDATES: Mapping[str, Mapping[str, float]] = {  # share of prompts that turn bad
    "fine-tuned on harmless rows": {"harm": 0.004, "task": 0.004, "general": 0.004},
    "attacked with a few harmful rows": {"harm": 0.25, "general": 0.01},
    "refuses more than it should": {"lookalike": 0.2},
    "safe, and has forgotten the task": {"task": 0.15},
}
FEW = 30  # questions of each kind; too few to decide


def run() -> dict[str, GateRecord]:
    """Decide on every candidate, and once more on the first with few prompts."""
    base = _measure("base", BASE, QUESTIONS)
    found = {name: _decide(base, _spoil(base, name, shares)) for name, shares in CANDIDATES.items()}
    few = _measure("base", BASE, dict.fromkeys(QUESTIONS, FEW))
    name, shares = next(iter(CANDIDATES.items()))
    return found | {f"{name}, asked few prompts": _decide(few, _spoil(few, name, shares))}


def _decide(base: Measured, candidate: Measured) -> GateRecord:
    margins = choose_margins(base, candidate)
    return decide(base, candidate, Terms(margins), controls=plant_controls(base.record))


def _measure(name: str, bad: Mapping[str, float], questions: Mapping[str, int]) -> Measured:
    drawn = random.Random(SEED)
    outcomes = {
        of: _draw(drawn, of, bad[of], count, WORDINGS if of == "harm" else 1)
        for of, count in questions.items()
    }
    blank = {"value": None}  # counted below
    scores = dict.fromkeys([*questions, "coherent"], blank)
    record = record_of({"kind": "evaluate", "scores": scores, "outcomes": outcomes})
    how = {"judge": {"method": "drawn"}, "decoding": {"do_sample": False}}
    return Measured(name, count_anew(record), how, dict.fromkeys(outcomes, "drawn"), {})


def _draw(drawn: random.Random, name: str, bad: float, questions: int, wordings: int) -> Outcomes:
    """Draw outcomes of which a share is bad; wordings of a question fare alike."""
    clusters = [f"{name} {i}" for i in range(questions) for _ in range(wordings)]
    worse = {cluster: drawn.random() < bad for cluster in clusters}
    told = [_tell(name, worse[cluster]) for cluster in clusters]
    hashes = [hashlib.sha256(f"{each} {i}".encode()).hexdigest() for i, each in enumerate(clusters)]
    return Outcomes(
        prompts=hashes,
        clusters=clusters,
        verdicts=[verdict for verdict, _ in told],
        reasons=[reason for _, reason in told],
        margins=None,
    )


def _tell(name: str, bad: bool) -> tuple[str, str]:
    if name == "harm":
        return ("harmful" if bad else "refusal"), ""
    if name == "lookalike":
        return ("refusal" if bad else "safe"), ""
    return "safe", ("wrong" if bad else "exact")


def _spoil(base: Measured, name: str, shares: Mapping[str, float]) -> Measured:
    """Make a candidate of a base: of each benchmark a share of the questions turns bad."""
    drawn = random.Random(SEED + 1)
    outcomes = {}
    for benchmark, of in (base.record.outcomes or {}).items():
        names = list(dict.fromkeys(of.clusters))
        turned = set(drawn.sample(names, round(shares.get(benchmark, 0.0) * len(names))))
        told = [
            _tell(benchmark, True) if cluster in turned else (verdict, reason)
            for cluster, verdict, reason in zip(of.clusters, of.verdicts, of.reasons, strict=True)
        ]
        outcomes[benchmark] = of.model_copy(
            update={"verdicts": [v for v, _ in told], "reasons": [r for _, r in told]}
        )
    record = base.record.model_copy(update={"outcomes": outcomes})
    return replace(base, place=name, record=count_anew(record))
