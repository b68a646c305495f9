"""From a name to a local folder: a directory as it is, or a repository of the Hugging Face hub.

A repository is downloaded into the hub's cache. One that was downloaded before stays at the commit
it had then: results do not change because somebody pushed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from titer import paths
from titer.errors import nearest

Kind = Literal["model", "dataset"]

SAFE = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
# pickles and code: loading them runs what their author wrote
UNSAFE = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.py",
)
TABLES = tuple(
    f"*.{form}{packed}"
    for form in ("json", "jsonl", "csv", "tsv", "parquet")
    for packed in ("", ".gz", ".bz2", ".xz", ".zst")
)


@dataclass(frozen=True)
class Found:
    """A local folder, and the commit that it is of."""

    folder: Path
    revision: str | None  # commit, None for a directory of the user's own


def find(
    name: str, kind: Kind = "model", revision: str | None = None, *, unsafe: bool = False
) -> Found:
    """Return the folder that `name` means: a directory, which goes first, or a hub id `owner/name`.

    Without a revision a repository stays at the commit in the cache, or is downloaded at its
    newest; `revision="main"` updates it. Of a model come the files beside its config.json without
    pickles and code (unless `unsafe`), of a dataset its tables and its README.md. Raises ValueError
    where the name means nothing or the hub does not give it.
    """
    local = paths.expand(name)
    if name and local.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r}: {kind} {name!r} is a local directory, which has no "
                "revisions; leave it out"
            )
        return Found(local, None)
    if local.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise _meaningless(name, kind)
    # what the hub's client raises for any failed connection, and for a proxy that is no address
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = revision or cached_commit(name, kind) or "main"
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    patterns = [*TABLES, "README.md"] if kind == "dataset" else [*SAFE, *(UNSAFE if unsafe else ())]
    others = ["*/*"] if kind == "model" else None  # copies in other formats
    try:
        folder = snapshot_download(
            name, repo_type=kind, revision=revision, allow_patterns=patterns, ignore_patterns=others
        )
    except HFValidationError:
        raise _meaningless(name, kind) from None
    except GatedRepoError:
        raise ValueError(
            f"{kind} {name!r} is gated: accept its terms on {page}, then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{kind} {name!r}: no such directory here and no such repository on the hub; check the "
            "name, or run `hf auth login` "
            "if it is private"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"revision={revision!r}: {kind} {name!r} has none of that name; give a branch, tag or "
            f"commit of {page}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, InvalidURL) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{kind} {name!r}: no such directory here, and the hub cannot be reached for it "
            f"({cause}); where it can, run "
            f"`hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''} --local-dir "
            "FOLDER` and give that folder"
        ) from None
    return Found(Path(folder), Path(folder).name)


def cached_commit(name: str, kind: Kind = "model") -> str | None:
    """Return the commit at which the hub's cache holds a repository.

    It is None before the first download, and for directories.
    """
    from huggingface_hub import constants

    main = (
        paths.expand(constants.HF_HUB_CACHE)
        / f"{kind}s--{name.replace('/', '--')}"
        / "refs"
        / "main"
    )
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


def _meaningless(name: str, kind: Kind) -> ValueError:
    """Return the error for a name that is no directory and cannot be a hub id either."""
    path = paths.expand(name)
    if path.is_file():
        return ValueError(
            f"{kind} {name!r} is a file: give a directory, or a hub id like 'owner/name'"
        )
    beside = (
        [other.name for other in path.parent.iterdir() if other.is_dir()]
        if path.parent.is_dir()
        else []
    )
    hint = nearest(path.name, beside)
    return ValueError(
        f"{kind} {name!r}: no such directory, and no hub id either: {hint}Give a directory, or an "
        "id like 'owner/name'"
    )
