"""Scored models as logs of Inspect (`inspect_ai`, the extra `inspect`): one `.eval` file each.

A log has every figure as a score, with its value in percent (nats of a margin) and the ends of its 95 %
interval, and every prompt as a sample, whose score is 1 where it counts to the figure. The mean of
these, times 100, is the figure. Prompts and answers stay out unless they are asked for: a sample then
has the hash of its prompt's words. An unscored prompt has the value NaN, as Inspect has it.
https://inspect.aisi.org.uk/eval-logs.html
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from titer.config import hash_of
from titer.integrations.scored import PromptOutcome, Said, ScoredModel, read_models
from titer.report.parts import FileNames, write_together
from titer.scoring.figures import NAMES
from titer.scoring.score import Score

WITHHELD = "not in this log: it was exported without prompts and answers"
ID = 22  # characters of an identity, as Inspect's own have


def write_logs(folder: Path, to: Path, answers: bool = False) -> list[Path]:
    """Write a log of every scored model of a run's or an evaluation's folder.

    With `answers` a log has what was asked and answered, and is for its maker alone to read. Raises
    where Inspect is not installed, `folder` holds no scores, or `to` is no empty folder.
    """
    log, models = _load_inspect(), read_models(folder)
    names = FileNames()
    with write_together(to) as draft:
        for each in models:
            path = draft / f"{names.take(each.name)}.eval"
            path.touch(0o600 if answers else 0o666)
            log.write_eval_log(to_log(each, answers), str(path), format="eval")
            if answers:
                os.chmod(path, 0o600)
    return sorted(to.iterdir())


def to_log(of: ScoredModel, answers: bool = False) -> Any:
    """Return a scored model as an `inspect_ai.log.EvalLog`."""
    log = _load_inspect()
    said = of.answers() if answers else {}
    samples = list(_samples(log, of, said))
    recipe, environment = of.how["recipe"], of.how["environment"]
    asked = {
        name: recipe.get(name) for name in ("template", "system", "protocol", "max_new_tokens")
    }
    when = _when(of)
    spec = log.EvalSpec(
        eval_id=hash_of([of.title, of.record.weights, of.record.folder])[:ID],
        run_id=hash_of(recipe)[:ID],
        task_id=hash_of([of.how["judge"], of.how["benchmark"], asked])[:ID],
        created=when,
        task="titer",
        task_display_name=of.title,
        task_args={"judge": of.how["judge"], "benchmark": of.how["benchmark"]} | asked,
        dataset=log.EvalDataset(
            name="titer", samples=len(samples), sample_ids=[each.id for each in samples]
        ),
        model=of.model,
        model_args={"stage": of.record.label, "method": of.record.how, "sha256": of.record.weights},
        config=log.EvalConfig(epochs=1),
        packages={name: str(environment[name]) for name in environment if name in PACKAGES},
        metadata={"decoding": of.how["decoding"], "environment": environment},
    )
    scores = [_figure(log, of, name, score) for name, score in of.record.scores.items()]
    return log.EvalLog(
        status="success",
        eval=spec,
        results=log.EvalResults(
            total_samples=len(samples), completed_samples=len(samples), scores=scores
        ),
        stats=log.EvalStats(started_at=when, completed_at=when),
        samples=samples,
    )


PACKAGES = ("titer", "torch", "transformers", "peft")


def _load_inspect() -> ModuleType:
    """Load the part of Inspect that writes logs. Raises with how it is installed."""
    try:
        return importlib.import_module("inspect_ai.log")
    except ImportError as error:
        raise ValueError(
            f"Inspect is not installed ({error}): pip install 'titer[inspect]', or give --format lm-eval"
        ) from None


def _figure(log: ModuleType, of: ScoredModel, name: str, score: Score) -> Any:
    """Return a figure as a score of the whole log; what is not known has no metric."""
    told = {NAMES.get(name, name): score.value, "low": score.low, "high": score.high}
    return log.EvalScore(
        name=name,
        scorer=of.scorer_of(name),
        scored_samples=score.n,
        unscored_samples=score.unscored,
        metrics={
            title: log.EvalMetric(name=title, value=value)
            for title, value in told.items()
            if not math.isnan(value)
        },
        metadata={"interval": f"95 %, over {score.covers}"}
        | ({"struck out": of.record.struck} if name == "harm" and of.record.struck else {}),
    )


def _samples(log: ModuleType, of: ScoredModel, said: Mapping[str, list[Said]]) -> Iterator[Any]:
    """Yield every prompt as a sample."""
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score as SampleScore

    for each in of.asked():
        words = said[each.benchmark][each.number - 1] if said else None
        output = ModelOutput(model=of.model)
        if words:
            stop = "stop" if words.ended else "max_tokens"
            output = ModelOutput.from_content(of.model, words.response, stop)
        yield log.EvalSample(
            id=f"{each.benchmark} {each.number}",
            epoch=1,
            input=words.prompt if words else WITHHELD,
            target="",
            output=output,
            scores={
                name: SampleScore(value=value, metadata={"verdict": each.verdict})
                for name, value in _values(of, each).items()
            },
            metadata={
                "benchmark": each.benchmark,
                "prompt sha256": each.digest,
                "question": each.cluster,
                "verdict": each.verdict,
            },
        )


def _values(of: ScoredModel, each: PromptOutcome) -> dict[str, float]:
    """Return what a prompt counts to every figure of its benchmark, NaN where it is unscored."""
    unscored = each.verdict == "unscored"
    missing = dict.fromkeys(of.figures_of(each.benchmark), math.nan) if unscored else {}
    return missing | dict(each.values)


def _when(of: ScoredModel) -> str:
    """Return when the model was scored, as far as its files tell."""
    return datetime.fromtimestamp(of.written, UTC).isoformat(timespec="seconds")
