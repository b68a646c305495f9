"""EMA against its recursion, from weights that separate plain runs reach."""

from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_step import same, state, step_for
from titer.defenses.ema import EMA
from titer.defenses.sft import SFT
from titer.runs import recipe
from titer.runs.plan import UNLOOKED, Plan
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

SETTINGS = Training(updates=5, lr=1e-3, batch=2, lora=None)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_served_weights_are_the_average_of_the_plain_trajectory(rows, decay):
    average = {name: weight.numpy() for name, weight in state(tiny()).items()}
    for updates in range(
        1, SETTINGS.updates + 1
    ):  # the learning rate is constant: a shorter run is the longer one's beginning
        plain = tiny()
        train(plain, SFT(), rows, replace(SETTINGS, updates=updates), seed=0)
        reached = state(plain)
        average = {
            name: decay * average[name] + (1 - decay) * reached[name].numpy() for name in average
        }
    model = tiny()
    history = train(model, EMA(decay), rows, SETTINGS, seed=0)
    for name, weight in state(model).items():
        torch.testing.assert_close(weight, torch.from_numpy(average[name]), rtol=0, atol=1e-13)
    assert not same(state(model), reached)
    plain = tiny()
    assert history == train(
        plain, SFT(), rows, SETTINGS, seed=0
    )  # training goes on from the weights, not from the average


def test_no_decay_is_plain_fine_tuning_bit_for_bit_and_what_is_frozen_stays(rows):
    for decay, alike in ((0.0, True), (0.5, False)):
        models = [add_lora(tiny(torch.float32), Lora(r=2, targets=("q_proj",))) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        before = state(models[0])
        for model, defense in zip(models, (EMA(decay), SFT()), strict=True):
            train(model, defense, rows, SETTINGS, seed=0)
        assert same(state(models[0]), state(models[1])) is alike
        assert all(
            torch.equal(before[name], weight)
            for name, weight in state(models[0]).items()
            if "lora_" not in name
        )


def test_the_average_keeps_no_graph(rows, accelerator):
    step, method = step_for(tiny(), rows, accelerator), EMA()
    average = method.prepare(step)
    method.gradient(step, average)
    assert not any(weight.requires_grad for weight in average.weights.values())
    assert {method, EMA(0.98)} == {EMA()}  # a value, by which stages are shared


@pytest.mark.parametrize("decay", [-0.01, 1.0, 1.5, float("nan")])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}: must be at least 0 and below 1"):
        EMA(decay)


def test_nobody_looks_along_an_attack_at_weights_that_are_not_served():
    pipelines = (
        "pipelines={sft: {}, ema: {finetune: ema}, "
        "held: {finetune: {method: booster, align: {method: ema, decay: 0.5}}}}"
    )
    chains = Plan.read(recipe.load("lab", [pipelines, "probes=5"])).pipelines()
    plain, *averaged = (chains[name][-1] for name in ("sft", "ema", "held"))
    assert None not in (plain.curve, plain.looks)
    assert UNLOOKED not in plain.counts
    for stage, name in zip(averaged, ("ema", "booster"), strict=True):
        assert (stage.curve, stage.looks) == (None, None)
        assert stage.counts[UNLOOKED] == f"{name} changes the weights after the last update"
        assert stage.counts["attack rows"] == 50
