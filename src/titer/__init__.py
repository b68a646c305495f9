"""titer measures how well a language model's safety alignment survives fine-tuning, and makes it survive.

The functions here are the commands, for Python (`titer.api`): run, align, release, finetune, edit, evaluate, load,
list_methods. Importing titer imports none of what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Record",
    "Result",
    "Results",
    "align",
    "edit",
    "evaluate",
    "finetune",
    "list_methods",
    "load",
    "release",
    "run",
]

if TYPE_CHECKING:
    from titer.api import (
        Result,
        Results,
        align,
        edit,
        evaluate,
        finetune,
        list_methods,
        load,
        release,
        run,
    )
    from titer.findings.records import Record


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'titer' has no attribute {name!r}")
    from titer import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
