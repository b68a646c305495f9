"""The loop: frozen weights, phases, resume, repeatability."""

import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import tiny
from test_booster import plain_loss
from test_step import same, state
from titer.data.batches import Encoded, hash_rows
from titer.defenses.booster import Booster
from titer.defenses.sft import SFT
from titer.methods import Defense
from titer.phase import Phase
from titer.training import checkpoint
from titer.training.settings import Training
from titer.training.step import Step
from titer.training.train import train
from titer.training.vector import Vec
from titer.weights import adapters, checkpoints
from titer.weights.settings import Lora

SETTINGS = Training(
    updates=12, lr=1e-2, batch=3, schedule="cosine", warmup=0.2, weight_decay=0.1, lora=None
)


def test_sft_is_adamw_on_the_mean_answer_loss(rows):
    """Against a loop by hand that imports nothing of titer but the order of the rows."""
    from titer.data.batches import Stream

    settings = replace(SETTINGS, schedule="constant", warmup=0.0, updates=5, lr=1e-3)
    model, reference, stream = tiny(), tiny(), Stream("rows", rows["rows"], 7)
    train(model, SFT(), {"rows": rows["rows"]}, settings, seed=7)
    matrices, norms = (
        [p for p in reference.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": norms, "weight_decay": 0.0}],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )
    for _ in range(5):
        optimizer.zero_grad()
        plain_loss(reference, stream.take(settings.batch)).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
    for name, value in state(model).items():
        torch.testing.assert_close(value, state(reference)[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("defense", [SFT(), Booster()])
def test_accumulated_micro_batches_follow_the_trajectory_of_whole_batches(rows, defense):
    a, b = tiny(), tiny()
    train(a, defense, rows, replace(SETTINGS, batch=4, updates=4, lr=1e-3), seed=0)
    train(b, defense, rows, replace(SETTINGS, batch=2, accumulate=2, updates=4, lr=1e-3), seed=0)
    for name, value in state(a).items():
        torch.testing.assert_close(value, state(b)[name], rtol=1e-6, atol=1e-8)


def test_two_runs_with_one_seed_are_bit_identical_and_another_seed_differs(rows):
    weights = []
    for seed in (0, 0, 1):
        model = tiny(torch.float32)
        train(model, Booster(), rows, SETTINGS, seed)
        weights.append(state(model))
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize("defense", [SFT(), Booster()])
def test_frozen_weights_are_bit_identical_after_twenty_decayed_updates(rows, defense):
    model = tiny(torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    before = state(model)
    train(model, defense, rows, replace(SETTINGS, updates=20, weight_decay=0.5), seed=0)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) != ("layers.1" in name) for name in before)


@dataclass(frozen=True)
class Thawing(Defense):
    """Trains all, then leaves the first layer out: the partial Vec's case."""

    def schedule(self, updates: int) -> Iterable[Phase]:
        return [Phase("all", 10), Phase("upper", updates - 10)]

    def gradient(self, step: Step, state: None) -> Vec:
        gradient = step.grad(step.batch("rows"))
        if step.phase.name == "all":
            return gradient
        return Vec.of(
            {name: value for name, value in gradient.fold().items() if "layers.0" not in name}
        )


def test_an_absent_name_is_not_moved_by_decay_or_momentum(rows):
    model, settings = (
        tiny(torch.float32),
        replace(SETTINGS, updates=30, schedule="constant", weight_decay=0.5),
    )
    halfway: dict[str, torch.Tensor] = {}

    def watch(update, of, terms):
        if update == 10:
            halfway.update(state(model))

    train(model, Thawing(), {"rows": rows["rows"]}, settings, seed=0, watch=watch)
    for name, value in state(model).items():
        assert torch.equal(value, halfway[name]) == ("layers.0" in name)


@dataclass
class Counters:
    seen: int
    total: torch.Tensor
    last: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sweeping(Defense):
    """Two kinds of update, a state, a finish: all that a method may use of the contract."""

    State = Counters

    def prepare(self, step: Step) -> Counters:
        return Counters(0, torch.zeros(2), {})

    def schedule(self, updates: int) -> Iterable[Phase]:
        first = updates // 2
        return [
            Phase("rows", first),
            Phase("sweep", 3, lr=1e-3, clipped=False, counted=False),
            Phase("rows", updates - first),
        ]

    def gradient(self, step: Step, state: Counters) -> Vec:
        state.seen += 1
        gradient = step.grad(step.draw("rows"))
        state.total += torch.tensor([gradient.norm(), 1.0])
        noise = torch.randn(())  # the random state is part of a checkpoint
        state.last = {"noise": noise}
        return float(1 + 0.1 * noise) * gradient

    def finish(self, step: Step, state: Counters) -> None:
        with torch.no_grad():
            next(iter(step.parameters.values())).add_(float(state.total[0]) * 1e-6)


def test_phases_have_their_own_rate_clipping_and_count(rows):
    model = tiny(torch.float32)
    seen = []
    settings = replace(SETTINGS, updates=10, schedule="linear", warmup=0.0, clip=1e-3)
    history = train(
        model,
        Sweeping(),
        {"rows": rows["rows"]},
        settings,
        0,
        watch=lambda update, of, terms: seen.append((update, of)),
    )
    assert len(history) == 13
    assert seen[-1] == (13, 13)
    rates = [terms["lr"] for terms in history]
    assert rates[5:8] == [1e-3] * 3
    expected = [settings.lr * (1 - i / 10) for i in range(10)]
    assert rates[:5] + rates[8:] == pytest.approx(expected)


@pytest.mark.parametrize("defense", [SFT(), Booster(), Sweeping()])
@pytest.mark.parametrize("stop", [1, 7])
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(rows, tmp_path, defense, stop):
    data = {name: rows[name] for name in defense.needs.streams}
    whole = tiny(torch.float32)
    expected = train(whole, defense, data, SETTINGS, seed=5)

    class Killed(BaseException):
        pass

    def kill(update, of, terms):
        if update == stop + 1:
            raise Killed

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(
            tiny(torch.float32),
            defense,
            data,
            SETTINGS,
            seed=5,
            resume=checkpoint,
            every=stop,
            watch=kill,
        )
    torch.manual_seed(999)
    resumed = tiny(torch.float32, seed=3)  # its weights come from the checkpoint
    history = train(resumed, defense, data, SETTINGS, seed=5, resume=checkpoint, every=stop)
    assert history == expected
    assert same(state(resumed), state(whole))


def test_a_checkpoint_of_another_run_is_refused(rows, tmp_path):
    checkpoint, data = tmp_path / "checkpoint.safetensors", {"rows": rows["rows"]}
    train(tiny(torch.float32), SFT(), data, SETTINGS, seed=0, resume=checkpoint, every=12)
    with pytest.raises(ValueError, match="the checkpoint of another run"):
        train(tiny(torch.float32), SFT(), data, SETTINGS, seed=1, resume=checkpoint, every=12)
    with pytest.raises(ValueError, match="rows, seed and number of ranks"):
        train(tiny(torch.float32), SFT(), data, SETTINGS, seed=0, resume=checkpoint, rows=1)


def test_no_two_sets_of_rows_have_one_hash():
    row, other = Encoded((1, 2, 3), 1), Encoded((1, 2), 1)
    sets = [
        {},
        {"rows": []},
        {"more": []},
        {"rows": [row]},
        {"more": [row]},
        {"rows": [row, row]},
        {"rows": [row], "more": [row]},
        {"rows": [Encoded((1, 2, 3), 2)]},
        {"rows": [Encoded((1, 2, 4), 1)]},
        {"rows": [Encoded((1, 2), 1, skipped=(3,))]},
        {"rows": [Encoded((1, 2, 3), 1, cut=1)]},
        {"rows": [Encoded((1, 2, 3), 1, skipped=(2,))]},
        {"rows": [row, other]},
        {"rows": [other, row]},
        {"rows": [replace(row, other=other)]},
        {"rows": [replace(other, other=row)]},
        {"rows": [replace(row, other=other), other]},
        {"rows": [row, replace(other, other=other)]},
    ]
    assert len({hash_rows(each) for each in sets}) == len(sets)
    assert hash_rows({"a": [row], "b": []}) == hash_rows({"b": [], "a": [Encoded((1, 2, 3), 1)]})


def test_rows_are_hashed_one_at_a_time_and_only_where_a_checkpoint_may_be(rows, monkeypatch):
    many = {"rows": [Encoded(tuple(range(i, i + 200)), 100) for i in range(2000)]}
    tracemalloc.start()
    checkpoint.identity(SFT(), SETTINGS, 0, many, 2, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2000  # less than a byte a token
    monkeypatch.setattr(checkpoint, "identity", None)
    train(tiny(torch.float32), SFT(), {"rows": rows["rows"]}, SETTINGS, seed=0)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "changed weight", "changed facts"])
def test_a_damaged_checkpoint_is_removed_and_the_stage_starts_again(rows, tmp_path, caplog, harm):
    """Whatever of it is damaged: the run ends as one that was never interrupted."""
    data = {"rows": rows["rows"]}
    whole, again = tiny(torch.float32), tiny(torch.float32)
    expected = train(whole, SFT(), data, SETTINGS, seed=0)
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(tiny(torch.float32), SFT(), data, SETTINGS, seed=0, resume=checkpoint, every=5)
    written = checkpoint.read_bytes()
    if harm == "changed weight":  # a good file of one wrong number
        with safe_open(checkpoint, "pt") as file:
            told = file.metadata()
        tensors = load_file(checkpoint)
        next(value for name, value in tensors.items() if "weight." in name)[0] += 1e-6
        save_file(tensors, checkpoint, told)
    else:
        middle = len(written) // 2
        checkpoint.write_bytes(
            {
                "cut": written[:middle],
                "flip": written[:middle] + bytes([written[middle] ^ 1]) + written[middle + 1 :],
                "empty": b"",
                "changed facts": written.replace(b"grad_norm", b"grad_form"),
            }[harm]
        )
    assert checkpoint.read_bytes() != written
    assert train(again, SFT(), data, SETTINGS, seed=0, resume=checkpoint) == expected
    assert same(state(again), state(whole))
    assert not checkpoint.exists()
    assert "is damaged: removed, and the stage starts again" in caplog.text


def test_no_count_of_the_environment_divides_a_gradient(rows, monkeypatch):
    from titer.training.train import accelerator_for

    whole, other = tiny(torch.float32), tiny(torch.float32)
    expected = train(whole, SFT(), {"rows": rows["rows"]}, SETTINGS, seed=0)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert accelerator_for("cpu").gradient_accumulation_steps == 4
    assert train(other, SFT(), {"rows": rows["rows"]}, SETTINGS, seed=0) == expected


def test_lora_trains_the_adapter_alone_and_merging_adds_it(rows):
    model = tiny(torch.float32)
    before = state(model)
    adapted = adapters.add_lora(model, Lora(r=4, alpha=8.0, targets=("q_proj", "down_proj")))
    assert all("lora_" in name for name in checkpoints.trainable(adapted))
    train(adapted, SFT(), {"rows": rows["rows"]}, SETTINGS, seed=0)
    updates = {
        name: adapter.scaling * (adapter.b @ adapter.a).detach().clone()
        for name, adapter in adapters.adapters(adapted).items()
    }
    expected_norm = sum(float(update.double().square().sum()) for update in updates.values()) ** 0.5
    assert adapters.update_norm(adapted) == pytest.approx(expected_norm, rel=1e-5)
    after = state(adapters.merge_adapter(adapted))
    for name, value in before.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        torch.testing.assert_close(
            after[name], value + updates[layer] if layer in updates else value
        )
    assert len(updates) == 4


def test_a_missing_stream_is_named(rows):
    with pytest.raises(
        ValueError, match=r"Booster needs rows for the stream 'harmful' \(harmful\)"
    ):
        train(tiny(), Booster(), {"rows": rows["rows"]}, SETTINGS, seed=0)


def test_a_gradient_that_overflows_stops_the_run(rows):
    @dataclass(frozen=True)
    class Exploding(SFT):
        def gradient(self, step, state):
            return float("inf") * step.grad(step.batch("rows"))

    with pytest.raises(ValueError, match="the gradient's norm is .* at update 1"):
        train(tiny(), Exploding(), {"rows": rows["rows"]}, SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, "updates=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"batch": 0}, "batch=0"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"clip": -1.0}, "clip=-1.0"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)
