"""Random Vaccine: Vaccine's null, the control that its direction has to beat.

    eps_l = rho n_l / ||(n_1, ..., n_L)||,    n_l normal in every coordinate of every token

As Vaccine (arXiv 2402.01109), but the attention outputs drift in a random direction, a new one at every
update, of the same norm; pads stay. What any drift of this size does by itself, this does too; only what
Vaccine does beyond it is owed to its direction. The paper's random baseline has noise of a variance instead,
whose norm grows with the batch.

The noise follows from the stage's seed, the update and the micro-batch alone: ranks agree on it, and so does
an interrupted run.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from titer.data.batches import Batch
from titer.methods import About, Defense, Fidelity, Needs, Refusals
from titer.training.activations import Acts
from titer.training.step import Step
from titer.training.vector import Vec


@dataclass(frozen=True)
class RandomVaccine(Defense):
    """Vaccine along random noise: a null for arXiv 2402.01109."""

    rho: float = 2.0  # rho, norm of the perturbation of an update
    about: ClassVar[About] = About(
        title="random Vaccine",
        paper="2402.01109",
        stage="align",
        control=True,
        passes="1",
        fidelity=Fidelity(equation="tests/test_random_vaccine.py"),
    )
    needs = Needs(
        streams={"rows": Refusals},
        micro_batch="its noise is drawn for every micro-batch by its place in the update",
    )

    def __post_init__(self) -> None:
        if not self.rho >= 0.0:
            raise ValueError(f"rho={self.rho}: the norm of a perturbation must be at least 0")

    def gradient(self, step: Step, state: None) -> Vec:
        batch = step.batch("rows")
        with step.shifted(self.rho * noise(step, batch).unit()):  # e_l + eps_l
            g_f = step.grad(batch)
        step.log(f_perturbed=g_f.loss)
        return g_f


def noise(step: Step, batch: Batch) -> Acts:
    """Draw n of this update: one tensor (B, T, D) per micro-batch and layer."""
    seed, width = step.streams["rows"].seed, step.model.config.get_text_config().hidden_size
    ranks, rank = step.accelerator.num_processes, step.accelerator.process_index
    first = rank * -(-batch.rows // (step.batch_size * ranks))  # of this rank's micro-batches
    parts: list[dict[int, Tensor]] = []
    for i, part in enumerate(batch.parts, first):
        generator = torch.Generator().manual_seed(
            random.Random(f"random_vaccine {seed} {step.update} {i}").getrandbits(63)
        )  # on the CPU
        mask = part.real.unsqueeze(-1).to(step.model.dtype)  # (B, T, 1)
        parts.append(
            {
                layer: torch.randn((*part.ids.shape, width), generator=generator).to(mask) * mask
                for layer in range(step.depth)
            }
        )
    return step.acts(batch, parts, chosen=range(step.depth))
