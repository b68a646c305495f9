"""A checkpoint of titer's on the Hugging Face hub, with a page that says what it is.

What goes up is what loads the model, and a README.md; no record, no row, no path of this machine.
`titer.integrations.provenance` says what may go up at all.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from titer import paths
from titer.errors import cause
from titer.findings.card import Card
from titer.findings.records import Record, load_document, parse_document
from titer.integrations.provenance import Provenance, find_provenance
from titer.report.model_card import ModelPage, to_markdown
from titer.report.parts import write_together
from titer.runs.command import link
from titer.weights import folders

PAGE = "README.md"
NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Stated:
    """What a person says of a model that its folder does not tell."""

    base: str | None = None  # the base's name on the hub
    license: str | None = None  # of the base, as the hub names it
    scores: Path | None = None  # the folder of `titer evaluate`
    card: Path | None = None  # a tamper card, or its folder


Package = Mapping[str, Path | bytes]  # name in the repository -> a file here, or what it holds


def pack(place: str, repository: str, given: Stated) -> Package:
    """Return what would go up, by its name there.

    Raises where the checkpoint may not be pushed, and where what is given is of another model.
    """
    if not NAME.fullmatch(repository):
        raise ValueError(f"{repository!r} is no name of a repository: give OWNER/NAME")
    found = find_provenance(place)
    base, on_hub = _name_base(found, given.base)
    page = to_markdown(_page(found, repository.partition("/")[2], base, on_hub, given))
    packed: dict[str, Path | bytes] = {path.name: path for path in folders.parts(found.files)}
    if found.is_adapter:
        packed[folders.ADAPTER] = _rewrite_base(found, on_hub)
    return {PAGE: page.encode(), **packed}


def write_package(packed: Package, to: Path) -> list[Path]:
    """Write what would go up into a folder that is not there yet, or is empty; return the files."""
    with write_together(to) as draft:
        for name, what in packed.items():
            if isinstance(what, bytes):
                (draft / name).write_bytes(what)
            elif what.suffix == ".safetensors":
                link(str(what), str(draft / name))  # large, and nobody edits it in place
            else:
                shutil.copyfile(what, draft / name)
    return sorted(to.iterdir())


def push(packed: Package, repository: str, public: bool = False) -> str:
    """Put files into a repository of the hub, which is made where there is none; its address.

    What another checkpoint left there, and this one has not, is removed: a loader might take it.
    Raises ValueError where the hub does not take them, and where the repository is there already and
    is public or private other than was asked for.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    add = [
        CommitOperationAdd(name, what if isinstance(what, bytes) else str(what))
        for name, what in packed.items()
    ]
    api = HfApi()
    with _explain(repository):
        made = api.create_repo(repository, private=not public, exist_ok=True, repo_type="model")
        there = api.model_info(repository)
        if there.private == public:
            mend = "leave --public out, or change that on its page" if public else "say --public"
            raise ValueError(
                f"{repository} is there already, and {'private' if public else 'public'}: {mend}, or "
                "give another name"
            )
        names = [each.rfilename for each in there.siblings or ()]
        left = [name for name in names if folders.is_part(name) and name not in packed]
        gone = [CommitOperationDelete(name) for name in left]
        api.create_commit(repository, [*add, *gone], commit_message="Add a model made with titer")
    return str(made)


@contextmanager
def _explain(repository: str) -> Iterator[None]:
    """Turn what the hub or its client says into one line with the mend."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except LocalTokenNotFoundError:
        raise ValueError(f"{repository}: the hub asks who you are: run `hf auth login`") from None
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no name of a repository ({cause(error)})") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        mends = {
            401: "your token is not known there, or there is none: run `hf auth login`",
            403: "your token may not write there: take one that may, or a name of your own",
            404: "there is no such owner, or your token may not see it: check the name",
        }
        mend = mends.get(status, "try again later")
        said = cause(Exception(error.server_message or str(error).splitlines()[0]))
        raise ValueError(f"{repository}: the hub answered {status} ({said}): {mend}") from None
    except (OfflineModeIsEnabled, HTTPError, InvalidURL) as error:
        raise ValueError(
            f"{repository}: the hub cannot be reached ({cause(error)}): nothing went up; --dry-run "
            "writes it into a folder"
        ) from None


def _name_base(found: Provenance, given: str | None) -> tuple[str, str | None]:
    """Name the base for readers, and as the hub knows it. Raises where an adapter's is not known there."""
    under = found.files.base
    lies_over = under or found.started
    on_hub = given or (lies_over.name if lies_over.revision else None)
    if under and (found.files.folder / paths.BASE).is_dir():
        raise ValueError(
            f"{found.files.name}: it lies over a merged model beside it, which the hub does not "
            "have: make it with --whole, and push that"
        )
    if under and not on_hub:
        raise ValueError(
            f"{found.files.name}: it is an adapter over {under.name!r}, which is no name of the hub, so "
            "nobody could load it: say what the base is called there, --base-model OWNER/NAME, or push "
            "a whole model (--whole)"
        )
    if on_hub and not NAME.fullmatch(on_hub):
        raise ValueError(f"--base-model {on_hub!r} is no name of a repository: give OWNER/NAME")
    name = found.started.name
    told = on_hub or (f"a folder named {Path(name).name}" if Path(name).is_absolute() else name)
    return told, on_hub


def _rewrite_base(found: Provenance, on_hub: str | None) -> bytes:
    """Return an adapter's settings with the name that its base has on the hub."""
    fields = folders.read_config(found.files.folder / folders.ADAPTER)
    assert found.files.base, "it is an adapter"
    same = found.files.base.name == on_hub
    fields |= {"base_model_name_or_path": on_hub}
    fields |= {"revision": found.files.base.revision if same else None}
    return (json.dumps(fields, indent=2) + "\n").encode()


def _page(found: Provenance, name: str, base: str, on_hub: str | None, given: Stated) -> ModelPage:
    last, told, digest = found.records[-1], found.told, found.digest
    scores, judge, recipe = last.scores, told.get("judge") or {}, last.recipe
    flags = [*(flag for record in found.records for flag in record.flags or [])]
    flags += [flag for flag in told.get("flags") or [] if flag["stage"] == last.label]
    if given.scores:
        scored = parse_document(given.scores / paths.RECORD, Record)
        _check_same("--scores", given.scores, scored.model.sha256 if scored.model else None, digest)
        judge = (scored.model_extra or {}).get("judge") or {}
        scores, recipe, flags = scored.scores, scored.recipe, [*flags, *(scored.flags or [])]
    card = None
    if given.card:
        card = load_document(given.card / paths.CARD if given.card.is_dir() else given.card, Card)
        _check_same("--card", given.card, card["model"].get("sha256"), digest)
    under = found.files.base
    return ModelPage(
        name=name,
        records=found.records,
        sha256=digest,
        base=base,
        base_on_hub=on_hub,
        base_sha256=folders.digest(under) if under else found.started.sha256,
        is_adapter=found.is_adapter,
        license=given.license or _read_license(found),
        scores=scores,
        judge=judge,
        asked={key: recipe.get(key) for key in ASKED},
        card=card,
        flags=flags,
        environment=told.get("environment") or {},
    )


ASKED = ("template", "system", "protocol")


def _check_same(option: str, place: Path, its: str | None, mine: str) -> None:
    if its != mine:
        raise ValueError(
            f"{option} {place} is of another model (sha256 {str(its)[:12]}, this one's {mine[:12]}): "
            "give that of the checkpoint that is pushed"
        )


def _read_license(made: Provenance) -> str | None:
    """Read the license that a base's own page names; None where it names none, or is not here."""
    under = made.files.base
    folder = under.folder if under else Path(made.started.name)
    page = folder / PAGE
    if not folder.is_absolute() or not page.is_file():
        return None
    found = re.match(
        r"---\n(.*?)\n---", page.read_text(encoding="utf-8", errors="replace"), re.DOTALL
    )
    try:
        told: Any = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    named = told.get("license") if isinstance(told, dict) else None
    return named if isinstance(named, str) else None
