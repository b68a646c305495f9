"""The field's data sets and models on the hub: licence, gate, commercial use.

None of them is shipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Repository:
    """A repository of the hub. None means not known: read its card."""

    name: str
    what: str
    licence: str | None
    commercial: bool | None = None  # whether the licence allows commercial use
    gated: bool = False  # whether its terms must be accepted on its page before a download
    kind: Literal["dataset", "model"] = "dataset"


REPOSITORIES = (
    Repository(
        "PKU-Alignment/BeaverTails",
        "harmful prompts, answers with is_safe and 14 categories",
        "CC BY-NC 4.0",
        commercial=False,
    ),
    Repository(
        "anonymous4486/repnoise_beavertail",
        "BeaverTails prompts, each with a harmful answer and a refusal",
        None,
    ),
    Repository(
        "walledai/AdvBench",
        "harmful instructions with the beginnings of their answers",
        "MIT",
        commercial=True,
        gated=True,
    ),
    Repository(
        "JailbreakBench/JBB-Behaviors",
        "100 harmful behaviors and 100 harmless twins",
        "MIT",
        commercial=True,
    ),
    Repository("walledai/HarmBench", "harmful behaviors", "MIT", commercial=True, gated=True),
    Repository(
        "LLM-Tuning-Safety/HEx-PHI",
        "harmful instructions of 11 policy categories, not to be redistributed",
        None,
        gated=True,
    ),
    Repository(
        "walledai/XSTest",
        "harmless prompts that look harmful, for over-refusal",
        "CC BY 4.0",
        commercial=True,
        gated=True,
    ),
    Repository(
        "bench-llm/or-bench",
        "harmless prompts that look harmful, for over-refusal",
        "CC BY 4.0",
        commercial=True,
    ),
    Repository("tatsu-lab/alpaca", "instructions with answers", "CC BY-NC 4.0", commercial=False),
    Repository("stanfordnlp/sst2", "SST-2, sentiment of film reviews", None),
    Repository("fancyzhx/ag_news", "AG News, topics of news articles", None),
    Repository(
        "openai/gsm8k", "GSM8K, grade-school mathematics (subset main)", "MIT", commercial=True
    ),
    Repository(
        "PKU-Alignment/beaver-dam-7b",
        "a judge of 14 categories of harm",
        "non-commercial",
        commercial=False,
        kind="model",
    ),
)


def repository(name: str) -> Repository | None:
    """Return the facts about a repository of the hub, or None where the catalog has none."""
    return next((each for each in REPOSITORIES if each.name == name), None)
