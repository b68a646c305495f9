"""Booster against its equation, in float64, and at its limits."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from conftest import tiny
from test_step import same, state, step_for
from test_vaccine import plain
from titer.data.batches import Encoded
from titer.defenses.booster import Booster
from titer.defenses.ema import EMA
from titer.defenses.sft import SFT
from titer.defenses.t_vaccine import Layers, TVaccine
from titer.defenses.vaccine import Vaccine
from titer.training.settings import Training
from titer.training.train import train


def plain_loss(model, rows: list[Encoded]) -> torch.Tensor:
    """Average -log p over all answer tokens, a row at a time: no batch, no pad, no titer."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        logits = model(torch.tensor([row.ids])).logits[0]
        for at in range(row.answer, len(row.ids)):
            total = total - torch.log_softmax(logits[at - 1], 0)[row.ids[at]]
            tokens += 1
    return total / tokens


def plain_booster(
    model, aligned: list[Encoded], harmful: list[Encoded], alpha: float, lam: float
) -> dict[str, torch.Tensor]:
    """g = grad f(w) + lam (grad h(w) - grad h(w - alpha grad h(w) / ||grad h(w)||)), literally."""
    names, weights = zip(*model.named_parameters(), strict=True)
    g_h = torch.autograd.grad(plain_loss(model, harmful), weights)
    length = torch.sqrt(sum((g**2).sum() for g in g_h))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight, g in zip(moved.parameters(), g_h, strict=True):
            weight -= alpha * g / length
    g_h_after = torch.autograd.grad(plain_loss(moved, harmful), list(moved.parameters()))
    g_f = torch.autograd.grad(plain_loss(model, aligned), weights)
    return {
        name: f + lam * (h - after)
        for name, f, h, after in zip(names, g_f, g_h, g_h_after, strict=True)
    }


def gradient(
    model, defense, rows, accelerator, **options
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    step = step_for(model, rows, accelerator, **options)
    return defense.gradient(step, None).fold(), step.logged


@pytest.mark.parametrize(("alpha", "lam"), [(0.1, 5.0), (0.7, 0.3), (0.02, 20.0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_the_papers(rows, accelerator, alpha, lam, accumulate):
    model = tiny()
    first = step_for(model, rows, accelerator)
    aligned, harmful = (first.streams[name].take(4 * accumulate) for name in ("rows", "harmful"))
    expected = plain_booster(model, aligned, harmful, alpha, lam)
    found, _ = gradient(
        model, Booster(alpha=alpha, lam=lam), rows, accelerator, accumulate=accumulate
    )
    size = torch.sqrt(sum((g**2).sum() for g in expected.values()))
    error = torch.sqrt(sum(((found[name] - expected[name]) ** 2).sum() for name in expected))
    assert set(found) == set(expected)
    assert error < 1e-10 * size
    sft, _ = gradient(model, SFT(), {"rows": rows["rows"]}, accelerator, accumulate=accumulate)
    assert (
        torch.sqrt(sum(((sft[name] - expected[name]) ** 2).sum() for name in expected))
        > 1e-3 * size
    )  # the test can fail


def test_the_logged_terms_are_the_losses_of_the_three_passes(rows, accelerator):
    model = tiny()
    streams = step_for(model, rows, accelerator).streams
    aligned, harmful = (streams[name].take(4) for name in ("rows", "harmful"))
    _, logged = gradient(model, Booster(), rows, accelerator)
    assert logged["f"] == pytest.approx(plain_loss(model, aligned).item(), rel=1e-12)
    assert logged["h"] == pytest.approx(plain_loss(model, harmful).item(), rel=1e-12)
    assert (
        logged["h_after"] < logged["h"]
    )  # a small step down the harmful gradient lowers the harmful loss


def test_the_cosine_is_that_of_the_alignment_gradient_and_the_bracket(rows, accelerator):
    model = tiny()
    streams = step_for(model, rows, accelerator).streams
    aligned, harmful = (streams[name].take(4) for name in ("rows", "harmful"))
    plain = torch.cat(
        [g.flatten() for g in plain_booster(model, aligned, harmful, 0.1, 0.0).values()]
    )
    bracket = (
        torch.cat([g.flatten() for g in plain_booster(model, aligned, harmful, 0.1, 1.0).values()])
        - plain
    )
    for update, every in ((20, 1), (40, 1), (40, 2), (80, 2)):
        _, logged = gradient(model, Booster(every=every), rows, accelerator, update=update)
        assert logged["cosine"] == pytest.approx(
            torch.nn.functional.cosine_similarity(plain, bracket, 0).item(), abs=1e-9
        )
    for update, every in ((1, 1), (21, 1), (2, 2), (20, 2)):
        assert (
            "cosine"
            not in gradient(model, Booster(every=every), rows, accelerator, update=update)[1]
        )


def test_defaults_are_the_papers():
    assert (Booster().alpha, Booster().lam) == (0.1, 5.0)


def test_lambda_zero_is_sft_bit_for_bit(rows, accelerator):
    model = tiny(torch.float32)
    booster, _ = gradient(model, Booster(lam=0.0), rows, accelerator)
    sft, logged = gradient(model, SFT(), {"rows": rows["rows"]}, accelerator)
    assert same(booster, sft)
    assert set(logged) == {"f"}


def test_alpha_zero_is_sft_to_rounding(rows, accelerator):
    model = tiny()
    booster, _ = gradient(model, Booster(alpha=0.0), rows, accelerator)
    sft, _ = gradient(model, SFT(), {"rows": rows["rows"]}, accelerator)
    assert all(torch.allclose(booster[name], sft[name], rtol=0, atol=1e-12) for name in sft)


def test_the_regularizer_is_the_gradient_of_the_norm_to_first_order(rows, accelerator):
    """(g_h - g_h_after) / alpha -> d/dw ||grad h(w)||: the method's meaning, by a small step and
    double backward.
    """
    model = tiny()
    streams = step_for(model, rows, accelerator).streams
    harmful = streams["harmful"].take(4)
    names, weights = zip(*model.named_parameters(), strict=True)
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
        g_h = torch.autograd.grad(plain_loss(model, harmful), weights, create_graph=True)
        meant = torch.autograd.grad(torch.sqrt(sum((g**2).sum() for g in g_h)), weights)
    alpha = 1e-4
    booster, _ = gradient(model, Booster(alpha=alpha, lam=1 / alpha), rows, accelerator)
    sft, _ = gradient(model, SFT(), {"rows": rows["rows"]}, accelerator)
    error = sum(
        ((booster[name] - sft[name] - expected) ** 2).sum()
        for name, expected in zip(names, meant, strict=True)
    )
    assert torch.sqrt(error) < 5e-3 * torch.sqrt(sum((g**2).sum() for g in meant))


def test_two_micro_batches_equal_one_batch(rows, accelerator):
    model = tiny()
    whole, _ = gradient(model, Booster(), rows, accelerator, batch=6)
    parts, _ = gradient(model, Booster(), rows, accelerator, batch=3, accumulate=2)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-10, atol=1e-12) for name in whole)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_exception_in_any_pass_leaves_the_weights_untouched(
    rows, accelerator, monkeypatch, call
):
    model = tiny(torch.float32)
    before, step = state(model), step_for(model, rows, accelerator)
    calls = iter(range(1, 10))
    grad = type(step).grad

    def failing(self, *arguments):
        if next(calls) == call:
            raise RuntimeError("out of memory")
        return grad(self, *arguments)

    monkeypatch.setattr(type(step), "grad", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        Booster().gradient(step, None)
    assert same(state(model), before)


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the parameter-sized storages alive at once, from every tensor that any operation
    returns.
    """

    def __init__(self, sizes: set[int]) -> None:
        super().__init__()
        self.sizes, self.alive, self.peak = sizes, {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(
            self.peak, sum(bytes for _, bytes in self.alive.values() if bytes in self.sizes)
        )
        return out


def peak(defense, rows, accelerator) -> tuple[int, int]:
    """Peak bytes of parameter-sized tensors made while a defense takes its gradient, and the bytes
    of the trainables.
    """
    torch.manual_seed(0)
    model = tiny(torch.float32)
    weights = dict(model.named_parameters())
    for i, name in enumerate(weights):  # sizes that no activation has
        weights[name].requires_grad_(weights[name].ndim > 1 and "embed" not in name and i > 0)
    step = step_for(model, rows, accelerator, batch=3)
    for name in step.streams:
        step.batch(name)
    trained = [parameter.numel() * 4 for parameter in step.parameters.values()]
    with Watched(
        {size * wider for size in trained for wider in (1, 2)}
    ) as watched:  # a copy in float64 counts too
        defense.gradient(step, None).fold()
    return watched.peak, sum(trained)


def test_booster_keeps_exactly_two_copies_of_the_trainables_more_than_sft(rows, accelerator):
    sft, trainables = peak(SFT(), {"rows": rows["rows"]}, accelerator)
    booster, _ = peak(Booster(), rows, accelerator)
    assert round((booster - sft) / trainables, 1) == 2.0


def test_every_tau_th_update_is_regularized_tau_times_as_strongly(rows, accelerator):
    model, defense = tiny(), Booster(alpha=0.1, lam=0.5, every=3)
    assert (defense.period, Booster().period, Booster(every=4, align=Vaccine(every=6)).period) == (
        3,
        1,
        12,
    )
    for update in range(1, 7):
        found, logged = gradient(model, defense, rows, accelerator, update=update)
        other, _ = gradient(
            model,
            Booster(alpha=0.1, lam=1.5) if update % 3 == 0 else SFT(),
            rows,
            accelerator,
            update=update,
        )
        assert same(found, other)
        assert ("h_after" in logged) is (update % 3 == 0)


def test_it_regularizes_what_another_method_follows(rows, accelerator):
    align = Vaccine(1.0)
    model, step = tiny(), step_for(tiny(), rows, accelerator)
    step.model, step.parameters = model, dict(model.named_parameters())
    defense = Booster(alpha=0.1, lam=2.0, align=align)
    vec = defense.gradient(step, defense.prepare(step))
    alone = step_for(model, rows, accelerator)
    g_f = align.gradient(alone, align.prepare(alone))
    harmful = step_for(model, rows, accelerator).streams["harmful"].take(4)
    aligned = step_for(model, rows, accelerator).streams["rows"].take(4)
    bracket = plain_booster(model, aligned, harmful, 0.1, 2.0)
    plain = dict(
        zip(
            bracket,
            torch.autograd.grad(plain_loss(model, aligned), list(model.parameters())),
            strict=True,
        )
    )
    for name in bracket:
        torch.testing.assert_close(
            vec.value(name), g_f.value(name) + bracket[name] - plain[name], rtol=1e-8, atol=1e-10
        )


def test_over_a_method_that_trains_some_layers_the_bracket_is_of_these_alone(rows, accelerator):
    """T-Vaccine draws layer 1, and has its own gradient there.

    That is the plain one with the attention outputs perturbed, and the bracket.
    """
    model = tiny()
    step = step_for(model, rows, accelerator, update=2)
    aligned, harmful = (
        step_for(model, rows, accelerator).streams[name].take(4) for name in ("rows", "harmful")
    )
    state = Layers({"0": 1.0, "1": 1.0}, [1])  # after an update that scored and drew
    vec = Booster(alpha=0.1, lam=2.0, align=TVaccine(rho=1.0, gamma=1)).gradient(step, state)
    _, perturbed = plain(model, aligned, 1.0, [1])
    with_bracket, without = (plain_booster(model, aligned, harmful, 0.1, lam) for lam in (2.0, 0.0))
    drawn = {name for name in without if "layers.1." in name}
    assert set(vec.names()) == drawn
    for name in drawn:
        expected = perturbed[name] + with_bracket[name] - without[name]
        torch.testing.assert_close(vec.value(name), expected, rtol=1e-8, atol=1e-10)
        assert (with_bracket[name] - without[name]).norm() > 1e-3 * perturbed[name].norm()


def test_layers_that_the_method_under_it_froze_stay_bit_for_bit(rows):
    model = tiny(torch.float32, layers=3)
    before = state(model)
    defense = Booster(align=TVaccine(gamma=1, resample=100))
    train(model, defense, rows, Training(updates=4, lr=1e-2, batch=2, lora=None), seed=0)
    after = state(model)
    assert (
        len(
            {
                name.split("layers.")[-1][0]
                for name in before
                if not torch.equal(before[name], after[name])
            }
        )
        == 1
    )


def test_the_state_of_what_it_regularizes_outlives_an_interruption(rows, tmp_path):
    class Killed(BaseException):
        pass

    def kill(update, of, terms):
        if update == 6:
            raise Killed

    settings, checkpoint = (
        Training(updates=8, lr=1e-3, batch=2, lora=None),
        tmp_path / "checkpoint.safetensors",
    )
    defense = Booster(align=TVaccine(gamma=1, resample=3, rescore=100))
    whole, resumed = tiny(torch.float32), tiny(torch.float32)
    train(whole, defense, rows, settings, seed=2)
    with pytest.raises(Killed):
        train(
            tiny(torch.float32),
            defense,
            rows,
            settings,
            seed=2,
            resume=checkpoint,
            every=5,
            watch=kill,
        )
    train(resumed, defense, rows, settings, seed=2, resume=checkpoint, every=5)
    assert same(state(whole), state(resumed))


def test_a_booster_of_a_booster_or_of_no_period_is_refused():
    with pytest.raises(ValueError, match="align=booster"):
        Booster(align=Booster())
    with pytest.raises(ValueError, match="every=0"):
        Booster(every=0)


@pytest.mark.parametrize("field", ["alpha", "lam"])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_a_strength_that_turns_around_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}: must be at least 0, and finite"):
        Booster(**{field: value})


def test_its_end_is_that_of_what_it_regularizes(rows):
    models = [tiny(torch.float32) for _ in range(2)]
    for model, defense in zip(models, (EMA(0.5), Booster(lam=0.0, align=EMA(0.5))), strict=True):
        train(model, defense, rows, Training(updates=4, lr=1e-3, batch=2, lora=None), seed=0)
    assert same(state(models[0]), state(models[1]))
