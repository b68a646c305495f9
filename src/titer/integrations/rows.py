"""The defender's rows beside those of a trainer, in the format of its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, Trainer

from titer.config import validate
from titer.data import schemas
from titer.data.batches import Encoded
from titer.data.files import in_memory
from titer.data.rows import Row
from titer.data.sources import Source, SourceReader
from titer.data.template import Template
from titer.data.texts import Style
from titer.errors import unknown
from titer.methods import Defense, Harmful, HeldOut, Kind, Pairs, Refusals
from titer.registry import name_of
from titer.weights.checkpoints import learned_positions

said = logging.getLogger(__name__)

PAIRS = "pairs"  # harmful answers to prompts of the train dataset
READ_AS = {HeldOut: Harmful, Pairs: Refusals}  # what files have, of the kinds that are made of two


def encode_beside(
    trainer: Trainer, defense: Defense, given: Mapping[str, Any], style: Style
) -> dict[str, list[Encoded]]:
    """Return the rows that a defense draws beside the trainer's, by stream, as tokens.

    Under the name `pairs` are the other answers to the trainer's own prompts, where it wants them.
    Raises where rows are missing, are none that it asks for, or cannot be read or encoded.
    """
    streams = defense.needs.streams
    wanted = {name: kind for name, kind in streams.items() if name != "rows"}
    if streams["rows"] is Pairs:
        wanted[PAIRS] = Harmful
    for name in given:
        if name not in wanted:
            raise unknown(
                f"stream of rows beside the trainer's for {name_of(defense)}", name, wanted
            )
    for name, kind in wanted.items():
        if name not in given:
            raise ValueError(
                f"{name_of(defense)} draws {kind.value} rows beside the trainer's: give "
                f"rows={{{name!r}: ...}}"
            )
    if not wanted:
        return {}
    template = _template(trainer, style)
    encoded = {
        name: template.encode_all(_read(name, given[name], kind), f"rows[{name!r}]")
        for name, kind in wanted.items()
    }
    for name, rows in encoded.items():
        cut = sum(row.cut > 0 for row in rows)
        if cut:
            said.warning(
                "rows[%r]: the prompts of %d of %d rows are cut to max_length=%d",
                name, cut, len(rows), template.max_length,
            )  # fmt: skip
    return encoded


def _read(name: str, given: Any, kind: Kind) -> list[Row]:
    """Read rows from a file, a name of the hub, or memory, by the columns of any known layout."""
    if isinstance(given, list) and given and all(isinstance(row, Row) for row in given):
        return given
    kind = READ_AS.get(kind, kind)
    if isinstance(given, str | Path):
        given = {"path": str(given)}
    if isinstance(given, Mapping):
        return SourceReader().rows(name, cast(Source, validate(Source, dict(given))), kind)
    what = f"rows[{name!r}]"
    records = in_memory(what, given)
    rows = schemas.rows(records, kind, {}).rows if records else []
    if not rows:
        raise ValueError(f"{what}: none of its {len(records)} rows is of the kind {kind.value!r}")
    return rows


def _template(trainer: Trainer, style: Style) -> Template:
    """Make the template of the trainer's tokenizer and of its lengths."""
    words = trainer.processing_class
    if not isinstance(words, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class is a {type(words).__name__}: the defender's rows are encoded by the "
            "trainer's tokenizer, so give processing_class=tokenizer"
        )
    if words.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-sequence token, so an answer could not end: set its eos_token"
        )
    model: Any = trainer.model
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    most = getattr(trainer.args, "max_length", None) or own or words.model_max_length
    return Template(words, most, style, positions=learned_positions(model))
