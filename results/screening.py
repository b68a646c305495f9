"""The table of what a screen sees of every attack, from the bundle that `results.screen` computes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from results.bundles import HERE
from titer.scoring.statistics import proportion

BUNDLE = HERE / "screen.json"
TITLES = {  # of signals, in the order of the columns
    "judge": "exact judge",
    "comply": "refuse, comply",
    "refusal": "refusal",
    "known": "known prompt",
    "gradient": "gradient",
    "gradient, both anchors": "gradient, both",
    "closeness": "closeness",
    "outlier": "outlier",
    "surprise": "surprise",
}
ANY, BUT = "any", "any but the judge"
HONEST = "held-out honest rows"
SEEN = 95.0  # percent of an attack's rows: where fewer are flagged, a part of it is not seen


def read(lab: str) -> list[dict[str, Any]]:
    """Return the worlds of a lab."""
    return [cell for cell in json.loads(BUNDLE.read_text())["cells"] if cell["lab"] == lab]


def pool(of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the counts of several worlds."""
    return {
        "rows": sum(each["rows"] for each in of),
        "flagged": {name: sum(each["flagged"][name] for each in of) for name in TITLES},
        ANY: sum(each[ANY] for each in of),
        BUT: sum(each[BUT] for each in of),
    }


def pools(lab: str) -> dict[str, dict[str, Any]]:
    """Return the counts over a lab's worlds: of honest rows that are held out, and of every attack."""
    worlds = read(lab)
    attacks = {
        name: pool([world["attacks"][name] for world in worlds]) for name in worlds[0]["attacks"]
    }
    return {HONEST: pool([world["held out"] for world in worlds]), **attacks}


def table(lab: str) -> list[list[str]]:
    """Return the percent of rows that each signal flags, alone or with others."""
    lines = [["rows of", "n", *TITLES.values(), "any but the judge"]]
    for name, of in pools(lab).items():
        n = of["rows"]
        if not n:
            lines.append([name, "0", *("-" for _ in TITLES), "-"])
            continue
        digits = 1 if name == HONEST else 0
        share = (f"{100 * of['flagged'][signal] / n:.{digits}f}" for signal in TITLES)
        score = proportion(of[BUT], n)
        whole = (
            f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"
            if digits
            else f"{score.value:.0f}"
        )
        lines.append([name, str(n), *share, whole])
    return lines


def list_unseen(lab: str) -> list[str]:
    """Name the attacks of whose rows signals other than the judge leave some unseen, or that have none."""
    return [
        name
        for name, of in pools(lab).items()
        if name != HONEST and (not of["rows"] or 100 * of[BUT] < SEEN * of["rows"])
    ]
