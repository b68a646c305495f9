"""L2sp against the gradient of its objective, computed plainly in float64, and at its limit."""

import pytest
import torch
from titer_l2sp.l2sp import L2sp

from titer.defenses.sft import SFT
from titer.testing import contract, rows, state, step_for, tiny
from titer.training.train import accelerator_for

test_contract = contract(L2sp(), L2sp(lam=0.0))


def plain_loss(model, of):
    """Average -log p over all answer tokens, a row at a time: no batch, no pad, no titer."""
    losses = []
    for row in of:
        logits = model(torch.tensor([row.ids])).logits[0]
        log_p = torch.log_softmax(logits[row.answer - 1 : -1], -1)
        losses.append(-log_p.gather(1, torch.tensor(row.ids[row.answer :])[:, None]))
    return torch.cat(losses).mean()


def stage(accumulate=1):
    """A model that has moved from where its stage began, and an update of it."""
    model, accelerator = tiny(), accelerator_for("cpu")
    start = state(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    step = step_for(model, rows(), accelerator, batch=3, accumulate=accumulate)
    step.start = {name: start[name] for name in step.parameters}
    drawn = step_for(model, rows(), accelerator).streams["rows"].take(3 * accumulate)
    return model, start, step, drawn


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("lam", [0.7, 30.0])
def test_the_gradient_is_that_of_the_objective(lam, accumulate):
    model, start, step, drawn = stage(accumulate)
    f = plain_loss(model, drawn)
    term = sum(((w - start[name]) ** 2).sum() for name, w in step.parameters.items())
    weights = dict(step.parameters)
    wanted = torch.autograd.grad(f + lam / 2 * term, list(weights.values()))
    vec = L2sp(lam).gradient(step, None)
    assert set(vec.names()) == set(weights)
    for name, grad in zip(weights, wanted, strict=True):
        torch.testing.assert_close(vec.value(name), grad, rtol=1e-8, atol=1e-10)
    assert step.logged == {"f": pytest.approx(f.item(), rel=1e-10)}


def test_without_a_pull_it_is_sft():
    step = stage()[2]
    mine = L2sp(lam=0.0).gradient(step, None)
    plain = SFT().gradient(step, None)
    assert mine.names() == plain.names()
    assert all(torch.equal(mine.value(name), plain.value(name)) for name in plain.names())


@pytest.mark.parametrize("lam", [-0.1, float("inf"), float("nan")])
def test_a_strength_that_makes_no_sense_is_refused(lam):
    with pytest.raises(ValueError, match=f"lam={lam}: must be at least 0, and finite"):
        L2sp(lam)
