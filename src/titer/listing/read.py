"""Sources of methods, read without importing them."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from titer import registry
from titer.methods import About, Aware, Fidelity


def find_module(module: str) -> ModuleSpec | None:
    """Find a module without importing it or its packages; return None where there is none."""
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


def read_module(
    kind: str, name: str, spec: ModuleSpec | None, package: str
) -> tuple[str, str, dict[str, Any]]:
    """Return summary, package and facts of a method, from the source of its module."""
    tree = _tree(spec)
    if tree is None:
        return "", package, {}
    about = read_about(tree)
    facts = dataclasses.asdict(about) if about else {}
    paragraph = (ast.get_docstring(tree) or "").split("\n\n")[0]
    return " ".join(paragraph.split()), package, facts


def read_about(tree: ast.Module) -> About | None:
    """Read the `about` of the class in a module; return None where it is not written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == ["about"]:
                about = _build(node.value)
                return about if isinstance(about, About) else None
    return None


def _build(call: ast.Call) -> Any:
    """Make the About, or a part of it, of a call of literals; return None where it is another call."""
    build = {"About": About, "Fidelity": Fidelity, "Aware": Aware}.get(ast.unparse(call.func))
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    values = []
    for value in arguments:
        try:
            values.append(_build(value) if isinstance(value, ast.Call) else ast.literal_eval(value))
        except ValueError:
            return None
    if build is None or None in values:
        return None
    count = len(call.args)
    names = [keyword.arg or "" for keyword in call.keywords]
    return build(*values[:count], **dict(zip(names, values[count:], strict=True)))


def read_fields(cls: type) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the annotated fields in the source of a class, each with its type and its comment."""
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


def find_fault(kind: str, point: EntryPoint, spec: ModuleSpec | None) -> str | None:
    """Say why a plug-in cannot be used, as far as its source shows; None where nothing does."""
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
    bound = dict(_bindings(tree))
    if isinstance(bound.get(first), ast.FunctionDef | ast.AsyncFunctionDef):
        why = "names a function, not a class"
        return registry.refuse(kind, point, why, "name a class of the kind")
    if first not in bound and not {"*", "__getattr__"} & set(bound):
        why = f"{broken} (its module has no {first!r})"
        return registry.refuse(kind, point, why, mend)
    return None


def _bindings(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that a module binds, with what binds each."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name).split(".")[0], node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node
        yield from _bindings(node)


def _missing(tree: ast.Module) -> Iterator[str]:
    """Yield the packages that a module imports outside of any condition and that are missing."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            if find_module(name.split(".")[0]) is None:
                yield name


def _text(spec: ModuleSpec) -> str:
    """Return the source of a module; empty where it has none."""
    if not spec.origin or not spec.origin.endswith(".py"):
        return ""
    return Path(spec.origin).read_text(encoding="utf-8")


def _tree(spec: ModuleSpec | None) -> ast.Module | None:
    """Return the syntax tree of a module; None where it has none."""
    if spec is None:
        return None
    try:
        return ast.parse(_text(spec))
    except (SyntaxError, ValueError):
        return None
