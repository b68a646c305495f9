"""titer measures how well a model's safety alignment survives fine-tuning, and makes it survive.

The functions here are the commands, for Python (`titer.api`): run, align, release, finetune, edit,
attack, search_attack, assay, evaluate, gate, screen, calibrate, load, list_methods, choose. Importing
titer imports none of what they need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from titer.version import __version__

__all__ = [
    "AssayResult",
    "AttackSearchResult",
    "GateResult",
    "LadderResult",
    "Record",
    "Result",
    "Results",
    "ScreenResult",
    "__version__",
    "align",
    "assay",
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
    "release",
    "run",
    "screen",
    "search_attack",
]

if TYPE_CHECKING:
    from titer.api import (
        AssayResult,
        AttackSearchResult,
        GateResult,
        LadderResult,
        Result,
        Results,
        ScreenResult,
        align,
        assay,
        attack,
        calibrate,
        choose,
        edit,
        evaluate,
        finetune,
        gate,
        list_methods,
        load,
        plan,
        release,
        run,
        screen,
        search_attack,
    )
    from titer.findings.records import Record


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'titer' has no attribute {name!r}")
    return getattr(importlib.import_module("titer.api"), name)


def __dir__() -> list[str]:
    return __all__
