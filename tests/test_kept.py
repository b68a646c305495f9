"""The share of the user's training that an edit keeps, and the flag where it kept less than half."""

import pytest

from test_frontier import group, stage
from titer.findings import flags
from titer.findings.kept import share_kept


def chain(aligned, tuned, edited):
    return [
        stage("base"),
        stage("align sft", 0, aligned),
        stage("finetune sft", 90, tuned),
        stage("edit antidote", 0, edited),
    ]


def test_the_share_is_of_the_rise_from_the_released_model():
    assert share_kept(chain(60, 100, 90)) == pytest.approx(75)
    assert share_kept(chain(60, 100, 60)) == 0
    assert share_kept(chain(60, 100, 50)) == pytest.approx(-25)  # it lost what it had before
    assert share_kept(chain(97, 98, 60)) is None  # nothing is shown to be learned
    assert share_kept(chain(60, 100, 90)[:-1]) is None  # nothing was edited
    released = [*chain(60, 100, 90)[:2], stage("release lox", 0, 80), *chain(60, 100, 90)[2:]]
    assert share_kept(released) == pytest.approx(50)


@pytest.mark.parametrize(("edited", "raised"), [(79.9, True), (80.1, False)])
def test_a_repair_that_takes_back_more_than_half_is_flagged(edited, raised):
    found = {"x": chain(60, 100, edited), "booster": [*group("booster sft", 1, 1).seeds[0]]}
    told = list(flags.RUN_RULES["the repair undid the training"](found))
    assert bool(told) is raised
    if raised:
        [(name, of, text)] = told
        assert (name, of.label) == ("x", "edit antidote")
        assert text.startswith("50 % of what fine-tuning taught is left (FA 100.0")
