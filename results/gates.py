"""Gates between an aligned model and what was made of it: the table, from bundles with outcomes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from results import bundles
from results.names import display_name
from titer.findings.gate import Terms, choose_margins, decide
from titer.findings.gate_record import GateRecord
from titer.findings.measured import Measured
from titer.findings.records import Record, check

WORLD = "data.world="
SAID = {"pass": "passes", "fail": "fails by", "undecided": "undecided"}
NONE = "-"  # not computed
ALIKE = {"decoding": {}}  # how the stages of a bundle were asked


def table(claim: str) -> list[list[str]]:
    """The verdict on every candidate in every world, at the margins that hold unless others are given."""
    found: dict[str, dict[str, GateRecord]] = {}
    for candidate, world, record in _gates(claim):
        found.setdefault(candidate, {})[world] = record
    worlds = sorted({world for by_world in found.values() for world in by_world})
    return [["candidate", *(f"world {world}" for world in worlds)]] + [
        [name, *(_say(by_world.get(world)) for world in worlds)] for name, by_world in found.items()
    ]


def _gates(claim: str) -> Iterator[tuple[str, str, GateRecord]]:
    """Decide on the last stage of every pipeline of joined claims against the stage that aligned it."""
    for name in claim.split("+"):
        for cell in bundles.read(name)["cells"]:
            world = next(text for text in cell["settings"] if text.startswith(WORLD))
            others = [text for text in cell["settings"] if text != world]
            for pipeline, document in cell["pipelines"].items():
                stages = document["stages"]
                base, candidate = (
                    _measured(stage, name)
                    for stage in (next(s for s in stages if s["kind"] == "align"), stages[-1])
                )
                terms = Terms(choose_margins(base, candidate))
                label = ", ".join([display_name(pipeline), *others])
                yield label, world.removeprefix(WORLD), decide(base, candidate, terms)


def _measured(stage: Mapping[str, Any], place: str) -> Measured:
    """A stage of a bundle, whose cells ask and judge all stages alike."""
    record = check(Record, stage, place)
    return Measured(place, record, ALIKE, dict.fromkeys(record.outcomes or {}, place), {})


def _say(gate: GateRecord | None) -> str:
    """The verdict, and by what it fails."""
    if gate is None:
        return NONE
    failed: Sequence[str] = [
        f"{each.name} ({each.worse:+.0f})" for each in gate.findings if each.word == "fail"
    ]
    return " ".join([SAID[gate.verdict], *([", ".join(failed)] if failed else [])])
