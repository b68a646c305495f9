"""titer from Python, as a notebook would use it: the commands as functions, with models and rows as
paths or in memory.

    aligned = titer.align("lab", data={"alignment": rows, "harmful": pool})
    tuned = titer.finetune(aligned, data={"task": task, "harmful": pool}, settings=["attack.p=0.1"])
    edited = titer.edit(tuned, "antidote", data={"harmful": pool})
    titer.evaluate(edited, data={"harmful": pool, "test": test}).to_pandas()

A model is a path, the name of a repository of the hub, `lab`, a result of one of these functions, a
`PreTrainedModel` with its tokenizer as a pair, or such a model whose `tokenizer` is given beside
it. Rows are a path, a hub name, a `datasets.Dataset`, a data frame, or a list of dicts. What is
handed over in memory is written under `given` in the folder of the result. Without `out` that
folder is a temporary one, which lasts as long as the result.
"""

from __future__ import annotations

from titer.api.attacks import assay, assay_setup, attack, search_attack
from titer.api.choices import Methods, choose, list_methods
from titer.api.decisions import calibrate, gate, screen
from titer.api.results import (
    AssayResult,
    AttackSearchResult,
    GateResult,
    LadderResult,
    Result,
    Results,
    ScreenResult,
    load,
)
from titer.api.runs import plan, preview, run, run_recipe
from titer.api.stages import align, edit, evaluate, finetune, release, single
from titer.findings.records import Record

__all__ = [
    "AssayResult",
    "AttackSearchResult",
    "GateResult",
    "LadderResult",
    "Methods",
    "Record",
    "Result",
    "Results",
    "ScreenResult",
    "align",
    "assay",
    "assay_setup",
    "attack",
    "calibrate",
    "choose",
    "edit",
    "evaluate",
    "finetune",
    "gate",
    "list_methods",
    "load",
    "plan",
    "preview",
    "release",
    "run",
    "run_recipe",
    "screen",
    "search_attack",
    "single",
]
