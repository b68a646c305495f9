"""Checkpoints that are made of others once, in the cache of the Hugging Face libraries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from titer import paths


def make_once(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of a checkpoint in the cache, filled by `make` first where it is not there.

    It appears by one rename, whole or not at all. Another process that asks for it waits.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    folder = paths.expand(constants.HF_ASSETS_CACHE) / "titer" / kind / key
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)  # what a killed process left
        fresh.mkdir()
        try:
            make(fresh)
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder
