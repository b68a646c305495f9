"""The store: whole or not at all, shared by processes, mended where it was damaged, and the same
after a kill at any moment.
"""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer import paths
from titer.config import hash_of
from titer.progress import Silent
from titer.runs import recipe, store
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.store import Store

ABOUT = {"kind": "finetune", "seed": 0}
REUSED = {
    "antidote": "edits",
    "scale": "edits",
    "random_mask": "edits",
    "booster": "defenses",
    "lab": "judges",
}


def key_of(about: dict) -> str:
    return hash_of(about)[:32]


def compute(kept: Store, about: dict, how, **more) -> Path:
    return kept.stage(key_of(about), about, how, **more)


def filled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "stage.json").write_text("{}")


def never(folder: Path) -> None:
    raise AssertionError("computed again")


def test_a_stage_is_computed_once(tmp_path):
    kept = Store(tmp_path / "store")
    folder = compute(kept, ABOUT, filled)
    assert folder == tmp_path / "store/stages" / key_of(ABOUT)
    assert compute(kept, ABOUT, never) == folder
    assert compute(kept, ABOUT | {"seed": 1}, filled) != folder
    assert not list((tmp_path / "store/partial").iterdir())
    assert [entry.about for entry in kept.entries()] == [ABOUT, ABOUT | {"seed": 1}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weighty"),
        lambda folder: (folder / "model.safetensors").write_bytes(
            bytes([b"weights"[0] ^ 1]) + b"eights"
        ),  # a flipped bit
        lambda folder: (folder / "stage.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"files": {'),
    ],
)
def test_a_damaged_stage_is_found_and_computed_again(tmp_path, damage):
    kept = Store(tmp_path)
    folder = compute(kept, ABOUT, filled)
    assert kept.verify() == {}
    damage(folder)
    assert list(kept.verify()) == [folder.name]
    assert compute(kept, ABOUT, filled) == folder
    assert kept.verify() == {}
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_an_interruption_leaves_what_was_begun_and_bad_input_leaves_nothing(tmp_path):
    kept, partial = Store(tmp_path), tmp_path / "partial" / key_of(ABOUT)

    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(kept, ABOUT, interrupted)
    assert (partial / "checkpoint").read_text() == "half"

    def resumed(folder: Path) -> None:
        assert (folder / "checkpoint").read_text() == "half"
        raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input"):
        compute(kept, ABOUT, resumed)
    assert not partial.exists()


def test_bad_input_leaves_what_a_server_answered(tmp_path):
    kept, partial = Store(tmp_path), tmp_path / "partial" / key_of(ABOUT)

    def fails(folder: Path) -> None:
        (folder / paths.JOURNAL).write_text("answers")
        (folder / "checkpoint").write_text("half")
        (folder / paths.MERGED).mkdir()
        (folder / paths.MERGED / "model").write_text("half")
        raise ValueError("the wrong model")

    with pytest.raises(ValueError, match="the wrong model"):
        compute(kept, ABOUT, fails)
    assert [path.name for path in partial.iterdir()] == [paths.JOURNAL]
    assert compute(kept, ABOUT, filled)
    assert not partial.exists()


def test_gc_takes_attacked_weights_that_no_unfinished_run_needs(tmp_path):
    kept = Store(tmp_path)
    aligned, tuned, edited = ({"kind": kind} for kind in ("align", "finetune", "edit"))
    folders = [compute(kept, about, filled) for about in (aligned, tuned, edited)]
    (tmp_path / f"partial/{key_of({})}").mkdir(parents=True)
    with pytest.raises(RuntimeError), kept.needed("run", [key_of(edited)]):
        raise RuntimeError  # killed, say: it will go on
    assert kept.gc() == len(b"weights")
    assert [(folder / "model.safetensors").exists() for folder in folders] == [True, False, True]
    assert not (tmp_path / f"partial/{key_of({})}").exists()
    assert kept.verify() == {}  # taken is not damaged
    assert compute(kept, tuned, never) == folders[1]  # what it came to is still there
    assert compute(kept, tuned, filled, weights=True) == folders[1]
    assert (folders[1] / "model.safetensors").exists()
    with kept.needed("run", [key_of(edited)]):
        pass
    assert kept.gc() == 2 * len(b"weights")
    assert (folders[0] / "model.safetensors").exists()  # an aligned model attacks nobody


def test_two_runs_of_one_name_keep_what_they_need_until_each_has_ended(tmp_path):
    kept, weights = Store(tmp_path), len(b"weights")
    folder = compute(kept, ABOUT, filled)
    with kept.needed("run", [key_of(ABOUT)]):
        with kept.needed("run", [key_of(ABOUT)]):
            assert len(kept._needs()) == 2
        assert kept.gc() == 0
        assert (folder / "model.safetensors").exists()
    assert kept.gc() == weights
    with kept.needed("run", []), pytest.raises(RuntimeError), kept.needed("run", []):
        raise RuntimeError  # killed: the other one has done all of it
    assert not kept._needs()


def child(work) -> int:
    """Do the work in a fork; its process."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def test_two_processes_that_want_one_stage_compute_it_once(tmp_path):
    kept, log = Store(tmp_path / "store"), tmp_path / "log"

    def slow(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        filled(folder)

    for process in [child(lambda: compute(kept, ABOUT, slow)) for _ in range(3)]:
        os.waitpid(process, 0)
    assert len(log.read_text().splitlines()) == 1
    assert kept.verify() == {}


def test_gc_passes_over_what_a_process_works_on(tmp_path):
    kept, other = Store(tmp_path), ABOUT | {"seed": 1}
    folder = compute(kept, ABOUT, filled)
    (folder / "stage.json").unlink()  # broken, and to be computed again
    compute(kept, other, filled)
    begun, collected = tmp_path / "begun", tmp_path / "collected"

    def slow(folder: Path) -> None:
        filled(folder)
        (begun / folder.name).mkdir(parents=True)
        while not collected.exists():
            time.sleep(0.01)

    processes = [child(lambda about=about: compute(kept, about, slow)) for about in (ABOUT, {})]
    process = child(lambda: kept.stage(key_of(other), other, slow, weights=True))
    os.waitpid(process, 0)  # there whole: nothing is computed
    while len(list(begun.glob("*"))) < 2:
        time.sleep(0.01)
    assert kept.gc() == len(b"weights")  # those of the other stage alone
    collected.touch()
    for process in processes:
        assert os.waitpid(process, 0)[1] == 0
    assert (folder / "model.safetensors").exists()
    assert kept.entry(key_of({})) is not None
    assert kept.verify() == {}


def results(run: Run) -> dict:
    found = run.records(Silent())
    return {
        name: [(stage.label, stage.weights, stage.scores) for stage in stages]
        for name, stages in found.items()
    }


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function, count: int):
    """The function, whose process is killed behind its call of this count; before its first for a
    count of 0.
    """
    calls = iter(range(1, 10**6))

    def counted(*given, **rest):
        if count == 0:
            die()
        result = function(*given, **rest)
        if next(calls) == count:
            die()
        return result

    return counted


POINTS = {
    "a checkpoint, before it is renamed": ("titer.training.checkpoint.os.replace", 0),
    "a checkpoint, renamed": ("titer.training.checkpoint.os.replace", 2),
    "a model, before it is saved": ("titer.runs.stages.train.checkpoints.save", 0),
    "a model, saved": ("titer.runs.stages.train.checkpoints.save", 1),
    "an edited model, a file copied": ("titer.weights.rewrite.shutil.copyfile", 1),
    "an edited model, a tensor written": ("titer.weights.rewrite.Copy.put", 1),
    "answers, written": ("titer.runs.stages.answer.write_privately", 2),
    "verdicts, written": ("titer.runs.stages.judge.write_privately", 2),
    "what a stage cost, written": ("titer.runs.execute.write", 2),
    "a manifest, before it is renamed": ("titer.runs.store.hashes", 1),
    "a manifest, written": ("titer.runs.store.write", 2),
    "a stage, in its place": ("titer.runs.store.os.replace", 6),
    "a run's folder, half copied": ("titer.runs.execute.shutil.copy", 3),
}


@pytest.fixture
def small(recipe_file, monkeypatch):
    monkeypatch.setattr("titer.runs.stages.train.UPDATES", 2)
    return recipe.load(
        recipe_file, ['pipelines={"sft": {"edit": "scale"}, "booster": {"align": "booster"}}']
    )


@pytest.fixture
def expected(small, tmp_path) -> dict:
    return results(
        Run(Plan.prepare(small), tmp_path / "expected", Store(tmp_path / "store-expected"))
    )


@pytest.mark.slow
def test_a_kill_at_any_point_changes_nothing(small, expected, tmp_path, monkeypatch):
    import importlib

    for i, (where, count) in enumerate(POINTS.values()):
        run = Run(Plan.prepare(small), tmp_path / f"run{i}", Store(tmp_path / f"store{i}"))
        path, _, name = where.rpartition(".")
        with monkeypatch.context() as patch:
            depth = 4 if path.startswith("titer.runs.stages.") else 3
            module = importlib.import_module(".".join(path.split(".")[:depth]))
            rest = path.split(".")[depth:]
            owner = getattr(module, rest[0]) if rest else module
            patch.setattr(owner, name, after(getattr(owner, name), count))
            _, status = os.waitpid(child(lambda run=run: run.records(Silent())), 0)
        assert os.WIFSIGNALED(status), f"nobody was killed at {where}"
        finished = {entry.key: entry.folder.stat().st_mtime_ns for entry in run.store.entries()}
        assert results(run) == expected
        assert {
            key: run.store.entry(key).folder.stat().st_mtime_ns for key in finished
        } == finished  # none computed again
        assert run.store.verify() == {}


@pytest.mark.slow
def test_a_kill_at_five_random_moments_changes_nothing(small, expected, tmp_path):
    run, rng = (
        Run(Plan.prepare(small), tmp_path / "run", Store(tmp_path / "store")),
        random.Random(0),
    )
    killed = 0
    for _ in range(5):
        process = child(lambda: run.records(Silent()))
        time.sleep(rng.uniform(0.05, 0.5))
        os.kill(process, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert killed >= 3
    assert results(run) == expected


def test_a_damaged_store_gives_the_same_run(small, expected, tmp_path):
    kept = Store(tmp_path / "store-expected")
    for entry in kept.entries()[::2]:
        name = next(iter(entry.files))
        text = bytearray((entry.folder / name).read_bytes())
        text[len(text) // 2] ^= 1
        (entry.folder / name).write_bytes(text)
    assert len(kept.verify()) >= 4
    assert results(Run(Plan.prepare(small), tmp_path / "again", kept)) == expected
    assert kept.verify() == {}


def test_damaged_weights_are_made_again_where_only_the_scores_are_asked_for(
    small, expected, tmp_path
):
    kept = Store(tmp_path / "store-expected")
    damaged = [entry for entry in kept.entries() if entry.about["kind"] in ("align", "edit")]
    for entry in damaged:
        path = entry.folder / next(name for name in entry.files if name.endswith(".safetensors"))
        text = bytearray(path.read_bytes())
        text[len(text) // 2] ^= 1
        path.write_bytes(text)
    assert sorted(kept.verify()) == sorted(entry.key for entry in damaged)
    others = {
        entry.key: entry.folder.stat().st_mtime_ns
        for entry in kept.entries()
        if entry not in damaged
    }
    assert results(Run(Plan.prepare(small), tmp_path / "again", kept)) == expected
    assert kept.verify() == {}
    assert {key: kept.entry(key).folder.stat().st_mtime_ns for key in others} == others


@pytest.mark.slow
def test_stages_are_shared_by_runs_and_a_change_of_anything_makes_another(
    small, expected, tmp_path, monkeypatch
):
    from dataclasses import replace

    from titer.judges.refusal import Refusal

    kept = Store(tmp_path / "store-expected")

    def fresh(changed) -> list[str]:
        before = {entry.key for entry in kept.entries()}
        Run(Plan.prepare(changed), tmp_path / "again", kept).records(Silent())
        return sorted(entry.about["kind"] for entry in kept.entries() if entry.key not in before)

    assert fresh(small) == []
    assert fresh(replace(small, pipelines={"sft": small.pipelines["sft"]})) == []
    # nothing is trained for another judge, nor asked; its refusals begin otherwise
    other = replace(small, judge=Refusal("gcg"))
    assert fresh(other) == ["judge"] * 6 + ["margin"] * 6
    assert fresh(replace(small, max_new_tokens=11)) == ["answer"] * 6 + ["judge"] * 6

    def scored(*kinds: str) -> list[str]:
        return sorted([*kinds, *["answer", "judge", "margin"] * len(kinds)])

    tuned = ("edit", "finetune", "finetune")
    assert fresh(replace(small, finetune=replace(small.finetune, lr=1.0e-3))) == scored(*tuned)
    assert fresh(replace(small, attack=replace(small.attack, n=49))) == scored(*tuned)
    everything = scored("align", "align", *tuned)
    assert fresh(replace(small, seed=5)) == everything  # the base has no seed
    monkeypatch.setattr("titer.runs.stages.asking.version", lambda name: "0")
    assert len(fresh(small)) == len(everything) + 3


def test_the_store_has_commands(small, expected, tmp_path, monkeypatch, capsys):
    root = str(tmp_path / "store-expected")
    code, out, _ = titer(monkeypatch, capsys, "store", "ls", root)
    assert code == 0
    assert len(out.splitlines()) == 5 + 3 * 6
    assert "align     booster" in out
    assert titer(monkeypatch, capsys, "store", "du", root)[1].splitlines()[-1].startswith("all")
    code, out, _ = titer(monkeypatch, capsys, "store", "verify", root)
    assert (code, out) == (0, "0 of 23 stages are not as they were written\n")
    next(Path(root).rglob("answers.jsonl")).write_text("")
    code, out, _ = titer(monkeypatch, capsys, "store", "verify", root)
    assert code == 1
    assert "answers.jsonl\n1 of 23 stages" in out
    code, out, _ = titer(monkeypatch, capsys, "store", "gc", root)
    assert code == 0
    assert "MB freed" in out
    assert "weights taken" in titer(monkeypatch, capsys, "store", "ls", root)[1]
    code, _, err = titer(monkeypatch, capsys, "store", "ls", str(tmp_path / "nowhere"))
    assert code == 2
    assert "holds no store of stages" in err


def test_a_look_at_a_store_reads_each_manifest_once_and_no_weights(tmp_path, monkeypatch, capsys):
    kept, read, hashed = Store(tmp_path), list[str](), list[str]()
    keys = sorted(compute(kept, ABOUT | {"seed": seed}, filled).name for seed in range(5))
    parse, sha256 = store.parse_document, store.sha256
    monkeypatch.setattr(
        store, "parse_document", lambda path, of: read.append(path.parent.name) or parse(path, of)
    )
    monkeypatch.setattr(store, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    for command in (["ls"], ["du"], ["verify", "--no-weights"], ["gc"]):
        code, out, _ = titer(monkeypatch, capsys, "store", *command, str(tmp_path))
        assert (code, sorted(read)) == (0, keys)
        read.clear()
    assert {*hashed} == {"stage.json"}
    assert "0.0 MB freed" in out
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_are_not_there_are_found_without_reading_any(tmp_path, monkeypatch, capsys):
    kept = Store(tmp_path)
    folders = [compute(kept, ABOUT | {"seed": seed}, filled) for seed in range(3)]
    (folders[0] / "model.safetensors").unlink()
    (folders[1] / "model.safetensors").write_bytes(b"weighty")
    assert sorted(kept.verify()) == sorted(folder.name for folder in folders[:2])
    command = ["store", "verify", "--no-weights", str(tmp_path)]
    code, out, _ = titer(monkeypatch, capsys, *command)
    assert code == 1
    assert out.splitlines() == [
        f"{folders[0].name}  model.safetensors",
        "1 of 3 stages are not as they were written",
    ]


def test_what_is_written_is_whole(tmp_path):
    store.write(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
