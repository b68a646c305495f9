"""Step: the token-weighted gradient, and contexts that put everything back."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from titer.data.batches import Stream
from titer.testing import same, state, step_for
from titer.training.losses import cross_entropy
from titer.training.vector import Vec


def test_the_loss_is_on_the_answer_alone_its_first_token_included(template, accelerator):
    """Against a loop over single tokens of single rows that knows nothing of batches, pads or
    labels.
    """
    from titer.lab.world import World

    model, world = tiny(), World(0)
    rows = [template.encode(row) for row in world.alignment[:5]]
    step = step_for(model, {"rows": rows}, accelerator, batch=5)
    total, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0]
        for at in range(row.answer, len(row.ids)):
            total -= torch.log_softmax(logits[at - 1], 0)[row.ids[at]].item()
            tokens += 1
    assert sum(len(row.ids) - row.answer for row in rows) == tokens
    assert math.isclose(step.grad(step.batch("rows")).loss, total / tokens, rel_tol=1e-12)


def test_two_micro_batches_equal_one_batch_of_both(rows, accelerator):
    model = tiny()
    lengths = {len(row.ids) - row.answer for row in rows["rows"]}
    assert len(lengths) > 2  # else the weighting is not tested
    whole = step_for(model, rows, accelerator, batch=8)
    parts = step_for(model, rows, accelerator, batch=2, accumulate=4)
    a, b = whole.grad(whole.batch("rows")), parts.grad(parts.batch("rows"))
    assert (a - b).norm() < 1e-13 * a.norm()
    assert math.isclose(a.loss, b.loss, rel_tol=1e-13)


def test_a_batch_is_drawn_once_and_draw_takes_the_next(rows, accelerator):
    step = step_for(tiny(), rows, accelerator)
    first = step.batch("rows")
    assert step.batch("rows") is first
    assert step.streams["rows"].position == 4
    drawn = step.draw("rows")
    assert step.streams["rows"].position == 8
    assert not torch.equal(drawn.parts[0].ids[:, :5], first.parts[0].ids[:, :5])


def test_an_unknown_stream_is_named(rows, accelerator):
    with pytest.raises(ValueError, match="no stream 'harm': the method declares rows, harmful"):
        step_for(tiny(), rows, accelerator).batch("harm")


def test_every_epoch_is_a_permutation_of_all_rows(rows):
    stream = Stream("rows", rows["rows"], seed=0)
    count = len(rows["rows"])
    first, second = stream.take(count), stream.take(count)
    assert sorted(first, key=str) == sorted(second, key=str) == sorted(rows["rows"], key=str)
    assert first != second
    assert Stream("rows", rows["rows"], 1).take(count) != first
    assert Stream("rows", rows["rows"], 0, position=5).take(3) == first[5:8]


def test_grad_leaves_no_gradient_behind_and_ignores_one_that_lies_there(rows, accelerator):
    model = tiny()
    step = step_for(model, rows, accelerator)
    clean = step.grad(step.batch("rows"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    again = step.grad(step.batch("rows"))
    assert (clean - again).norm() == 0.0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_that_the_loss_does_not_reach_is_absent(rows, accelerator):
    model = tiny()
    step = step_for(model, rows, accelerator)

    def of_the_embedding(model, part):
        return model.get_input_embeddings()(part.ids).sum()

    assert step.grad(step.batch("rows"), of_the_embedding).names() == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
def test_moved_and_scratch_put_the_weights_back_bit_for_bit(rows, accelerator, dtype, fails):
    model = tiny(dtype)
    step = step_for(model, rows, accelerator)
    before = state(model)
    vec = Vec.of({name: torch.randn_like(p) * 1e-3 for name, p in step.parameters.items()})
    for context in (step.moved(0.37 * vec), step.scratch(), step.moved(0.1 * vec)):
        try:
            with context:
                for parameter in step.parameters.values():
                    parameter.data.mul_(1.01)
                assert not same(state(model), before)
                if fails:
                    raise KeyError("inside")
        except KeyError:
            assert fails
        assert same(state(model), before)


def test_moved_adds_the_vector_and_touches_no_other_weight(rows, accelerator):
    model = tiny()
    step = step_for(model, rows, accelerator)
    before = state(model)
    name = next(iter(step.parameters))
    with step.moved(2.0 * Vec.of({name: torch.ones_like(before[name])})):
        inside = state(model)
    torch.testing.assert_close(inside[name], before[name] + 2.0, rtol=0, atol=0)
    assert all(torch.equal(inside[other], before[other]) for other in before if other != name)


def test_an_infinite_loss_names_update_and_stream(rows, accelerator):
    step = step_for(tiny(), rows, accelerator, update=17)

    def broken(model, part):
        return cross_entropy(model, part) * float("nan")

    with pytest.raises(ValueError, match="the loss is nan at update 17 on stream 'harmful'"):
        step.grad(step.batch("harmful"), broken)

    def steep(model, part):  # finite itself, with an infinite slope
        return cross_entropy(model, part) + next(model.parameters()).square().sum().mul(0.0).sqrt()

    with pytest.raises(
        ValueError, match="the gradient is not finite at update 17 on stream 'rows'"
    ):
        step.grad(step.batch("rows"), steep)


def test_prompts_are_predicted_from_at_their_ends_alone(rows, accelerator):
    step = step_for(tiny(), rows, accelerator, batch=3)
    batch = step.prompts("harmful", 7)
    taken = Stream("harmful", rows["harmful"], seed=3).take(7)
    assert step.streams["harmful"].position == 7
    assert [len(part.ids) for part in batch.parts] == [3, 3, 1]
    assert (batch.tokens, batch.rows, batch.others) == (7, 7, None)
    read = [
        (ids[:at].tolist(), label)
        for part in batch.parts
        for ids, label, at in zip(
            part.ids,
            part.targets.tolist(),
            (part.answered % part.ids.shape[1] + 1).tolist(),
            strict=True,
        )
    ]
    assert read == [(list(row.ids[: row.answer]), row.ids[row.answer]) for row in taken]
    loss = step.grad(
        batch, lambda _, part: part.ids.new_ones(len(part.ids)).double().sum() + weight(step)
    )
    assert loss.loss == pytest.approx(1.0)  # a mean over prompts


def weight(step):
    """A nought that has a gradient."""
    return 0.0 * next(iter(step.parameters.values())).sum()


@pytest.mark.parametrize(("count", "shares"), [(7, [[3], [3], [1]]), (12, [[3, 3], [3, 3], []])])
def test_ranks_share_the_micro_batches_of_prompts(rows, accelerator, count, shares):
    found = []
    for rank in range(3):
        step = step_for(tiny(), rows, Ranks(accelerator, rank), batch=3)
        batch = step.prompts("harmful", count)
        assert (batch.rows, batch.tokens) == (count, count)
        found.append([len(part.ids) for part in batch.parts])
        drawn = step.draw("rows")
        assert [len(part.ids) for part in drawn.parts] == [3]
        assert drawn.rows == 9
    assert found == shares


class Ranks:
    """One of three ranks, as far as drawing goes."""

    num_processes = 3

    def __init__(self, accelerator, rank):
        self.device, self.process_index = accelerator.device, rank


@pytest.mark.parametrize(("count", "shares"), [(1, [1, 0, 0]), (3, [1, 1, 1]), (4, [2, 2, 0])])
def test_an_update_may_have_fewer_rows_than_its_micro_batches_hold(
    rows, accelerator, count, shares
):
    found = []
    for rank in range(3):
        batch = -(-count // 3)
        step = replace(step_for(tiny(), rows, Ranks(accelerator, rank), batch=batch), rows=count)
        assert step.size == count
        drawn = step.batch("rows")
        assert (drawn.rows, step.streams["rows"].position) == (count, count)
        found.append(sum(len(part.ids) for part in drawn.parts))
    assert found == shares


def test_the_opening_of_a_row_has_its_prompt_and_one_token(rows):
    for row in rows["rows"]:
        opening = row.opening
        assert opening.ids == row.ids[: row.answer + 1]
        assert (opening.answer, opening.cut, opening.other) == (row.answer, row.cut, None)


def test_a_batch_may_have_fewer_rows_than_an_update(rows, accelerator):
    step = step_for(tiny(), rows, accelerator, batch=2, accumulate=3)
    taken = Stream("rows", rows["rows"], seed=3).take(4)
    for count, parts in ((1, [1]), (3, [2, 1])):
        batch = step.draw("rows", count)
        assert batch.rows == count
        assert [len(part.ids) for part in batch.parts] == parts
        assert batch.tokens == sum(len(row.ids) - row.answer for row in taken[:count])
        taken = taken[count:]
    assert step.streams["rows"].position == 4
    assert step.draw("rows").rows == 6


def test_without_layers_their_weights_have_no_gradient(rows, accelerator):
    made = tiny(layers=4)
    step = step_for(made, rows, accelerator)
    full = step.grad(step.batch("rows"))
    with step.without([1, 3]):
        part = step.grad(step.batch("rows"))
        assert not made.model.layers[1].mlp.up_proj.weight.requires_grad
    assert all(weight.requires_grad for weight in made.parameters())
    shut = ("model.layers.1.", "model.layers.3.")
    assert part.names() == [name for name in full.names() if not name.startswith(shut)]
    assert (part - full.within(part.names())).norm() < 1e-13 * part.norm()
    for chosen in ([], [4], [-1]):
        with pytest.raises(ValueError, match="choose some of 0 to 3"), step.without(chosen):
            pass
    with pytest.raises(KeyError), step.without([1]):
        raise KeyError
    assert all(weight.requires_grad for weight in made.parameters())
