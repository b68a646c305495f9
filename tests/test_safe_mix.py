"""The safe mix against a plain computation on rows that Lisa sees or the model's own, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Encoded, Stream
from titer.defenses.lisa import Lisa
from titer.defenses.safe_mix import OwnAnswers, SafeMix
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs, Refusals
from titer.training.settings import DRAWN, Training
from titer.training.train import train
from trained import check_resumes

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
    method = SafeMix(share)
    vec = method.gradient(step, method.prepare(step))
    taken = other["rows"].take(3 * count - theirs) + other["alignment"].take(theirs)
    check(step, vec, plain_loss(model, taken))
    assert {name: stream.position for name, stream in step.streams.items()} == {
        "rows": 3 * count - theirs,
        "alignment": theirs,
        "harmful": 0,
        "held_out": 0,
    }


def check(step, vec, loss):
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged == {"f": pytest.approx(loss.item(), rel=1e-12)}


@torch.no_grad()
def plain_answer(model, prompt, ends, length):
    """Token by token, a prompt at a time."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return Encoded(tuple(ids), len(prompt))


@pytest.mark.parametrize(("count", "length"), [(500, 5), (6, 3)])
def test_the_models_own_answers_take_the_place_of_those_given(rows, accelerator, count, length):
    model = tiny()
    step = step_for(model, rows, accelerator, batch=4, accumulate=2)
    given = Stream("alignment", rows["alignment"], 3)
    asked = given.take(min(count, len(rows["alignment"])))
    [end] = {row.ids[-1] for row in asked}
    often = [plain_answer(model, row.ids[: row.answer], {end, 1}, length) for row in asked]
    # a token that the model does say, so that some answers end before the others
    halts = often[0].ids[often[0].answer + 1]
    rows["alignment"][:] = [replace(row, ids=(*row.ids[:-1], halts)) for row in rows["alignment"]]
    own = [plain_answer(model, row.ids[: row.answer], {halts, 1}, length) for row in asked]
    assert len({len(row.ids) - row.answer for row in own}) > 1
    method = SafeMix(0.5, "self", count, length)
    prepared = method.prepare(step)
    assert prepared.rows == own
    with torch.no_grad():  # the answers are of the start
        for weight in model.parameters():
            weight.mul_(1.02)
    vec = method.gradient(step, prepared)
    stream = Stream("alignment", own, 3, len(asked))
    taken = Stream("rows", rows["rows"], 3).take(4) + stream.take(4)
    check(step, vec, plain_loss(model, taken))
    assert step.streams["alignment"].position == len(asked) + 4


@pytest.mark.parametrize(("length", "found"), [(128, 2), (1, 1)])
def test_an_answer_has_no_more_tokens_than_the_model_has_positions(
    rows, accelerator, monkeypatch, length, found
):
    longest = max(row.answer for row in rows["alignment"])
    monkeypatch.setattr("titer.defenses.safe_mix.learned_positions", lambda model: longest + 2)
    step = step_for(tiny(torch.float32), rows, accelerator)
    prepared = SafeMix(0.5, "self", length=length).prepare(step)
    assert max(len(row.ids) - row.answer for row in prepared.rows) == found


def test_own_answers_are_computed_as_the_updates_are(rows, accelerator):
    step = step_for(tiny(torch.float32), rows, accelerator)
    step.autocast = torch.bfloat16
    seen = []
    handle = step.model.model.layers[0].mlp.register_forward_hook(
        lambda _, __, output: seen.append(output.dtype)
    )
    SafeMix(0.5, "self", 2, 2).prepare(step)
    handle.remove()
    assert set(seen) == {torch.bfloat16}


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
    looking(SafeMix(0.2))
    assert drawn == [{"rows": 24, "alignment": 6}] * 2


def test_without_safety_rows_it_is_sft_bit_for_bit(rows):
    ends = []
    for method in (SFT(), SafeMix(0.0), SafeMix(0.0, "self", length=2), SafeMix(0.2)):
        model = tiny(torch.float32)
        history = train(model, method, rows, replace(SETTINGS, accumulate=2), seed=0)
        ends.append((state(model), history))
    for other in ends[1:3]:
        assert same(ends[0][0], other[0])
        assert ends[0][1] == other[1]
    assert not same(ends[0][0], ends[3][0])


def test_a_resumed_run_has_the_answers_of_the_start(rows, tmp_path):
    method = SafeMix(0.5, "self", 7, 4)
    whole = check_resumes(lambda: tiny(torch.float32), method, rows, SETTINGS, tmp_path)
    given = tiny(torch.float32)
    train(given, replace(method, source="given"), rows, SETTINGS, seed=0)
    assert not same(state(given), state(whole))


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"share={share}: must be at least 0 and below 1"):
            SafeMix(share)
    for name in ("count", "length"):
        with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
            SafeMix(**{name: 0})
    lowest = {"method": "safe_mix", "share": 0, "source": "self", "count": 1, "length": 1}
    assert registry.build("defenses", lowest) == SafeMix(0.0, "self", 1, 1)
    assert {SafeMix(), SafeMix(0.1, "given", 500, 128)} == {SafeMix()}
    assert SafeMix().needs == Needs(streams={"rows": Answers, "alignment": Refusals})
    assert OwnAnswers([[1, 2, 3]], [2]).rows == [Encoded((1, 2, 3), 2)]
    step = step_for(tiny(), {"rows": rows["rows"]}, accelerator)
    with pytest.raises(ValueError, match="no stream 'alignment': the method declares rows"):
        SafeMix().gradient(step, None)
