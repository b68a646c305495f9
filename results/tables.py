"""Write the tables and figures of README and docs from the bundles: `python -m results.tables`.

With `--check` nothing is written, and the exit code is 1 where one differs. A table stands between
`<!-- table full lab -->` and `<!-- end -->`; `lab-alignment+lab-tar` joins claims. A figure is a mean
over worlds with its 95 % interval over other worlds in brackets.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from results import answer, assay, conditions, gates, ladder, repairs, screening, search, stopping
from results.bundles import load_groups
from results.figures import FIGURES
from results.names import display_name, in_order, stage_name
from titer.findings.dose import multiple_by_seed, paired
from titer.findings.frontier import is_free, place
from titer.findings.records import quote
from titer.findings.worlds import Pool, pool
from titer.report.probes import ROUTING
from titer.scoring.figures import NAMES

ROOT = Path(__file__).parent.parent
PAGES = (
    *("README.md", "docs/lab.md", "docs/alignment.md", "docs/finetuning.md", "docs/repairs.md"),
    *("docs/search.md", "docs/moe.md", "docs/screen.md", "docs/assay.md", "docs/real.md"),
    "docs/ladder.md",
    "docs/gate.md",
)
NONE = "-"  # not computed
SHOWN = (
    *("harm", "prefill", "complied", "refused", "margin"),
    *("task", "task_refused", "benign", "lookalike", "general", "coherent"),
)
TABLE = re.compile(
    r"(<!-- table (?P<kind>\w+) (?P<claim>\S+) -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def pools(claim: str) -> list[Pool]:
    return pool(load_groups(claim))


def along(of: Iterable[Pool]) -> list[Pool]:
    """Every stage once, as a pipeline that ends with it."""
    reached: dict[tuple[str, ...], Pool] = {}
    for each in of:
        stages = each.first
        for i in range(len(stages)):
            reached.setdefault(tuple(stage.label for stage in stages[: i + 1]), each.at(i))
    return list(reached.values())


def figure(of: Pool, name: str) -> str:
    score = of.score(name)
    assert score is not None
    text = quote(score) if score.low <= score.high else f"{score.value:z.1f}"
    if name == "harm" and of.struck:
        return f"~~{text}~~ struck out in {of.struck} of {len(of.last)}"
    return text


def shown(of: Sequence[Pool]) -> list[str]:
    """Return the figures that all of these have."""
    return [name for name in SHOWN if all(each.score(name) for each in of)]


def full(claim: str) -> list[list[str]]:
    """Every stage with every figure."""
    of = along(pools(claim))
    names = shown(of)
    lines = [["stage", *(NAMES[name] for name in names)]]
    return lines + [[stage_name(each), *(figure(each, name) for name in names)] for each in of]


def short(claim: str) -> list[list[str]]:
    """Every stage, by the name that the command prints, with the figures that matter most, as whole
    numbers.
    """
    names = ("harm", "prefill", "task")
    lines = [["stage", *(NAMES[name] for name in names)]]
    for each in along(pools(claim)):
        scores = [each.score(name) for name in names]
        lines.append([each.label, *(f"{score.value:.0f}" if score else NONE for score in scores)])
    return lines


def dose(claim: str) -> list[list[str]]:
    """How many times plain SFT's dose each defense takes, over all worlds and by each."""
    found = load_groups(claim)
    worlds = list(dict.fromkeys(group.settings for group in found))
    head = ["method", "all", "by its answers", *(" ".join(world) for world in worlds)]
    lines = []
    for name in in_order(group.pipeline for group in found if group.last[0].kind == "finetune"):
        by_world = {group.settings: group for group in found if group.pipeline == name}
        pairs = {world: paired(of, found) for world, of in by_world.items()}
        every = [pair for each in pairs.values() for pair in each]
        times = [
            multiple_by_seed(every),
            multiple_by_seed(every, by="answers"),
            *(multiple_by_seed(pairs.get(world, [])) for world in worlds),
        ]
        if any(times):
            lines.append([display_name(name), *(str(each or NONE) for each in times)])
    return [head, *lines]


def whole(claim: str) -> list[list[str]]:
    """The alignment stage: every method before the attack and after it."""
    of = {each.pipeline: each for each in pools(claim)}
    names = shown(list(of.values()))
    lines = [["method", *(NAMES[name] for name in names)]]
    for pipeline in in_order(of):
        after = of[pipeline]
        before = after.at(-2)
        lines.append([display_name(pipeline), *(figure(before, name) for name in names)])
        lines.append(["... attacked", *(figure(after, name) for name in names)])
    return lines


def ends(claim: str) -> list[list[str]]:
    """The model before the attack, and every pipeline's last one."""
    of = pools(claim)
    names = shown(of)
    lines = [["method", *(NAMES[name] for name in names)]]
    lines.append(["*before the attack*", *(figure(of[0].at(-2), name) for name in names)])
    return lines + [
        [display_name(each.pipeline), *(figure(each, name) for name in names)] for each in of
    ]


def beyond(claim: str) -> list[list[str]]:
    """Where methods lie by the frontier of plain fine-tuning."""
    lines = [["pipeline", "HS", "FA", "frontier", "compared with"]]
    for each in pools(claim):
        if is_free(each):
            continue
        found = place(each, answer.rivals())
        scores = (quote(score) for name in ("harm", "task") if (score := each.score(name)))
        why = found.text if found.word == "no place" else found.text.rpartition("; ")[2]
        lines.append([display_name(each.pipeline), *scores, found.word, why])
    return lines


def routing(claim: str) -> list[list[str]]:
    """Where routing has moved by the end of the attack, beside HS and FA: of sparse models alone."""
    lines = [["method", "HS", "FA", *ROUTING.values()]]
    for each in pools(claim):
        ends = [stage.fact("probes")[-1] for stage in each.last]
        drift = (f"{fmean(end[name] for end in ends):.3f}" for name in ROUTING)
        figures = (figure(each, name) for name in ("harm", "task"))
        lines.append([display_name(each.pipeline), *figures, *drift])
    return lines


def repair_table(claim: str) -> list[list[str]]:
    """Every repair of a claim, what it removed and what it cost."""
    return repairs.table(pools(claim), figure, display_name)


KINDS = {
    "full": full,
    "short": short,
    "dose": dose,
    "beyond": beyond,
    "whole": whole,
    "ends": ends,
    "routing": routing,
    "repairs": repair_table,
    "search": search.table,
    "conditions": conditions.times,
    "attacks": conditions.ends,
    "agreement": conditions.agreement,
    "stopping": stopping.table,
    "ladder": ladder.table,
    "worst": ladder.worst,
    "screen": screening.table,
    "assay": assay.table,
    "gates": gates.table,
}


def remake(text: str) -> str:
    """The page with its tables made again."""

    def table(match: re.Match[str]) -> str:
        lines = answer.markdown(KINDS[match["kind"]](match["claim"]))
        return f"{match[1]}{lines}\n{match[4]}"

    return TABLE.sub(table, text)


def made() -> dict[Path, str]:
    """Return what every page and figure has to be."""
    pages = {ROOT / name: remake((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}
    pages[ROOT / "docs/answer.md"] = answer.page()
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
