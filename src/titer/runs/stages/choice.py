"""The choice of the rows to fine-tune on, by the model that is attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.methods import Selection
from titer.registry import describe
from titer.runs.keys import code_key


@dataclass(frozen=True)
class Choice:
    """An attack that chooses, and what it compares the rows with."""

    attack: Selection
    examples: Sequence[Row]

    @property
    def about(self) -> list[Any]:
        return [describe(self.attack), digest(self.examples), code_key(type(self), self.attack)]

    def choose(
        self, model: PreTrainedModel, template: Template, rows: Sequence[Row]
    ) -> tuple[list[Row], dict[str, Any]]:
        """Return the rows with the largest scores, in their order, and what is to be known of them.

        Of rows with equal scores the first are taken. Raises where a score is not finite.
        """
        scores = self.attack.scores(
            model,
            template.encode_all(rows, "rows"),
            template.encode_all(self.examples, "examples"),
        )
        if not scores.isfinite().all():
            raise ValueError(
                f"{type(self.attack).__name__}: the scores of {int((~scores.isfinite()).sum())} of "
                f"{len(rows)} rows are not finite, so none can be chosen: look at the model"
            )
        order = torch.argsort(scores, descending=True, stable=True)[: self.attack.count]
        chosen = [rows[i] for i in sorted(order.tolist())]
        return chosen, {
            "rows to choose from": len(rows),
            "rows chosen": digest(chosen),
            "mean score of the rows chosen": float(scores[order].mean()),
            "mean score of all": float(scores.mean()),
        }
