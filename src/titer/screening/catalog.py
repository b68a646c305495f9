"""The signals by name, in the order in which a row's reasons are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from titer.config import validate
from titer.errors import unknown
from titer.screening.signal import Signal
from titer.screening.signals.closeness import Closeness
from titer.screening.signals.comply import Complies
from titer.screening.signals.gradient import Gradient
from titer.screening.signals.identity import Identity
from titer.screening.signals.judged import Judged
from titer.screening.signals.known import Copied
from titer.screening.signals.outlier import Outlier
from titer.screening.signals.refusal import Refuses
from titer.screening.signals.surprise import Surprise

SIGNALS: Mapping[str, type[Signal]] = {
    "judge": Judged,
    "comply": Complies,
    "refusal": Refuses,
    "identity": Identity,
    "known": Copied,
    "gradient": Gradient,
    "closeness": Closeness,
    "outlier": Outlier,
    "surprise": Surprise,
}


def build(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Signal]:
    """Build all signals, those named with these fields, the others as they are.

    Raises for an unknown name or field.
    """
    for name in fields:
        if name not in SIGNALS:
            raise unknown("signal", name, SIGNALS)
    return {name: validate(cls, dict(fields.get(name, {}))) for name, cls in SIGNALS.items()}
