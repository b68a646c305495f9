"""Captions: what a table or a figure is over, in words that stand inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAB = "synthetic lab, world-v1"
MADE_UP = "it shows that a method runs and does something, not how well it protects a real model."
REAL = "what one small model does there, another one need not do."
LABS = {  # what its figures show, by `data.lab`
    "world-v1": (LAB, MADE_UP),
    "world-v1-topics": (f"{LAB}, held-out topics", MADE_UP),
    "world-v1-domain": (f"{LAB}, a second domain", MADE_UP),
    "smol-v1": ("harmless facts, smol-v1", REAL),
    "smol-v1-topics": ("harmless facts, smol-v1, held-out topics", REAL),
}


def lab_of(data: Mapping[str, Any]) -> str:
    """Name the lab that a recipe's world is of; empty where its rows are a person's own."""
    return "" if data.get("world") is None else LABS[data.get("lab", "world-v1")][0]


def lab_caption(data: Mapping[str, Any]) -> str:
    """Say what the figures of a lab show; empty where the rows are a person's own."""
    if data.get("world") is None:
        return ""
    name, shows = LABS[data.get("lab", "world-v1")]
    return f"{name.capitalize()}: {shows}"


def caption(recipe: Mapping[str, Any]) -> str:
    """Say what a table or figure of this described recipe is over."""
    data = recipe["data"]
    protocol = f", protocol {recipe['protocol']}" if recipe.get("protocol") else ""
    prompts = (
        f"{data['split']} prompts{protocol}, seed {recipe['seed']}; "
        "95 % intervals over prompts, not over training seeds."
    )
    world = data["world"]
    return prompts if world is None else f"World seed {world}, {prompts} {lab_caption(data)}"
