"""Print the figures of the house, and exit 1 if a bound is missed.

Run it as `python tools/house.py [FOLDER]`. It only reads the source, so it also runs on a tree that
does not work yet. An import inside a function counts for the order and for circles, like any other;
it does not count for torch, because it costs nothing until the function is called. An import under
`TYPE_CHECKING` counts only in the circles on a line of its own.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx

PACKAGE = Path(__file__).parent.parent / "src" / "titer"

# The wings from the bottom to the top. A module may import its own layer and those before it in
# this list. A wing is an entry; a module belongs to the longest entry that its name begins with.
LAYERS = (
    (
        "titer",
        "titer.assumptions",
        "titer.attributes",
        "titer.errors",
        "titer.printable",
        "titer.progress",
        "titer.config",
        "titer.paths",
        "titer.phase",
        "titer.version",
    ),
    ("titer.registry", "titer.methods", "titer.composition"),
    ("titer.data",),
    ("titer.weights",),
    ("titer.training",),
    ("titer.scoring",),
    (
        "titer.lab.roles",
        "titer.lab.world",
        "titer.lab.knowledge",
        "titer.lab.tasks",
        "titer.lab.smol",
    ),
    (
        "titer.defenses",
        "titer.edits",
        "titer.attacks",
        "titer.judges",
        "titer.benchmarks",
        "titer.lab",
        "titer.findings",
    ),
    ("titer.runs", "titer.screening"),
    ("titer.report", "titer.listing", "titer.scaffold"),
    ("titer.api", "titer.integrations"),
    ("titer.cli", "titer.__main__", "titer.testing"),
)
LIGHT = ("titer.findings", "titer.report")  # wings that load without torch
FEW = 20  # places of a figure that are printed unless all are asked for
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets")  # torch, and what loads it

PARTICIPLE = re.compile(r"_*[a-z]+(ed|own|ept|ound|iven|en)(_|$)")
NOUN_CLAUSE = re.compile(r"(What|Whether|Of)\b")
BOUNDS = {  # figure -> the most that it may be
    "function names that are past participles, percent": 5.0,
    "docstrings that open with What, Whether or Of, percent": 3.0,
    "length of a line, 90th percentile": 100,
    "length of the longest line": 110,
    "class names that stand twice": 0,
    "circles of modules": 0,
    "circles of modules with those under TYPE_CHECKING": 0,
    "circles of wings": 0,
    "imports against the order": 0,
    "modules of findings and report that load torch": 0,
}
(
    PARTICIPLES,
    NOUN_CLAUSES,
    LINE_P90,
    LONGEST,
    TWICE,
    MODULE_CIRCLES,
    TYPED_CIRCLES,
    WING_CIRCLES,
    ORDER,
    TORCH,
) = BOUNDS


@dataclass(frozen=True)
class Import:
    """One import of a module, of the package's own or of another's."""

    of: str  # the module that holds the statement
    name: str  # the module that it imports
    path: Path
    line: int
    lazy: bool  # inside a function
    typing: bool  # under TYPE_CHECKING
    implicit: bool = False  # of a module's own package, which Python loads first

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Figure:
    """A figure of the house, and the places to look at where it is too large."""

    name: str
    value: float
    places: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value <= BOUNDS[self.name]


class House:
    """The source of a package, parsed once."""

    def __init__(self, folder: Path) -> None:
        """Parse every module under a folder. Raises ValueError where there is none."""
        self.paths = {_module(path, folder): path for path in sorted(folder.rglob("*.py"))}
        if not self.paths:
            raise ValueError(f"{folder}: holds no Python files")
        self.texts = {name: path.read_text(encoding="utf-8") for name, path in self.paths.items()}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}
        self.imports = [found for name in self.paths for found in self._imports(name)]

    def figures(self) -> list[Figure]:
        """Return every figure of BOUNDS, in its order."""
        functions = list(self._nodes(ast.FunctionDef, ast.AsyncFunctionDef))
        documents = list(self._docstrings())
        lengths = [
            (len(line), f"{self.paths[name]}:{number}")
            for name, text in self.texts.items()
            for number, line in enumerate(text.splitlines(), 1)
        ]
        ordered = sorted(length for length, _ in lengths)
        written = [found for found in self.imports if not found.implicit]
        running = [found for found in written if not found.typing]
        circles = self.circles(running)
        figures = [
            _share(PARTICIPLES, functions, lambda name: bool(PARTICIPLE.match(name))),
            _share(NOUN_CLAUSES, documents, lambda text: bool(NOUN_CLAUSE.match(text))),
            Figure(LINE_P90, ordered[int(0.9 * (len(ordered) - 1))]),
            Figure(LONGEST, ordered[-1], tuple(at for n, at in lengths if n > BOUNDS[LONGEST])),
            _figure(TWICE, self._twice()),
            _figure(MODULE_CIRCLES, circles),
            _figure(TYPED_CIRCLES, [told for told in self.circles(written) if told not in circles]),
            _figure(WING_CIRCLES, self.circles(running, wings=True)),
            _figure(ORDER, self._order(running)),
            _figure(TORCH, self._torch()),
        ]
        assert [figure.name for figure in figures] == list(BOUNDS)
        return figures

    def circles(self, imports: Sequence[Import], wings: bool = False) -> list[str]:
        """Return the circles of modules, or of wings, each as its shortest way with its places."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for found in imports:
            if found.name in self.paths:
                one, other = (
                    (_wing(found.of), _wing(found.name)) if wings else (found.of, found.name)
                )
                if one != other and not graph.has_edge(one, other):
                    graph.add_edge(one, other, where=found.where)
        told = []
        for knot in nx.strongly_connected_components(graph):
            if len(knot) > 1:
                way = _shortest_circle(graph.subgraph(sorted(knot)))
                steps = list(zip(way, [*way[1:], way[0]], strict=True))
                places = ", ".join(graph.edges[step]["where"] for step in steps)
                told.append(
                    f"{' -> '.join([*way, way[0]])} ({places})"
                    + (f", a knot of {len(knot)}" if len(knot) > 2 else "")
                )
        return told

    def _nodes(self, *kinds: type[ast.AST]) -> Iterator[tuple[str, str]]:
        """Yield the name and place of every definition of these kinds."""
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, kinds):
                    yield node.name, f"{self.paths[name]}:{node.lineno}"  # type: ignore[attr-defined]

    def _docstrings(self) -> Iterator[tuple[str, str]]:
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    text = ast.get_docstring(node)
                    if text:
                        yield text, f"{self.paths[name]}:{getattr(node, 'lineno', 1)}"

    def _twice(self) -> list[str]:
        places: dict[str, list[str]] = {}
        for name, where in self._nodes(ast.ClassDef):
            places.setdefault(name, []).append(where)
        return [f"{name}: {', '.join(where)}" for name, where in places.items() if len(where) > 1]

    def _order(self, imports: Sequence[Import]) -> list[str]:
        """Return every import of a higher layer, and every module that no layer has."""
        layer = {wing: i for i, wings in enumerate(LAYERS) for wing in wings}
        strangers = [
            f"{path}:1: {name} stands in no wing: give it a place in LAYERS"
            for name, path in self.paths.items()
            if _wing(name) == "titer" and name != "titer"
        ]
        return strangers + [
            f"{found.where}: {_wing(found.of)} imports {found.name} from above it"
            for found in imports
            if found.name in self.paths and layer[_wing(found.name)] > layer[_wing(found.of)]
        ]

    def _torch(self) -> list[str]:
        """Return the modules of LIGHT that load one of HEAVY, each with its shortest way there."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for found in self.imports:
            if not found.lazy and not found.typing:
                heavy = found.name.partition(".")[0]
                end = heavy if heavy in HEAVY else found.name
                if not graph.has_edge(found.of, end):
                    graph.add_edge(found.of, end, where=found.where)
        told = []
        for start in self.paths:
            way = _shortest_way(graph, start, HEAVY) if _wing(start) in LIGHT else []
            if way:
                told.append(f"{graph.edges[way[0], way[1]]['where']}: {' -> '.join(way)}")
        return told

    def _imports(self, name: str) -> Iterator[Import]:
        """Yield the imports of a module, its package's first."""
        path = self.paths[name]
        parent = name.rpartition(".")[0]
        if parent:
            yield Import(name, parent, path, 1, lazy=False, typing=False, implicit=True)
        for node, lazy, typing in _statements(self.trees[name], False, False):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                base = self._base(name, node)
                names = [
                    whole if (whole := f"{base}.{alias.name}") in self.paths else base
                    for alias in node.names
                ]
            for imported in dict.fromkeys(names):
                yield Import(name, imported, path, node.lineno, lazy, typing)

    def _base(self, name: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = name if self.paths[name].name == "__init__.py" else name.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        return f"{package}.{node.module}" if node.module else package


def _module(path: Path, folder: Path) -> str:
    parts = ["titer", *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _wing(module: str) -> str:
    wings = [wing for wings in LAYERS for wing in wings]
    return max((wing for wing in wings if f"{module}.".startswith(f"{wing}.")), key=len)


def _statements(
    node: ast.AST, lazy: bool, typing: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """Yield the import statements under a node, each with two flags: lazy, and for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy, typing
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _statements(ast.Module([part], []), lazy, True)
            for part in child.orelse:
                yield from _statements(ast.Module([part], []), lazy, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _statements(child, lazy or inside, typing)


def _shortest_circle(graph: nx.DiGraph[str]) -> list[str]:
    """Return the shortest circle of a graph whose nodes all reach each other."""
    ways = [
        nx.shortest_path(graph, after, start)
        for start in sorted(graph)
        for after in graph.successors(start)
    ]
    shortest = min(ways, key=len)
    return [shortest[-1], *shortest[:-1]]


def _shortest_way(graph: nx.DiGraph[str], start: str, ends: Iterable[str]) -> list[str]:
    """Return the shortest way from a node to one of the ends; nothing where there is none."""
    ways = nx.single_source_shortest_path(graph, start) if start in graph else {}
    return min((ways[end] for end in ends if end in ways), key=len, default=[])


def _share(name: str, of: Sequence[tuple[str, str]], counts: Callable[[str], bool]) -> Figure:
    """Return the percentage of the texts, each with its place, that a rule counts."""
    places = tuple(f"{where}: {text.splitlines()[0]}" for text, where in of if counts(text))
    return Figure(name, 100 * len(places) / max(len(of), 1), places)


def _figure(name: str, places: Sequence[str]) -> Figure:
    return Figure(name, len(places), tuple(places))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=PACKAGE, help="of the package")
    parser.add_argument("--places", action="store_true", help="of every figure, missed or not")
    options = parser.parse_args(arguments)
    figures = House(options.folder).figures()
    for figure in figures:
        missed = "" if figure.holds else "  MISSED"
        print(f"{figure.value:6.4g} of at most {BOUNDS[figure.name]:<4g} {figure.name}{missed}")
        if missed or options.places:
            shown = figure.places if options.places else figure.places[:FEW]
            print("".join(f"    {place}\n" for place in shown), end="")
            if len(shown) < len(figure.places):
                print(f"    and {len(figure.places) - len(shown)} more: --places")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
