"""Write the tables and figures of README and docs from the bundles: `python -m results.tables`.

With `--check` nothing is written, and the exit code is 1 where one differs. A table stands between
`<!-- table full lab data.world=1 -->` and `<!-- end -->`; `lab-tar+lab-full` joins claims. A figure
is a mean over training seeds with its 95 % interval over new seeds in brackets, and half the width
of its mean interval over prompts behind a sign.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median

from results import agreement, repairs
from results.bundles import load_groups, pairs, points, with_frontier
from results.figures import FIGURES
from titer import registry
from titer.findings.dose import multiple_by_seed, multiple_of, paired
from titer.findings.frontier import places
from titer.findings.records import quote
from titer.findings.seeds import Group
from titer.scoring.figures import NAMES

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/lab.md", "docs/alignment.md", "docs/repairs.md")
# the alignment stage in the order of its tables, a null behind its method
METHODS = (
    "sft",
    "vaccine",
    "random_vaccine",
    "t_vaccine",
    "booster",
    "random_booster",
    "booster+t_vaccine",
    "repnoise",
    "random_repnoise",
)
METHODS += (
    "tar",
    "random_tar",
    "adversarial_loss",
    "random_adversarial_loss",
    "lox",
    "random_lox",
    "booster+lox",
)
NONE = "-"  # not computed
SHOWN = (
    "harm",
    "complied",
    "refused",
    "margin",
    "task",
    "benign",
    "lookalike",
    "general",
    "coherent",
)
TABLE = re.compile(
    r"(<!-- table (?P<kind>\w+) (?P<claim>\S+) ?(?P<settings>\S*) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def along(of: list[Group]) -> list[Group]:
    """Every stage once, as a pipeline that ends with it."""
    reached: dict[tuple[str, ...], Group] = {}
    for group in of:
        for length in range(1, 1 + len(next(iter(group.seeds.values())))):
            shorter = replace(
                group, seeds={seed: stages[:length] for seed, stages in group.seeds.items()}
            )
            reached.setdefault(
                tuple(stage.label for stage in next(iter(shorter.seeds.values()))), shorter
            )
    return list(reached.values())


@cache
def title(name: str) -> str:
    """Name a method as its class does; of a null that is `random_term`, what it matches."""
    for kind in ("defenses", "edits"):
        if name in registry.names(kind):
            return registry.load(kind, name).about.title or name
    of = name.removeprefix("random_")
    return f"random {title(of)}" if of != name else name


def words(group: Group) -> str:
    kind, _, method = group.label.partition(" ")
    name = title(method)
    return {
        "align": f"{name}-aligned",
        "finetune": "... attacked",
        "release": f"... + {name}",
        "edit": f"... + {name}",
    }.get(kind, kind)


def display_name(pipeline: str) -> str:
    """Name its methods; a comma stands before what tells one from another of the same method."""
    methods = (name.partition(", ") for name in pipeline.split("+"))
    return "+".join(title(name) + comma + variant for name, comma, variant in methods)


def in_order(pipelines: Iterable[str]) -> list[str]:
    """Every name once, those of the alignment stage in its order."""
    return sorted(
        dict.fromkeys(pipelines),
        key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS),
    )


def figure(group: Group, name: str, prompts: bool = True) -> str:
    score = group.score(name)
    assert score is not None
    text = f"{score.value:z.1f}" + (
        f" [{score.low:.1f}, {score.high:.1f}]" if score.low <= score.high else ""
    )
    text = f"{text} ±{group.prompts(name):.1f}" if prompts else text
    return f"~~{text}~~ struck out" if name == "harm" and group.struck else text


def shown(groups: Iterable[Group]) -> list[str]:
    """Return the figures that all of these groups have."""
    of = list(groups)
    return [name for name in SHOWN if all(group.score(name) for group in of)]


def whole_percent(group: Group, name: str) -> str:
    score = group.score(name)
    assert score is not None
    return f"{score.value:.0f}"


def full(claim: str, settings: str) -> list[list[str]]:
    """Every stage with every figure."""
    groups = along(load_groups(claim, settings))
    names = shown(groups)
    lines = [["stage", *(NAMES[name] for name in names)]]
    return lines + [[words(group), *(figure(group, name) for name in names)] for group in groups]


def dose(claim: str, settings: str) -> list[list[str]]:
    """How many times plain SFT's dose each defense takes, over all settings and by each, paired by
    setting and seed.
    """
    found = load_groups(claim, settings)
    points = list(dict.fromkeys(group.settings for group in found))
    lines = [["method", "all", *(" ".join(point) for point in points)]]
    for name in in_order(group.pipeline for group in found if group.last[0].kind == "finetune"):
        of = {group.settings: group for group in found if group.pipeline == name}
        pairs = [pair for group in of.values() for pair in paired(group, found)]
        times = [multiple_by_seed(pairs), *(multiple_of(of[point], found) for point in points)]
        if any(times):
            lines.append([display_name(name), *(str(each or NONE) for each in times)])
    return lines


def short(claim: str, settings: str) -> list[list[str]]:
    """HS and FA of every stage by the grid's values."""
    columns = {
        column: along(load_groups(claim, column))
        for column in dict.fromkeys(",".join(group.settings) for group in load_groups(claim))
    }
    lines = [["HS / FA", *columns]]
    for row in zip(*columns.values(), strict=True):
        if row[0].label != "base":
            lines.append([words(row[0]), *(both(group) for group in row)])
    return lines


def both(group: Group) -> str:
    """HS and FA, HS struck out where it is under any seed."""
    hs, fa = (whole_percent(group, name) for name in ("harm", "task"))
    return f"~~{hs}~~ / {fa}" if group.struck else f"{hs} / {fa}"


def delay(claim: str, settings: str) -> list[list[str]]:
    """HS by how long the attack lasts, of SFT and Booster, a column a world."""
    of = {(group.settings, group.pipeline): group for group in load_groups(claim, settings)}
    worlds, rest = (
        list(dict.fromkeys(part))
        for part in zip(*((keys[0], keys[1:]) for keys, _ in of), strict=True)
    )
    columns = [(world, pipeline) for world in worlds for pipeline in ("sft", "booster")]
    lines = [["attack", *(f"{world}: {display_name(pipeline)}" for world, pipeline in columns)]]
    for tail in rest:
        lines.append(
            [
                " ".join(tail),
                *(
                    figure(of[(world, *tail), pipeline], "harm", prompts=False)
                    for world, pipeline in columns
                ),
            ]
        )
    return lines


def by_setting(claim: str, settings: str) -> list[list[str]]:
    """HS with its interval over training, and FA, of every pipeline's end by the setting that
    varies.
    """
    of = points(claim, settings)
    lines = [["HS / FA", *of]]
    for pipeline in in_order(name for at in of.values() for name in at):
        lines.append([display_name(pipeline), *(end_cell(at.get(pipeline)) for at in of.values())])
    return lines


def end_cell(group: Group | None) -> str:
    return (
        f"{figure(group, 'harm', prompts=False)} / {whole_percent(group, 'task')}"
        if group
        else NONE
    )


def fewer(claim: str, settings: str) -> list[list[str]]:
    """The same of the pipelines of the first of joined claims alone: the others have the points
    without its setting.
    """
    own = {display_name(group.pipeline) for group in load_groups(claim.split("+")[0])}
    head, *lines = by_setting(claim, settings)
    return [head, *(line for line in lines if line[0] in own)]


def whole(claim: str, settings: str) -> list[list[str]]:
    """The alignment stage: every method before the attack and after it, with what it cost over
    plain alignment.
    """
    of = {group.pipeline: group for group in load_groups(claim, settings)}
    names = shown(of.values())
    lines = [["method", *(NAMES[name] for name in names), "time", "memory"]]
    for pipeline in in_order(of):
        after = of[pipeline]
        before = replace(after, seeds={seed: stages[:-1] for seed, stages in after.seeds.items()})
        lines.append(
            [
                display_name(pipeline),
                *(figure(before, name) for name in names),
                *cost(claim, pipeline),
            ]
        )
        lines.append(["... attacked", *(figure(after, name) for name in names), "", ""])
    return lines


def cost(claim: str, pipeline: str) -> list[str]:
    """Seconds and peak memory of what comes before the attack over those of plain alignment, of the
    first claim that has both.

    The median over worlds and seeds: other work on the machine slows single ones.
    """
    for name in claim.split("+"):
        of: dict[str, list[tuple[float, float]]] = {}
        for group in load_groups(name):
            for stages in group.seeds.values():
                ours = [stage.fields for stage in stages if stage.kind in ("align", "release")]
                of.setdefault(group.pipeline, []).append(
                    (sum(f["seconds"] for f in ours), max(f["peak_mb"] for f in ours))
                )
        if pipeline in of and "sft" in of:
            columns = zip(
                zip(*of[pipeline], strict=True), zip(*of["sft"], strict=True), strict=True
            )
            return [f"{median(mine) / median(theirs):.2f}" for mine, theirs in columns]
    return [NONE, NONE]


def worlds_agree(claim: str, settings: str) -> list[list[str]]:
    """Show if worlds 1 and 2 order the methods alike, at every attack of the claims."""
    return agreement.table(agreement.worlds(load_groups(claim, settings)))


def sizes_agree(claim: str, settings: str) -> list[list[str]]:
    """Show if a larger model orders the methods as the usual one does.

    The first of joined claims has the larger model, the others the usual one.
    """
    return agreement.table(pair_sizes(claim, settings))


def sizes(claim: str, settings: str) -> list[list[str]]:
    """HS, FA and margin of every method on the usual model and on the larger one."""
    lines = [["method", "HS / FA", "larger model", NAMES["margin"], "larger model"]]
    for of in pair_sizes(claim, settings).values():
        for pipeline in in_order(of):
            margins = (figure(group, "margin", prompts=False) for group in of[pipeline])
            lines.append([display_name(pipeline), *map(end_cell, of[pipeline]), *margins])
    return lines


def pair_sizes(claim: str, settings: str) -> agreement.Pairs:
    larger, _, usual = claim.partition("+")
    return agreement.sizes(load_groups(larger, settings), load_groups(usual, settings))


def against(claim: str, settings: str) -> list[list[str]]:
    """HS of one pipeline less that of another, seed by seed, of the pairs that a claim is about."""
    of = points(claim, settings)
    lines = [["HS less HS", *of]]
    for first, second in pairs(claim):
        lines.append(
            [
                f"{display_name(first)} - {display_name(second)}",
                *(less(at.get(first), at.get(second)) for at in of.values()),
            ]
        )
    return lines


def less(first: Group | None, second: Group | None) -> str:
    """The mean of the differences over training seeds, prompt by prompt, with its interval; in
    bold where that is without 0.
    """
    if not first or not second:
        return NONE
    if first.struck or second.struck:
        return "struck out"
    score = first.less(second, "harm")
    if not score.low <= score.high:  # all seeds agree
        return f"{score.value:+.1f}"
    text = f"{score.value:+.1f} [{score.low:+.1f}, {score.high:+.1f}]"
    return f"**{text}**" if score.low > 0 or score.high < 0 else text


def beyond(claim: str, settings: str) -> list[list[str]]:
    """Where the lab's methods lie by the frontier."""
    lines = [["pipeline", "HS", "FA", "frontier", "compared with"]]
    for place in places(with_frontier(claim, settings)):
        if not place.group.pipeline.endswith("swept"):
            scores = (
                quote(score) for name in ("harm", "task") if (score := place.group.score(name))
            )
            lines.append(
                [place.group.pipeline, *scores, place.word, place.text.rpartition("; ")[2]]
            )
    return lines


def repair_table(claim: str, settings: str) -> list[list[str]]:
    """Every repair of a claim, what it removed and what it cost."""
    return repairs.table(load_groups(claim, settings), figure, display_name)


def energies(claim: str, settings: str) -> list[list[str]]:
    """Show what every repair of a claim removed, by the setting that varies."""
    return repairs.energy_table(points(claim, settings), display_name)


KINDS = {
    "full": full,
    "short": short,
    "dose": dose,
    "delay": delay,
    "beyond": beyond,
    "varied": by_setting,
    "against": against,
}
KINDS |= {
    "whole": whole,
    "fewer": fewer,
    "worlds": worlds_agree,
    "sizes": sizes,
    "sizes_agree": sizes_agree,
}
KINDS |= {"repairs": repair_table, "removed": energies}


def remake(text: str) -> str:
    """The page with its tables made again."""

    def table(match: re.Match[str]) -> str:
        header, *body = KINDS[match["kind"]](match["claim"], match["settings"])
        lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
        return match[1] + "\n".join(lines) + f"\n{match[5]}"

    return TABLE.sub(table, text)


def made() -> dict[Path, str]:
    """Return what every page and figure has to be."""
    pages = {ROOT / name: remake((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}
    return pages | {ROOT / name: draw() for name, draw in FIGURES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = {
        path: text
        for path, text in made().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    if arguments.check and stale:
        names = ", ".join(path.name for path in stale)
        print(
            f"{names}: a table or figure is not that of the bundles: run `make results` or "
            "`python -m results.tables`"
        )
        return 1
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
