"""T-Vaccine against a plain computation: which layers, which weights, which gradient; and that the
frozen prefix changes nothing.
"""

from collections import Counter
from itertools import permutations

import pytest
import torch

from conftest import tiny
from test_step import same, state, step_for
from test_vaccine import LORA, batch_rows, inner, plain, prepared
from titer.defenses.t_vaccine import Layers, TVaccine
from titer.defenses.vaccine import Vaccine
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora

DEPTH = 4


@pytest.fixture(params=["full", "lora"])
def model(request):
    return prepared(request.param, DEPTH)


def drawn(chosen) -> Layers:
    """A state after the first update, so that nothing is scored or drawn at the second."""
    return Layers({str(i): 1.0 for i in range(DEPTH)}, list(chosen))


@pytest.mark.parametrize("chosen", [[0], [2], [1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("checkpoint", ["off", "unselected"])
def test_the_gradient_is_that_of_the_drawn_layers_alone(
    model, rows, accelerator, chosen, checkpoint
):
    step = step_for(model, rows, accelerator, batch=2, accumulate=2, update=2)
    vec = TVaccine(rho=1.5, gamma=2, checkpoint=checkpoint).gradient(step, drawn(chosen))
    _, expected = plain(inner(model), batch_rows(rows["rows"], step), 1.5, chosen)
    names = {name.removeprefix("base_model.model."): name for name in vec.names()}
    inside = {name for name in expected if any(f"layers.{i}." in name for i in chosen)}
    assert set(names) == inside
    assert inside < set(expected) or (chosen == [0, 1, 2, 3] and "lora" in next(iter(names)))
    for name in inside:
        torch.testing.assert_close(vec.value(names[name]), expected[name], rtol=1e-9, atol=1e-11)
    assert step.logged["f_perturbed"] > step.logged["f"]
    assert step.logged["lowest"] == min(chosen)
    assert step.streams["harmful"].position == 0


def test_all_layers_are_vaccine(rows):
    settings = Training(updates=3, lr=1e-3, batch=2, accumulate=2, lora=LORA)
    models = [add_lora(tiny(torch.float32, layers=DEPTH), LORA) for _ in range(4)]
    start = {name: weight.clone() for name, weight in models[0].state_dict().items()}
    defenses = (
        Vaccine(1.0),
        TVaccine(rho=1.0, gamma=DEPTH),
        TVaccine(rho=1.0, gamma=DEPTH + 1),
        TVaccine(rho=1.0, gamma=2),
    )
    for made, defense in zip(models, defenses, strict=True):
        made.load_state_dict(start)
        train(made, defense, rows, settings, seed=0)
    ends = [state(made) for made in models]
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])
    assert not same(ends[0], ends[3])


def test_what_lies_below_runs_once_for_both_passes_and_above_again_where_told(rows, accelerator):
    made, counts = tiny(layers=DEPTH), Counter()
    for i, layer in enumerate(made.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, i=i: counts.update([i]))
    step = step_for(made, rows, accelerator, batch=2, accumulate=2, update=2)
    TVaccine(gamma=1).gradient(step, drawn([2]))
    assert counts == {0: 2, 1: 2, 2: 4, 3: 4}  # two micro-batches, two passes
    counts.clear()
    TVaccine(gamma=1, checkpoint="unselected").gradient(
        step_for(made, rows, accelerator, update=2), drawn([2])
    )
    assert counts == {0: 1, 1: 1, 2: 2, 3: 4}
    counts.clear()
    Vaccine().gradient(step_for(made, rows, accelerator), None)
    assert counts == dict.fromkeys(range(DEPTH), 2)  # and everything is as it was


def test_the_authors_freeze_trains_what_lies_above_the_lowest_but_other_attentions(
    model, rows, accelerator
):
    step = step_for(model, rows, accelerator, update=2)
    vec = TVaccine(rho=1.5, gamma=2, freeze="attention").gradient(step, drawn([1, 3]))
    layer = {
        name: int(name.split("layers.")[1][0]) for name in step.parameters if "layers." in name
    }
    assert set(vec.names()) == {
        name for name, i in layer.items() if i in (1, 3) or (i == 2 and "self_attn" not in name)
    }
    _, expected = plain(inner(model), batch_rows(rows["rows"], step), 1.5, [1, 3])
    for name in vec.names():
        torch.testing.assert_close(
            vec.value(name), expected[name.removeprefix("base_model.model.")], rtol=1e-9, atol=1e-11
        )


def test_layers_that_are_not_drawn_stay_bit_for_bit_under_decay_and_momentum(rows):
    made = tiny(torch.float32, layers=DEPTH)
    before, drawn_ever, seen = state(made), set(), []
    defense = TVaccine(gamma=1, resample=2, rescore=4)

    def watch(update, of, terms):
        after = state(made)
        seen.append({name for name in before if not torch.equal(before[name], after[name])})
        before.update(after)

    train(
        made,
        defense,
        rows,
        Training(updates=12, lr=1e-2, batch=2, weight_decay=0.5, lora=None),
        seed=0,
        watch=watch,
    )
    for moved in seen:
        [layer] = {name.split(".")[2] for name in moved}
        assert all(f"layers.{layer}." in name for name in moved)
        drawn_ever.add(layer)
    assert len(drawn_ever) > 1
    assert [moved == other for moved, other in zip(seen[::2], seen[1::2], strict=True)] == [
        True
    ] * 6


def test_the_scores_are_norms_on_harmful_rows_and_may_be_averaged(model, rows, accelerator):
    step = step_for(model, rows, accelerator, batch=2, accumulate=2)
    defense = TVaccine(gamma=2, memory=0.75)
    layers = defense.prepare(step)
    defense.gradient(step, layers)
    found = {row.ids: row for row in rows["harmful"]}
    pairs = [
        pair
        for part in step.batch("harmful").parts
        for pair in zip(part.ids, part.mask, strict=True)
    ]
    at, _ = plain(
        inner(model), [found[tuple(ids[: int(mask.sum())].tolist())] for ids, mask in pairs], 1.0
    )
    for layer in range(DEPTH):
        assert layers.scores[str(layer)] == pytest.approx(
            sum(float((each[layer] ** 2).sum()) for each in at) ** 0.5, rel=1e-10
        )
    once, step = (
        dict(layers.scores),
        step_for(model, {**rows, "harmful": rows["harmful"][::-1]}, accelerator, update=201),
    )
    other = TVaccine(gamma=2).prepare(step)
    TVaccine(gamma=2).gradient(step, other)
    defense.gradient(
        step_for(model, {**rows, "harmful": rows["harmful"][::-1]}, accelerator, update=201), layers
    )
    for layer, score in layers.scores.items():
        assert score == pytest.approx(0.75 * once[layer] + 0.25 * other.scores[layer], rel=1e-10)
    assert once != other.scores


def test_scores_and_draws_come_at_their_updates(rows, accelerator):
    made, defense = tiny(layers=DEPTH), TVaccine(gamma=2, resample=3, rescore=6)
    assert defense.period == 6
    layers = defense.prepare(step_for(made, rows, accelerator))
    scored, changed = [], []
    for update in range(1, 14):
        step = step_for(made, rows, accelerator, update=update)
        layers.chosen = [0, 1, 2, 3] if update > 1 and (update - 1) % 3 == 0 else layers.chosen
        before = list(layers.chosen)
        defense.gradient(step, layers)
        scored += [update] if "h" in step.logged else []
        changed += [update] if layers.chosen != before else []
        assert len(layers.chosen) == 2
    assert (scored, changed) == ([1, 7, 13], [1, 4, 7, 10, 13])


def test_layers_are_drawn_by_their_scores_without_replacement(rows, accelerator):
    scores = {"0": 5.0, "1": 1.0, "2": 3.0, "3": 1.0}
    p = {int(layer): score / 10.0 for layer, score in scores.items()}
    expected: Counter = Counter()
    for first, second in permutations(range(DEPTH), 2):
        expected[tuple(sorted((first, second)))] += p[first] * p[second] / (1 - p[first])
    made, counts, draws = tiny(layers=DEPTH), Counter(), 4000
    for update in range(draws):
        step = step_for(made, rows, accelerator, update=update)
        counts[tuple(TVaccine(gamma=2)._draw(step, Layers(scores)))] += 1
    assert set(counts) == set(expected)
    for pair, chance in expected.items():
        assert abs(counts[pair] - draws * chance) < 5 * (draws * chance * (1 - chance)) ** 0.5
    step = step_for(made, rows, accelerator, update=7)
    assert TVaccine(gamma=2, top=True)._draw(step, Layers(scores)) == [0, 2]
    assert TVaccine(gamma=3, top=True)._draw(step, Layers(scores)) == [
        0,
        1,
        2,
    ]  # of equal ones the lower
    again = [
        TVaccine(gamma=2)._draw(step_for(made, rows, accelerator, update=7), Layers(scores))
        for _ in range(2)
    ]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rho": -1.0}, "rho=-1.0"),
        ({"gamma": 0}, "gamma=0: must be at least 1"),
        ({"resample": 0}, "resample=0"),
        ({"rescore": 0}, "rescore=0"),
        ({"memory": 1.0}, "memory=1.0: must be at least 0 and below 1"),
        ({"memory": -0.1}, "memory=-0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TVaccine(**fields)
    assert (TVaccine(rho=0.0).rho, TVaccine(rho=0.5).rho) == (0.0, 0.5)
    assert {TVaccine(), TVaccine(3.0, 8, 20, 200, 0.0, False)} == {TVaccine()}


def test_layers_that_are_not_there_or_have_no_weights_are_refused(rows, accelerator):
    made = tiny(layers=DEPTH)
    for name, weight in made.named_parameters():
        weight.requires_grad_("layers.0" not in name)
    step = step_for(made, rows, accelerator, update=2)
    with (
        pytest.raises(ValueError, match=r"layers \[0\] hold none of the trained weights"),
        step.only([0]),
    ):
        pass
    for chosen in ([], [4], [-1]):
        with pytest.raises(ValueError, match="choose some of 0 to 3"), step.only(chosen):
            pass


def test_flags_and_forwards_come_back_also_after_an_exception(rows, accelerator):
    made = tiny(layers=DEPTH)
    step = step_for(made, rows, accelerator)
    with pytest.raises(RuntimeError, match="no"), step.only([1], recompute=True):
        _raise_where(not made.model.layers[0].mlp.up_proj.weight.requires_grad)
    assert all(weight.requires_grad for weight in made.parameters())
    assert not any("forward" in vars(layer) for layer in made.model.layers)


def _raise_where(frozen: bool) -> None:
    if frozen:
        raise RuntimeError("no")
