"""Keys of code: a hash of all that computes a result.

What other code computed is computed again, and nothing else is. The code of a stage is the import
closure of the module that computes it, and of the modules of its methods. It is read from the
sources: nothing is kept by hand, and nothing is imported for it. Comments, layout and docstrings do
not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from titer.methods import Method

PACKAGE = Path(__file__).parent.parent


def code_key(*parts: type | Method | None) -> str:
    """Hash the import closure of the modules that define these classes and methods.

    The methods that a method holds are included.
    """
    modules = {module for part in parts if part is not None for module in defining(part)}
    return hashlib.sha256(
        "\n".join(statements(name) for name in sorted(closure(*modules))).encode()
    ).hexdigest()


def defining(part: type | Method) -> Iterator[str]:
    """Yield the module of a class, or those of a method and of every method that it holds."""
    if isinstance(part, type):
        yield part.__module__
        return
    yield type(part).__module__
    for held in part.held_methods.values():
        yield from defining(held)


def closure(*modules: str) -> set[str]:
    """Collect these modules, all that they import of titer and of their own packages, and so on."""
    found, left = set[str](), list(modules)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += imports(name, name.split(".")[0])
    return found


@cache
def imports(name: str, own: str) -> tuple[str, ...]:
    """List the modules of titer, or of the top-level package `own`, that a module imports.

    Imports anywhere in it count, but for those that type checkers alone read.
    """
    found: list[str] = []
    for node in _running(_tree(name)):
        if isinstance(node, ast.Import):
            found += [
                alias.name for alias in node.names if alias.name.split(".")[0] in ("titer", own)
            ]
        elif isinstance(node, ast.ImportFrom):
            package = _absolute(name, node)
            if package.split(".")[0] in ("titer", own):
                names = (f"{package}.{alias.name}" for alias in node.names)
                # where it is no module, it is a name that the package itself has
                found += [inner if _source(inner) else package for inner in names]
    return tuple(dict.fromkeys(module for module in found if _source(module)))


PARSING = Lock()  # Python 3.11 counts the depth of a syntax tree once for all threads


@cache
def statements(name: str) -> str:
    """Return what a module says to the interpreter: its syntax tree, without docstrings."""
    tree = _parse(_text(name))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return f"{name}: {ast.dump(tree)}"


@cache
def all_code() -> str:
    """Hash all of titer, its recipes and its embedded model.

    A sweep's cell that another version computed is not done.
    """
    hasher = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix == ".py":
            hasher.update(
                statements(
                    ".".join(
                        ["titer", *path.relative_to(PACKAGE).with_suffix("").parts]
                    ).removesuffix(".__init__")
                ).encode()
            )
        elif path.suffix in (".yaml", ".safetensors"):
            hasher.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return hasher.hexdigest()


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a module but for those that type checkers alone read."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        checking = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        )
        left += node.orelse if isinstance(node, ast.If) and checking else ast.iter_child_nodes(node)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    """Return the package that a `from` names, which may count its dots from the module."""
    if not node.level:
        return node.module or ""
    package = name.split(".") if _source(name).endswith("__init__.py") else name.split(".")[:-1]
    return ".".join(
        [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
    )


@cache
def _source(name: str) -> str:
    """Find the file of a module.

    It is empty where there is none, as for a name that a module holds, and for a folder without
    code.
    """
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # of a parent that is no package
        return ""
    except ValueError:
        raise ValueError(
            f"a method is defined in {name}, a script: put it into a module of its own, which the "
            "script imports"
        ) from None
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") else ""


@cache
def _text(name: str) -> str:
    return Path(_source(name)).read_text(encoding="utf-8")


@cache
def _tree(name: str) -> ast.Module:
    return _parse(_text(name))


def _parse(text: str) -> ast.Module:
    with PARSING:
        return ast.parse(text)
