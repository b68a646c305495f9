"""The page of a run: its parts in the order of the page. The template is `page.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from titer import paths
from titer.findings import flags, rules
from titer.findings.answer import answer
from titer.findings.captions import caption, lab_of
from titer.findings.dose import curves, dose_of, multiple_by_seed
from titer.findings.probes import attacks
from titer.findings.ranking import rank
from titer.findings.records import Record, Start, check, figures, once, stages
from titer.findings.stopping import describe_stop
from titer.findings.verdict import verdicts, was_attacked
from titer.printable import printable
from titer.report.figures import Figures
from titer.scoring.figures import NAMES
from titer.scoring.score import Score

# of a document; all else that it holds is provenance
SHOWN = {"pipeline", "recipe", "stages", "run", "flags"}
# of a stage; the rest are its facts
STAGE = {"kind", "label", "folder", "scores", "outcomes", "struck out", "judges", "disagreements"}
STAGE |= {"seconds", "scoring_seconds", "peak_mb"}
HIDDEN = {
    "answer",
    "answers",
    "completion",
    "completions",
    "prompt",
    "prompts",
    "records",
    "response",
    "responses",
    "text",
    "texts",
}


@dataclass(frozen=True)
class StageRow:
    """A stage in the table."""

    pipeline: str
    stage: Record
    scores: list[tuple[Score | None, bool]]  # a column each; True if it is struck out
    reasons: list[str]


def render(documents: Mapping[str, Any], drawn: Figures | None = None) -> str:
    """Make the page of a run's documents, with figures that are drawn already where they are."""
    drawn = drawn or Figures()
    runs = {document.get("run") for document in documents.values()}
    if len(runs) != 1:
        raise ValueError(f"{len(runs)} runs in one report: give the documents of one run")
    found = stages(documents)
    first = next(iter(documents.values()))
    recipe = first["recipe"] | {
        "pipelines": {
            k: v
            for document in documents.values()
            for k, v in document["recipe"]["pipelines"].items()
        }
    }
    struck, names = rules.find_broken(found), figures(found)
    lab = lab_of(recipe["data"])
    return template("page.html.j2").render(
        documents=documents,
        recipe=recipe,
        dequantized=check(Start, first.get("model") or {}, "its model").dequantized,
        recipe_yaml=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        run=str(first.get("run")),
        caption=caption(recipe),
        lab=bool(lab),
        attack=_settings(recipe["attack"]),
        judge=_settings(first.get("judge") or {}),
        version=first.get("environment", {}).get("titer", "?"),
        flags=flags.raise_flags(documents),
        answer=_in_one(*answer(found, was_attacked(documents))),
        verdicts=verdicts(found, was_attacked(documents)),
        places=rank(found),
        rules=rules,
        panels=_panels(found, struck, lab, drawn),
        dose=_dose(found, lab, drawn),
        doses=_doses(found),
        why=_why(found, lab, drawn),
        names=names,
        prompts=_prompts(found, names),
        rows=_rows(found, names, struck),
        facts=[
            (name, stage, {k: v for k, v in stage.fields.items() if k not in STAGE})
            for name, stage in once(found)
        ],
        panels_of_judges=[(name, stage) for name, stage in once(found) if stage.judges],
        known=NAMES,
        provenance=_provenance(documents),
        answers=paths.ANSWERS,
        hidden=HIDDEN,
    )


def _in_one(first: str, second: str) -> str:
    """Join two sentences to one."""
    return f"{first.removesuffix('.')}; {second[0].lower()}{second[1:]}" if second else first


def template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("titer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters |= {"plain": _plain, "number": _number}
    return environment.get_template(name)


def _safe(value: Any) -> Any:
    return printable(value) if type(value) is str else value


def _panels(
    found: Mapping[str, Sequence[Record]],
    struck: Mapping[str, Sequence[str]],
    note: str,
    drawn: Figures,
) -> list[Markup]:
    """Return a figure a pipeline: HS and FA along its stages."""
    slots = max(map(len, found.values()))

    def panel(i: int, name: str, of: Sequence[Record]) -> Markup:
        def draw() -> str:
            from titer.report import pipeline

            return pipeline.svg(name, of, struck, note, slots, f"panel{i}")

        points = [
            [stage.kind, stage.method, stage.folder, stage.fields.get("scores")] for stage in of
        ]
        return drawn.get(["panel", i, name, points, sorted(struck), note, slots], draw)

    return [panel(i, name, of) for i, (name, of) in enumerate(found.items())]


def _dose(found: Mapping[str, Sequence[Record]], note: str, drawn: Figures) -> Markup | None:
    """Return the figure of the margins along the attacks; None where nobody looked."""
    along = curves(found)

    def draw() -> str:
        from titer.report import dose

        return dose.svg(along, note, "dose")

    return drawn.get(["dose", along, note], draw) if along else None


def _doses(found: Mapping[str, Sequence[Record]]) -> list[tuple[str, str, str, str]]:
    """List by attacked model the dose that broke it, how many times plain SFT's that is, and what
    had come of the attack when the task was learnt.
    """
    told = []
    for name in curves(found):
        control = rules.plain(found, found[name])
        times = multiple_by_seed([(found[name], control[1])]) if control else None
        stop = describe_stop(found[name])
        told.append((name, str(dose_of(found[name])), str(times or ""), stop))
    return told


def _why(found: Mapping[str, Sequence[Record]], note: str, drawn: Figures) -> Markup | None:
    """Return the figure of the probes of every attack; None where nobody looked."""
    looks = attacks(found)

    def draw() -> str:
        from titer.report import probes

        return probes.svg(looks, note, "why")

    return drawn.get(["why", looks, note], draw) if looks else None


def _rows(
    found: Mapping[str, Sequence[Record]], names: Mapping[str, str], struck: Mapping[str, list[str]]
) -> list[StageRow]:
    return [
        StageRow(
            name,
            stage,
            [(stage.score(key), key == "harm" and stage.folder in struck) for key in names],
            struck.get(stage.folder, []),
        )
        for name, stage in once(found)
    ]


def _prompts(found: Mapping[str, Sequence[Record]], names: Mapping[str, str]) -> dict[str, str]:
    """Count the prompts of each figure, scored or not: one number, or the numbers that occur."""
    scores = [stage.scores for _, stage in once(found)]
    counts = {
        key: sorted({each[key].n + each[key].unscored for each in scores if key in each})
        for key in names
    }
    return {key: " or ".join(map(str, of)) for key, of in counts.items()}


def _provenance(documents: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the other facts of the documents; by pipeline where these do not agree."""
    keys = {key: None for document in documents.values() for key in document if key not in SHOWN}
    told = {}
    for key in keys:
        values = {name: document[key] for name, document in documents.items() if key in document}
        first = next(iter(values.values()))
        told[key] = first if all(value == first for value in values.values()) else values
    return told


def _settings(described: Mapping[str, Any]) -> str:
    if described.get("judges"):
        named = (_settings(each) for each in described["judges"])
        return f"{' and '.join(named)}, of which the first decides"
    settings = ", ".join(
        f"{key}={_plain(value)}" for key, value in described.items() if key != "method"
    )
    return f"{described.get('method', '?')}{f' ({settings})' if settings else ''}"


def _number(value: Any, places: int) -> str:
    return (
        f"{value:z.{places}f}" if isinstance(value, int | float) and value == value else "not known"
    )


def _plain(value: Any) -> str:
    """Write a scalar as a reader says it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
