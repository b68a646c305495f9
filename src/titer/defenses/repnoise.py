"""RepNoise (arXiv 2405.14577, equation 5 and algorithm 1): learn refusals, make noise of harmful answers.

    min_w  f(w) + w_noise mean_l MMD(a_l, z) - w_ascent log(1 + mean_i h_i(w)),    z ~ N(0, 1)

f is the cross-entropy of the rows that the stage trains on, refusals among them. The other two terms are of
the harmful answers to the same prompts, over the rows of the update for which the defender has one:

    a_l   output of the MLP of layer l at the answer tokens, one vector a row;
          MMD over five bandwidths around the mean distance
    h_i   logit lens: cross-entropy when the residual stream before layer i goes to the model's head;
          the last h_i is the model's own

f and the harmful terms are two passes, so that one graph is alive at a time. MMD, log and their means are of
a micro-batch.

Departures from the authors' code:
1. The mask is the answer's span, from its first token on. Theirs is where two padded rows differ: it counts
   pads, drops tokens that happen to be equal, and blanks the logits that predict the token behind each, the
   first one of the answer among them.
2. The mean over i has every h_i once; theirs adds the last one again, through a second final norm, and does
   not count it.
3. `shift` is the 1 in the log, which their code has and their algorithm has not (0): there the pull grows as
   1 / h.
4. MMD by Gram matrices, over the span of the answers alone. `lens_every` takes every k-th h_i, from the last
   one back.
5. The rows may hold others beside refusals, benign answers say, which have no pair and enter f alone.

Compared with their loss (domenicrosati/representation-noising 03689ff9, float64, 2026-11-21): with their mask
and the mean of 2 put right, the same gradient of every term to 1e-15; as it is, a third of it differs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from titer.data.batches import IGNORED, Part
from titer.methods import About, Aware, Defense, Fidelity, Needs, Pairs
from titer.training.layers import Head, head, watch_layers
from titer.training.losses import Loss, cross_entropy, wide
from titer.training.step import Step
from titer.training.vector import Vec

BANDWIDTHS = range(-2, 3)  # of the kernels, as powers of two times the mean distance
AT_ONCE = 1024  # answer tokens whose lens logits (tokens, V) are in memory at once


@dataclass(frozen=True)
class RepNoise(Defense):
    """Representation noising (Rosati et al., arXiv 2405.14577)."""

    w_noise: float = 0.001  # weight of the noise term; algorithm 1 calls it beta, equation 5 alpha
    w_ascent: float = 1.0  # weight of the ascent
    shift: float = 1.0  # what is added to the mean cross-entropy in the log
    # residual streams from one whose lens is taken to the next; more than there are leaves the model's own
    # loss
    lens_every: int = 1
    about: ClassVar[About] = About(
        title="RepNoise",
        paper="2405.14577",
        stage="align",
        passes="2 and the lenses",
        fidelity=Fidelity(
            equation="tests/test_repnoise.py",
            code="domenicrosati/representation-noising 03689ff9, the losses, float64, 2026-11-21",
        ),
        aware=Aware(
            "it holds at the rates and the one epoch that it was tuned for: full training at four times "
            "the rate breaks it, and so does a second epoch (arXiv 2405.14577)",
            full=True,
        ),
    )
    needs = Needs(
        streams={"rows": Pairs},
        unsharded="it applies the head to residual streams outside of the model's own pass, where no rank "
        "has the whole head; launch without --use_fsdp",
        micro_batch="its MMD and its logarithm are of a micro-batch's answers",
    )

    def __post_init__(self) -> None:
        for name in ("w_noise", "w_ascent", "shift"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        if self.lens_every < 1:
            raise ValueError(f"lens_every={self.lens_every}: must be at least 1")

    def gradient(self, step: Step, state: None) -> Vec:
        rows = step.batch("rows")
        g_f = step.grad(rows)  # grad f
        step.log(f=g_f.loss)
        if rows.others is None:  # no row of this update has a harmful answer beside it
            return g_f
        terms: list[tuple[int, Tensor, Tensor]] = []
        g_n = step.grad(rows.others, self._harmful(step, terms))
        if terms:  # else another rank's rows alone have one
            read = [(count, float(own) / count, float(m)) for count, own, m in terms]
            tokens, h, m = torch.tensor(read, dtype=torch.float64).T
            step.log(h=float(tokens @ h / tokens.sum()), mmd=float(tokens @ m / tokens.sum()))
        return g_f + g_n

    def _harmful(self, step: Step, terms: list[tuple[int, Tensor, Tensor]]) -> Loss:
        """Make a loss of w_noise mean MMD - w_ascent log(1 + mean h).

        Of every micro-batch `terms` gets tokens, the sum of its own h over them, and mean MMD. They
        are read after the pass: a device does not wait for them.
        """

        def loss(model: PreTrainedModel, part: Part) -> Tensor:
            with watch_layers(step.layers) as seen:
                own = cross_entropy(model, part)
            tokens = len(part.targets)
            residuals = seen.residuals[
                -1 - self.lens_every :: -self.lens_every
            ]  # but the last one, whose lens the logits are
            h = (own + lens(head(model), residuals, part)) / (tokens * (1 + len(residuals)))
            m = noise_distance(
                seen.mlps, part, f"repnoise {step.streams['rows'].seed} {step.update}"
            )
            terms.append((tokens, own.detach(), m.detach()))
            # step.grad divides by the tokens of the update: a mean over micro-batches, weighted by theirs
            return tokens * (self.w_noise * m - self.w_ascent * torch.log(self.shift + h))

        return loss


def noise_distance(activations: Sequence[Tensor], part: Part, seed: str) -> Tensor:
    """Mean over layers of the MMD between activations (B, T, D) at answer tokens and normal noise there.

    The noise follows from the seed and the rows alone: ranks, micro-batches and devices agree on it.
    So it is drawn on the CPU, in float32 at least whatever the activations are.
    """
    answers = part.labels != IGNORED  # (B, T)
    ids, labels = torch.stack([part.ids, part.labels]).cpu()  # a device waits for both at once
    first = int((labels != IGNORED).any(0).int().argmax())  # where the first answer begins
    mask = answers[:, first:, None]  # (B, S, 1)
    rows = hashlib.sha256(seed.encode() + ids.numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(rows[:7]))
    found = []
    for a in activations:
        x = a[:, first:] * mask
        dtype = torch.promote_types(x.dtype, torch.float32)
        z = torch.randn(x.shape, generator=generator, dtype=dtype).to(x.device) * mask
        found.append(mmd(x.flatten(1), z.flatten(1)))
    return torch.stack(found).mean()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples (n, F), biased, under a sum of Gaussian kernels."""
    n = len(x)
    with torch.autocast(
        x.device.type, enabled=False
    ):  # distances are what is left when large products cancel
        x, y = wide(x), wide(y)
        norms = torch.cat([x.square().sum(1), y.square().sum(1)])  # (2n,)
        xy = x @ y.T
        gram = torch.cat([torch.cat([x @ x.T, xy], 1), torch.cat([xy.T, y @ y.T], 1)])  # (2n, 2n)
        distances = (norms[:, None] + norms - 2 * gram).clamp(min=0.0)
    center = distances.detach().sum() / (4 * n**2 - 2 * n)
    k = torch.stack([torch.exp(-distances / (center * 2.0**i)) for i in BANDWIDTHS]).sum(0)
    return (k[:n, :n] + k[n:, n:] - k[:n, n:] - k[n:, :n]).mean()


def lens(top: Head, residuals: Sequence[Tensor], part: Part) -> Tensor:
    """Sum the cross-entropy of the lens over residual streams (B, T, D) and answer tokens, in nats.

    Gradients are taken with the value, some tokens at a time: logits of every layer together would not fit.
    """
    targets = part.targets  # (N,)
    streams = [residual.flatten(0, 1)[part.answered] for residual in residuals]  # (N, D)
    weights = [weight for weight in top.parameters() if weight.requires_grad]
    inputs = [*streams, *weights]
    grads = [torch.zeros_like(given) for given in inputs]
    total = torch.zeros((), dtype=torch.float64, device=targets.device)
    for stream, of_stream in zip(streams, grads, strict=False):
        for start in range(0, len(targets), AT_ONCE):
            chunk = slice(start, start + AT_ONCE)
            leaf = stream[chunk].detach().requires_grad_()
            logits = top(
                leaf.view_as(leaf)
            )  # (N, V); a leaf that goes into a module is more than torch's counter of operations can follow
            value = nn.functional.cross_entropy(wide(logits), targets[chunk], reduction="sum")
            of_stream[chunk], *of_weights = torch.autograd.grad(value, [leaf, *weights])
            for sum_, grad in zip(grads[len(streams) :], of_weights, strict=True):
                sum_ += grad
            total += value.detach()
    known: Tensor = _Known.apply(total, *inputs, *grads)  # type: ignore[no-untyped-call]
    return known


class _Known(torch.autograd.Function):
    """A value with inputs, and its gradients at them, which are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[len(tensors) // 2 :])
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        return None, *(g * grad for grad in grads), *(None for _ in grads)
