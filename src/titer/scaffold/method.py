"""The files of a new method, and the places where they go."""

from __future__ import annotations

import ast
import keyword
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from titer import registry
from titer.errors import cause, reading, unknown

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {registry.noun(kind): kind for kind in registry.KINDS}  # by the word for one method
PLUGIN = "plugin"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
PROJECT = "pyproject.toml"
TESTS = "tests"


@dataclass(frozen=True)
class Home:
    """A place for methods: a checkout of titer, or a package that is a plug-in of it."""

    folder: Path  # of the project
    source: Path  # where method files of the kind lie
    package: str  # that these files are modules of
    project: str | None = None  # the text of a plug-in's pyproject.toml

    @staticmethod
    def find(folder: Path, kind: str) -> Home:
        """Find the place in a folder. Raises where it is neither."""
        if (folder / "src" / "titer" / "registry.py").is_file():
            return Home(folder, folder / "src" / "titer" / kind, f"titer.{kind}")
        path = folder / PROJECT
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} is neither a checkout of titer nor a package with a {PROJECT}: go "
                "to one, name it with --into, or write one with: titer new plugin NAME"
            )
        with reading(str(path), "mend it first"):
            text = path.read_text(encoding="utf-8")
            package = tomllib.loads(text)["project"]["name"].replace("-", "_")
        for source in (folder / package, folder / "src" / package):
            if (source / "__init__.py").is_file():
                return Home(folder, source, package, text)
        raise ValueError(
            f"{str(path)!r} names the project {package.replace('_', '-')!r}, and there is no package "
            f"{package!r} beside it or in src/: make the folder with an empty __init__.py"
        )

    def files(self, kind: str, name: str) -> dict[Path, str]:
        """Return the files of a new method: its own, its test, and the project that names it."""
        noun, words = registry.noun(kind), _words(name, self.package)
        found = {
            self.source / f"{name}.py": _fill(f"{noun}.py", words),
            self.folder / TESTS / f"test_{name}.py": _sort_imports(_fill(f"test_{noun}.py", words)),
        }
        if self.project is not None:
            point = f"{self.package}.{name}:{words['Name']}"
            found[self.folder / PROJECT] = add_entry_point(self.project, kind, name, point)
        return found


def write_new(what: str, name: str, into: Path | None = None) -> list[Path]:
    """Write a new method of a kind into a folder, or a new package; return the files.

    Without `into` a method goes into the working folder, and a package into one named after it.
    Raises for an unknown kind, with the nearest.
    """
    if what == PLUGIN:
        return write_plugin(name, into or Path(f"titer-{name.replace('_', '-')}"))
    if what not in KINDS:
        raise unknown("kind", what, [*KINDS, PLUGIN])
    return write_method(KINDS[what], name, into or Path())


def write_method(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a new method and its test into a checkout or a package; return the files.

    Raises for a name that is bad or taken, and for a file that exists; then nothing is written.
    """
    check_name(kind, name)
    home = Home.find(folder, kind)
    files = home.files(kind, name)
    _check_new([path for path in files if path.name != PROJECT])
    return _write(files)


def write_plugin(name: str, folder: Path) -> list[Path]:
    """Write a package that brings one new defense, with its test; return the files.

    Raises as `write_method` does, and for a folder that holds anything.
    """
    kind = KINDS["defense"]
    check_name(kind, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} exists and is not empty: give another folder by --into")
    project = f"titer-{name.replace('_', '-')}"
    package = project.replace("-", "_")
    words = _words(name, package) | {"project": project, "package": package}
    home = Home(folder, folder / package, package, _fill(PROJECT, words))
    start = {folder / package / "__init__.py": _fill("package.py", words)}
    return _write(start | home.files(kind, name))


def check_name(kind: str, name: str) -> None:
    """Raise unless a method of a kind may have this name."""
    noun = registry.noun(kind)
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        better = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
        fits = NAME.fullmatch(better) and not keyword.iskeyword(better)
        raise ValueError(
            f"{name!r} is no name for {_a(noun)}: {f'try {better!r}: ' if fits else ''}small letters, "
            "digits and underscores, a letter first, and no word of Python's"
        )
    if name in registry.names(kind):
        raise ValueError(
            f"there is {_a(noun)} {name!r} already (titer show {kind}/{name}): choose another name"
        )
    words = _words(name, "")
    if words["Name"] in _imports(_fill(f"{noun}.py", words)):
        raise ValueError(
            f"{name!r} makes the class {words['Name']}, and the method's file imports one of that "
            "name: choose another name"
        )


def add_entry_point(text: str, kind: str, name: str, point: str) -> str:
    """Return the text of a pyproject.toml with one more entry point, all else as it was.

    Raises where the name is there already, or the text does not take it.
    """
    group = f"titer.{kind}"
    if name in _points(text, group):
        raise ValueError(
            f"{PROJECT} names {name!r} in the group {group!r} already: choose another name, or take it out"
        )
    head, line = f'[project.entry-points."{group}"]', f'{name} = "{point}"'
    found = re.search(
        rf"^\[project\.entry-points\.['\"]{re.escape(group)}['\"]\][^\n]*$", text, re.M
    )
    if found:
        made = f"{text[: found.end()]}\n{line}{text[found.end() :]}"
    else:
        made = f"{text.rstrip()}\n\n{head}\n{line}\n"
    try:
        added = _points(made, group) == _points(text, group) | {name: point}
    except tomllib.TOMLDecodeError:
        added = False
    if not added:
        raise ValueError(
            f"{PROJECT} has no place for an entry point: put {line} under {head} yourself"
        )
    return made


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _points(text: str, group: str) -> dict[str, str]:
    project = tomllib.loads(text).get("project", {})
    return dict(project.get("entry-points", {}).get(group, {}))


def _words(name: str, package: str) -> dict[str, str]:
    """Return what stands in the place of a template's words."""
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return {"name": name, "Name": class_name, "module": f"{package}.{name}"}


def _fill(template: str, words: Mapping[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(words)


def _sort_imports(text: str) -> str:
    """Put the import of a method of titer's own among those of titer."""
    blocks = text.split("\n\n")
    at = next(i for i, block in enumerate(blocks) if block.startswith("from titer."))
    mine = [line for line in blocks[at - 1].split("\n") if line.startswith("from titer.")]
    if mine:
        blocks[at - 1] = "\n".join(line for line in blocks[at - 1].split("\n") if line not in mine)
        blocks[at] = "\n".join(sorted([*blocks[at].split("\n"), *mine]))
    return "\n\n".join(block for block in blocks if block)


def _imports(text: str) -> set[str]:
    """Return the names that a module imports."""
    return {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _check_new(paths: list[Path]) -> None:
    for path in paths:
        if path.exists():
            raise ValueError(f"{str(path)!r} exists: choose another name, or move it away")


def _write(files: Mapping[Path, str]) -> list[Path]:
    """Write all files or none: where one cannot be written, those before are taken away again."""
    before = {path: path.read_bytes() for path in files if path.exists()}
    written: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        for path in written:
            if path in before:
                path.write_bytes(before[path])
            else:
                path.unlink(missing_ok=True)
        raise ValueError(
            f"{str(path)!r} cannot be written ({cause(error)}); nothing was kept"
        ) from error
    return list(files)
