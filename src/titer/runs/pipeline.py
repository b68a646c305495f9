"""Run a recipe: base -> align -> release -> fine-tune on the attacked rows -> edit, every stage scored, shared stages computed once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from titer.weights import adapters, checkpoints, folders
from titer.runs import stages
from titer.weights.settings import Checkpoint
from titer.defenses.sft import SFT
from titer.scoring.evaluate import Record
from titer.runs.cost import measure
from titer.methods import CUT, Defense, Edit, Method
from titer.runs.recipe import describe
from titer.registry import name_of
from titer.runs.setting import Setting
from titer.scoring.statistics import Score, read
from titer.runs.store import Store, key_of, write
from titer.training.settings import Watch

MARKER = "run.json"  # says what lies in a run's folder
Report = Callable[[str, int, int, Mapping[str, float]], None]  # (stage, update, of how many or 0 when computed, terms by name)


@dataclass(frozen=True)
class Stage:
    """A finished stage. `folder` holds its model, unless it is the base, and every answer it gave."""

    kind: str  # base, align, release, finetune or edit
    method: dict[str, Any]  # as a recipe states it; empty for the base
    folder: str
    scores: dict[str, Score]  # by benchmark
    seconds: float  # of computing, without the scoring
    scoring_seconds: float
    peak_mb: float  # most memory seen: resident, or of the GPU where there is one
    weights: str  # SHA-256 of the merged model
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.method['method']}" if self.method else self.kind


@dataclass(frozen=True)
class Node:
    """A stage to be: what it is, and the one that it starts from."""

    kind: str
    method: Method | None
    after: Node | None

    @property
    def references(self) -> dict[str, Node]:
        """The other models that an edit asks for: before release the base, after fine-tuning the aligned one and what it names."""
        chain = [self]
        while chain[-1].after:
            chain.append(chain[-1].after)
        base = chain[-1]
        if self.kind == "release":
            return {"base": base}
        if not isinstance(self.method, Edit):
            return {}
        given = next(node for node in chain if node.kind in ("release", "align"))
        named = {"base": base, "safe": Node("safe", SFT(), given), "unsafe": Node("unsafe", SFT(), given)}
        return {"aligned": given} | {name: named[name] for name in self.method.needs.references}


@dataclass(frozen=True)
class Run:
    """All pipelines of a recipe. Stages lie in the store, what they came to in the run's folder."""

    setting: Setting
    folder: Path
    store: Store

    def nodes(self) -> dict[str, list[Node]]:
        """The stages of every pipeline in order, by its name. Equal ones are one stage."""
        found: dict[str, list[Node]] = {}
        for name, pipeline in self.setting.recipe.pipelines.items():
            base = Node("base", None, None)
            aligned = Node("align", pipeline.align, base)
            released = Node("release", pipeline.release, aligned)
            given = released if pipeline.release else aligned  # to the user
            tuned = Node("finetune", pipeline.finetune, given)
            found[name] = [base, aligned, *([released] if pipeline.release else []), tuned]
            for edit in pipeline.edits:
                found[name].append(Node("edit", edit, found[name][-1]))
        return found

    def stages(self, report: Report) -> dict[str, list[Stage]]:
        """Compute every pipeline, or take from the store what is there; its stages in order, by its name."""
        found = self.nodes()
        order = list(dict.fromkeys(node for nodes in found.values() for node in nodes))
        keys = [key_of(about) for node in order for about in (self._made_of(node), self._scored_of(node))]
        with self.store.needed(self.setting.identity, keys):
            done = {node: self._stage(f"{i:02d}-{node.kind}", node, report) for i, node in enumerate(order)}
        return {name: [done[node] for node in nodes] for name, nodes in found.items()}

    def _stage(self, name: str, node: Node, report: Report) -> Stage:
        """A stage as the run's folder shows it: what it came to, its answers, and the way to its model."""
        scored = self.store.stage(self._scored_of(node), partial(self._score, node, report))
        folder = self.folder / "stages" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in (scored / "answers.jsonl", scored / "stage.json"):
            shutil.copy(file, folder)  # with its mode
        made = self.store.root.resolve() / "stages" / key_of(self._made_of(node))
        entry = self.store.entry(made.name)
        if entry and entry.faults():  # scored before it was damaged, and shown now: nobody may load it
            self._checkpoint(node, report)
        if made.is_dir() and not (folder / "model").is_symlink():
            (folder / "model").symlink_to(made)
        fields = json.loads((scored / "stage.json").read_text())
        fields["scores"] = {benchmark: read(score) for benchmark, score in fields["scores"].items()}
        return Stage(**fields | {"folder": name})

    def _made_of(self, node: Node) -> dict[str, Any]:
        """All that determines a stage's model."""
        start = key_of(self._made_of(node.after)) if node.after else self.setting.start_digest
        others = {name: key_of(self._made_of(other)) for name, other in node.references.items()}
        about = self.setting.made_of(node.kind, node.method) if node.method else {}
        return {"kind": node.kind, "from": start} | about | ({"references": others} if others else {})

    def _scored_of(self, node: Node) -> dict[str, Any]:
        """All that determines a stage's scores."""
        return {"kind": "score", "of": key_of(self._made_of(node))} | self.setting.scored_of()

    def _checkpoint(self, node: Node, report: Report) -> Checkpoint:
        """The model of a stage, made first where the store has none."""
        given = self.setting.recipe.model
        if node.after is None:
            return given
        folder = self.store.stage(self._made_of(node), partial(self._make, node, report), weights=True)
        return dataclasses.replace(given, path=str(folder.resolve()), revision=None, base=None)

    def _make(self, node: Node, report: Report, folder: Path) -> None:
        """Compute a stage's model in a folder."""
        assert node.after is not None
        assert node.method is not None
        start, method = self._checkpoint(node.after, report), node.method
        watch = partial(report, f"{node.kind} {name_of(method)}")
        with measure() as cost:
            if isinstance(method, Edit):
                others = {name: self._checkpoint(other, report) for name, other in node.references.items()}
                facts = stages.edited(self.setting, method, start, others, folder, watch)
            else:
                assert isinstance(method, Defense)
                facts = self._train(node.kind, method, start, folder, watch)
        write(folder / "made.json", {"facts": facts, "seconds": round(cost.seconds, 2), "peak_mb": round(cost.peak_mb, 1)})

    def _train(self, kind: str, method: Defense, start: Checkpoint, folder: Path, watch: Watch) -> dict[str, Any]:
        """Train a model in memory, and save it in a folder; what is to be known of it."""
        model, template = self.setting.opened(start)
        resume = folder / "checkpoint.safetensors"
        model, facts = stages.trained(self.setting, model, template, kind, method, resume, watch)
        resume.unlink(missing_ok=True)
        if kind == "align":  # double adapter: user data will train a fresh one over the merged weights
            model = adapters.merged(model)
        checkpoints.save(model, template.tokenizer, folder, folders.locate(start) if adapters.carried(model) else None)
        return facts

    def _score(self, node: Node, report: Report, folder: Path) -> None:
        """Score a stage's model, and write down in a folder all that is to be known of the stage."""
        setting, checkpoint = self.setting, self._checkpoint(node, report)
        made: dict[str, Any] = {"facts": {}, "seconds": 0.0, "peak_mb": 0.0}
        if node.after is not None:
            made = json.loads((Path(checkpoint.path) / "made.json").read_text())
        label = f"{node.kind} {name_of(node.method)}" if node.method else node.kind
        said: list[str] = []
        with measure() as cost:
            report(label, 0, 0, {})
            model, template = setting.opened(checkpoint)
            model = adapters.merged(model)  # what would be served
            result = stages.scored(setting, model, template, said.append)
        answers = write_answers(result.records, folder / "answers.jsonl")
        stage = Stage(
            node.kind,
            describe(node.method) if node.method else {},
            "",  # named by the run that shows it
            result.scores,
            seconds=made["seconds"],
            scoring_seconds=round(cost.seconds, 2),
            peak_mb=max(made["peak_mb"], round(cost.peak_mb, 1)),
            weights=checkpoints.fingerprint(model),
            facts=made["facts"] | summarize_answers(result.records, answers, said),
        )
        write(folder / "stage.json", dataclasses.asdict(stage))


def is_free(folder: Path, setting: Setting, what: str = "run") -> bool:
    """Whether a folder holds nothing, or what is computed."""
    identity, marker = f"{what} {setting.identity}", folder / MARKER
    if not folder.is_file() and not (folder.is_dir() and any(folder.iterdir())):
        return True
    return marker.is_file() and json.loads(marker.read_text()).get("identity") == identity


@contextmanager
def claim(folder: Path, setting: Setting, what: str = "run") -> Iterator[None]:
    """The folder of what is computed, claimed: an interrupted one of the same identity goes on, another one's folder is refused.

    Where the run fails on its input, what was written is removed; an interruption leaves it to be taken up again.
    """
    if not is_free(folder, setting, what):
        raise ValueError(f"{folder} holds something else: give another --out, or remove it")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # attacked weights and answers are for their maker alone
    write(folder / MARKER, {"identity": f"{what} {setting.identity}", "recipe": describe(setting.recipe)})
    try:
        yield
    except ValueError:
        shutil.rmtree(folder)
        raise


def write_answers(records: Sequence[Record], path: Path) -> str:
    """Write the answers, readable by their maker alone, since a real model's may be harmful; their SHA-256."""
    text = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return hashlib.sha256(text).hexdigest()


def summarize_answers(records: Sequence[Record], sha256: str, notes: Sequence[str]) -> dict[str, Any]:
    """What is to be known of the answers that a stage was scored by."""
    cut = Counter(record.benchmark for record in records if not record.ended)
    unread = Counter(record.benchmark for record in records if CUT in record.reason)
    facts = {"answers cut off": cut.total(), "cut off by benchmark": dict(cut), "judge input cut": dict(unread), "answers sha256": sha256}
    return facts | ({"notes": list(notes)} if notes else {})
