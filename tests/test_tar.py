"""TAR against a plain computation: an attack written out, the loss at its steps, the retain term;
and at its limits.
"""

import math
import random
from collections import Counter

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  every gradient here is a sum of gradients
from test_step import same, state, step_for
from titer.data.batches import Stream
from titer.defenses import tar
from titer.defenses.booster import Booster
from titer.defenses.sft import SFT
from titer.defenses.tar import TAR
from titer.methods import Answers, Needs
from titer.training.losses import cross_entropy
from titer.training.settings import Training
from titer.training.train import train
from titer.training.vector import Vec
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

DEPTH = 2


def log_probabilities(model, row):
    """Return all log p of every answer token of a row: (tokens, V)."""
    logits = model(torch.tensor([row.ids])).logits[0]
    return torch.stack(
        [torch.log_softmax(logits[at - 1], 0) for at in range(row.answer, len(row.ids))]
    )


def plain_entropy(model, rows):
    found = torch.cat([log_probabilities(model, row) for row in rows])
    return (found.exp() * found).sum(1).mean()


def answer(model, row):
    return log_probabilities(model, row)[
        range(len(row.ids) - row.answer), list(row.ids[row.answer :])
    ].sum()


def plain_dpo(model, rows, reference, beta):
    losses = []
    for row in rows:
        margins = [answer(of, row.other) - answer(of, row) for of in (model, reference)]
        losses.append(-torch.log(torch.sigmoid(beta * (margins[0] - margins[1].detach()))))
    return torch.stack(losses).mean()


def streams_of(model, row):
    """The residual streams of a row, the last before the final norm: (T, D) each."""
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda _, x: seen.append(x[0][0]))
        for layer in model.model.layers
    ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0][0])))
    model(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return seen


def plain_retain(model, rows, reference, lam_rep, power):
    distances = []
    for row in rows:
        of_row = zip(streams_of(model, row), streams_of(reference, row), strict=True)
        distances += [((a - b.detach()) ** 2).sum(1) ** (power / 2) for a, b in of_row]
    return plain_loss(model, rows) + lam_rep * torch.cat(distances).mean()


def gradient(objective, model):
    return torch.autograd.grad(objective, list(model.parameters()))


class Adam:
    """AdamW as its paper has it, with torch's defaults."""

    def __init__(self, model, lr):
        self.model, self.lr, self.t = model, lr, 0
        self.m = [torch.zeros_like(weight) for weight in model.parameters()]
        self.v = [torch.zeros_like(weight) for weight in model.parameters()]

    def step(self, grads):
        self.t += 1
        with torch.no_grad():
            for i, (weight, g) in enumerate(zip(self.model.parameters(), grads, strict=True)):
                self.m[i] = 0.9 * self.m[i] + 0.1 * g
                self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
                m, v = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
                weight -= self.lr * 0.01 * weight + self.lr * m / (v.sqrt() + 1e-8)


def moved(seed=1, by=0.02):
    """A model that is not the reference any more."""
    model = tiny(layers=DEPTH)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * torch.randn_like(weight))
    return model


@pytest.mark.parametrize(
    "method",
    [
        TAR(k=5, every=2, inner_lr=(0.01,), switch=0.0),
        TAR(
            k=4,
            every=1,
            inner_lr=(0.01,),
            switch=0.0,
            growth=0.5,
            lam_tr=0.7,
            lam_retain=2.0,
            lam_rep=3.0,
            distance="squared",
        ),
        TAR(k=4, every=2, inner_lr=(0.02,), switch=0.0, loss="dpo", beta=0.3),
        TAR(k=6, every=3, inner_lr=(0.01,), switch=1.0),
    ],
)
def test_the_gradient_is_that_of_a_written_out_attack(rows, accelerator, method):
    model, plain, reference = moved(), moved(), tiny(layers=DEPTH)
    step = step_for(model, rows, accelerator, batch=2, accumulate=2)
    step.start = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    before = state(model)
    vec = method.gradient(step, method.prepare(step))
    assert same(before, state(model))

    streams = step_for(model, rows, accelerator).streams
    rng = random.Random("tar 3 1")
    rng.choice(method.inner_lr)
    repaired = int(rng.betavariate(6, 3) * method.k) if rng.random() < method.switch else 0
    assert bool(repaired) == bool(method.switch)
    held_out, optimizer = streams["held_out"].take(4), Adam(plain, method.inner_lr[0])
    total = [torch.zeros_like(weight) for weight in plain.parameters()]
    for i in range(1, method.k + 1):
        batch = streams["rows" if i <= repaired else "harmful"].take(4)
        attack = plain_loss(plain, batch)
        optimizer.step(gradient(attack, plain))
        if i % method.every == 0:
            dpo = method.loss == "dpo"
            loss = (
                plain_dpo(plain, held_out, reference, method.beta)
                if dpo
                else plain_entropy(plain, held_out)
            )
            c = math.exp(method.growth * (i - method.k))
            total = [
                a + method.lam_tr * c * b for a, b in zip(total, gradient(loss, plain), strict=True)
            ]
    start = moved()
    retain = plain_retain(
        start,
        streams["rows"].take(4),
        reference,
        method.lam_rep,
        1 if method.distance == "norm" else 2,
    )
    wanted = [
        a + method.lam_retain * b for a, b in zip(total, gradient(retain, start), strict=True)
    ]
    expected = dict(zip([name for name, _ in model.named_parameters()], wanted, strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in expected.values()))
    assert set(vec.names()) == set(expected)
    assert (
        math.sqrt(
            sum(float(((vec.value(name) - grad) ** 2).sum()) for name, grad in expected.items())
        )
        < 1e-9 * size
    )
    logged = step.logged
    assert logged["retain"] == pytest.approx(retain.item(), rel=1e-10)
    assert (logged["attack"], logged["tr"]) == (
        pytest.approx(attack.item(), rel=1e-9),
        pytest.approx(loss.item(), rel=1e-9),
    )


def test_without_an_attack_only_the_retain_term_is_left_and_that_without_its_distance_is_plain(
    rows,
):
    settings = Training(updates=4, lr=1e-2, batch=4, lora=None)
    methods = (
        SFT(),
        TAR(k=0, lam_rep=0.0),
        TAR(k=0),
        TAR(k=2, every=2, lam_tr=0.0, switch=0.0),
        TAR(k=2, every=2, switch=0.0),
    )
    models = [tiny(torch.float32) for _ in methods]
    for model, method in zip(models, methods, strict=True):
        train(model, method, rows, settings, seed=0)
    ends = [state(model) for model in models]
    assert same(ends[0], ends[1])
    assert not same(ends[1], ends[2])
    assert same(ends[2], ends[3])
    assert not same(ends[3], ends[4])


def test_one_plain_step_against_the_loss_itself_is_boosters_harmful_gradient(
    rows, accelerator, monkeypatch
):
    """With -CE on the rows of the attack: Booster's step has the length alpha, this one lr times
    the gradient's norm.
    """
    monkeypatch.setattr(tar, "_negative_entropy", lambda model, part: -cross_entropy(model, part))
    theirs, mine, other = (step_for(tiny(), rows, accelerator) for _ in range(3))
    first = other.streams["harmful"].take(4)
    mine.streams["held_out"] = Stream("held_out", first, seed=0)
    lr = 0.1 / theirs.grad(theirs.batch("harmful")).norm()
    method = TAR(
        k=1, every=1, adversary="sgd", inner_lr=(lr,), lam_tr=1.0, lam_retain=0.0, switch=0.0
    )
    rest = theirs.grad(theirs.batch("rows")) + theirs.grad(theirs.batch("harmful"))
    g = Booster(alpha=0.1, lam=1.0).gradient(theirs, None) - rest  # - grad h(w')
    assert (method.gradient(mine, None) - g).norm() < 1e-9 * g.norm()


def test_attacks_draw_their_rate_and_some_begin_with_rows_of_the_stage(
    rows, accelerator, monkeypatch
):
    rates, repaired = Counter(), []
    plain = torch.optim.AdamW
    monkeypatch.setattr(
        tar.torch.optim, "AdamW", lambda weights, lr: rates.update([lr]) or plain(weights, lr)
    )
    method = TAR(k=6, every=6, inner_lr=(1e-3, 2e-3), switch=0.5)
    for update in range(1, 41):
        step = step_for(tiny(torch.float32), rows, accelerator, batch=1, update=update)
        method.gradient(step, None)
        repaired.append(step.streams["rows"].position - 1)
        assert step.streams["harmful"].position == 6 - repaired[-1]
        assert step.streams["held_out"].position == 1
    assert set(rates) == {1e-3, 2e-3}
    assert min(rates.values()) > 8
    assert 8 < sum(count > 0 for count in repaired) < 32
    assert max(repaired) < 6


def test_the_reference_is_where_the_stage_began(rows, accelerator):
    lora = Lora(r=2, alpha=4)
    for model in (tiny(torch.float32), add_lora(tiny(torch.float32), lora)):
        start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        seen = []

        class Looking(SFT):
            needs = Needs(streams={"rows": Answers}, references=("start",))

            def gradient(self, step, state, start=start, seen=seen):
                inside = []
                try:
                    with step.reference():
                        inside = [
                            torch.equal(weight, start[name])
                            for name, weight in step.model.named_parameters()
                        ]
                        raise KeyError
                except KeyError:
                    seen.append(all(inside))
                seen.append(
                    any(
                        not torch.equal(weight, start[name])
                        for name, weight in step.model.named_parameters()
                    )
                )
                return super().gradient(step, state)

        train(model, Looking(), rows, Training(updates=3, lr=1e-2, batch=2, lora=None), seed=0)
        assert seen == [True, False, True, True, True, True]
    with (
        pytest.raises(ValueError, match="this method keeps no reference model"),
        step_without(rows, accelerator).reference(),
    ):
        pass


def step_without(rows, accelerator):
    step = step_for(tiny(), rows, accelerator)
    step.start = None
    return step


def test_training_against_attacks_keeps_harmful_answers_uncertain(rows):
    """After the same attack, a model that was trained against it knows less."""
    settings = Training(updates=40, lr=5e-3, batch=4, lora=None, weight_decay=0.0)
    fields = {"k": 4, "every": 2, "inner_lr": (2e-3,), "switch": 0.0, "lam_rep": 0.0}
    after = []
    for method in (TAR(**fields, lam_tr=0.0), TAR(**fields, lam_tr=1.0)):
        model = tiny(torch.float32)
        train(model, method, rows, settings, seed=0)
        train(
            model,
            SFT(),
            {"rows": rows["harmful"]},
            Training(updates=4, lr=2e-3, batch=4, lora=None),
            seed=1,
        )
        with torch.no_grad():
            after.append(plain_entropy(model, rows["held_out"]).item())
    assert after[1] < after[0] - 0.3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"k": -1}, "k=-1, every=4"),
        ({"every": 0}, "k=64, every=0"),
        ({"k": 1}, "k=1: an attack"),
        ({"k": 3}, "k=3: an attack is never looked at before step 4"),
        ({"lam_tr": -1.0}, "lam_tr=-1.0"),
        ({"lam_retain": -1.0}, "lam_retain=-1.0"),
        ({"lam_rep": float("nan")}, "lam_rep=nan"),
        ({"growth": -0.1}, "growth=-0.1"),
        ({"beta": -0.1}, "beta=-0.1"),
        ({"inner_lr": ()}, r"inner_lr=\[\]"),
        ({"inner_lr": (1e-3, 0.0)}, r"inner_lr=\[0.001, 0.0\]"),
        ({"switch": 1.5}, "switch=1.5"),
        ({"switch": -0.1}, "switch=-0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        TAR(**fields)
    assert TAR(k=4, lam_tr=0, lam_retain=0, lam_rep=0, growth=0, beta=0, switch=1)
    assert TAR(k=1, every=1, switch=0)
    default = TAR(
        64, 4, "entropy", 4.0, 1.0, 1.0, 0.0625, 0.1, (2e-6, 2e-5, 4e-5), "adamw", 1 / 3, "norm"
    )
    assert {TAR(), default} == {TAR()}


def test_dpo_needs_both_answers(rows, accelerator):
    unpaired = rows | {"held_out": rows["harmful"]}
    with pytest.raises(
        ValueError, match="loss='dpo' compares refusals with harmful answers of the same prompts"
    ):
        TAR(loss="dpo").prepare(step_for(tiny(), unpaired, accelerator))
    TAR(loss="dpo").prepare(step_for(tiny(), rows, accelerator))
    TAR().prepare(step_for(tiny(), unpaired, accelerator))
    assert Vec(()).names() == []
