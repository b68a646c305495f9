"""SFT on the union against a plain computation on the rows that Lisa sees, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401
from test_step import same, state, step_for
from titer import registry
from titer.defenses.lisa import Lisa
from titer.defenses.sft import SFT
from titer.defenses.union import Union
from titer.methods import Answers, Needs, Refusals
from titer.training.settings import DRAWN, Training
from titer.training.train import train

SETTINGS = Training(updates=10, lr=1e-3, batch=3, lora=None)


@pytest.mark.parametrize(
    ("share", "update", "count", "theirs"),
    [(0.25, 1, 2, 2), (0.25, 2, 2, 1), (0.5, 3, 1, 1), (0.0, 1, 2, 0), (0.1, 1, 2, 1)],
)
def test_the_gradient_is_that_of_the_mean_over_both(
    rows, accelerator, share, update, count, theirs
):
    model = tiny()
    step = step_for(model, rows, accelerator, 3, count, update)
    other = step_for(model, rows, accelerator).streams
    vec = Union(share).gradient(step, None)
    taken = other["rows"].take(3 * count - theirs) + other["alignment"].take(theirs)
    loss = plain_loss(model, taken)
    names, weights = zip(*model.named_parameters(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged == {"f": pytest.approx(loss.item(), rel=1e-12)}
    assert {name: stream.position for name, stream in step.streams.items()} == {
        "rows": 3 * count - theirs,
        "alignment": theirs,
        "harmful": 0,
        "held_out": 0,
    }


@pytest.mark.parametrize(("share", "batch"), [(0.1, 10), (0.1, 3), (0.37, 4), (0.6, 1)])
def test_a_share_of_less_than_a_row_adds_up(rows, accelerator, share, batch):
    step = step_for(tiny(torch.float32), rows, accelerator, batch)
    step.streams["alignment"].rows *= 40  # else an epoch would end
    for update in range(1, 31):
        step.update = update
        mixed = step.mix("rows", "alignment", share)
        assert mixed.rows == batch
        assert mixed.stream == "rows and alignment"
        assert abs(step.streams["alignment"].position - share * update * batch) <= 0.5 + 1e-9
        assert step.streams["rows"].position + step.streams["alignment"].position == update * batch


def test_it_sees_as_many_rows_of_either_as_lisa(rows):
    drawn = []

    def looking(method):
        class Looking(type(method)):
            def gradient(self, step, state):
                vec = super().gradient(step, state)
                seen.update({name: of.position for name, of in step.streams.items()})
                return vec

        seen: dict = {}
        history = train(tiny(torch.float32), Looking(**vars(method)), rows, SETTINGS, seed=0)
        assert history[-1][DRAWN] == seen["rows"]  # not all that an update could have drawn
        drawn.append(seen)

    looking(Lisa(1, 4))
    looking(Union(0.2))
    assert drawn == [{"rows": 24, "alignment": 6}] * 2


def test_without_alignment_rows_it_is_sft_bit_for_bit(rows):
    ends = []
    for method in (SFT(), Union(0.0), Union(0.2)):
        model = tiny(torch.float32)
        history = train(model, method, rows, replace(SETTINGS, accumulate=2), seed=0)
        ends.append((state(model), history))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not same(ends[0][0], ends[2][0])


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"share={share}: must be at least 0 and below 1"):
            Union(share)
    assert registry.build("defenses", {"method": "union", "share": 0}) == Union(0.0)
    assert {Union(), Union(0.1)} == {Union()}
    assert Union().needs == Needs(streams={"rows": Answers, "alignment": Refusals})
    step = step_for(tiny(), {"rows": rows["rows"]}, accelerator)
    with pytest.raises(ValueError, match="no stream 'alignment': the method declares rows"):
        Union().gradient(step, None)
