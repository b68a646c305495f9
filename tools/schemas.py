"""Write the JSON schemas of docs/ from the typed records: `python tools/schemas.py`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from titer.findings import records
from titer.findings.assay_record import AssayRecord
from titer.findings.attack_search import AttackSearchRecord
from titer.findings.card import Card
from titer.findings.gate_record import GateRecord
from titer.findings.ladder import LadderRecord
from titer.findings.records import Claim, PipelineRecord, Record, SweepRecord

DOCS = Path(__file__).parent.parent / "docs"
RECORDS: dict[str, tuple[type[BaseModel], ...]] = {
    "record": (Record, PipelineRecord, SweepRecord, Claim),
    "gate": (GateRecord,),
    "ladder": (LadderRecord,),
    "attack_search": (AttackSearchRecord,),
    "assay": (AssayRecord,),
    "card": (Card,),
}


def text_of(name: str) -> str:
    """The text of docs/NAME.schema.json."""
    documents = {of.__name__: of.model_json_schema() for of in RECORDS[name]}
    return json.dumps({"schema": records.SCHEMA, "documents": documents}, indent=1) + "\n"


if __name__ == "__main__":
    for name in RECORDS:
        (DOCS / f"{name}.schema.json").write_text(text_of(name), encoding="utf-8")
