"""Write the tables of README and docs from the bundles: `python results/tables.py`; with `--check`, exit code 1 where one differs.

A table stands between `<!-- table full lab data.world=1 -->` (or `short lab`) and `<!-- end -->`. A figure is a mean over training
seeds with its 95 % interval over new seeds in brackets, and half the width of its mean interval over prompts behind a sign.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from titer.evaluate import NAMES
from titer.results import over_seeds
from titer.statistics import Score, read

HERE = Path(__file__).parent
PAGES = ("README.md", "docs/lab.md")
WORDS = {"sft": "SFT", "booster": "Booster", "antidote": "Antidote"}
SHOWN = ("harm", "margin", "task", "benign", "lookalike", "general")
TABLE = re.compile(r"(<!-- table (?P<kind>full|short) (?P<claim>\S+) ?(?P<settings>\S*) -->\n).*?(<!-- end -->)", re.DOTALL)


def stages(bundle: dict[str, Any], settings: str) -> dict[tuple[str, ...], list[dict[str, Score]]]:
    """The scores of every stage, one set a seed, by the labels of the stages that lead to it."""
    found: dict[tuple[str, ...], list[dict[str, Score]]] = {}
    for cell in bundle["cells"]:
        if settings and settings not in cell["settings"]:
            continue
        seen = set()
        for pipeline in cell["pipelines"].values():
            labels = [stage["label"] for stage in pipeline]
            for i, stage in enumerate(pipeline):
                path = tuple(labels[: i + 1])
                if path not in seen:
                    seen.add(path)
                    found.setdefault(path, []).append({name: read(fields) for name, fields in stage["scores"].items()})
    return found


def words(path: tuple[str, ...]) -> str:
    kind, _, method = path[-1].partition(" ")
    name = WORDS.get(method, method)
    return {"align": f"{name}-aligned", "finetune": "... attacked", "edit": f"... + {name}"}.get(kind, kind)


def full(bundle: dict[str, Any], settings: str) -> list[str]:
    lines = [["stage", *(NAMES[name] for name in SHOWN)], ["---"] * (1 + len(SHOWN))]
    for path, seeds in stages(bundle, settings).items():
        cells = []
        for name in SHOWN:
            scores = [scores[name] for scores in seeds]
            mean, half = over_seeds(name, scores), sum(score.high - score.low for score in scores) / len(scores) / 2
            interval = f" [{mean.low:.1f}, {mean.high:.1f}]" if mean.low <= mean.high else ""
            cells.append(f"{mean.value:z.1f}{interval} ±{half:.1f}")
        lines.append([words(path), *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def short(bundle: dict[str, Any], settings: str) -> list[str]:
    """HS and FA by the grid's values, after fine-tuning and edits."""
    columns = list(dict.fromkeys(" ".join(cell["settings"]) for cell in bundle["cells"]))
    tables = {column: stages(bundle, column) for column in columns}
    lines = [["HS / FA", *columns], ["---"] * (1 + len(columns))]
    for path in next(iter(tables.values())):
        seeds = [tables[column][path] for column in columns]
        means = [[over_seeds(name, [scores[name] for scores in of]).value for name in ("harm", "task")] for of in seeds]
        if path[-1] != "base":
            lines.append([words(path), *(f"{hs:.0f} / {fa:.0f}" for hs, fa in means)])
    return [f"| {' | '.join(line)} |" for line in lines]


def written(text: str) -> str:
    """The page with its tables made again."""

    def table(found: re.Match[str]) -> str:
        bundle = json.loads((HERE / f"{found['claim']}.json").read_text())
        lines = {"full": full, "short": short}[found["kind"]](bundle, found["settings"])
        return found[1] + "\n".join(lines) + f"\n{found[5]}"

    return TABLE.sub(table, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for name in PAGES:
        page = HERE.parent / name
        text = page.read_text(encoding="utf-8")
        if written(text) != text:
            stale.append(name)
            if not arguments.check:
                page.write_text(written(text), encoding="utf-8")
    if arguments.check and stale:
        print(f"tables of {', '.join(stale)} are not those of the bundles: run `make results` or `python results/tables.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
