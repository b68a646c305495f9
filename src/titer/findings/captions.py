"""Captions: what a table or a figure is over, in words that stand inside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAB = "synthetic lab, world-v1"
LAB_CAPTION = (
    f"{LAB.capitalize()}: it shows that a method runs and does something, "
    "not how well it protects a real model."
)


def caption(recipe: Mapping[str, Any]) -> str:
    """Say what a table or figure of this described recipe is over."""
    data = recipe["data"]
    protocol = f", protocol {recipe['protocol']}" if recipe.get("protocol") else ""
    prompts = (
        f"{data['split']} prompts{protocol}, seed {recipe['seed']}; "
        "95 % intervals over prompts, not over training seeds."
    )
    world = data["world"]
    return prompts if world is None else f"World seed {world}, {prompts} {LAB_CAPTION}"
