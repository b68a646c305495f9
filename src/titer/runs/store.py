"""The store of finished stages, by the hash of all that determines them.

A stage is computed once, whichever run or process asks for it.

    stages/<key>/     what a stage left, with manifest.json: the SHA-256 of every file
    partial/<key>/    a stage that is being computed, or that was interrupted and can go on
    locks/<key>.lock  held by the process that computes it
    runs/<name>.json  the stages that an unfinished run needs; <name>.1.json where two have one name

A stage appears under `stages` by one rename, so it is there whole or not at all. What a disk or a
hand has changed since is found by its hash, and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field, RootModel

from titer import paths
from titer.findings.records import Document, parse_document
from titer.paths import JOURNAL, MANIFEST

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

    def faults(self, weights: bool = True) -> list[str]:
        """List the files that are not as they were written.

        Without `weights` those are not read, and need only be there.
        """
        return [
            name
            for name, written in self.files.items()
            if name not in self.dropped
            and not (
                (self.folder / name).is_file()
                and (
                    (name.endswith(WEIGHTS) and not weights)
                    or sha256(self.folder / name) == written
                )
            )
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
        deleted, because the same input would fail again, but for what a server has answered, which
        is as good for the next attempt. Another process that asks for the same stage waits.
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
                    _clear(partial)
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

    def keys(self) -> list[str]:
        """List the keys of the finished stages, also of those whose manifest cannot be read."""
        return [folder.name for folder in self._folders(paths.FINISHED)]

    def entries(self) -> list[Entry]:
        """List the finished stages, the oldest first."""
        keys = sorted(self.keys(), key=lambda key: self.place(key).stat().st_mtime_ns)
        return [entry for key in keys if (entry := self.entry(key))]

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
        """Keep these stages from gc inside, and after an interruption until a run of this name has ended.

        Of several processes inside each has a marker of its own, whose lock it holds.
        """
        folder = self.root / paths.RUNS
        for place in (folder, self.root / paths.LOCKS):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as held:
            markers = (f"{name}.{i}" if i else name for i in count())
            own = next(marker for marker in markers if held.enter_context(self._try_lock(marker)))
            write(folder / f"{own}.json", list(keys))
            yield
            (folder / f"{own}.json").unlink(missing_ok=True)
        # what was interrupted has been done too
        for marker in sorted(folder.glob(f"{name}.*json")):
            with self._try_lock(marker.stem) as is_held:
                if is_held:
                    marker.unlink(missing_ok=True)

    def verify(self, weights: bool = True) -> dict[str, list[str]]:
        """Return the faults of every entry that has some; without `weights` those are not read.

        A folder without a readable manifest is a fault itself.
        """
        found: dict[str, list[str]] = {}
        for key in self.keys():
            entry = self.entry(key)
            faults = [MANIFEST] if entry is None else entry.faults(weights)
            if faults:
                found[key] = faults
        return found

    def gc(self) -> int:
        """Take the attacked weights that no unfinished run needs, and what is broken.

        A stage that a process works on at this moment is passed over. Weights are not read: who
        uses them compares their hashes. Returns the bytes that were freed.
        """
        kept = {key for keys in self._needs().values() for key in keys or ()}
        freed = 0
        for key in self.keys():
            with self._try_lock(key) as is_held:
                freed += self._collect(key, key in kept) if is_held else 0
        for partial in self._folders(paths.PARTIAL):
            with self._try_lock(partial.name) as is_held:
                # it may have been finished since it was listed
                if is_held and partial.name not in kept and partial.is_dir():
                    freed += _size(partial)
                    shutil.rmtree(partial)
        return freed

    @contextmanager
    def _try_lock(self, key: str) -> Iterator[bool]:
        """Hold the lock of a stage or a marker inside, unless it is held already; tell whether it is."""
        lock = FileLock(self.root / paths.LOCKS / f"{key}.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _collect(self, key: str, is_needed: bool) -> int:
        """Take a finished stage that is broken, or the attacked weights of one that nobody needs.

        Its lock is held. Returns the bytes that were freed.
        """
        entry, place, freed = self.entry(key), self.place(key), 0
        if entry is None or entry.faults(weights=False):
            freed = _size(place)
            if place.is_dir():  # it may be gone since it was listed
                shutil.rmtree(place)
        elif not is_needed and entry.kind in ATTACKED:
            freed = _take_weights(entry)
        return freed


def open_store(root: Path) -> Store:
    """Open the store in a folder. Raises where there is none."""
    if not (root / paths.LOCKS).is_dir():
        raise ValueError(f"{root} holds no store of stages: give the folder `store` beside a run's")
    return Store(root)


def _take_weights(entry: Entry) -> int:
    """Take the weights of a stage away, and note that in its manifest. Returns their bytes."""
    taken = [name for name in entry.files if name.endswith(WEIGHTS) and name not in entry.dropped]
    if not taken:
        return 0
    freed = sum((entry.folder / name).stat().st_size for name in taken)
    manifest = {
        "files": entry.files,
        "dropped": sorted({*entry.dropped, *taken}),
        "about": entry.about,
    }
    # first: a file that is gone before is a fault
    write(entry.folder / MANIFEST, manifest)
    for name in taken:
        (entry.folder / name).unlink()
    return freed


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and below, by its name there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def write(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    # machines that share the store may have the same process ids
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    fresh.write_text(json.dumps(value, indent=2), encoding="utf-8")
    os.replace(fresh, path)


def _whole(partial: Path) -> bool:
    """Tell whether only the rename is left to do."""
    path = partial / MANIFEST
    try:
        return parse_document(path, Manifest).files == hashes(partial)
    except (OSError, ValueError):  # none, or one that was cut off
        return False


def _clear(partial: Path) -> None:
    """Delete what a computation left, but for the journal of a server."""
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != JOURNAL:
            path.unlink()
    if not any(partial.iterdir()):
        partial.rmdir()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
