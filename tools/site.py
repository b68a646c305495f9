"""Make what the site of the documentation has beside `docs/*.md`. `make docs` builds it.

mkdocs calls the functions that begin with `on_` (`hooks` in mkdocs.yml). They add

* the pages of the repository's own folder that the site has too, CONTRIBUTING.md for one;
* a page for every kind of method: its typed facts, its fields, and the docstring of its module;
* the page of all commands, as `--help` has them, and that of the Python functions;
* every other file that a page links to outside of `docs/`, under `files/`.

A link to a file that is not there stops the build, and so does a page that asks another host for
anything.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

    from titer.listing import Facts

ROOT = Path(__file__).parent.parent
# pages of the repository's folder -> where the site has them
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "bench/README.md": "bench.md",
}
FILES = "files"  # the folder of the site for files that are no pages
# the path of a link within the repository
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?=[)#])")
# what a style loads from another host
STYLE = re.compile(r"(?:url\(|@import\s*)['\"]?((?:https?:)?//[^'\")\s]+)")
API = """# Functions

Made from the docstrings of the package. [titer from Python](../python.md) has examples.

::: titer.api
    options:
      members: [run, plan, align, release, finetune, edit, evaluate, attack, search_attack, assay, gate,
                screen, calibrate, load, list_methods, choose, Result, Results, LadderResult, GateResult,
                ScreenResult]
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's folder, those that are generated, and linked files."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    docs = Path(config.docs_dir)
    for name, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    sources = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    try:
        linked = {name for source in sources for _, name in find_links(source)}
    except ValueError as error:
        raise PluginError(str(error)) from None
    for name in sorted(name for name in linked - set(PAGES) if is_outside(name, docs)):
        place = place_of(name, docs)
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    for place, text in generate():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of `docs/` to where the site has them."""
    if not page.file.abs_src_path:  # it was generated, for the site alone
        return markdown
    here, docs = PurePosixPath(page.file.src_uri).parent, Path(config.docs_dir)
    places = {
        link: os.path.relpath(place_of(name, docs), here)
        for link, name in find_links(Path(page.file.abs_src_path))
    }
    return LINK.sub(lambda match: places[match["path"]], markdown)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Stop the build where a page asks another host for anything."""
    from mkdocs.exceptions import PluginError

    asked = sorted(set(find_requests(Path(config.site_dir))))
    if asked:
        raise PluginError(f"pages ask other hosts: {'; '.join(asked)}")


def find_links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the links of a page to files of the repository: as written, and from its root.

    Raises where there is no such file.
    """
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / match["path"]).resolve()
        if not target.is_relative_to(ROOT) or not target.is_file():
            raise ValueError(f"{page.relative_to(ROOT)}: links to {match['path']}: no such file")
        yield match["path"], target.relative_to(ROOT).as_posix()


def is_outside(name: str, docs: Path) -> bool:
    """Tell a file of the repository from one of `docs/`."""
    return not (ROOT / name).is_relative_to(docs)


def place_of(name: str, docs: Path) -> str:
    """Return where the site has a file of the repository."""
    if not is_outside(name, docs):
        return (ROOT / name).relative_to(docs).as_posix()
    return PAGES.get(name, f"{FILES}/{name}")


def find_requests(site: Path) -> Iterator[str]:
    """Yield what built pages and their styles load from another host, each with its page."""
    for path in site.rglob("*.html"):
        parser = Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        yield from (f"{path.relative_to(site)}: {url}" for url in parser.urls)
    for path in site.rglob("*.css"):
        for url in STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {url}"


class Loads(HTMLParser):
    """Collect the addresses of other hosts that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = [given.get("src"), given.get("srcset"), given.get("poster"), given.get("data")]
        if tag == "link" and given.get("rel") != "canonical":
            loads.append(given.get("href"))
        self.urls += [url for url in loads if url and re.match(r"(https?:)?//", url)]


def generate() -> Iterator[tuple[str, str]]:
    """Yield the pages that are made from the package: where each lies, and its text."""
    from titer import registry

    for kind in registry.KINDS:
        yield f"reference/{kind}.md", write_kind(kind)
    yield "reference/commands.md", write_commands()
    yield "reference/api.md", API


def write_kind(kind: str) -> str:
    """Write the page of a kind of method."""
    from titer import registry
    from titer.listing import describe_method

    methods = [describe_method(f"{kind}/{name}") for name in registry.builtin(kind)]
    return "\n\n".join(
        [
            f"# {kind.capitalize()}",
            "Made from the sources: the facts that a method states of itself, its fields, and the "
            "docstring of its file. [All in one table](../methods.md).",
            *(write_method(facts) for facts in methods),
        ]
    )


def write_method(facts: Facts) -> str:
    """Write the section of a method."""
    from titer import registry
    from titer.listing.show import tell_facts, tell_fields

    cls = registry.load(facts.kind, facts.name)
    module = importlib.import_module(cls.__module__)
    known = [(name, value) for name, value in tell_facts(facts).items() if value]
    parts = [f"## {facts.name}", write_table(("", ""), known)]
    if fields := tell_fields(facts):
        code = [(f"`{name}`", f"`{of}`", f"`{default}`", why) for name, of, default, why in fields]
        parts.append(write_table(("field", "type", "default", "meaning"), code))
    parts.append(to_markdown(inspect.cleandoc(module.__doc__ or "")))
    return "\n\n".join(parts)


def write_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a table in markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def to_markdown(docstring: str) -> str:
    """Set what a docstring means by its layout: a list begins behind an empty line, and words of
    mathematics are no emphasis and no tags.
    """
    lines: list[str] = []
    for line in docstring.splitlines():
        begins = re.match(r"(\*|\d+\.) ", line) is not None
        if begins and lines and lines[-1] and not re.match(r"(\*|\d+\.) | {2,}\S", lines[-1]):
            lines.append("")
        if begins:
            lines.append(line[: line.index(" ") + 1].ljust(4) + escape(line[line.index(" ") + 1 :]))
        elif line.startswith("    "):
            lines.append(line)
        else:
            lines.append(("    " if line.startswith("  ") else "") + escape(line.strip()))
    return "\n".join(lines)


def escape(text: str) -> str:
    """Escape what markdown would take for emphasis or a tag, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<|\[\]])", r"\\\1", part) for part in parts
    )


def write_commands() -> str:
    """Write the page of all commands."""
    from typer.main import get_command

    from titer import cli

    parts = ["# Commands", "As `titer COMMAND --help` has them."]
    return "\n\n".join([*parts, *tell_commands(get_command(cli.app), None, "titer")])


def tell_commands(command: Any, parent: Any, name: str) -> Iterator[str]:
    """Yield the sections of a command and of those below it."""
    import typer

    context = typer.Context(command, info_name=name, parent=parent, max_content_width=100)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
    for each, below in getattr(command, "commands", {}).items():
        yield from tell_commands(below, context, each)
