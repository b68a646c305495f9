"""The page of a run: its parts in the order of the page. The template is `page.html.j2`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from titer import paths
from titer.findings import flags, rules
from titer.findings.answer import answer
from titer.findings.captions import caption, lab_of
from titer.findings.dose import curves, dose_of, multiple_by_seed
from titer.findings.probes import attacks
from titer.findings.ranking import Place, rank
from titer.findings.records import Record, Start, check, figures, once, stages
from titer.findings.stopping import describe_stop
from titer.findings.verdict import verdicts, was_attacked
from titer.report.contents import Contents, describe_plainly, number
from titer.report.figures import Drawing
from titer.report.sheets import (
    FIRST,
    Column,
    Entry,
    ScoreEntry,
    Sheet,
    Sign,
    figure_columns,
    order,
    unit_of,
)
from titer.scoring.figures import NAMES

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


def lay_out(documents: Mapping[str, Any]) -> Contents:
    """Return what the page of a run's documents shows.

    Raises ValueError where they are of more than one run.
    """
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
    model, note = recipe["model"], caption(recipe)
    lab, attacked = lab_of(recipe["data"]), was_attacked(documents)
    listed, raised = once(found), flags.raise_flags(documents)
    places = rank(found, rules.find_flagged(flags.as_documents(raised), found))
    values = {
        "documents": documents,
        "dequantized": check(Start, first.get("model") or {}, "its model").dequantized,
        "recipe_yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "run": str(first.get("run")),
        "model": model["path"] if isinstance(model, Mapping) else model,
        "caption": note,
        "lab": bool(lab),
        "attack": _settings(recipe["attack"]),
        "judge": _settings(first.get("judge") or {}),
        "version": first.get("environment", {}).get("titer", "?"),
        "flags": raised,
        # a flag of no pipeline, of roles, bears on all
        "flagged": list(dict.fromkeys(flag.pipeline or "all pipelines" for flag in raised)),
        "answer": _in_one(*answer(found, attacked)),
        "verdicts": _verdicts(found, attacked),
        "places": places,
        "ranking": _ranking(places, "task" in names, note),
        "rules": rules,
        "panels": _panels(found, struck, lab),
        "dose": _dose(found, lab),
        "doses": _doses(found),
        "why": _why(found, lab),
        "scores": _scores(listed, names, struck, note),
        "listed": listed,
        "struck": struck,
        "cost": _cost(listed),
        "facts": [
            (name, stage, {k: v for k, v in stage.fields.items() if k not in STAGE})
            for name, stage in listed
        ],
        "judged": [
            (name, stage.label, _judged(name, stage)) for name, stage in listed if stage.judges
        ],
        "provenance": collect(documents),
        "answers": paths.ANSWERS,
        "hidden": HIDDEN,
    }
    return Contents("page.html.j2", values)


def _in_one(first: str, second: str) -> str:
    """Join two sentences to one."""
    return f"{first.removesuffix('.')}; {second[0].lower()}{second[1:]}" if second else first


def _verdicts(found: Mapping[str, Sequence[Record]], attacked: bool) -> Sheet:
    """Return the table of what became of every pipeline, in a word and in sentences."""
    columns = [Column("pipeline", role="name"), Column("verdict")]
    columns += [Column("what shows it", role="long")]
    rows: list[list[Entry]] = [
        [each.pipeline, Sign(each.word), each.text] for each in verdicts(found, attacked)
    ]
    return Sheet("verdicts", columns, rows)


def _ranking(places: Sequence[Place], has_task: bool, note: str) -> Sheet:
    """Return the table of the pipelines that have a rank."""
    names = FIRST if has_task else FIRST[:1]
    columns = [Column("rank", role="number"), Column("pipeline", role="name")]
    columns += [Column("last stage", role="under"), *figure_columns(names)]
    rows: list[list[Entry]] = []
    for place in places:
        if place.rank:
            rows.append([str(place.rank), place.pipeline, place.stage.label])
            rows[-1] += [ScoreEntry(place.stage.score(name)) for name in names]
    told = "By HS of the last model, the lowest first. Neighbours may not be shown to differ, "
    return Sheet("ranking", columns, rows, f"{told}and FA is the price of a low HS. {note}")


def _panels(
    found: Mapping[str, Sequence[Record]], struck: Mapping[str, Sequence[str]], note: str
) -> list[Drawing]:
    """Return a figure a pipeline: HS and FA along its stages."""
    slots = max(map(len, found.values()))
    drawings = []
    for i, (name, of) in enumerate(found.items()):
        points = [
            [stage.kind, stage.method, stage.folder, stage.fields.get("scores")] for stage in of
        ]
        shows = [name, points, sorted(struck), note, slots]
        arguments = (name, of, struck, note, slots)
        title = f"HS and FA along {name}"
        drawings.append(Drawing(title, "pipeline", arguments, f"panel{i}", shows))
    return drawings


def _dose(found: Mapping[str, Sequence[Record]], note: str) -> Drawing | None:
    """Return the figure of the margins along the attacks; None where nobody looked."""
    along = curves(found)
    shows = [along, note]
    return Drawing("harm margin by dose", "dose", (along, note), "dose", shows) if along else None


def _doses(found: Mapping[str, Sequence[Record]]) -> Sheet | None:
    """Return the table of the dose that broke each attacked model, how many times plain SFT's that
    is, and what had come of the attack when the task was learnt; None where nobody looked.
    """
    columns = [
        Column("attacked model", role="name"),
        Column("rows of the attacker's that break it"),
    ]
    columns += [Column("times plain SFT's"), Column("when the task was learnt")]
    rows = []
    for name in curves(found):
        control = rules.plain(found, found[name])
        times = multiple_by_seed([(found[name], control[1])]) if control else None
        stop = describe_stop(found[name])
        rows.append([name, str(dose_of(found[name])), str(times or ""), stop])
    return Sheet("doses", columns, rows) if rows else None


def _why(found: Mapping[str, Sequence[Record]], note: str) -> Drawing | None:
    """Return the figure of the probes of every attack; None where nobody looked."""
    looks = attacks(found)
    if not looks:
        return None
    return Drawing("probes of the attacks", "probes", (looks, note), "why", [looks, note])


def _scores(
    listed: Sequence[tuple[str, Record]],
    names: Mapping[str, str],
    struck: Mapping[str, list[str]],
    note: str,
) -> Sheet:
    """Return the table of every figure of every stage."""
    keys = order(list(names))
    columns = [Column("pipeline", role="name"), Column("stage", role="under")]
    columns += [
        Column(names[key], f"{unit_of(key)}, {_prompts(listed, key)} prompts", "number")
        for key in keys
    ]
    rows: list[list[Entry]] = []
    for name, stage in listed:
        out = stage.folder in struck
        rows.append([name, stage.label])
        rows[-1] += [ScoreEntry(stage.score(key), key == "harm" and out) for key in keys]
    told = f"Every stage once, under the first pipeline that has it. {note}"
    return Sheet("all figures", columns, rows, told)


def _judged(name: str, stage: Record) -> list[Sheet]:
    """Return the figures of a stage by every judge, and how often each two say what."""
    by, of = stage.judges or {}, f"{name} {stage.label}"
    keys = order(list(next(iter(by.values()), {})))
    rows: list[list[Entry]] = [
        [judge, *(ScoreEntry(scores.get(key)) for key in keys)] for judge, scores in by.items()
    ]
    told = "The first judge decides. In brackets the 95 % interval over prompts."
    columns = [Column("judge", role="name"), *figure_columns(keys)]
    sheets = [Sheet(f"judges of {of}", columns, rows, told)]
    for each in stage.disagreements or []:
        title = NAMES.get(each.benchmark, each.benchmark)
        words = list(dict.fromkeys(word for said in each.counts.values() for word in said))
        columns = [
            Column(each.first, role="name"),
            *(Column(word, role="number") for word in words),
        ]
        counts = [
            [word, *(str(said.get(other, 0)) for other in words)]
            for word, said in each.counts.items()
        ]
        told = f"{title}: answers by the verdict of {each.first} (rows) and of {each.second} (columns)."
        sheets.append(
            Sheet(f"{each.first} and {each.second} on {title} of {of}", columns, counts, told)
        )
    return sheets


def _cost(listed: Sequence[tuple[str, Record]]) -> Sheet:
    """Return the table of what every stage cost."""
    counted = {"seconds": 1, "scoring_seconds": 1, "peak_mb": 0}  # by field, decimals
    columns = [Column("pipeline", role="name"), Column("stage", role="under")]
    columns += [Column(title, role="number") for title in ("seconds", "scoring seconds", "peak MB")]
    rows = [
        [name, stage.label, *(number(stage.fields.get(key), n) for key, n in counted.items())]
        for name, stage in listed
    ]
    told = "Seconds of computing and of scoring, and the most memory seen in either."
    return Sheet("cost", columns, rows, told)


def _prompts(listed: Sequence[tuple[str, Record]], figure: str) -> str:
    """Count the prompts of a figure, scored or not: one number, or the numbers that occur."""
    scores = [stage.scores[figure] for _, stage in listed if figure in stage.scores]
    return " or ".join(map(str, sorted({score.n + score.unscored for score in scores})))


def collect(documents: Mapping[str, Any]) -> dict[str, Any]:
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
        f"{key}={describe_plainly(value)}" for key, value in described.items() if key != "method"
    )
    return f"{described.get('method', '?')}{f' ({settings})' if settings else ''}"
