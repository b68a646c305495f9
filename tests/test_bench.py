"""The bench counts what a hand count says, and reports and compares what it found.

No test looks at a time.
"""

import ast
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import (
    calibration,
    compare,
    cost,
    count,
    edits,
    generate,
    gpu,
    largest,
    margin,
    peers,
    release,
    shapes,
    size,
    subjects,
    tau,
)
from bench.clock import Spread
from titer import registry
from titer.defenses.sft import SFT
from titer.defenses.vaccine import Vaccine
from titer.methods import Answers, Defense, Pairs
from titer.phase import Phase
from titer.training.rehearse import weigh_phases
from titer.weights.settings import Lora

QUICK, LORA = shapes.load(quick=True)
TINY = QUICK["quick"]
BASE = Path(shapes.FILE).parent.parent / "src/titer/lab/base/config.json"


def counted(defense, accelerator, lora=None) -> cost.Counts:
    return cost.counts(subjects.defense_updates(defense, TINY, lora, accelerator))


def products() -> int:
    """Entries of the matrices that every token is multiplied by."""
    d, h = TINY.width, TINY.hidden
    return TINY.layers * (4 * d * d + 3 * d * h)


def head() -> int:
    """Entries of the matrix that the tokens which predict an answer are multiplied by."""
    return TINY.vocabulary * TINY.width


def answered() -> int:
    """Tokens that predict an answer's."""
    return TINY.batch * round(TINY.length * TINY.answer)


def attention() -> int:
    """Operations of one matrix product of all heads and layers: queries times keys, or weights
    times values.
    """
    return TINY.layers * TINY.batch * 2 * TINY.length**2 * TINY.width


def test_operations_of_a_linear_model_are_the_hand_count():
    model, x = (
        nn.Sequential(nn.Linear(7, 11, bias=False), nn.Tanh(), nn.Linear(11, 3, bias=False)),
        torch.ones(5, 7),
    )
    assert count.flops(lambda: model(x)) == 2 * 5 * (7 * 11 + 11 * 3)
    # backward: the gradients of both weights, and that of the hidden layer; nobody asks for that of
    # x
    assert count.flops(lambda: model(x).sum().backward()) == 2 * 5 * (2 * 7 * 11 + 3 * 11 * 3)


def test_operations_of_an_sft_update_are_the_hand_count(accelerator):
    """2 an entry and token forward, 4 backward; attention has 2 products forward and 5 backward,
    since it forms its scores anew.
    """
    tokens = TINY.batch * TINY.length
    matrices = 6 * (tokens * products() + answered() * head())
    assert counted(SFT(), accelerator).flops == matrices + 7 * attention()


def test_operations_of_an_sft_update_of_an_adapter_are_the_hand_count(accelerator):
    """Frozen weights have no gradient of their own, and in the first layer nothing asks what its
    queries, keys and values come from.
    """
    tokens, d, r = TINY.batch * TINY.length, TINY.width, LORA.r
    frozen = 4 * (tokens * products() + answered() * head()) - 2 * tokens * 3 * d * d
    adapter = tokens * (
        2 * TINY.layers * 6 * 2 * d * r - 2 * 2 * d * r
    )  # A and B of q and v; A's input in the first layer is the embedding
    assert counted(SFT(), accelerator, LORA).flops == frozen + adapter + 7 * attention()


@pytest.mark.parametrize("lora", [None, LORA])
def test_booster_takes_three_passes_and_two_more_copies(accelerator, lora):
    """Exactly: the batches have one shape and all else that it does is linear in the weights, which
    is not counted.

    The passes come one after another, so none keeps more for backward than SFT's does.
    """
    sft, booster = (
        counted(SFT(), accelerator, lora),
        counted(registry.build("defenses", "booster"), accelerator, lora),
    )
    assert booster.flops == 3 * sft.flops
    assert booster.kept == sft.kept
    assert booster.copies - sft.copies == pytest.approx(
        2.0, abs=0.01
    )  # norms' scales may have the size of some activation


def test_bytes_kept_are_those_that_the_backward_pass_needs():
    """Two operations save the input and the hidden layer; the weights are the model's own."""
    model, x = (
        nn.Sequential(nn.Linear(7, 11, bias=False), nn.Tanh(), nn.Linear(11, 3, bias=False)),
        torch.ones(5, 7),
    )
    once = 4 * 5 * (7 + 11)
    assert count.bytes_for_backward(model, lambda: model(x).sum().backward()) == once

    def passes() -> None:
        model(x).sum().backward()
        model(x).sum().backward()  # the first pass has let go of its own

    assert count.bytes_for_backward(model, passes) == once

    def together() -> None:
        losses = [model(x).sum(), model(x).sum()]
        sum(losses).backward()

    assert count.bytes_for_backward(model, together) == 4 * 5 * (
        7 + 2 * 11
    )  # the input is one storage


def test_copies_are_those_alive_at_once():
    model = nn.Linear(7, 11, bias=False)

    def three() -> None:
        first = model.weight.detach().clone()
        second = first.double()  # twice as wide
        del first, second
        model.weight.detach().clone()

    assert count.copies(model, three) == 3.0
    assert count.copies(model, lambda: model.weight.detach().mul_(1.0).view(-1)) == 0.0


def test_the_peak_is_what_lasts_and_the_most_that_was_made_at_once():
    kept, x = torch.ones(7, dtype=torch.float64), torch.ones(5)

    def made() -> None:
        first = x + 1  # 20 bytes
        second = first.double()  # 40
        del first
        second.add_(1.0)
        kept.mul_(2.0)  # lasts, and is not made
        x.sum()  # 4

    assert count.peak([kept, kept.view(7, 1)], made) == 7 * 8 + 20 + 40


def test_pairs_share_their_prompts():
    plain, pairs = TINY.rows("rows", Answers), TINY.rows("rows", Pairs)
    assert not any(row.other for row in plain)
    assert [replace(row, other=None) for row in pairs] == plain
    assert all(row.ids[: row.answer] == row.other.ids[: row.other.answer] for row in pairs)
    assert all(row.ids[row.answer :] != row.other.ids[row.answer :] for row in pairs)


def test_two_periods_hold_two_perturbed_updates(accelerator):
    mine, baseline = (
        subjects.defense_updates(one, TINY, None, accelerator) for one in (Vaccine(every=20), SFT())
    )
    passes = []
    mine.model.register_forward_hook(lambda *_: passes.append(1))
    assert tau.ratio(mine, baseline, updates=40) > 0
    assert len(passes) == 50 + 2


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 8, 100])
def test_the_largest_batch_is_found_with_few_trials(limit):
    tried = []
    assert largest.largest(lambda rows: tried.append(rows) or rows <= limit, most=20) == min(
        limit, 20
    )
    assert len(tried) <= 10
    assert max(tried) <= 20


def test_what_a_consumers_gpu_holds_is_measured_on_a_gpu_alone(capsys, accelerator):
    if not torch.cuda.is_available():
        assert largest.main([]) == 3
        assert "no CUDA device: nothing was measured" in capsys.readouterr().err
    for name, defense in largest.METHODS.items():
        assert largest.fits(defense, replace(TINY, layers=9), accelerator), name
    assert {
        p.dtype for p in TINY.model(LORA, dtype=torch.bfloat16).parameters() if not p.requires_grad
    } == {torch.bfloat16}


def test_the_bench_of_a_gpu_writes_every_part_and_stops_in_time(capsys, tmp_path):
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(tmp_path)]) == 3
        assert "no CUDA device: nothing was measured" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [*parts] == ["product", *(f"update, {name}" for name in gpu.METHODS), "update, TRL"]
    sft = parts["update, SFT"]
    assert sft["tokens a second"] * sft["seconds"] == pytest.approx(
        peers.QUICK.batch * peers.QUICK.length
    )
    assert parts["update, Booster"]["flops"] == pytest.approx(3 * sft["flops"], rel=1e-3)
    assert gpu.main(["--quick", "--seconds", "0", "--out", str(tmp_path)]) == 0
    late = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {part["left out"] for part in late.values()} == {"the time was over"}


def test_a_search_for_a_batch_that_runs_out_of_time_says_what_fits(monkeypatch, accelerator):
    clock = iter(range(100))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(largest, "fits", lambda _, shape, __: shape.batch <= 5)
    assert gpu.largest_batch(SFT(), accelerator, until=99) == {"rows": 5}
    clock = iter(range(100))
    assert gpu.largest_batch(SFT(), accelerator, until=1) == {"at least": 2}


def test_the_bare_loop_ends_at_sfts_weights(accelerator):
    """So both do the same work; and it owes titer nothing."""
    bare, sft = (
        subjects.bare(TINY, None, accelerator),
        subjects.defense_updates(SFT(), TINY, None, accelerator),
    )
    before = [parameter.detach().clone() for parameter in sft.model.parameters()]
    sft.prepare()
    for _ in range(5):
        bare.kinds[0].update(), sft.kinds[0].update()
    for mine, other, start in zip(
        sft.model.parameters(), bare.model.parameters(), before, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
        assert (mine - start).abs().max() > 2e-5
    tree = ast.parse((shapes.FILE.parent / "bare.py").read_text(encoding="utf-8"))
    modules = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    modules += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module.startswith("titer")]


@dataclass(frozen=True)
class Sweeping(Defense):
    """Sweeps of two passes that do not count after every four updates; every second counted update
    takes two passes too.
    """

    @property
    def period(self):
        return 2

    def schedule(self, updates):
        for _ in range(updates // 4):
            yield Phase("train", 4)
            yield Phase("sweep", 1, lr=1e-6, clipped=False, counted=False)

    def gradient(self, step, state):
        once = step.grad(step.batch("rows"))
        return (
            once + step.grad(step.batch("rows"))
            if step.phase.name == "sweep" or step.update % 2 == 0
            else once
        )


def test_phases_count_by_their_share_and_periods_by_their_mean(accelerator):
    assert [(phase.name, share) for phase, share in weigh_phases(Sweeping(), subjects.STAGE)] == [
        ("train", 1.0),
        ("sweep", 0.25),
    ]
    assert (
        counted(Sweeping(), accelerator).flops
        == (1.5 + 0.25 * 2) * counted(SFT(), accelerator).flops
    )


def test_the_shapes_are_large_enough_and_the_labs():
    full, lora = shapes.load()
    assert {shape.vocabulary for shape in full.values()} >= {512, 32000}
    for name, shape in full.items():
        with torch.device("meta"):
            model = shape.model(None)
        if name != "lab":
            assert model.num_parameters() >= cost.LARGE
            assert shape.layers == 16
        else:
            base = json.loads(BASE.read_text(encoding="utf-8"))
            assert all(
                getattr(model.config, field) == base[field]
                for field in ("vocab_size", "hidden_size", "intermediate_size")
            )
            assert (shape.layers, shape.heads) == (
                base["num_hidden_layers"],
                base["num_attention_heads"],
            )
        weights = {p.numel() for p in model.parameters()} | {lora.r * shape.width}
        tokens = shape.batch * shape.length
        made = {tokens * wide for wide in (shape.width, shape.hidden, shape.vocabulary, lora.r, 1)}
        made |= {shape.length * shape.width // shape.heads}  # rotations
        assert not made & (
            weights | {2 * size for size in weights}
        )  # else copies could not be told by their size
    assert lora == Lora()


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bench")
    assert cost.main(["--quick", "--device", "cpu", "--out", str(folder)]) == 0
    return folder / "cost.json"


def test_the_file_has_everything(quick):
    content = json.loads(quick.read_text(encoding="utf-8"))
    assert (
        content["shapes"]["quick"]["parameters"]
        == products() + head() + (2 * TINY.layers + 1) * TINY.width
    )
    assert content["environment"]["threads"] == 1
    assert content["environment"]["device"]
    found = {(one["trained"], one["method"]): one for one in content["costs"]}
    names = {*registry.names("defenses"), *shapes.variants()} - {
        fields["method"] for fields in shapes.variants().values()
    }
    assert set(found) == {(trained, name) for trained in ("lora", "full") for name in names}
    for (_, name), one in found.items():
        assert one["over"] == ("bare" if name == "sft" else "sft")
        assert 0 < one["ratio"]["q1"] <= one["ratio"]["median"] <= one["ratio"]["q3"]
        assert one["seconds"]["median"] > 0
        assert one["counts"]["kept"] > 0
        assert one["counts"]["copies"] > 0.0
        assert isinstance(one["met"], bool)
    assert found["full", "booster"]["flops_ratio"] == 3.0
    assert found["full", "sft"]["flops_ratio"] == 1.0


def test_an_unknown_method_is_refused_with_the_nearest(tmp_path, capsys):
    assert cost.main(["boster", "--quick", "--out", str(tmp_path)]) == 2
    assert "booster" in capsys.readouterr().err
    assert cost.main(["sft", "--quick", "--shape", "quik", "--out", str(tmp_path)]) == 2
    assert "did you mean 'quick'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_operations_of_two_experts_a_token_are_counted():
    ids = torch.randint(2, TINY.vocabulary, (3, TINY.length))
    passes = {}
    for sparse in (False, True):
        model = TINY.model(None, sparse=sparse)
        with torch.no_grad():
            passes[sparse] = count.flops(partial(model, ids))
    mlp, router = 3 * TINY.width * TINY.hidden, TINY.width * shapes.EXPERTS
    more = 2 * ids.numel() * TINY.layers * (mlp + router)  # one more MLP for every token
    assert passes[True] - passes[False] == more


def changed(path: Path, folder: Path, change) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    out = folder / "changed.json"
    out.write_text(json.dumps(content), encoding="utf-8")
    return str(out)


def test_comparing_says_what_became_slower(quick, tmp_path, capsys):
    def slower(content):
        content["costs"][0]["seconds"]["median"] *= 1.3

    assert compare.main([str(quick), str(quick)]) == 0
    other = changed(quick, tmp_path, slower)
    assert compare.main([str(quick), other]) == 1
    out = capsys.readouterr().out
    assert "1.300" in out
    assert "1 slower than 1.1 times A" in out
    assert compare.main([other, str(quick)]) == 0
    assert compare.main([str(quick), other, "--factor", "1.4"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["environment"].update(threads=64), "threads differs, 1 and 64"),
        (
            lambda content: content["shapes"]["quick"].update(layers=3),
            "the shape 'quick' is not the same",
        ),
        (lambda content: content.update(costs=[]), "no method at a shape in common"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(quick, tmp_path, capsys, change, message):
    assert compare.main([str(quick), changed(quick, tmp_path, change)]) == 2
    assert message in capsys.readouterr().err
    assert compare.main([str(quick), str(tmp_path / "none.json")]) == 2


def test_a_release_is_measured_and_its_peak_held_to_the_bar(tmp_path, capsys, monkeypatch):
    quick = ["random_lox", "--layers", "2", "--width", "64", "--out", str(tmp_path)]
    assert release.main(quick) == 0
    assert "random_lox: 4 tensors of 64 x 64, 0 MB on disk: " in capsys.readouterr().out
    [found] = json.loads((tmp_path / "release.json").read_text(encoding="utf-8"))["costs"]
    assert (found["tensors"], found["checkpoint_mb"] > 4 * 2 * 64**2 / 1e6) == (4, True)
    monkeypatch.setattr(release, "BAR_MB", found["start_mb"] / 2)
    assert release.main(quick) == 1


def test_an_edit_is_measured_beside_the_dense_formula_and_its_peak_held_to_the_bar(
    tmp_path, capsys, monkeypatch
):
    quick = ["--layers", "2", "--width", "64", "--rank", "4", "--out", str(tmp_path)]
    assert edits.main(quick) == 0
    assert (
        "safe_lora: 4 weights of 64 x 64, rank 4, 0 MB of base and aligned model: "
        in capsys.readouterr().out
    )
    found = json.loads((tmp_path / "edits.json").read_text(encoding="utf-8"))["cost"]
    assert (found["tensors"], found["checkpoint_mb"] > 2 * 4 * 2 * 64**2 / 1e6) == (4, True)
    assert found["apart"] < 1e-5
    monkeypatch.setattr(edits, "BAR_MB", found["start_mb"] / 2)
    assert edits.main(quick) == 1


def test_calibration_is_measured_beside_a_bare_pass(tmp_path, capsys, monkeypatch):
    assert calibration.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "quick, adapter on all-linear: " in capsys.readouterr().out
    content = json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8"))
    assert [one["watched"] for one in content["costs"]] == [
        "adapter on q, v",
        "adapter on all-linear",
        "all linear",
    ]
    for one in content["costs"]:
        assert 0 < one["ratio"]["q1"] <= one["ratio"]["median"] <= one["ratio"]["q3"]
        assert 0 < one["bare_peak"] <= one["peak"] < 1.5 * one["bare_peak"]
    assert calibration.main(["--quick", "--shape", "quik"]) == 2
    assert "did you mean 'quick'" in capsys.readouterr().err
    spread = Spread(1.0, 1.0, 1.0)
    cost = calibration.Cost("", "", spread, spread, Spread(1.15, 1.0, 2.0), 110, 100)
    assert cost.met
    assert not replace(cost, peak=111).met
    assert not replace(cost, ratio=Spread(1.151, 1.0, 2.0)).met


def test_both_passes_read_the_same_rows_and_antidotes_sees_every_layer():
    for name, model, layers in calibration.cases(TINY, LORA, torch.device("cpu")):
        seen = []
        model.get_input_embeddings().register_forward_hook(
            lambda _, x, out, seen=seen: seen.append(x[0])
        )
        bare, mine = calibration.passes(TINY, model, layers)
        bare.run()
        found = mine.run()
        assert torch.equal(*seen)
        assert seen[0].shape == (16, TINY.length)
        assert len(found) == len(layers) == {"adapter on q, v": 4}.get(name, 14)


def test_much_is_measured_and_held_to_the_bars(tmp_path, capsys, monkeypatch):
    quick = ["--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(size, "BAR_FILE", 1000.0)  # of so small a file
    assert size.main(quick) == 0
    assert capsys.readouterr().out.endswith("every bar is met\n")
    found = json.loads((tmp_path / "size.json").read_text(encoding="utf-8"))
    assert (found["rows"]["rows"], found["store"]["stages"], found["sweep"]["cells"]) == (
        2000,
        24,
        20,
    )
    # the memory of so few rows may be none
    assert all(value > 0 for name in ("store", "sweep") for value in found[name].values())
    monkeypatch.setattr(size, "BAR_SECONDS", 1e-9)
    assert size.main(["sweep", *quick]) == 1
    assert "begun_seconds is" in capsys.readouterr().out


def test_quartiles():
    assert Spread.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert (
        replace(TINY, batch=4).rows("rows", Answers)
        == TINY.rows("rows", Answers)
        != TINY.rows("harmful", Answers)
    )


def test_peers_margins_and_engines_are_measured(tmp_path, capsys):
    assert peers.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert margin.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "peers.json").read_text())["peers"]
    assert told.keys() >= {"whole head", "HF Trainer", "TRL"}
    assert generate.main(["--quick", "--out", str(tmp_path)]) == 0
    engines = json.loads((tmp_path / "generate.json").read_text())["engines"]
    assert engines.keys() == {"plain generate", "transformers", "continuous"}
    assert [of["other answers"] for of in engines.values()] == [0, 0, 0]
    assert all(of["over plain generate"]["median"] > 0 for of in engines.values())
    assert generate.count_other([[1], [2, 3], []], [[1], [2], [4]]) == 2
    found = json.loads((tmp_path / "margin.json").read_text())["margin"]
    assert found["largest difference in nats"] < 1e-4
    assert found["time"] > 1
    assert "HF Trainer" in capsys.readouterr().out
