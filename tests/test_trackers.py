"""The terms of every update, in TensorBoard's files."""

import struct
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import titer
from test_shell import QUICK
from titer.cli import main
from titer.integrations import Tracked, trackers
from titer.integrations.trackers import tag

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboardX


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Read what TensorBoard would show, by tag and step: records of a length, a sum, data, a sum."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in folder.rglob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            [length] = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found[value.tag][event.step] = value.simple_value
            at += 16 + length
    return found


class Heard:
    """Keeps what a progress is told."""

    def __init__(self):
        self.said, self.step, self.terms = [], "", defaultdict(dict)

    def expect(self, steps, stored):
        self.said.append(("expect", tuple(steps), stored))

    def begin(self, step):
        self.step = step
        self.said.append(("begin", step))

    def advance(self, done, of, terms):
        for name, value in terms.items():
            self.terms[tag(self.step, name)][done] = value

    def end(self):
        self.said.append(("end",))


def test_every_term_of_a_run_is_tracked_and_told_on(tmp_path):
    heard = Heard()
    tracked = Tracked("tensorboard", tmp_path / "tracked", heard)
    settings = [value for value in QUICK if value != "--set"]
    recipe = tmp_path / "short.yaml"
    recipe.write_text("extends: lab\npipelines: {sft: {align: sft}}\n")
    titer.run(recipe, settings=settings, out=tmp_path / "run", progress=tracked)
    tracked.close()
    found = scalars(tmp_path / "tracked")
    assert any(name.endswith("/f") for name in found)
    assert found.keys() == heard.terms.keys()
    for name, values in heard.terms.items():
        assert found[name] == pytest.approx(values, rel=1e-6)
    assert heard.said[0][0] == "expect"
    assert heard.said[-1] == ("end",)


def test_a_tag_has_no_letter_that_a_tracker_would_change():
    assert tag("scoring: align sft, finetune sft", "rows drawn") == (
        "scoring_align_sft_finetune_sft/rows_drawn"
    )


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    monkeypatch.setattr(
        "sys.argv",
        ["titer", "run", "lab", "--only", "sft", "--out", str(out), *QUICK]
        + ["--track", "tensorboard"],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr().err
    assert any(name.endswith("/f") for name in scalars(tmp_path / "run-tracked"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'"),
        ("clearml", "the tracker 'clearml' is not installed: pip install clearml"),
    ],
)
def test_a_tracker_that_is_not_there(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Tracked(name, tmp_path)


class Run:
    """A run of Weights & Biases: one count of steps, and what comes with a lower one is dropped."""

    def __init__(self):
        self.kept, self.axes, self.step, self.ended = [], {}, 0, False

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values, step=None):
        if step is None or step >= self.step:
            self.step = self.step + 1 if step is None else step
            self.kept.append(values)

    def finish(self):
        self.ended = True


def weights_and_biases(monkeypatch, init):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb"])


def test_weights_and_biases_drops_no_update_of_a_second_stage(tmp_path, monkeypatch):
    run = Run()
    weights_and_biases(monkeypatch, lambda project: run)
    tracked = Tracked("wandb", tmp_path)
    steps = {"align sft": 3, "align sft, finetune sft": 2}
    tracked.expect([*steps], 0)
    for step, updates in steps.items():
        tracked.begin(step)
        for i in range(updates):
            tracked.advance(i + 1, updates, {"f": 10.0 * i})
    tracked.close()
    first, second = ("align_sft", "align_sft_finetune_sft")
    assert run.kept == [
        *({f"{first}/f": 10.0 * i, f"{first}/update": i + 1} for i in range(3)),
        *({f"{second}/f": 10.0 * i, f"{second}/update": i + 1} for i in range(2)),
    ]
    assert run.axes == {f"{name}/*": f"{name}/update" for name in (first, second)}
    assert run.ended


def test_a_tracker_that_does_not_start_is_told_before_a_step_begins(tmp_path, monkeypatch):
    def init(project):
        raise RuntimeError("no key is configured\nand more")

    weights_and_biases(monkeypatch, init)
    heard = Heard()
    tracked = Tracked("wandb", tmp_path, heard)
    with pytest.raises(ValueError, match="'wandb' does not start: no key is configured and more$"):
        tracked.expect(["align sft"], 0)
    tracked.close()
    assert heard.said == []
