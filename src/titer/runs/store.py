"""The store of finished stages, by the hash of all that determines them.

A stage is computed once, whichever run or process asks for it.

    stages/<key>/     what a stage left, with manifest.json: the SHA-256 of every file
    partial/<key>/    a stage that is being computed, or that was interrupted and can go on
    locks/<key>.lock  held by the process that computes it
    runs/<name>.json  the stages that an unfinished run needs

A stage appears under `stages` by one rename, so it is there whole or not at all. What a disk or a
hand has changed since is found by its hash, and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from filelock import FileLock
from pydantic import AfterValidator, Field, RootModel

from titer import paths
from titer.findings.records import Document, parse_document
from titer.paths import MANIFEST

WEIGHTS = ".safetensors"
KEY = re.compile("[0-9a-f]{32}")  # of a stage, the name of its folder
ATTACKED = ("finetune", "edit", "unsafe")  # kinds of stages whose weights gc takes


def _inside(name: str) -> str:
    """Return a file's name within a stage. Raises where it would lie outside."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{name!r} is no file of the stage")
    return name


Name = Annotated[str, AfterValidator(_inside)]


class Manifest(Document):
    """The contents of a finished stage."""

    files: dict[Name, str]  # SHA-256 by name
    dropped: list[Name]  # weights that gc took
    about: dict[str, Any]  # what was hashed for the key


class Needed(RootModel[list[str]]):
    """The keys of the stages that an unfinished run needs."""


class Made(Document):
    """The facts that a computation told, and its cost."""

    facts: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A finished stage in the store."""

    key: str
    folder: Path
    files: dict[str, str]  # SHA-256 by name
    dropped: tuple[str, ...]  # weights that gc took
    about: dict[str, Any]  # what was hashed for the key

    @property
    def kind(self) -> str:
        return str(self.about.get("kind", "?"))

    @property
    def method(self) -> str:
        """The name of its method, empty where it has none."""
        told = self.about.get("method")
        return str(told.get("method", "")) if isinstance(told, dict) else ""

    @property
    def size(self) -> int:
        return sum(
            (self.folder / name).stat().st_size
            for name in self.files
            if (self.folder / name).is_file()
        )

    def faults(self) -> list[str]:
        """List the files that are not as they were written."""
        kept = [name for name in self.files if name not in self.dropped]
        return [
            name
            for name in kept
            if not (self.folder / name).is_file() or sha256(self.folder / name) != self.files[name]
        ]


@dataclass(frozen=True)
class Store:
    root: Path

    def place(self, key: str) -> Path:
        """Name the folder of a finished stage."""
        return self.root / paths.FINISHED / key

    def stage(
        self,
        key: str,
        about: dict[str, Any],
        compute: Callable[[Path], None],
        weights: bool = False,
    ) -> Path:
        """Return the folder of the stage of this key.

        Where it is not there whole, `compute(folder)` computes it. `about` is what determines it,
        kept for those who look. With `weights` an entry whose weights gc took is computed again. If
        `compute` raises, its partial work is kept for the next attempt; after a ValueError it is
        deleted, because the same input would fail again. Another process that asks for the same
        stage waits.
        """
        folder, partial = self.place(key), self.root / paths.PARTIAL / key
        (self.root / paths.LOCKS).mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.root / paths.LOCKS / f"{key}.lock"):
            entry = self.entry(key)
            if entry and not entry.faults() and not (weights and entry.dropped):
                return folder
            if folder.exists():
                shutil.rmtree(folder)
            if not _whole(partial):
                (partial / MANIFEST).unlink(missing_ok=True)
                # attacked weights and answers are for their maker alone
                partial.mkdir(parents=True, exist_ok=True, mode=0o700)
                try:
                    compute(partial)
                except ValueError:
                    shutil.rmtree(partial)
                    raise
                write(partial / MANIFEST, {"files": hashes(partial), "dropped": [], "about": about})
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.replace(partial, folder)
        return folder

    def entry(self, key: str) -> Entry | None:
        """Return a finished stage, None where there is none or its manifest cannot be read."""
        path = self.place(key) / MANIFEST
        try:
            manifest = parse_document(path, Manifest)
        except (OSError, ValueError):
            return None
        return Entry(key, path.parent, manifest.files, tuple(manifest.dropped), manifest.about)

    def entries(self) -> list[Entry]:
        """List the finished stages, the oldest first."""
        folders = sorted(
            self._folders(paths.FINISHED), key=lambda folder: folder.stat().st_mtime_ns
        )
        return [entry for folder in folders if (entry := self.entry(folder.name))]

    def strays(self) -> list[Path]:
        """List what lies in the store and is none of its own, or cannot be read."""
        unread = [marker for marker, keys in self._needs().items() if keys is None]
        return unread + [
            path
            for place in (paths.FINISHED, paths.PARTIAL)
            for path in sorted({*(self.root / place).glob("*")} - {*self._folders(place)})
        ]

    def _needs(self) -> dict[Path, list[str] | None]:
        """Read which stages unfinished runs need, by marker; None where one cannot be read."""
        found: dict[Path, list[str] | None] = {}
        for marker in sorted((self.root / paths.RUNS).glob("*.json")):
            try:
                found[marker] = parse_document(marker, Needed).root
            except (OSError, ValueError):
                found[marker] = None
        return found

    def _folders(self, place: str) -> list[Path]:
        """List the folders of stages, finished or begun."""
        return [
            path
            for path in sorted((self.root / place).glob("*"))
            if path.is_dir() and not path.is_symlink() and KEY.fullmatch(path.name)
        ]

    @contextmanager
    def needed(self, name: str, keys: Sequence[str]) -> Iterator[None]:
        """Keep these stages from gc inside, and after an interruption until this run has ended."""
        marker = self.root / paths.RUNS / f"{name}.json"
        marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write(marker, list(keys))
        yield
        marker.unlink(missing_ok=True)

    def verify(self) -> dict[str, list[str]]:
        """Return the faults of every entry that has some.

        A folder without a readable manifest is a fault itself.
        """
        found: dict[str, list[str]] = {}
        for folder in self._folders(paths.FINISHED):
            entry = self.entry(folder.name)
            faults = [MANIFEST] if entry is None else entry.faults()
            if faults:
                found[folder.name] = faults
        return found

    def gc(self) -> int:
        """Take the attacked weights that no unfinished run needs, and what is broken.

        Returns the bytes that were freed.
        """
        kept = {key for keys in self._needs().values() for key in keys or ()}
        freed = 0
        for key in self.verify():
            freed += _size(self.place(key))
            shutil.rmtree(self.root / paths.FINISHED / key)
        for entry in self.entries():
            taken = [
                name for name in entry.files if name.endswith(WEIGHTS) and name not in entry.dropped
            ]
            if entry.key in kept or not taken or entry.kind not in ATTACKED:
                continue
            with FileLock(self.root / paths.LOCKS / f"{entry.key}.lock"):
                freed += sum((entry.folder / name).stat().st_size for name in taken)
                manifest = {
                    "files": entry.files,
                    "dropped": sorted({*entry.dropped, *taken}),
                    "about": entry.about,
                }
                # first: a file that is gone before is a fault
                write(entry.folder / MANIFEST, manifest)
                for name in taken:
                    (entry.folder / name).unlink()
        for partial in self._folders(paths.PARTIAL):
            if partial.name not in kept:
                freed += _size(partial)
                shutil.rmtree(partial)
        return freed


def open_store(root: Path) -> Store:
    """Open the store in a folder. Raises where there is none."""
    if not (root / paths.LOCKS).is_dir():
        raise ValueError(f"{root} holds no store of stages: give the folder `store` beside a run's")
    return Store(root)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and below, by its name there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_text(json.dumps(value, indent=2), encoding="utf-8")
    os.replace(fresh, path)


def _whole(partial: Path) -> bool:
    """Tell whether only the rename is left to do."""
    path = partial / MANIFEST
    try:
        return parse_document(path, Manifest).files == hashes(partial)
    except (OSError, ValueError):  # none, or one that was cut off
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
