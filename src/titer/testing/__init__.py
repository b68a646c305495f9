"""The contract of a method, as checks that any package runs on its own.

    test_contract = titer.testing.contract(Half())

The model and the rows are those of the embedded lab, made small: nothing is downloaded, and no
check takes long. Every check is a function of a method and an empty folder, and raises
AssertionError with a sentence of what was broken. pytest has to be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from titer import registry
from titer.composition import COMPOSITIONS
from titer.methods import Attack, Defense, Edit, Method
from titer.testing import attacks, defenses, edits
from titer.testing.defenses import check_ranks
from titer.testing.small import rows, same, state, step_for, streams, tiny

__all__ = [
    "check_ranks",
    "checks",
    "contract",
    "rows",
    "same",
    "state",
    "step_for",
    "streams",
    "tiny",
]

Check = Callable[[Any, Path], None]


def contract(*methods: Method) -> Callable[..., None]:
    """Make a pytest function that runs every check on every method.

    Its name has to begin with `test`.
    """
    cases = [
        pytest.param(method, check, id=f"{type(method).__name__}-{check.__name__}")
        for method in methods
        for check in checks(method)
    ]

    @pytest.mark.parametrize(("method", "check"), cases)
    def test_contract(method: Method, check: Check, tmp_path: Path) -> None:
        check(method, tmp_path)

    return test_contract


def checks(method: Method) -> list[Check]:
    """Return the checks that a method of this kind has to pass."""
    found: list[Check] = [builds_and_round_trips]
    if isinstance(method, Defense | Edit | Attack):
        found += [names_its_paper, says_what_it_holds]
    if isinstance(method, Defense):
        found += defenses.CHECKS
    if isinstance(method, Edit):
        found += edits.checks(method)
    if isinstance(method, Attack):
        found += attacks.CHECKS
    return found


def builds_and_round_trips(method: Method, folder: Path) -> None:
    """It is built by its name alone, and comes back equal from the YAML that describes it."""
    kind, name = registry.kind_of(method), registry.name_of(method)
    assert name in registry.names(kind), (
        f"{name} is no name among the {kind}: give its package an entry point in the group 'titer.{kind}'"
    )
    default = registry.build(kind, name)
    assert type(default) is type(method), f"{name!r} builds a {type(default).__name__}"
    for each in (default, method):
        text = yaml.safe_dump(registry.describe(each))
        again = registry.build(kind, yaml.safe_load(text))
        assert again == each, f"another method comes back from its YAML: {again} from {each}"
        assert hash(again) == hash(each), "equal methods have different hashes"


def names_its_paper(method: Any, folder: Path) -> None:
    """The docstring of its class names the paper that it declares."""
    paper = method.about.paper
    assert paper, (
        "its `about` names no paper: where there is none, write paper='unpublished', and say so in the "
        "docstring of the class"
    )
    assert paper in (type(method).__doc__ or ""), f"its docstring does not name {paper!r}"


def says_what_it_holds(method: Method, folder: Path) -> None:
    """A method that holds another one is composed of it, so that both get what they need."""
    held = list(method.held_methods)
    among = ", ".join(each.__name__ for each in COMPOSITIONS)
    assert not held or isinstance(method, COMPOSITIONS), (
        f"its field {held[0]!r} holds another method: derive it from one of {among} (titer.composition)"
    )
