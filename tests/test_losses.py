"""The divergence of two models' predictions, against a plain computation and at its limit."""

import math

import pytest
import torch

from titer.training.losses import kl_divergence


def logits(count=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn((count, 11), generator=generator, dtype=torch.float64).to(dtype)


def test_the_divergence_is_summed_over_positions_and_taken_under_the_second():
    now, then = logits(seed=1), logits(seed=2)
    total = 0.0
    for a, b in zip(now, then, strict=True):
        p_now, p_then = (torch.exp(row) / torch.exp(row).sum() for row in (a, b))
        total += sum(
            p * math.log(p / q) for p, q in zip(p_then.tolist(), p_now.tolist(), strict=True)
        )
    assert float(kl_divergence(now, then)) == pytest.approx(total, rel=1e-12)
    assert float(kl_divergence(then, now)) != pytest.approx(total, rel=1e-2)
    assert float(kl_divergence(now + 7.0, then - 3.0)) == pytest.approx(total, rel=1e-12)


def test_its_gradient_is_the_difference_of_the_probabilities():
    now, then = logits(seed=1).requires_grad_(), logits(seed=2)
    [grad] = torch.autograd.grad(kl_divergence(now, then), [now])
    torch.testing.assert_close(grad, now.softmax(1) - then.softmax(1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_logits_have_no_divergence_and_no_gradient_bit_for_bit(dtype):
    now = logits(300, dtype=dtype).requires_grad_()
    value = kl_divergence(now, now.detach().clone())
    [grad] = torch.autograd.grad(value, [now])
    assert value == 0.0
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert not grad.any()


def test_half_precision_is_widened_first():
    now, then = logits(seed=1), logits(seed=2)
    half = kl_divergence(now.bfloat16(), then.bfloat16())
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(
        float(kl_divergence(now.bfloat16().double(), then.bfloat16().double())), rel=1e-5
    )
