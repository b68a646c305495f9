"""The bundles of the claims, as groups of cells that differ in the training seed alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from titer.findings.frontier import is_free
from titer.findings.seeds import Group, groups
from titer.scoring import statistics

HERE = Path(__file__).parent


LETTERS = {  # of what a prompt came to, in a bundle
    "h": "harmful",
    "r": "refusal",
    "s": "safe",
    "i": "incoherent",
    "u": "unscored",
    "e": "exact",
    "c": "contained",
    "w": "wrong",
}
MATCHES = ("exact", "contained", "wrong")
WORDS = {word: letter for letter, word in LETTERS.items()}


def read(claim: str) -> dict[str, Any]:
    """Read the bundle of a claim, with the outcomes of its stages as a record has them."""
    bundle: dict[str, Any] = json.loads((HERE / f"{claim}.json").read_text())
    for cell in bundle["cells"]:
        for document in cell["pipelines"].values():
            for stage in document["stages"]:
                if "outcomes" in stage:
                    stage["outcomes"] = unpack(stage["outcomes"], cell["clusters"])
    return bundle


def pack(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Pack the outcomes of a stage: a letter a prompt, and margins to four digits."""
    packed: dict[str, Any] = {
        name: "".join(
            WORDS[reason if reason in MATCHES else verdict]
            for verdict, reason in zip(found["verdicts"], found["reasons"], strict=True)
        )
        for name, found in outcomes.items()
    }
    margins = outcomes.get("harm", {}).get("margins")
    if margins:
        packed["margins"] = [None if each is None else float(f"{each:.4g}") for each in margins]
    return packed


def unpack(packed: Mapping[str, Any], clusters: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Unpack them again. Prompts are named by their number."""
    return {
        name: {
            "prompts": [str(i) for i in range(len(letters))],
            "clusters": [str(number) for number in clusters[name]],
            "verdicts": [LETTERS[letter] for letter in letters],
            "reasons": [LETTERS[letter] for letter in letters],
            "margins": packed.get("margins") if name == "harm" else None,
        }
        for name, letters in packed.items()
        if name != "margins"
    }


def number_clusters(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Number the clusters of every benchmark's prompts."""
    return {
        name: statistics.number_clusters(found["clusters"]).tolist()
        for name, found in outcomes.items()
    }


def load_groups(claim: str, settings: str = "") -> list[Group]:
    """The pipelines of a claim, at the points of its grid that have the settings, with commas
    between; of joined claims every one once.
    """
    joined: dict[tuple[tuple[str, ...], str], Group] = {}
    for name in claim.split("+"):
        for group in groups(read(name)["cells"]):
            if set(filter(None, settings.split(","))) <= set(group.settings):
                joined.setdefault((group.settings, group.pipeline), group)
    return list(joined.values())


def pairs(claim: str) -> list[tuple[str, str]]:
    """List the pipelines of joined claims whose HS should lie below whose."""
    known = yaml.safe_load((HERE / "claims.yaml").read_text())
    return [
        (first, second)
        for name in claim.split("+")
        for first, second in known[name].get("against", [])
    ]


def points(claim: str, settings: str) -> dict[str, dict[str, Group]]:
    """The pipelines by the setting that varies among the points that have the settings, in the
    order of its values; `all` has none.
    """
    of: dict[str, dict[str, Group]] = {}
    for group in load_groups(claim, settings):
        [rest] = set(group.settings) - set(settings.split(",")) - {""} or {"all"}
        of.setdefault(rest, {})[group.pipeline] = group
    return dict(sorted(of.items(), key=lambda item: float(item[0].partition("=")[2] or "inf")))


def with_frontier(claim: str, settings: str) -> list[Group]:
    """The pipelines of a claim, and what plain fine-tuning gives for free in their world, beside
    Booster at the same settings.
    """
    world = settings.split(",")[0]
    rest = [
        group
        for group in load_groups("lab-frontier", world)
        if group.outside("finetune.") == (world,)
    ]
    usual = read("lab")["recipe"]["finetune"]
    own = {f"finetune.{name}={usual[name]}" for name in ("lr", "updates")}
    others = [
        replace(group, pipeline="booster, swept")
        for group in rest
        if not is_free(group) and not own <= set(group.settings)
    ]
    mine = [
        group for group in load_groups(claim, settings) if claim == "lab" or not is_free(group)
    ]  # theirs has the same plain one
    return [
        *mine,
        *(group for group in rest if is_free(group)),
        *(others if claim == "lab" else []),
    ]
