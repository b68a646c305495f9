"""What a recipe takes, said before it is computed: against real updates of the lab's model."""

import json
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.shapes import Shape
from test_recipe import run as titer
from titer import registry
from titer.data.batches import Encoded, Stream
from titer.runs import estimate, machine
from titer.runs import recipe as recipes
from titer.runs.fitting import weigh
from titer.runs.machine import Machine, Rates, _solve, read_bytes
from titer.runs.plan import Plan
from titer.runs.stages.asking import Asking
from titer.training.count import Alive, Effort, flops
from titer.training.layers import recompute_layers
from titer.training.loop import Loop
from titer.training.rehearse import (
    Size,
    count_bytes,
    find_head,
    imagine,
    rehearse,
    size_batches,
)
from titer.training.settings import Training
from titer.training.step import Step
from titer.training.train import passes_in
from titer.weights import adapters, checkpoints
from titer.weights.checkpoints import trainable
from titer.weights.settings import Checkpoint, Lora

LAB = Checkpoint("lab")
ROWS = Shape(355, 1, 1, 1, 1, length=16, answer=0.5, batch=4, pairs=1)
SMALL = ("--only", "sft", "--set", "align.updates=2", "--set", "finetune.updates=2")


def count_really(accelerator, defense, settings, recompute=False):
    """The peak of bytes and the operations of two real updates, of rows that are all of one size."""
    model = checkpoints.load(LAB)[0]
    model = adapters.add_lora(model, settings.lora) if settings.lora else model
    streams = {
        name: Stream(name, ROWS.rows(name, kind), 0) for name, kind in defense.needs.streams.items()
    }
    step = Step(
        model, trainable(model), streams, accelerator, settings.batch, settings.accumulate,
        autocast=passes_in(settings),
    )  # fmt: skip
    loop = Loop(step, defense, settings)
    [phase] = defense.schedule(2)
    again = recompute_layers(model) if recompute else nullcontext()
    with again, Alive([*model.parameters(), *model.buffers()]) as counted:
        loop.follow(1, phase)
        loop.follow(2, phase)
    return counted.peak, flops(lambda: loop.follow(3, phase)), count_bytes(model)


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.parametrize("method", ["sft", "booster", "repnoise", "vaccine"])
def test_a_rehearsal_counts_what_real_updates_take(accelerator, method, lora, accumulate):
    if accumulate > 1 and method != "booster":
        pytest.skip("one method shows it")
    defense = registry.build("defenses", {"method": method})
    settings = Training(updates=2, lr=1e-4, batch=4, accumulate=accumulate, lora=lora)
    sizes = {
        name: size_batches(ROWS.rows(name, kind), settings, 0)[1]
        for name, kind in defense.needs.streams.items()
    }
    model = imagine(LAB, lora)
    assert all(parameter.is_meta for parameter in model.parameters())
    found = rehearse(model, defense, sizes, settings)
    peak, operations, weights = count_really(accelerator, defense, settings)
    assert found.peak == pytest.approx(peak, rel=0.02)
    assert found.update.flops == pytest.approx(operations, rel=0.001)
    assert count_bytes(model) == weights


@pytest.mark.parametrize("method", ["booster", "vaccine"])
def test_the_update_that_ends_a_long_period_is_counted(method):
    """Of twenty updates eighteen are plain fine-tuning's, and two do the work of the method."""
    settings = Training(updates=20, lr=1e-4, batch=4, lora=Lora(r=4))
    model, sizes = imagine(LAB, settings.lora), dict.fromkeys(("rows", "harmful"), Size(4, 16, 8))

    def count(settings, **fields):
        defense = registry.build("defenses", fields)
        return rehearse(model, defense, {k: sizes[k] for k in defense.needs.streams}, settings)

    plain, always = count(settings, method="sft"), count(settings, method=method)
    tenth = count(settings, method=method, every=10)
    assert tenth.peak == always.peak > plain.peak
    mean = 0.9 * plain.update.flops + 0.1 * always.update.flops
    assert tenth.update.flops == pytest.approx(mean)
    short = count(replace(settings, updates=9), method=method, every=10)  # it does none of it
    assert (short.peak, short.update.flops) == (plain.peak, pytest.approx(plain.update.flops))


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["sft", "repnoise"])
def test_a_rehearsal_counts_the_casts_of_autocast(accelerator, method, lora, recompute):
    defense = registry.build("defenses", {"method": method})
    plain = Training(updates=2, lr=1e-4, batch=4, lora=lora)
    coarse = replace(plain, autocast="bfloat16")
    sizes = {
        name: size_batches(ROWS.rows(name, kind), plain, 0)[1]
        for name, kind in defense.needs.streams.items()
    }
    model = imagine(LAB, lora)
    found = rehearse(model, defense, sizes, coarse, recompute=recompute)
    peak, *_ = count_really(accelerator, defense, coarse, recompute)
    assert found.peak == pytest.approx(peak, rel=0.02)
    if lora and not recompute:  # most of it is a copy of the frozen weights, in half the bytes
        assert found.peak - found.activations > 0.4 * count_bytes(model)
        alone = rehearse(model, defense, sizes, plain)
        assert alone.peak - alone.activations < 0.1 * count_bytes(model)


def test_layers_that_are_computed_again_keep_less_and_cost_more():
    settings = Training(updates=2, lr=1e-4, batch=32, lora=None)
    size = {"rows": Size(32, 48, 8)}
    model, sft = imagine(LAB, None), registry.build("defenses", "sft")
    plain = rehearse(model, sft, size, settings)
    again = rehearse(model, sft, size, settings, recompute=True)
    assert again.peak < 0.7 * plain.peak
    assert again.update.flops > 1.2 * plain.update.flops


def test_sizes_are_those_of_the_micro_batches_that_a_stream_hands_out():
    short, long = Encoded((5,) * 4, 2), Encoded((5,) * 12, 2)
    settings = Training(updates=50, lr=1.0, batch=1)
    typical, largest = size_batches([short, long], settings, 0)
    assert (typical.length, typical.learned) == (8, 6)
    assert (largest.length, largest.learned) == (12, 10)
    paired = [replace(long, other=Encoded((5,) * 6, 2)), long]
    pair = size_batches(paired, replace(settings, batch=2), 0)[1]
    assert (pair.rows, pair.other.rows, pair.other.length) == (2, 1, 6)
    rows = pair.encode(3)
    assert [row.other is not None for row in rows] == [True, False]


def test_rates_are_found_from_two_works():
    truth = Rates(2e-6, 3e-11, 1e-10, 9e-11)
    works = [Effort(1000, 1e9, 5e6, 4e8), Effort(1000, 4e9, 2e7, 1e9)]
    known = replace(truth, kernel=0.0, flop=0.0)
    found = _solve([(w, truth.seconds(w) - known.seconds(w)) for w in works], known)
    assert found.kernel == pytest.approx(truth.kernel)
    assert found.flop == pytest.approx(truth.flop)
    assert (found.byte, found.head) == (truth.byte, truth.head)


def test_products_with_the_head_are_counted_apart():
    """Three passes of it in an update of all weights, two under an adapter: 2 B T d V operations each."""
    settings = Training(updates=2, lr=1e-4, batch=4, lora=None)
    size = {"rows": Size(4, 16, 8)}
    sft = registry.build("defenses", "sft")
    vocabulary, width = checkpoints.skeleton(LAB).get_output_embeddings().weight.shape
    for lora, products in ((None, 3), (Lora(r=4), 2)):
        model = imagine(LAB, lora)
        assert find_head(model) == (vocabulary, width)
        found = rehearse(model, sft, size, replace(settings, lora=lora)).update
        rows = found.head / (2 * products * width * vocabulary)
        assert 4 * 8 <= rows <= 4 * 16
        assert found.head < found.flops


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("24 GiB", 24 * 2**30), ("1.5g", 1.5e9), ("512MB", 512e6)]
)
def test_sizes_of_memory_are_read(text, size):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["24 bananas", "", "-3GB", "0GB", "GB", "24", "24B"])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="24GB"):
        read_bytes(text)


def test_a_recipe_that_fits_has_exit_code_0(monkeypatch, capsys):
    code, said, noted = titer(
        monkeypatch, capsys, "plan", "lab", *SMALL, "--gpu-memory", "24GB", "--json", "--seeds", "3"
    )
    assert code == 0, noted
    found = json.loads(said)
    assert found["fits"]
    assert found["seconds"] is None
    kinds = {step["kind"] for step in found["steps"]}
    assert kinds == {"align", "finetune", "score"}
    assert all(step["flops"] > 0 for step in found["steps"])
    harm = [each for each in found["intervals"] if each["score"] == "HS"]
    assert [each["prompts"] for each in harm] == [50, 100, 144]
    assert harm[0]["points"] > harm[-1]["points"] > 0


def test_a_recipe_that_does_not_fit_says_what_to_change(monkeypatch, capsys):
    many = ("--set", "align.batch=4096", "--gpu-memory", "1GB")
    code, said, noted = titer(monkeypatch, capsys, "plan", "lab", *SMALL, *many, "--json")
    assert code == 1, noted
    found = json.loads(said)
    [change] = found["changes"]
    batch, accumulate = (int(text.split("=")[1]) for text in change["settings"])
    assert batch * accumulate == 4096
    assert 1 < batch < 4096
    assert change["bytes"] <= 1e9
    settings = [part for text in change["settings"] for part in ("--set", text)]
    code, said, _ = titer(
        monkeypatch, capsys, "plan", "lab", *SMALL, "--gpu-memory", "1GB", *settings
    )
    assert code == 0
    assert "align sft" in said


def test_what_cannot_be_counted_is_no_fit(monkeypatch, capsys):
    def ask(*_):
        raise NotImplementedError("the largest of no values")

    monkeypatch.setattr(estimate.Estimator, "_rehearse", ask)
    code, said, _ = titer(monkeypatch, capsys, "plan", "lab", *SMALL, "--no-probe")
    assert code == 3
    assert "not counted, it asks for values of the model: the largest of no values" in " ".join(
        said.split()
    )


def test_bad_input_has_exit_code_2(monkeypatch, capsys):
    code, _, noted = titer(monkeypatch, capsys, "plan", "lab", "--gpu-memory", "much")
    assert code == 2
    assert "'much'" in noted


def test_a_dry_run_says_it_in_a_line(monkeypatch, capsys):
    code, said, noted = titer(monkeypatch, capsys, "run", "lab", *SMALL, "--dry-run")
    assert code == 0, noted
    assert "memory: about" in said
    assert "time: roughly" in said


def weigh_lab(of, *settings):
    """Weigh a small recipe of the lab for a machine."""
    few = ["align.updates=2", "finetune.updates=2", "dose_prompts=0", "prefill_prompts=0"]
    pipelines = [] if any(text.startswith("pipelines") for text in settings) else ["sft"]
    recipe = recipes.only(recipes.load("lab", [*few, *settings], None), pipelines)
    return weigh(Plan.prepare(recipe), of)


def small(memory):
    return Machine("small", "cpu", memory, 0.0, True)


def test_a_model_that_does_not_fit_here_is_not_loaded_for_the_times(monkeypatch, capsys):
    monkeypatch.setattr(Asking, "open", None)  # a call would raise a TypeError
    monkeypatch.setattr(machine, "find_machine", lambda _: small(3e6))
    code, said, noted = titer(monkeypatch, capsys, "plan", "lab", *SMALL)
    assert code == 1, noted
    assert "no time is known (none: the probe does not fit here: an update of one row takes" in (
        " ".join(said.split())
    )
    assert "does not fit" in said


def test_memory_that_runs_out_in_a_probe_leaves_a_plan_without_times(monkeypatch):
    def load(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Asking, "open", load)
    found = weigh_lab(small(1e9))
    assert (found["fits"], found["seconds"]) == (True, None)
    assert found["times"] == (
        "none: the probe does not fit here: CUDA out of memory. Tried to allocate 2.00 GiB"
    )


def test_where_one_kind_of_training_fits_its_times_are_those_of_the_other(monkeypatch):
    timed = estimate.probe

    def time_adapter(load, skeleton, dtype, size, settings, *rest):
        if settings.lora is None:
            raise torch.OutOfMemoryError("out of memory")
        return timed(load, skeleton, dtype, size, settings, *rest)

    monkeypatch.setattr(estimate, "probe", time_adapter)
    found = weigh_lab(small(1e9), "align.lora=null", "finetune.lora={r: 4}")
    assert found["seconds"] > 0
    assert found["times"] == (
        "probed, of one kind of training for another: the probe does not fit here: out of memory"
    )


def test_a_probe_computes_layers_again_as_the_recipe_does(monkeypatch):
    inside, counted = [], []
    again, count = machine.recompute_layers, machine.rehearse

    def recompute(model):
        inside.append(type(model).__name__)
        return again(model)

    def rehearse(*given, **named):
        counted.append(named["recompute"])
        return count(*given, **named)

    monkeypatch.setattr(machine, "recompute_layers", recompute)
    monkeypatch.setattr(machine, "rehearse", rehearse)
    lora = ("align.lora={r: 4}", "finetune.lora={r: 4}")  # one kind of training, one probe
    assert weigh_lab(small(1e9), *lora, "gradient_checkpointing=true")["times"] == "probed"
    assert (len(inside), set(counted)) == (1, {True})
    counted.clear()
    assert weigh_lab(small(1e9), *lora)["times"] == "probed"
    assert (len(inside), set(counted)) == (1, {False})


def test_one_model_at_a_time_is_loaded_for_the_times(monkeypatch):
    opened, load = [], Asking.open

    def watch(*given):
        assert [of() for of in opened] == [None] * len(opened)
        model, template = load(*given)
        opened.append(weakref.ref(model))
        return model, template

    monkeypatch.setattr(Asking, "open", watch)
    found = weigh_lab(small(1e9), "align.lora={r: 4}", "finetune.lora={r: 8}")
    assert (found["times"], len(opened)) == ("probed", 2)


@pytest.mark.parametrize(
    ("asked", "here"),
    [("24GB", True), ("24GiB", True), ("26GB", True), ("80GB", False), ("16GB", False)],
)
def test_a_gpu_of_another_size_is_another_one(asked, here, monkeypatch):
    device = SimpleNamespace(name="a card", total_memory=25.4e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(machine, "accelerator_for", lambda: SimpleNamespace(device="cuda:0"))
    found = machine.find_machine(asked)
    assert (found.kind, found.here) == ("cuda", here)
    assert machine.find_machine(None) == Machine("a card", "cuda", 25.4e9, machine.CONTEXT, True)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("{method: vaccine, norm: micro}", ["gradient_checkpointing=true"]),
        ("repnoise", ["gradient_checkpointing=true"]),
        ("vaccine", ["align.batch=64", "align.accumulate=4"]),
    ],
)
def test_smaller_micro_batches_are_not_proposed_where_they_make_another_method(method, settings):
    gpu = Machine("a GPU", "cuda", 0.75e9, 0.6e9, False)
    [change] = weigh_lab(gpu, f"pipelines={{one: {{align: {method}}}}}", "align.batch=256")[
        "changes"
    ]
    assert change["settings"] == settings
    assert change["bytes"] <= gpu.memory
