"""How far a run is: what a person reads on a terminal of any width, and in a pipe."""

import io

import pytest
from rich.console import Console

from titer.progress import span
from titer.report.progress import Bar, Clock, Lines
from titer.report.tables import fit

STEPS = ["scoring: base", "scoring: base", "align sft", "scoring: align sft", "scoring: align sft"]


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines():
    told, clock = [], Time()
    return told, clock, Lines(told.append, clock=Clock(clock))


def walk(shown, clock, steps, seconds=10.0):
    for step in steps:
        shown.begin(step)
        clock.now += seconds
        shown.end()


def test_in_a_pipe_every_step_has_a_line_at_either_end(lines):
    told, clock, shown = lines
    shown.expect(STEPS, 4)
    walk(shown, clock, STEPS)
    assert told == [
        "3 steps to compute; 4 results are in the store already",
        "1/3 scoring: base: started",
        "1/3 scoring: base: done in 20 s",  # nothing is known of how long an alignment takes
        "2/3 align sft: started",
        "2/3 align sft: done in 10 s; about 20 s left",
        "3/3 scoring: align sft: started",
        "3/3 scoring: align sft: done in 20 s",
    ]


def test_in_a_pipe_a_long_step_has_a_line_a_minute(lines):
    told, clock, shown = lines
    shown.expect(["align sft"], 0)
    shown.begin("align sft")
    for update in range(1, 301):
        clock.now += 0.5
        shown.advance(update, 300, {"f": 1.23456})
    assert told[2:] == [
        "1/1 align sft: 120 of 300, f 1.23, 2 min left",
        "1/1 align sft: 240 of 300, f 1.23, 30 s left",
    ]


def test_a_second_part_has_its_own_time(lines):
    _, clock, shown = lines
    shown.expect(STEPS[:2], 0)
    shown.begin(STEPS[0])
    clock.now += 100
    shown.end()
    shown.begin(STEPS[1])
    clock.now += 1
    assert shown.clock.rest(1, 3) == pytest.approx(2.0)
    assert shown.clock.rest(0, 3) is None


def test_a_step_that_nobody_expected_is_shown_too(lines):
    told, clock, shown = lines  # weights that the store gave up are computed again
    shown.expect(["align sft"], 0)
    walk(shown, clock, ["align booster", "align sft"])
    assert told[1] == "1/2 align booster: started"
    assert told[-1] == "2/2 align sft: done in 10 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (9000, "2.5 h"),
    ],
)
def test_spans(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_bar_stays_on_its_line(width):
    stream, clock = io.StringIO(), Time()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    shown = Bar(console, clock=Clock(clock))
    shown.expect(["align booster, finetune sft"], 0)
    shown.begin("align booster, finetune sft")
    clock.now += 10
    shown.advance(100, 250, {f"a long term {i}": 1.0 for i in range(9)})
    other = Console(file=io.StringIO(), width=width, color_system=None)
    other.print(shown.bars.make_tasks_table(shown.bars.tasks))
    text = other.file.getvalue()
    assert len(text.rstrip("\n").split("\n")) == 1
    assert len(text.rstrip()) <= width
    if width >= 80:
        assert "1/1 align booster, finetune sft" in text
        assert "100/250" in text
        assert "15 s left" in text
    shown.end()
    shown.stop()
    assert "done in 10 s" in " ".join(stream.getvalue().split())


HEADER = ["pipeline", "stage", "HS", "harm margin", "FA", "benign answers", "over-refusal"]
BODY = [
    ["random_booster", "align random_booster", *["100.0 [92.3, 100.0]"] * 5],
    ["", "finetune sft", *["100.0 [92.3, 100.0]"] * 5],
    ["booster+random_mask", "edit random_mask", *["struck out: 1.0 [0.0, 2.0]"] * 5],
]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_table_fits_the_terminal_and_says_what_does_not(width):
    console = Console(width=width, file=io.StringIO())
    with console.capture() as seen:
        console.print(fit(HEADER, BODY, 2, width, "A caption."))
    lines = seen.get().split("\n")
    assert max(map(len, lines)) <= width
    table = seen.get().split("Too wide")[0]
    for word in ("random_booster", "booster+", "random_mask", "100.0", "[92.3, 100.0]"):
        assert word in table, word  # whole, wherever lines break
    assert "…" not in table
    told = " ".join(seen.get().split())
    assert "A caption." in told
    shown = [name for name in HEADER if name.split()[-1] in table]
    left_out = [name for name in HEADER if name not in shown]
    assert (
        f"Too wide for this terminal: {', '.join(left_out)}; table.md has them" in told
    ) == bool(left_out)
    assert bool(left_out) == (width < 200)
