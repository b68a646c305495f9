"""The trials of a search: seeded, kept in a file, and taken up after an interruption."""

import sys

import pytest

from titer.runs.trials import STARTUP, Space, Trials

pytest.importorskip("optuna")

SPACE = Space((1e-5, 1e-3), (10, 200), (0.01, 0.5))
OWN = {"lr": 1e-4, "updates": 50, "p": 0.1}


def search(path, count: int, cut: int | None = None, seed: int = 0, told: bool = True, space=SPACE):
    """Go through so many trials, or to one that is interrupted; the third fails."""
    trials, found = Trials(path, space, seed, OWN if space is SPACE else None), []
    for number in range(count):
        settings = trials.settings(number)
        found.append(settings)
        if number == cut:
            return found
        if number == 2:
            if not trials.failure(number):
                trials.fail(number, "it burst")
            assert trials.failure(number) == "it burst"
            continue
        assert trials.failure(number) == ""
        # the longer it trains the more harm it does, and beyond 60 updates the model is ruined
        trials.tell(number, settings["updates"], settings["updates"] - 60 if told else 0)
    return found


def test_an_interrupted_search_tries_what_a_whole_one_does(tmp_path):
    count = STARTUP + 4
    whole = search(tmp_path / "whole", count)
    assert whole[0] == OWN  # the recipe's own
    for name, (low, high) in SPACE.ranges.items():
        assert all(low <= settings[name] <= high for settings in whole)
        assert len({settings[name] for settings in whole}) > count / 2
    for cut in (0, 2, 3, count - 1):
        search(tmp_path / "cut", count, cut)
    assert search(tmp_path / "cut", count) == whole
    assert search(tmp_path / "cut", count) == whole  # and told again it is the same
    assert search(tmp_path / "short", 4) == whole[:4]
    assert search(tmp_path / "other", 4, seed=1)[1:] != whole[1:4]
    # what trials cost matters to what is tried next
    assert search(tmp_path / "free", count, told=False)[:STARTUP] == whole[:STARTUP]
    assert search(tmp_path / "free", count, told=False) != whole


def test_an_attack_without_a_share_is_searched_without_one(tmp_path):
    space = Space((1e-4, 1e-4), (3, 3), None)
    assert search(tmp_path / "a", 2, space=space) == [{"lr": 1e-4, "updates": 3}] * 2


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (((0.0, 1.0), (1, 2), None), "range lr=0,1: give the lowest and the highest value"),
        (((1e-3, 1e-4), (1, 2), None), "range lr=0.001,0.0001"),
        (((1e-4, 1e-3), (0, 2), None), "range updates=0,2"),
        (((1e-4, 1e-3), (1, 2), (0.5, 1.5)), "range p=0.5,1.5: .* at most 1"),
    ],
)
def test_a_range_that_is_none_is_refused(ranges, message):
    with pytest.raises(ValueError, match=message):
        Space(*ranges)


def test_without_optuna_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'titer\[search\]'"):
        Trials(tmp_path / "trials", SPACE, 0)
    assert not (tmp_path / "trials").exists()
