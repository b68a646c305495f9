"""Hostile input through every way in, of which CI tries three hundred; `make fuzz` tries thousands."""

import pytest

from fuzz import WAYS, attempts, build

INPUTS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("fuzz") / "world")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("fuzz_"))
def test_whatever_is_given_ends_in_one_line_or_in_what_was_asked_for(world, way):
    world.faults.clear()
    attempts(world, way, INPUTS // len(WAYS), 0)()
    assert not world.faults, "\n\n".join(world.faults)
