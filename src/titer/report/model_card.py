"""The page of a model on the hub: what made it, what it scored, and what that does not show.

Its metadata are those that Hugging Face reads from a README.md:
https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from titer.findings.card import NOTICE
from titer.findings.records import Record, quote
from titer.findings.rules import faults
from titer.report import card as tamper_card
from titer.report.sheets import order, unit_of
from titer.report.tables import write_markdown
from titer.scoring.figures import NAMES
from titer.scoring.score import Score

SHARED = ("updates", "lr", "batch", "accumulate", "schedule", "lora")  # settings of a training
DOES_NOT_SHOW = (
    "how the model fares under attacks other than those that are named here",
    "whether its answers are right, fair or fit for a purpose of yours",
    "how it answers prompts of another kind than those of the table, or in other languages",
    "how far another training seed would move a figure: intervals are over prompts",
)
NO_ATTACKER = "whether the user's rows held an attacker's: titer was told that there were none"
HOW_TO_READ = (
    "HS, the harmful score: percent of harmful prompts that were answered harmfully, lower is better. "
    "FA: percent of the task right. In brackets the 95 % interval over prompts."
)
MADE = ("titer", "torch", "transformers", "peft", "device")  # of an environment


@dataclass(frozen=True)
class ModelPage:
    """All that the page of a model tells."""

    name: str
    records: Sequence[Record]  # of the stages that made it, the oldest first
    sha256: str
    base: str  # its name on the hub, else in words
    base_on_hub: str | None
    base_sha256: str | None
    is_adapter: bool
    license: str | None
    scores: Mapping[str, Score]
    judge: Mapping[str, Any]
    asked: Mapping[str, Any]  # template, system prompt, protocol
    card: Mapping[str, Any] | None  # a tamper card
    flags: Sequence[Mapping[str, str]]
    environment: Mapping[str, Any]

    @property
    def struck(self) -> list[str]:
        """Why the HS shows nothing, by its run or by the scores alone."""
        last = self.records[-1]
        return last.struck or faults(last.model_copy(update={"scores": dict(self.scores)}), [])

    @property
    def tuned(self) -> bool:
        return any(record.kind == "finetune" for record in self.records)


def to_markdown(page: ModelPage) -> str:
    """Write the README.md of a model."""
    parts = [
        f"---\n{yaml.safe_dump(metadata(page), sort_keys=False, allow_unicode=True)}---",
        f"# {page.name}",
        f"*{NOTICE}*",
        _facts(page),
        "## How it was made\n\n" + _stages(page.records),
        "## Scores\n\n" + _scores(page),
        tamper_card.sections(page.card) if page.card else "",
        "## What this does not show\n\n" + "\n".join(f"* {line}" for line in _untold(page)),
        "## Red flags\n\n" + tamper_card.list_flags(page.flags),
        "## Made with\n\n"
        + ", ".join(f"{k} {v}" for k, v in page.environment.items() if k in MADE),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def metadata(page: ModelPage) -> dict[str, Any]:
    """Return what Hugging Face reads at the top of a model's page."""
    told: dict[str, Any] = {"library_name": "peft" if page.is_adapter else "transformers"}
    told["pipeline_tag"] = "text-generation"
    told["license"] = page.license or "unknown"  # that of the base
    if page.base_on_hub:
        told["base_model"] = page.base_on_hub
        told["base_model_relation"] = "adapter" if page.is_adapter else "finetune"
    told["tags"] = ["titer", "safety-alignment", *dict.fromkeys(r.method for r in page.records)]
    if page.scores:
        metrics = [
            {"type": name, "name": f"{NAMES.get(name, name)} ({unit_of(name)})", "value": of.value}
            for name, of in page.scores.items()
            if not math.isnan(of.value) and not (name == "harm" and page.struck)
        ]
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"type": "titer", "name": "held-out prompts of its maker"},
            "metrics": metrics,
        }
        told["model-index"] = [{"name": page.name, "results": [result]}]
    if page.card:
        found = tamper_card.metadata(page.card)["model-index"][0]["results"]
        index = told.setdefault("model-index", [{"name": page.name, "results": []}])
        index[0]["results"] += found
    return told


def _facts(page: ModelPage) -> str:
    what = "a LoRA adapter" if page.is_adapter else "a whole model"
    license_ = page.license or "not known: look at the base's, which binds this model too"
    told = {
        "what it is": f"{what}, made with titer; sha256 `{page.sha256}`",
        "base": page.base + (f", sha256 `{page.base_sha256}`" if page.base_sha256 else ""),
        "license of the base": license_,
    }
    return "\n".join(f"* **{name}**: {text}" for name, text in told.items())


def _stages(records: Sequence[Record]) -> str:
    body = [
        [
            record.kind,
            record.method or "-",
            ", ".join(f"{k}={v}" for k, v in _settings(record)) or "-",
            ", ".join(f"{role} `{digest[:12]}`" for role, digest in _rows(record)) or "-",
        ]
        for record in records
    ]
    header = ["stage", "method", "settings", "rows, SHA-256"]
    return write_markdown(header, body)


def _settings(record: Record) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a stage's method, and of its training."""
    yield from ((key, value) for key, value in record.how.items() if key != "method")
    training = record.recipe.get(record.kind) or {}
    for key in SHARED:
        value = training.get(key)
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", of) for name, of in value.items())
        elif value is not None:
            yield key, value
    if record.kind in ("align", "finetune") and "seed" in record.recipe:
        yield "seed", record.recipe["seed"]


def _rows(record: Record) -> Iterator[tuple[str, str]]:
    told = (record.model_extra or {}).get("data") or {}
    yield from ((role, str(of)) for role, of in told.items() if not role.startswith("benchmark "))


def _scores(page: ModelPage) -> str:
    if not page.scores:
        return "None. Nothing here tells how safe or how able the model is."
    body = [
        [
            f"{NAMES.get(name, name)} ({unit_of(name)})",
            _figure(score, struck=name == "harm" and bool(page.struck)),
            str(score.n),
        ]
        for name in order(list(page.scores))
        for score in [page.scores[name]]
    ]
    judge = page.judge.get("method") or "several"
    asked = ", ".join(f"{k} {v}" for k, v in page.asked.items() if v is not None)
    told = f"{HOW_TO_READ} Judge: {judge}. Asked with: {asked or 'no template'}."
    if page.struck:
        told = f"HS is struck out, it shows nothing: {'; '.join(page.struck)}. {told}"
    return f"{write_markdown(['figure', 'value', 'prompts'], body)}\n{told}"


def _figure(score: Score, struck: bool) -> str:
    if math.isnan(score.value):
        return "not scored"
    return f"struck out: {quote(score)}" if struck else quote(score)


def _untold(page: ModelPage) -> list[str]:
    lines = list(DOES_NOT_SHOW)
    if not page.card:
        lines[0] = "how it fares when somebody fine-tunes it: no attack on it was measured"
    return lines + ([NO_ATTACKER] if page.tuned else [])
