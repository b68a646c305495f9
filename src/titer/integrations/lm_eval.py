"""The figures of scored models in the shape that lm-evaluation-harness gives its results.

A figure is a task with one metric, in percent as everywhere in titer (nats of a margin). Its
standard error is half its 95 % interval over 1.96, so wordings of one question count as they do
in titer; the ends of the interval stand beside it. No package is needed. Shape:
https://github.com/EleutherAI/lm-evaluation-harness, `lm_eval/loggers/evaluation_tracker.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from titer.integrations.scored import ScoredModel, read_models
from titer.report.parts import FileNames, write_together
from titer.report.sheets import unit_of
from titer.scoring.differences import Z_LEVEL
from titer.scoring.figures import NAMES
from titer.scoring.score import Score
from titer.version import __version__

FILTER = "none"  # lm-evaluation-harness names the filter of answers behind a metric's name
MISSING = "N/A"  # what it writes for a standard error that there is none of
VERSION = 1  # of every task here: it counts up where a figure is counted in another way
LOWER = frozenset(
    {"harm", "asked", "own", "served", "prefill", "complied", "lookalike", "task_refused", "margin"}
)


def write_results(folder: Path, to: Path) -> list[Path]:
    """Write `results_<stage>.json` of every scored model of a run's or an evaluation's folder.

    Raises where `folder` is neither, and where `to` is there already and is not an empty folder.
    """
    models, names = read_models(folder), FileNames()
    with write_together(to) as draft:
        for each in models:
            path = draft / f"{names.take(f'results_{each.name}')}.json"
            path.write_text(json.dumps(to_results(each), indent=2) + "\n", encoding="utf-8")
    return sorted(to.iterdir())


def to_results(of: ScoredModel) -> dict[str, Any]:
    """Return the figures of a model, by task."""
    scores = {f"titer_{name}": (name, score) for name, score in of.record.scores.items()}
    recipe, environment = of.how["recipe"], of.how["environment"]
    return {
        "results": {
            task: {"alias": NAMES.get(name, name), **_metrics(name, score)}
            for task, (name, score) in scores.items()
        },
        "group_subtasks": {task: [] for task in scores},
        "configs": {
            task: {
                "task": task,
                "metric_list": [{"metric": name, "higher_is_better": name not in LOWER}],
                "output_type": "loglikelihood" if name == "margin" else "generate_until",
                "generation_kwargs": dict(of.how["decoding"]),
                "metadata": {
                    "version": VERSION,
                    "unit": "nats" if unit_of(name) == "nats" else "percent",
                    "scorer": of.scorer_of(name),
                    "struck out": of.record.struck if name == "harm" else [],
                },
            }
            for task, (name, _) in scores.items()
        },
        "versions": dict.fromkeys(scores, VERSION),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {task: {name: name not in LOWER} for task, (name, _) in scores.items()},
        "n-samples": {
            task: {"original": score.n + score.unscored, "effective": score.n}
            for task, (_, score) in scores.items()
        },
        "config": {
            "model": "titer",
            "model_args": {"start": of.model, "stage": of.title, "sha256": of.record.weights},
            "random_seed": recipe.get("seed"),
            "limit": (recipe.get("data") or {}).get("limit"),
            "method": of.record.how,
        },
        "model_name": of.model,
        "system_instruction": recipe.get("system"),
        "chat_template": recipe.get("template"),
        "titer_version": environment.get("titer", __version__),
        "transformers_version": environment.get("transformers"),
    }


def _metrics(name: str, score: Score) -> dict[str, float | str]:
    """Return a figure, its standard error and the ends of its interval; what is not known is N/A."""
    error = (score.high - score.low) / 2 / Z_LEVEL
    told = {"": score.value, "_stderr": error, "_low": score.low, "_high": score.high}
    return {
        f"{name}{part},{FILTER}": MISSING if math.isnan(value) else value
        for part, value in told.items()
    }
