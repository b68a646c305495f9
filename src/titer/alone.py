"""One stage by itself, from a checkpoint to a checkpoint: what `titer align | finetune | edit | evaluate` do."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from titer import adapters, models
from titer.measure import measured
from titer.methods import Defense, Edit, Method
from titer.models import Checkpoint
from titer.pipeline import Report, keep, write
from titer.recipe import describe
from titer.registry import name_of
from titer.results import environment, plain
from titer.stages import Setting

USED = ("model", "data", "benchmark", "template", "system", "seed", "max_length", "gradient_checkpointing", "threads")  # by every stage


def stage(setting: Setting, kind: str, method: Method | None, folder: Path, whole: bool, report: Report) -> dict[str, Any]:
    """Compute a stage in its folder, or take up what an interrupted one left there; its document, written as `stage.json`.

    The checkpoint holds the adapter, or with `whole` the merged model. An evaluation leaves scores and answers only.
    """
    finished = folder / "stage.json"
    if finished.is_file():
        return dict(json.loads(finished.read_text()))
    label = f"{kind} {name_of(method)}" if method else kind
    said: list[str] = []
    found: dict[str, Any] = {}
    with measured() as cost:
        model, template = setting.opened(setting.recipe.model)
        base = setting.start.base or setting.start
        if isinstance(method, Defense):
            if setting.start.base is not None:  # the model after a stage before this one: what the fresh adapter lies over
                model = adapters.merged(model)
                models.save(model, template.tokenizer, folder / "base")
                base = models.located(Checkpoint(str(folder / "base")))
            resume = folder / "checkpoint.safetensors"
            model, found["facts"] = setting.trained(model, template, kind, method, resume, partial(report, label))
        elif isinstance(method, Edit):
            found["facts"] = setting.edited(model, template, method)
        else:
            model = adapters.merged(model)
            result = setting.scored(model, template, said.append)
            found["scores"] = {name: dataclasses.asdict(score) for name, score in result.scores.items()}
            found["judge"] = describe(setting.judge) | dict(setting.judge.provenance)
            found["facts"] = {"answers cut off": sum(not record.ended for record in result.records)} | ({"notes": said} if said else {})
            keep(result.records, folder / "answers.jsonl")
        report(label, 0, 0, {})
    if method is not None:
        model = adapters.merged(model) if whole else model
        models.save(model, template.tokenizer, folder, base if adapters.carried(model) else None)
    recipe = describe(setting.recipe)
    document: dict[str, Any] = plain(
        {
            "stage": kind,
            "method": describe(method) if method else {},
            **found,
            "seconds": round(cost.seconds, 2),
            "peak_mb": round(cost.peak_mb, 1),
            "weights": models.fingerprint(adapters.merged(model)),
            "recipe": {name: recipe[name] for name in (*USED, *((kind,) if kind in recipe else ()))}
            | ({"attack": recipe["attack"]} if kind == "finetune" else {}),
            "model": {"name": setting.start.name, "revision": setting.start.revision, "sha256": models.digest(setting.start)},
            "data": setting.roles.digests(),
            "sources": setting.roles.sources,
            "environment": environment(),
        }
    )
    write(finished, document)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return document
