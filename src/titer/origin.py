"""Hashes of the code that results come from: what other code computed is computed again."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from titer.methods import Method


def code(method: Method, modules: Sequence[str]) -> str:
    """Hash of the code that a method's result comes from, but for comments and layout: of the modules, of its own file with all that
    this imports of titer, and of the methods that it holds."""
    trees = {name: _text(_tree(name)) for name in (*modules, *_built_on(type(method).__module__))}
    held = [code(value, ()) for value in vars(method).values() if isinstance(value, Method)]
    return hashlib.sha256("\n".join([*(trees[name] for name in sorted(trees)), *held]).encode()).hexdigest()


def _built_on(name: str) -> set[str]:
    """A module, and those of titer that it imports, and so on."""
    found, left = set[str](), [name]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            for node in _tree(name).body:
                if isinstance(node, ast.ImportFrom) and node.module == "titer":
                    modules = (f"titer.{alias.name}" for alias in node.names)
                    left += [module if find_spec(module) else "titer" for module in modules]  # else a name that the package itself has
                elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("titer."):
                    left.append(node.module or "")
    return found


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(name)))


@cache
def _text(tree: ast.Module) -> str:
    """What a module says, but for comments and layout: kept, since a run asks for a dozen files at every stage."""
    return ast.dump(tree)


@cache
def everything() -> str:
    """Hash of all of titer's files: a cell that other code computed is not done."""
    root, hasher = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".yaml", ".safetensors"):
            hasher.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hasher.hexdigest()
