"""Listings of methods, recipes and the hub, and all that is known of one method.

Behind `titer list`, which reads sources and imports no method; `titer show`, which imports the one; and
docs/methods.md, which `python -m titer.listing docs/methods.md` writes again.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import io
import json
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from titer import registry
from titer.errors import unknown
from titer.methods import About, Fidelity, Method, Needs

RECIPES = Path(__file__).parent / "recipes"
OTHER = ("recipes", "hub")  # that are listed too, beside the kinds of methods
ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Listing:
    """A line of `titer list`."""

    kind: str
    name: str
    summary: str
    source: str  # the package that brings it
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None  # why a plug-in cannot be used, as far as its source shows

    def __str__(self) -> str:
        if self.error:
            return self.error
        brought = "" if self.source in ("titer", "hub") else f" [{self.source}]"
        return f"{self.summary}{brought}"


@dataclass(frozen=True)
class Hyperparameter:
    """A field of a method, as a recipe writes it."""

    name: str
    type: str
    default: Any  # None where it is required, too
    required: bool
    meaning: str  # the comment beside it in the source


@dataclass(frozen=True)
class Facts:
    """All that is known of a method with its defaults."""

    name: str
    kind: str
    package: str
    title: str
    summary: str
    stages: tuple[str, ...]
    rows: dict[str, str]  # what it is given, by stream; an edit's are `rows`
    models: tuple[str, ...]  # other models that it asks for
    adapter: bool  # it works on the factors of an adapter alone
    passes: str
    paper: str
    fidelity: Fidelity
    fields: tuple[Hyperparameter, ...]


def kinds(kind: str | None) -> list[str]:
    """Name the kinds to list: the given one, or all. Raises with the nearest name for an unknown one."""
    known = [*registry.KINDS, *OTHER]
    if kind is None:
        return known
    if kind not in known:
        raise unknown("kind", kind, known)
    return [kind]


def entries(kind: str | None) -> list[Listing]:
    """Everything of a kind, or of all kinds, by name; nothing is imported for it."""
    return [
        entry
        for each in kinds(kind)
        for entry in (
            _hub() if each == "hub" else _recipes() if each == "recipes" else _methods(each)
        )
    ]


def lines(kind: str | None) -> list[str]:
    """The lines of `titer list`."""
    found = entries(kind)
    width = max((len(entry.name) for entry in found), default=0) + 2
    return [f"{entry.kind:12}{entry.name:{width}}{entry}" for entry in found]


def find(name: str) -> tuple[str, str]:
    """Find kind and name of NAME, or KIND/NAME. Raises where there is no such method, or more than one."""
    given, slash, short = name.rpartition("/")
    if slash:
        if given not in registry.KINDS:
            raise unknown("kind", given, registry.KINDS)
        return given, short
    found = [kind for kind in registry.KINDS if name in registry.names(kind)]
    if not found:
        raise unknown("method", name, {n for kind in registry.KINDS for n in registry.names(kind)})
    if len(found) > 1:
        nouns = [registry.noun(kind) for kind in found]
        each = " and ".join(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns)
        raise ValueError(f"{name!r} is {each}: give {' or '.join(f'{k}/{name}' for k in found)}")
    return found[0], name


def describe_method(name: str) -> Facts:
    """Gather all that is known of a method. Raises where there is none, or a plug-in cannot be used."""
    kind, name = find(name)
    cls = registry.load(kind, name)
    method = registry.build(kind, name)
    needs, about = method.needs, cls.about
    point = next((point for point in registry.plugins(kind) if point.name == name), None)
    return Facts(
        name=name,
        kind=kind,
        package=registry.package_of(point) if point else "titer",
        title=about.title or name,
        summary=" ".join((cls.__doc__ or "").split("\n\n")[0].split()),
        stages=cls.stages,
        rows=_rows(needs),
        models=needs.references,
        adapter=needs.factors,
        passes=about.passes,
        paper=about.paper,
        fidelity=about.fidelity,
        fields=tuple(_hyperparameters(cls)),
    )


def page(facts: Facts) -> str:
    """The facts of a method as `titer show` prints them."""
    fidelity = facts.fidelity
    told = {
        "kind": f"{registry.noun(facts.kind)}, from the package {facts.package}",
        "stage": ", ".join(facts.stages),
        "rows": "; ".join(_row_words(facts)),
        "other models": ", ".join(facts.models),
        "works on": "an adapter's factors alone" if facts.adapter else "",
        "passes": f"{facts.passes} an update" if facts.passes else "",
        "paper": f"arXiv {facts.paper} ({ARXIV}{facts.paper})" if facts.paper else "",
        "equation": fidelity.equation,
        "authors' code": fidelity.code,
        "real model": fidelity.real_model,
    }
    width = max(map(len, told)) + 2
    rows = [
        (each.name, each.type, "required" if each.required else _shown(each.default), each.meaning)
        for each in facts.fields
    ]
    widths = [max((len(row[i]) for row in rows), default=0) + 2 for i in range(3)]
    return "\n".join(
        [
            facts.title,
            *textwrap.wrap(facts.summary, 100),
            "",
            *(f"{name:{width}}{value}" for name, value in told.items() if value),
            *(["", "fields, with their defaults"] if rows else []),
            *(
                "".join(f"{cell:{size}}" for cell, size in zip(row, widths, strict=False)) + row[3]
                for row in rows
            ),
        ]
    )


def document(facts: Facts) -> dict[str, Any]:
    """The facts of a method as JSON has them."""
    return dataclasses.asdict(facts)


def table() -> str:
    """The text of docs/methods.md: what titer itself brings, a table for each kind."""
    parts = [
        "# Methods",
        "Made from the sources by `python -m titer.listing docs/methods.md`; do not edit it. `titer show` "
        "says more of a method: its fields too, with their meaning.",
        "*Equation*: the test that computes its equation independently. *Authors' code*: the commit it was "
        "compared with, the precision and the day. *Real model*: a published result that was met on a real "
        "model. `never` means not yet.",
    ]
    for kind in registry.KINDS:
        found = [describe_method(f"{kind}/{name}") for name in registry.builtin(kind)]
        rows = [_cells(facts) for facts in found]
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        parts.append(f"## {kind.capitalize()}")
        parts.append(
            "\n".join(
                [
                    f"| {' | '.join(columns)} |",
                    f"|{'---|' * len(columns)}",
                    *(f"| {' | '.join(row[name] for name in columns)} |" for row in rows),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _cells(facts: Facts) -> dict[str, str]:
    """A row of a table of docs/methods.md, by column."""
    compared = facts.fidelity != Fidelity()
    cells = {
        "name": f"`{facts.name}`",
        "title": facts.title if facts.title != facts.name else "",
        "stage": ", ".join(facts.stages),
        "rows": "; ".join(_row_words(facts)),
        "other models": ", ".join(facts.models),
        "passes": facts.passes,
        "paper": f"[{facts.paper}]({ARXIV}{facts.paper})" if facts.paper else "",
        "equation": facts.fidelity.equation if compared else "",
        "authors' code": facts.fidelity.code if compared else "",
        "real model": facts.fidelity.real_model if compared else "",
    }
    return {name: value.replace("|", "\\|") for name, value in cells.items()}


def _row_words(facts: Facts) -> list[str]:
    """The rows that a method is given; a defense's by stream."""
    if facts.kind != "defenses":
        return list(facts.rows.values())
    return [what if stream == what else f"{stream}: {what}" for stream, what in facts.rows.items()]


def _rows(needs: Needs) -> dict[str, str]:
    found = {stream: kind.value for stream, kind in needs.streams.items()}
    return found | ({"rows": needs.rows.value} if needs.rows else {})


def _shown(value: Any) -> str:
    """A default as a recipe would write it."""
    if isinstance(value, dict) and set(value) == {"method"}:
        return str(value["method"])
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def _hyperparameters(cls: type[Method]) -> Iterator[Hyperparameter]:
    """The fields of a method, with the names of the methods that are their defaults."""
    sources = {name: found for base in reversed(cls.__mro__) for name, found in _fields(base)}
    for each in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        required = default is dataclasses.MISSING
        if isinstance(default, Method):
            default = _shorter(default)
        kind, meaning = sources.get(each.name, (str(each.type), ""))
        yield Hyperparameter(each.name, kind, None if required else default, required, meaning)


def _shorter(method: Method) -> dict[str, Any]:
    """The mapping of a method without the fields that are its defaults."""
    config = registry.describe(method)
    plain = registry.describe(registry.build(registry.kind_of(method), config["method"]))
    return {name: v for name, v in config.items() if name == "method" or v != plain[name]}


def _fields(cls: type) -> Iterator[tuple[str, tuple[str, str]]]:
    """The annotated fields in the source of a class, with the type and the comment of each."""
    if not vars(cls).get("__annotations__"):
        return
    try:
        text = textwrap.dedent(inspect.getsource(cls))
    except OSError:  # there is no source
        return
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(text).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = node.lineno
            while comments.get(above - 1, ("", False))[1]:
                above -= 1
            found = [
                comments[i][0] for i in range(above, (node.end_lineno or 0) + 1) if i in comments
            ]
            yield node.target.id, (ast.unparse(node.annotation), " ".join(found))


def _methods(kind: str) -> list[Listing]:
    """The methods of a kind, with the first paragraph of the module of each and what it says of itself."""
    found = [
        Listing(kind, name, *_read(kind, name, _spec(f"titer.{kind}.{name}"), "titer"))
        for name in registry.builtin(kind)
    ]
    found += [_plugin(kind, point) for point in registry.plugins(kind)]
    return sorted(found, key=lambda entry: entry.name)


def _plugin(kind: str, point: EntryPoint) -> Listing:
    """The line of a plug-in, with what its source shows to be wrong with it."""
    package = registry.package_of(point)
    spec = _spec(point.value.partition(":")[0].strip())
    summary, source, facts = _read(kind, point.name, spec, package)
    error = registry.clash(kind, point.name) or _fault(kind, point, spec)
    return Listing(kind, point.name, summary, source, facts, error)


def _read(
    kind: str, name: str, spec: ModuleSpec | None, package: str
) -> tuple[str, str, dict[str, Any]]:
    """Summary, package and facts of a method, from the source of its module."""
    tree = _tree(spec)
    if tree is None:
        return "", package, {}
    about = stated(tree)
    facts = dataclasses.asdict(about) if about else {}
    paragraph = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return " ".join(paragraph.split()), package, facts


def stated(tree: ast.Module) -> About | None:
    """The `about` of the class in a module, read without importing it; None where it is not written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == ["about"]:
                made = _made(node.value)
                return made if isinstance(made, About) else None
    return None


def _made(call: ast.Call) -> Any:
    """The About or Fidelity that a call of literals makes; None where it is another call."""
    made = {"About": About, "Fidelity": Fidelity}.get(ast.unparse(call.func))
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    values = []
    for value in given:
        try:
            values.append(_made(value) if isinstance(value, ast.Call) else ast.literal_eval(value))
        except ValueError:
            return None
    if made is None or None in values:
        return None
    count = len(call.args)
    names = [keyword.arg or "" for keyword in call.keywords]
    return made(*values[:count], **dict(zip(names, values[count:], strict=True)))


def _fault(kind: str, point: EntryPoint, spec: ModuleSpec | None) -> str | None:
    """The refusal of a plug-in whose source shows that it cannot be used; None where nothing does."""
    module, _, path = (part.strip() for part in point.value.partition(":"))
    broken, mend = "cannot be imported", "mend the package"
    if spec is None:
        why = f"{broken} (there is no module {module!r})"
        return registry.refuse(kind, point, why, mend)
    if not path:
        why = "names a module"
        return registry.refuse(kind, point, why, "name a class in it, as module:Class")
    try:
        tree = ast.parse(_text(spec))
    except (SyntaxError, ValueError) as error:
        why = f"{broken} ({type(error).__name__}: {error})"
        return registry.refuse(kind, point, why, mend)
    if not spec.origin or not spec.origin.endswith(".py"):
        return None
    if missing := next(_missing(tree), None):
        why = f"{broken} (there is no module {missing!r})"
        return registry.refuse(kind, point, why, mend)
    first = path.split(".")[0]
    bound = dict(_bound(tree))
    if isinstance(bound.get(first), ast.FunctionDef | ast.AsyncFunctionDef):
        why = "names a function, not a class"
        return registry.refuse(kind, point, why, "name a class of the kind")
    if first not in bound and not {"*", "__getattr__"} & set(bound):
        why = f"{broken} (its module has no {first!r})"
        return registry.refuse(kind, point, why, mend)
    return None


def _bound(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that a module binds, with what binds each."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name).split(".")[0], node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node
        yield from _bound(node)


def _missing(tree: ast.Module) -> Iterator[str]:
    """The packages that a module imports outside of any condition and that are not installed."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            if _spec(name.split(".")[0]) is None:
                yield name


def _spec(module: str) -> ModuleSpec | None:
    """The place of a module, found without importing it or its packages; None where there is none."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module that says nothing of its place
        return None
    for i, _ in enumerate(rest):
        if spec is None or spec.submodule_search_locations is None:
            return None
        where: Iterable[str] = spec.submodule_search_locations
        spec = PathFinder.find_spec(".".join([top, *rest[: i + 1]]), list(where))
    return spec


def _text(spec: ModuleSpec) -> str:
    """The source of a module; empty where it has none."""
    if not spec.origin or not spec.origin.endswith(".py"):
        return ""
    return Path(spec.origin).read_text(encoding="utf-8")


def _tree(spec: ModuleSpec | None) -> ast.Module | None:
    """The syntax tree of a module; None where it has none."""
    if spec is None:
        return None
    try:
        return ast.parse(_text(spec))
    except (SyntaxError, ValueError):
        return None


def _recipes() -> list[Listing]:
    return [
        Listing("recipes", path.stem, _first(path).removeprefix("# "), "titer")
        for path in sorted(RECIPES.glob("*.yaml"))
    ]


def _first(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n")[0]


def _hub() -> list[Listing]:
    """The repositories of the hub that something is known of."""
    from titer.data import catalog, hub

    found = []
    for entry in catalog.REPOSITORIES:
        revision = hub.cached_commit(entry.name, entry.kind) or "unset"
        commercial = {
            True: "commercial use allowed",
            False: "no commercial use",
            None: "commercial use unknown",
        }[entry.commercial]
        words = [
            entry.what,
            entry.licence or "licence unknown",
            commercial,
            *(["gated"] if entry.gated else []),
            f"revision {revision}",
        ]
        facts = {
            "licence": entry.licence,
            "commercial use": entry.commercial,
            "gated": entry.gated,
            "revision": revision,
        }
        found.append(Listing("hub", entry.name, "; ".join(words), "hub", facts))
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the file to write: python -m titer.listing docs/methods.md")
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
