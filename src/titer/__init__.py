"""titer measures how well a model's safety alignment survives fine-tuning, and makes it survive.

The functions here are the commands, for Python (`titer.api`): run, align, release, finetune, edit,
attack, evaluate, calibrate, load, list_methods. Importing titer imports none of what they need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from titer.version import __version__

__all__ = [
    "LadderResult",
    "Record",
    "Result",
    "Results",
    "__version__",
    "align",
    "attack",
    "calibrate",
    "edit",
    "evaluate",
    "finetune",
    "list_methods",
    "load",
    "plan",
    "release",
    "run",
]

if TYPE_CHECKING:
    from titer.api import (
        LadderResult,
        Result,
        Results,
        align,
        attack,
        calibrate,
        edit,
        evaluate,
        finetune,
        list_methods,
        load,
        plan,
        release,
        run,
    )
    from titer.findings.records import Record


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'titer' has no attribute {name!r}")
    return getattr(importlib.import_module("titer.api"), name)


def __dir__() -> list[str]:
    return __all__
