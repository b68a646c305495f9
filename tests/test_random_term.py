"""The null of a method's terms against its equation, in float64, and what it passes on."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from conftest import tiny
from test_booster import gradient, plain_loss
from test_step import same, state, step_for
from titer.defenses import random_term
from titer.defenses.adversarial_loss import AdversarialLoss
from titer.defenses.booster import Booster
from titer.defenses.random_booster import direction
from titer.defenses.random_term import RandomTerm
from titer.defenses.repnoise import RepNoise
from titer.defenses.sft import SFT
from titer.defenses.t_vaccine import TVaccine
from titer.defenses.tar import TAR
from titer.defenses.vaccine import Vaccine
from titer.methods import Defense, Harmful, Needs, Refusals
from titer.phase import Phase


def flat(of: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([of[name].reshape(-1) for name in sorted(of)])


@pytest.mark.parametrize("beta", [0.3, 2.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_as_long_as_the_terms_and_goes_elsewhere(rows, accelerator, beta, accumulate):
    """The adversarial loss's term is -beta / (1 + h) grad h, whose norm is known."""
    model = tiny()
    streams = step_for(model, rows, accelerator).streams
    aligned, harmful = (streams[name].take(4 * accumulate) for name in ("rows", "harmful"))
    names, weights = zip(*model.named_parameters(), strict=True)
    f, h = plain_loss(model, aligned), plain_loss(model, harmful)
    g_f, g_h = (torch.autograd.grad(value, weights) for value in (f, h))
    size = beta / (1 + h.item()) * float(torch.cat([g.reshape(-1) for g in g_h]).norm())
    u = direction(step_for(model, rows, accelerator))
    expected = {name: g + size * u.value(name) for name, g in zip(names, g_f, strict=True)}
    found, logged = gradient(
        model, RandomTerm(AdversarialLoss(beta=beta)), rows, accelerator, accumulate=accumulate
    )
    assert set(found) == set(expected)
    assert float((flat(found) - flat(expected)).norm()) < 1e-10 * float(flat(expected).norm())
    assert (logged["f"], logged["term"]) == pytest.approx((f.item(), size), rel=1e-10)


@pytest.mark.parametrize(
    "match",
    [
        RepNoise(w_noise=0.1, w_ascent=0.03),
        TAR(k=4, every=2, switch=0.0),
        Booster(alpha=0.02, lam=1.0),
    ],
)
def test_any_match_is_met_in_size(rows, accelerator, match):
    model = tiny()
    sft, _ = gradient(model, SFT(), rows, accelerator)
    theirs, _ = gradient(model, match, rows, accelerator)
    ours, logged = gradient(model, RandomTerm(match), rows, accelerator)
    term, step = flat(theirs) - flat(sft), flat(ours) - flat(sft)
    assert float(step.norm()) == pytest.approx(float(term.norm()), rel=1e-9)
    assert float(step.norm()) == pytest.approx(logged["term"], rel=1e-9)
    assert (
        abs(float(torch.dot(step, term))) < 0.1 * float(term.norm()) ** 2
    )  # nearly at right angles


def test_a_term_of_no_strength_leaves_sft(rows, accelerator):
    model = tiny(torch.float32)
    sft, _ = gradient(model, SFT(), rows, accelerator)
    assert same(gradient(model, RandomTerm(AdversarialLoss(beta=0.0)), rows, accelerator)[0], sft)


def test_the_direction_is_another_at_every_update(rows, accelerator):
    steps = []
    for update in (1, 2):
        model = tiny()
        sft, _ = gradient(model, SFT(), rows, accelerator, update=update)
        ours, _ = gradient(model, RandomTerm(), rows, accelerator, update=update)
        steps.append(flat(ours) - flat(sft))
    assert abs(float(torch.dot(*steps))) < 0.1 * float(steps[0].norm() * steps[1].norm())


@pytest.mark.parametrize("match", [SFT(), Vaccine(), RandomTerm()])
def test_a_match_without_terms_of_harmful_rows_is_refused(match):
    with pytest.raises(
        ValueError, match=f"match={random_term.name_of(match)}: it adds no terms of harmful rows"
    ):
        RandomTerm(match)


@pytest.mark.parametrize("match", [TVaccine(gamma=1), Booster(align=TVaccine())])
def test_a_match_that_trains_a_part_of_the_weights_is_refused(match):
    name = random_term.name_of(match)
    with pytest.raises(ValueError, match=f"match={name}: it trains a part of the weights"):
        RandomTerm(match)


def test_a_match_that_does_not_say_so_stops_the_run(rows, accelerator):
    with pytest.raises(
        AssertionError, match="test_random_term:Upper leaves trained weights untouched"
    ):
        RandomTerm(Upper()).gradient(step_for(tiny(), rows, accelerator), None)


@dataclass(frozen=True)
class Upper(Defense):
    """A method that trains the last layer alone, and does not say so."""

    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})

    def gradient(self, step, state):
        g = step.grad(step.batch("rows"))
        return g.within([name for name in g.names() if "layers.1" in name])


def test_the_weights_stay_bit_for_bit(rows, accelerator):
    model = tiny(torch.float32)
    before = copy.deepcopy(state(model))
    gradient(model, RandomTerm(RepNoise()), rows, accelerator)
    assert same(before, state(model))


@dataclass
class Seen:
    calls: list[str]


@dataclass(frozen=True)
class Watched(Defense):
    """A method that says what it was asked."""

    needs = Needs(streams={"rows": Refusals, "other": Harmful}, references=("start",))
    State: ClassVar[type | None] = Seen

    @property
    def period(self) -> int:
        return 7

    def prepare(self, step):
        return Seen(["prepare"])

    def schedule(self, updates):
        return [Phase("own", updates + 1)]

    def gradient(self, step, state):
        state.calls.append("gradient")
        return step.grad(step.batch("rows"))

    def finish(self, step, state):
        state.calls.append("finish")

    def restore(self, fields):
        return Seen([*fields["calls"], "restored"])


def test_what_the_match_declares_and_does_is_passed_on(rows, accelerator):
    null, step = RandomTerm(Watched()), step_for(tiny(), rows, accelerator)
    assert (null.needs, null.period, null.partial) == (Watched.needs, 7, False)
    assert list(null.schedule(3)) == [Phase("own", 4)]
    seen = null.prepare(step)
    null.gradient(step, seen)
    null.finish(step, seen)
    assert null.restore({"calls": seen.calls}).calls == [
        "prepare",
        "gradient",
        "finish",
        "restored",
    ]
    assert {RandomTerm(): 1}[RandomTerm(AdversarialLoss())]  # frozen: the same one is the same key
    for match in (AdversarialLoss(), RepNoise(), TAR()):
        assert RandomTerm(match).needs == match.needs
