"""Where a checkpoint of titer's comes from, as far as its folder, its run or the store tell: every stage
from the first model on. It decides what may leave this machine.

Attacked weights stay: no checkpoint that an attack was ever part of is let by, repaired or not. What
cannot be told counts as attacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from titer import paths, registry
from titer.findings.records import Claim, Record, Start, load_document, parse_document
from titer.findings.rules import ATTACK
from titer.methods import StreamEdit
from titer.report import read
from titer.runs.store import ATTACKED, open_store
from titer.weights import adapters, checkpoints, folders
from titer.weights.settings import Checkpoint

UNATTACKED = ("benign", "harmful_mix")  # attacks that may send none of an attacker's rows
RULE = "attacked weights are never pushed, repaired or not"


@dataclass(frozen=True)
class Provenance:
    """A checkpoint, and the stages that made it, the oldest first."""

    files: folders.Files
    records: list[Record]
    started: Start  # the model that the first stage worked on
    # what tells more of the last stage: its own record, or the document of a pipeline that has it
    told: Mapping[str, Any]

    @property
    def is_adapter(self) -> bool:
        return self.files.base is not None

    @property
    def digest(self) -> str:
        """The SHA-256 of its files and of those of a base under it."""
        return folders.digest(self.files)


def find_provenance(place: str) -> Provenance:
    """Find where a checkpoint comes from.

    Raises where titer did not make it, where its weights are not those that titer wrote, where it is
    not known what it was made from, and where an attack was part of that.
    """
    folder = paths.expand(place)
    if not folder.is_dir():
        raise ValueError(f"{place}: there is no such folder: give a checkpoint that titer wrote")
    stage = folder.parent if folder.name == paths.MODEL else folder
    if (stage / paths.RECORD).is_file() and (stage / paths.MODEL).exists():
        return _of_run(place, stage)
    if not (folder / paths.RECORD).is_file():
        known = (folder / paths.MANIFEST).is_file()
        mend = "name it as its run does, RUN/stages/NN-kind" if known else "push what titer made"
        raise ValueError(
            f"{place}: holds no record ({paths.RECORD}), so nothing tells what its weights were "
            f"trained on: {mend}"
        )
    records = _made_by_commands(place, folder.resolve(), frozenset())
    last = records[-1]
    files = folders.locate(Checkpoint(str(folder)))
    _check_weights(place, files, last)
    started = records[0].model
    assert started, "each was read with its model"
    return Provenance(files, records, started, last.fields)


def _of_run(place: str, stage: Path) -> Provenance:
    """Find where the model of a run's stage comes from: the stages before it in its pipelines."""
    run, folder = stage.parent.parent, (stage / paths.MODEL).resolve()
    if not (run / paths.RUN).is_file():
        raise ValueError(
            f"{place}: {run} holds no {paths.RUN}, so nothing tells what it was made of"
        )
    recipe = load_document(run / paths.RUN, Claim)["recipe"]
    chains: list[tuple[list[Record], Mapping[str, Any]]] = []
    for document in read(run).values():
        records = [Record.model_validate(fields) for fields in document["stages"]]
        names = [record.folder for record in records]
        if stage.name in names:
            chains.append((records[: names.index(stage.name) + 1], document))
    if not chains:
        raise ValueError(f"{place}: no pipeline of {run} has this stage: finish the run first")
    for records, _ in chains:
        for record in records:
            _check_stage(place, record, record.fact(ATTACK) or recipe.get("attack") or {})
    store = open_store(folder.parent.parent)
    entry = store.entry(folder.name)
    if entry is None or entry.faults() or entry.dropped:
        raise ValueError(f"{place}: its files are not those that titer wrote: start the run again")
    model = recipe.get("model") or {}
    files = folders.locate(_checkpoint_of(recipe))
    started = Start.model_validate(folders.identify(files) | {"sha256": folders.digest(files)})
    _list_before(place, started, model, frozenset())
    records, document = chains[0]
    records = [record.model_copy(update={"recipe": dict(recipe)}) for record in records]
    made = folders.locate(Checkpoint(str(folder)))
    return Provenance(made, records[1:], started, document)


def _made_by_commands(place: str, folder: Path, seen: frozenset[Path]) -> list[Record]:
    """Read the records of the commands that made a checkpoint, the oldest first, all of them allowed."""
    record = parse_document(folder / paths.RECORD, Record)
    if record.model is None or not record.model.sha256 or folder in seen:
        raise ValueError(
            f"{place}: {folder / paths.RECORD} does not tell what it was made from: {RULE}"
        )
    _check_stage(place, record, record.recipe.get("attack") or {})
    seen |= {folder}
    more = record.model_extra or {}
    for other in (more.get("reference models") or {}).values():
        _list_before(place, Start.model_validate(other), {}, seen)
    return [*_list_before(place, record.model, record.recipe.get("model") or {}, seen), record]


def _list_before(
    place: str, start: Start, model: Mapping[str, Any], seen: frozenset[Path]
) -> list[Record]:
    """Read what made the model that a stage worked on; nothing of one that is not titer's."""
    folder = Path(start.name)
    if start.revision or not folder.is_absolute():  # of the hub, of a package, or the lab's
        return []
    wanted = Checkpoint(start.name, base=model.get("base"))
    try:
        same = folders.digest(folders.locate(wanted)) == start.sha256
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"{place}: it was made from {start.name}, which is gone or has changed, so nothing tells "
            f"what that was trained on: {RULE}"
        )
    if (folder / paths.RECORD).is_file():
        return _made_by_commands(place, folder.resolve(), seen)
    if (folder / paths.MANIFEST).is_file():
        entry = open_store(folder.parent.parent).entry(folder.name)
        attacked = entry is not None and entry.kind in ATTACKED
        why = (
            f"has a stage {entry.kind!r}" if entry and attacked else "is not recorded further back"
        )
        raise ValueError(f"{place}: what it was made from, {start.name}, {why}: {RULE}")
    return []


def _check_stage(place: str, record: Record, attack: Mapping[str, Any]) -> None:
    """Raise where a stage is an attack, or may be one."""
    for reason in _find_attack(record, attack):
        raise ValueError(f"{place}: {reason}: {RULE}")


def _find_attack(record: Record, attack: Mapping[str, Any]) -> Iterator[str]:
    """Yield what makes a stage an attack."""
    if record.kind == "finetune":
        method = str(attack.get("method", "unknown"))
        counts = [record.fact(name) for name in ("harmful rows", "attack rows")]
        if record.method == "" or None in counts or method not in UNATTACKED:
            yield f"it was fine-tuned under the attack {method!r}"
        elif any(counts) or record.prompts.get("attack"):
            yield f"it was fine-tuned on {max(map(int, counts))} rows of an attacker's"
    elif record.kind in ("release", "edit"):
        edit = registry.build("edits", record.how)
        if isinstance(edit, StreamEdit):
            yield f"the edit {record.method!r} is an attack"
        elif "unsafe" in edit.needs.references:
            yield f"the edit {record.method!r} takes from a model that was trained on harmful rows"
    elif record.kind not in ("base", "align"):
        yield f"it has a stage {record.kind!r}"


def _check_weights(place: str, files: folders.Files, record: Record) -> None:
    """Raise where the weights are not those of their record: another model may lie there now."""
    written = (record.model_extra or {}).get("sha256")
    if written:
        same = folders.digest(files) == written
    else:
        model, _ = checkpoints.load(
            replace(_checkpoint_of(record.recipe), path=str(files.folder), revision=None, base=None)
        )
        same = checkpoints.fingerprint(adapters.merge_adapter(model)) == record.weights
    if not same:
        raise ValueError(
            f"{place}: its weights are not those that its record tells of: compute it again"
        )


def _checkpoint_of(recipe: Mapping[str, Any]) -> Checkpoint:
    model = recipe.get("model") or {}
    return Checkpoint(**model) if isinstance(model, Mapping) else Checkpoint(str(model))
