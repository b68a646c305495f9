"""The field's data sets and models on the hub: licence, gate, commercial use.

None of them is shipped, but for the look-alikes, which are titer's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from titer import paths
from titer.data.packages import is_package

# harmless questions about health and money that sound harmful, with answers; made for titer
LOOKALIKES = "lookalikes"
SHIPPED = {LOOKALIKES: Path(__file__).parent / "lookalikes.jsonl"}


@dataclass(frozen=True)
class Repository:
    """A repository of the hub. None means not known: read its card."""

    name: str
    what: str
    licence: str | None
    commercial: bool | None = None  # whether the licence allows commercial use
    gated: bool = False  # whether its terms must be accepted on its page before a download
    kind: Literal["dataset", "model"] = "dataset"
    short: str = ""  # a name that a source may give in its place


REPOSITORIES = (
    Repository(
        "PKU-Alignment/BeaverTails",
        "harmful prompts, answers with is_safe and 14 categories",
        "CC BY-NC 4.0",
        commercial=False,
        short="beavertails",
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
        short="advbench",
    ),
    Repository(
        "JailbreakBench/JBB-Behaviors",
        "100 harmful behaviors and 100 harmless twins",
        "MIT",
        commercial=True,
        short="jailbreakbench",
    ),
    Repository(
        "walledai/HarmBench",
        "harmful behaviors",
        "MIT",
        commercial=True,
        gated=True,
        short="harmbench",
    ),
    Repository(
        "sorry-bench/sorry-bench-202503",
        "unsafe instructions of 44 categories; the plain ones have prompt_style base",
        None,
        gated=True,
        short="sorry-bench",
    ),
    Repository(
        "LLM-Tuning-Safety/HEx-PHI",
        "harmful instructions of 11 policy categories, not to be redistributed",
        None,
        gated=True,
        short="hex-phi",
    ),
    Repository(
        "walledai/XSTest",
        "harmless prompts that look harmful, for over-refusal",
        "CC BY 4.0",
        commercial=True,
        gated=True,
        short="xstest",
    ),
    Repository(
        "bench-llm/or-bench",
        "harmless prompts that look harmful, for over-refusal",
        "CC BY 4.0",
        commercial=True,
        short="or-bench",
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
    """Return the facts about a repository of the hub, by its name or its short one; None where the
    catalog has none.
    """
    return next((each for each in REPOSITORIES if name and name in (each.name, each.short)), None)


def check_commercial(place: str, name: str) -> None:
    """Raise where a source is not known to be free for commercial use. A local file is its owner's."""
    if name == LOOKALIKES or is_package(name) or paths.expand(name).exists():
        return
    known = repository(name)
    if known is None or known.commercial is not True:
        licence = known.licence if known and known.licence else "a licence that is not known"
        forbids = known is not None and known.commercial is False
        raise ValueError(
            f"{place}={name!r} has {licence}, {'which forbids' if forbids else 'not known to allow'} "
            "commercial use: give rows that you may use, or set data.commercial=false"
        )
