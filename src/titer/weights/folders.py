"""The place of a checkpoint, which files it has, and their hash.

A checkpoint is a directory, a repository of the hub in its cache, or what a GGUF was made into.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from titer import paths
from titer.data import hub
from titer.data.packages import is_package
from titer.errors import reading
from titer.paths import BESIDE, DEQUANTIZED, OVER, STACKED
from titer.weights import gguf
from titer.weights.settings import LAB, Checkpoint

ADAPTER = "adapter_config.json"
TENSORS = "adapter_model.safetensors"  # of an adapter
CODE = ".py"  # which a checkpoint of an architecture of its own brings


@dataclass(frozen=True)
class Files:
    """The place of a checkpoint."""

    name: str  # `lab`, the name on the hub or of a package, or the path
    folder: Path
    revision: str | None  # of a repository of the hub
    base: Files | None = None  # under an adapter


def locate(checkpoint: Checkpoint, adapted: bool = False, base: Files | None = None) -> Files:
    """Return the files of a checkpoint, downloaded where they are the hub's.

    `adapted` is one under an adapter, and `base` what lies under this one, where that was located
    before. Raises where they are incomplete.
    """
    name, found = checkpoint.path, _find(checkpoint)
    if name == LAB:
        return found
    adapter = found.folder / ADAPTER
    if not adapter.is_file() and not (found.folder / "config.json").is_file():
        raise ValueError(
            f"model {name!r}: its directory holds neither a config.json nor an "
            "adapter_config.json, so it is no checkpoint"
        )
    wanted = TENSORS if adapter.is_file() else "*.safetensors"
    if not any(found.folder.glob(wanted)):  # a *.bin would be unpickled, which runs what is in it
        raise ValueError(
            f"model {name!r}: the directory holds no {wanted}; save the weights in that format"
        )
    if not adapter.is_file():
        if checkpoint.base:
            raise ValueError(
                f"model {name!r} is no adapter, so base={checkpoint.base!r} has no use: leave it "
                "out"
            )
        return found
    if adapted:
        raise ValueError(f"{name!r} is an adapter itself: merge it into its base first")
    if base:
        return replace(found, base=base)
    named = read_config(adapter)
    under, revision = (
        (checkpoint.base, None)
        if checkpoint.base
        else (named.get("base_model_name_or_path"), named.get("revision"))
    )
    if not under:
        raise ValueError(f"adapter {name!r} names no base model: give it as model.base")
    if not isinstance(under, str) or not isinstance(revision, str | None):
        raise ValueError(f"{adapter}: its base model {under!r} is no name: give it as model.base")
    try:
        base = locate(replace(checkpoint, path=under, revision=revision, base=None), True)
    except ValueError as error:
        raise ValueError(
            f"adapter {name!r}: its base is not to be had ({error}); give it as model.base"
        ) from None
    return replace(found, base=base)


def _find(checkpoint: Checkpoint) -> Files:
    """Return the place that a checkpoint's path means, without what lies under an adapter.

    What it means is downloaded, or dequantized, where that was not done before.
    """
    name, revision = checkpoint.path, checkpoint.revision
    if name == LAB:
        return Files(LAB, Path(__file__).parent.parent / "lab" / "base", None)
    if file := gguf.find(name):
        if revision is not None:
            raise ValueError(
                f"revision={revision!r}: model {name!r} is a GGUF file, which has no revisions; "
                "leave it out"
            )
        full = name if is_package(name) else str(paths.expand(name).absolute())
        return Files(full, gguf.dequantize(name, file, _hash(file).hex()), None)
    found = hub.find(name, "model", revision, unsafe=checkpoint.trust_remote_code)
    full = name if found.revision else str(found.folder.resolve())
    return Files(full, found.folder, found.revision)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint. Raises where it holds no mapping of settings."""
    with reading(str(path), "is it JSON?"):
        fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: no mapping of settings, but {str(fields)[:40]!r}")
    return fields


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is an adapter over another model."""
    return (_find(checkpoint).folder / ADAPTER).is_file()


def identify(files: Files) -> dict[str, Any]:
    """Return what a record says of a checkpoint: its place, and the GGUF or the stack that it was made
    from.
    """
    folder, made = (files.base or files).folder, dict[str, Any]()
    if (note := folder / DEQUANTIZED).is_file():
        made["dequantized from"] = read_config(note)
    if (note := folder / STACKED).is_file():
        made["stacked from"] = read_config(note)["parts"]
    return {"name": files.name, "revision": files.revision, **made}


def digest(files: Files, code: bool = True) -> str:
    """Return the SHA-256 over the files of a checkpoint that determine its answers.

    Those of the base under it count too, and without `code` none of its programs.
    """
    hasher = hashlib.sha256(digest(files.base, code).encode() if files.base else b"")
    for path in parts(files):
        if code or path.suffix != CODE:
            hasher.update(path.name.encode() + _hash(path))
    return hasher.hexdigest()


def _hash(path: Path) -> bytes:
    """Return the SHA-256 of a file, which is read again only where its state has changed.

    Each cell of a sweep and each stage over an adapter asks for the hash of its model.
    """
    about = path.stat()
    return _hash_bytes(path, (about.st_ino, about.st_size, about.st_mtime_ns))


@cache
def _hash_bytes(path: Path, state: tuple[int, ...]) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def parts(files: Files) -> list[Path]:
    """Return the files of a checkpoint that determine its answers.

    Those of a base under it are not among them.
    """
    return [path for path in sorted(files.folder.iterdir()) if is_part(path.name)]


def is_part(name: str) -> bool:
    """Tell whether a file of this name in a checkpoint's folder may determine its answers."""
    # code is run where it is trusted
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt", CODE)
    return "/" not in name and name not in BESIDE and name.endswith(kinds)


def belongs(adapter: Files, base: Files) -> bool:
    """Say whether an adapter was trained over these weights.

    One that does not say over which belongs to any.
    """
    note = adapter.folder / OVER
    # code is no weight, and comes from the hub only where somebody trusts it
    return not note.is_file() or read_config(note).get("base") == digest(base, code=False)
