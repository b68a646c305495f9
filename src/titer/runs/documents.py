"""What a run found, as JSON: one document a pipeline, with what it was made from and the red flags
of the whole run.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from titer.findings import flags, rules
from titer.findings.records import SCHEMA, PipelineRecord, Record, check, plain
from titer.registry import describe
from titer.runs.execute import Run
from titer.runs.store import write
from titer.training.ranks import Ranks
from titer.training.train import accelerator_for
from titer.version import __version__
from titer.weights import folders

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


def environment() -> dict[str, Any]:
    """Name versions, machine and ranks, as far as they may change a figure."""
    ranks = Ranks.of(accelerator_for())
    return {
        "titer": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "ranks": ranks.count,
        "sharded": ranks.sharded,
        "cpu": cpu_make(),
    }


def cpu_make() -> str:
    """Name the make of the CPU, on which the last bits of sums depend."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(found, platform.processor() or platform.machine())


def write_documents(run: Run, found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Write `<pipeline>.json` for every pipeline; return the JSON by pipeline."""
    plan, struck = run.plan, rules.find_broken(found)
    shared = plan.provenance()
    documents: dict[str, Any] = {}
    for name, stages in found.items():
        document = {
            "schema": SCHEMA,
            "pipeline": name,
            "recipe": describe(plan.recipe)
            | {"pipelines": {name: describe(plan.recipe.pipelines[name])}},
            "adapter": "double",  # the alignment adapter is merged; user data train a fresh one
            "model": folders.identify(plan.start),
            "stages": [
                brief(stage) | {"struck out": struck.get(stage.folder, [])} for stage in stages
            ],
            "environment": environment() | {"engine": plan.engine},
            **shared,
            "rows": plan.digests_of(plan.recipe.attack_of(plan.recipe.pipelines[name])),
            "overlaps": plan.overlaps,
            "run": plan.identity,
        }
        documents[name] = plain(document)
    raised = flags.as_documents(
        flags.raise_flags(documents)
    )  # of the whole run: what marks its control marks all of it
    for name, document in documents.items():
        document["flags"] = raised
        check(PipelineRecord, document, name)
        write(run.folder / f"{name}.json", document)
    return documents


def brief(record: Record) -> dict[str, Any]:
    """Return a record as it stands among others: its own file has its outcomes in full."""
    packed = {name: of.packed for name, of in (record.outcomes or {}).items()}
    return record.fields | ({"outcomes": packed} if packed else {})
