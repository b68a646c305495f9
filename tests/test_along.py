"""HS and FA along a setting: values at their places, intervals drawn, struck-out HS marked."""

from xml.etree import ElementTree

import pytest

from test_frontier import group
from titer.report import by_setting

POINTS = {
    "lr=1e-4": {"sft": group("sft sft", 20, 90), "antidote": group("sft sft antidote", 5, 80)},
    "lr=1e-3": {
        "sft": group("sft sft", 90, 99),
        "antidote": group("sft sft antidote", 1, 30, struck=True),
    },
    "lr=1e-2": {"sft": group("sft sft", 100, 98)},  # the other is missing
}


def test_every_value_stands_at_its_place_with_its_interval():
    figure = by_setting.panels(POINTS, "Learning rate", "a note")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "HS, percent (lower is better)",
        "FA, percent",
    ]
    for j, (benchmark, sft, antidote) in enumerate(
        [("harm", [20, 90, 100], [5, 1]), ("task", [90, 99, 98], [80, 30])]
    ):
        lines = {line.get_gid(): line for line in figure.axes[j].lines if line.get_gid()}
        for i, values in enumerate((sft, antidote)):
            x, y = lines[f"along-{j}-{i}"].get_data()
            assert list(y) == pytest.approx(values)
            assert [round(place) for place in x] == list(
                range(len(values))
            )  # the first values of three
        assert (
            lines[f"along-{j}-0"].get_xdata()[0] < lines[f"along-{j}-1"].get_xdata()[0]
        )  # no bar hides another
        score = POINTS["lr=1e-3"]["sft"].score(benchmark)
        bars = [segment for bar in figure.axes[j].collections for segment in bar.get_segments()]
        assert any(
            bar[:, 1] == pytest.approx([score.low, score.high]) for bar in bars if len(bar) == 2
        )
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == list(POINTS)


@pytest.mark.parametrize("ordered", [True, False])
def test_values_without_an_order_are_not_joined(ordered):
    figure = by_setting.panels(POINTS, "Ways", "", ordered)
    widths = {line.get_linewidth() for axes in figure.axes for line in axes.lines if line.get_gid()}
    assert all(width > 0 for width in widths) if ordered else widths == {0}


def test_what_is_struck_out_has_an_open_marker_and_is_said():
    figure = by_setting.panels(POINTS, "Learning rate", "")
    hs, fa = (
        [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "s"]
        for axes in figure.axes
    )
    assert "white" in hs
    assert "white" not in fa
    label = by_setting.label(POINTS, "Learning rate", "a note")
    assert "lr=1e-3: sft HS 90.0" in label
    assert label.count("(struck out)") == 1
    assert label.endswith("a note")


def test_the_drawing_is_markup_and_the_same_every_time():
    first, again = (by_setting.svg(POINTS, "Learning <rate>", "note", "along") for _ in range(2))
    assert first == again
    assert ElementTree.fromstring(first).attrib["aria-label"].startswith("Learning <rate>")
