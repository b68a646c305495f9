"""SBR against a plain computation, prompt by prompt and without answers, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  a gradient of both terms is a sum
from test_step import same, state, step_for
from titer import registry, testing
from titer.data.batches import Encoded
from titer.defenses import anchor
from titer.defenses.anchor import Anchor, EndStates, mean_state, read_states, take_first
from titer.defenses.sft import SFT
from titer.methods import Answers, Harmful, Needs
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from trained import LORA, adapted, check_resumes, move, pair, watch_passes

WIDTH = 32  # D of the tiny model
REFUSAL = Anchor(30.0, 3, "refusal")

test_contract = testing.contract(REFUSAL, Anchor(prompts=7))


def end(model, row):
    """The state behind the final norm at the last token of a prompt, which alone is read: (D,)."""
    return model.model(torch.tensor([row.ids[: row.answer]])).last_hidden_state[0, -1]


def mean_end(model, rows):
    with torch.no_grad():
        return torch.stack([end(model, row) for row in rows]).mean(0)


def plain_distance(model, start, prompts, u=None):
    total = 0.0
    for row in prompts:
        with torch.no_grad():
            then = end(start, row)
        moved = end(model, row) - then
        total = total + ((moved**2).sum() if u is None else (moved @ u) ** 2)
    return total / len(prompts) / WIDTH


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", [Anchor(), Anchor(0.7, 5), REFUSAL, Anchor(900.0, 1, "refusal")])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_objective(rows, accelerator, lora, method, accumulate):
    model, bare, start = pair(lora)
    step = step_for(model, rows, accelerator, batch=3, accumulate=accumulate)
    prepared = method.prepare(step)
    streams = step_for(model, rows, accelerator).streams
    taken = streams["rows"].take(3 * accumulate)
    prompts = streams["harmful"].take(method.prompts)
    assert method.prompts < 3 or len({row.answer for row in prompts}) > 1  # so that there are pads
    u = None
    if method.along == "refusal":
        u = mean_end(start, rows["harmful"]) - mean_end(start, rows["rows"])
        u = u / (u**2).sum().sqrt()
        torch.testing.assert_close(prepared.u, u, rtol=0, atol=1e-13)
    move(model)
    vec = method.gradient(step, prepared)
    f = plain_loss(bare, taken)
    d = plain_distance(bare, start, prompts, u)
    names, weights = zip(*step.parameters.items(), strict=True)
    wanted = dict(zip(names, torch.autograd.grad(f + method.lam * d, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    assert set(vec.names()) == set(wanted)
    off = [float(((vec.value(name) - wanted[name]) ** 2).sum()) for name in names]
    assert math.sqrt(sum(off)) < 1e-10 * size
    assert step.logged == {
        "f": pytest.approx(f.item(), rel=1e-12),
        "d": pytest.approx(d.item(), rel=1e-10),
    }
    only = SFT().gradient(step, None)
    assert (vec - only).norm() > 1e-3 * only.norm()
    assert {name: stream.position for name, stream in step.streams.items()} == {
        "rows": 3 * accumulate,
        "harmful": method.prompts,
        "held_out": 0,
        "alignment": 0,
    }


@pytest.mark.parametrize("along", ["all", "refusal"])
@pytest.mark.parametrize(
    ("dtype", "autocast", "rounding"),
    [
        (torch.float64, None, 1e-14),
        (torch.float32, None, 1e-6),
        (torch.float32, torch.bfloat16, 1e-2),
        (torch.bfloat16, None, 1e-2),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_what_rounding_leaves(
    rows, accelerator, along, dtype, autocast, rounding, lora
):
    """A prompt that was read beside others than those of an update rounds otherwise. So d is not 0 at the
    start, but the square of a rounding, and its gradient is of the size of one rounding.
    """
    model = tiny(dtype)
    step = step_for(add_lora(model, LORA).to(dtype) if lora else model, rows, accelerator)
    step.autocast = autocast
    method = Anchor(1.0, 6, along)
    prepared = method.prepare(step)
    vec, plain = method.gradient(step, prepared), SFT().gradient(step, None)
    assert step.logged["d"] <= rounding**2
    assert vec.names() == plain.names()
    assert (vec - plain).norm() <= 10 * rounding * plain.norm()
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {h.dtype for h in prepared.h.values()} == {kept}
    assert along == "all" or prepared.u.dtype == kept


@pytest.mark.parametrize("along", ["all", "refusal"])
def test_in_half_precision_the_distance_is_nearly_the_same(rows, accelerator, along):
    method, found = Anchor(500.0, 6, along), []
    for dtype in (None, torch.bfloat16):
        model = tiny(torch.float32)
        step = step_for(model, rows, accelerator)
        step.autocast = dtype
        prepared = method.prepare(step)
        move(model)
        found.append((method.gradient(step, prepared), step.logged["d"]))
    assert found[1][1] == pytest.approx(found[0][1], rel=0.05)
    assert found[0][0].cosine(found[1][0]) > 0.99


def test_without_weight_it_is_sft_bit_for_bit_and_with_more_the_ends_stay_nearer(rows):
    ends, distances = [], []
    settings = Training(updates=10, lr=1e-3, batch=2, accumulate=2, lora=None)
    for method in (SFT(), Anchor(0.0), Anchor(0.0, 4, "refusal"), Anchor(1.0, 5), Anchor(100.0, 5)):
        model = tiny(torch.float32)
        history = train(model, method, rows, settings, seed=0)
        ends.append((state(model), history))
        with torch.no_grad():
            apart = plain_distance(model, tiny(torch.float32), rows["harmful"])
        distances.append(float(apart))
    for without in ends[1:3]:
        assert same(ends[0][0], without[0])
        assert ends[0][1] == without[1]
    assert not same(ends[0][0], ends[3][0])
    assert distances[1] > 1.05 * distances[3] > 1.2 * distances[4]


def test_along_the_refusal_direction_alone_the_rest_may_move(rows):
    """The projection stays nearer than under plain fine-tuning, and the rest moves further than it would."""
    settings = Training(updates=10, lr=1e-3, batch=2, lora=None)
    start = tiny(torch.float32)
    u = mean_end(start, rows["harmful"]) - mean_end(start, rows["rows"])
    u = u / u.norm()
    found = []
    for method in (SFT(), Anchor(300.0, 5), Anchor(300.0, 5, "refusal")):
        model = tiny(torch.float32)
        train(model, method, rows, settings, seed=0)
        with torch.no_grad():
            along = plain_distance(model, start, rows["harmful"], u)
            found.append((float(along), float(plain_distance(model, start, rows["harmful"]))))
    (free, free_all), (_, held_all), (held, rest) = found
    assert held < 0.5 * free
    assert held_all < 0.5 * rest
    assert held_all < 0.5 * free_all


def test_answers_are_not_read(rows, accelerator):
    found = []
    for answer in (None, (7,), (9, 8, 7)):
        given = (
            rows["harmful"]
            if answer is None
            else [Encoded(row.ids[: row.answer] + answer, row.answer) for row in rows["harmful"]]
        )
        model = tiny()
        step = step_for(model, rows | {"harmful": given}, accelerator)
        prepared = REFUSAL.prepare(step)
        move(model)
        found.append((REFUSAL.gradient(step, prepared), step.logged["d"]))
    for vec, d in found[1:]:
        assert d == pytest.approx(found[0][1], rel=1e-12)
        assert (vec - found[0][0]).norm() < 1e-12 * vec.norm()


def test_micro_batches_change_nothing(rows, accelerator):
    found = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        model = tiny()
        step = step_for(model, rows, accelerator, batch, accumulate)
        prepared = REFUSAL.prepare(step)
        move(model)
        found.append(REFUSAL.gradient(step, prepared))
    for other in found[1:]:
        assert (found[0] - other).norm() < 1e-12 * found[0].norm()


def test_as_many_prompts_as_rows_are_the_same_at_every_update(rows, accelerator):
    """So that the anchors of the paper are a number of rows."""
    few = rows | {"harmful": rows["harmful"][:4]}
    model, method = tiny(), Anchor(prompts=4)
    step = step_for(model, few, accelerator)
    prepared = method.prepare(step)
    move(model)
    found = []
    for update in (1, 2, 3):
        now = replace(step, update=update, logged={}, _batches={})
        method.gradient(now, prepared)
        found.append(now.logged["d"])
    assert found == pytest.approx(
        [plain_distance(model, tiny(), few["harmful"]).item()] * 3, rel=1e-10
    )


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", [Anchor(), REFUSAL])
def test_what_is_kept_is_that_of_the_start(rows, lora, method):
    """At each of some updates, d is against a model that was never trained, whose weights nobody keeps."""
    model, bare, start = pair(lora)
    u = mean_end(start, rows["harmful"]) - mean_end(start, rows["rows"])
    u = None if method.along == "all" else u / u.norm()
    seen = []

    class Looking(Anchor):
        def gradient(self, step, state):
            assert step.start is None
            prompts = replace(step.streams["harmful"]).take(self.prompts)
            with torch.no_grad():
                seen.append(float(plain_distance(bare, start, prompts, u)))
            return super().gradient(step, state)

    settings = Training(updates=6, lr=1e-2, batch=2, lora=None)
    looking = Looking(method.lam, method.prompts, method.along)
    history = train(model, looking, rows, settings, seed=0)
    assert [terms["d"] for terms in history] == pytest.approx(seen, rel=1e-9, abs=1e-24)
    assert history[-1]["d"] > 1e-7


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("along", ["all", "refusal"])
def test_a_prompt_is_read_once_before_the_first_update(rows, lora, along):
    """However often it is in the data or drawn, and whatever its answer; an ordinary one for u alone."""
    model, bare, _ = pair(lora)
    harmful = rows["harmful"][:5]
    longer = [Encoded((*row.ids, row.ids[-1]), row.answer) for row in harmful[:3]]
    given = {"rows": [*rows["rows"][:7], *rows["rows"][:2]], "harmful": [*harmful, *longer]}
    seen = watch_passes(bare)

    class Looking(Anchor):
        def gradient(self, step, state):
            if step.update == 1:
                assert sum(count for _, count in seen) == (5 if along == "all" else 5 + 7)
                assert not any(graph for graph, _ in seen)
                assert len(state.h) == 5
                seen.clear()
            return super().gradient(step, state)

    settings = Training(updates=3, lr=1e-3, batch=2, lora=None)
    train(model, Looking(1.0, 3, along), given, settings, seed=0)
    assert seen == [(True, 2), (True, 2), (True, 1)] * 3  # rows, and three prompts


@pytest.mark.parametrize("along", ["all", "refusal"])
def test_without_weight_nothing_is_read(rows, accelerator, along):
    model = tiny()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a pass"))
    step = step_for(model, rows, accelerator)
    assert Anchor(0.0, 4, along).prepare(step) is None


def test_the_direction_is_that_of_at_most_128_prompts_of_either(rows, accelerator):
    many = {name: of * 12 for name, of in rows.items()}
    step = step_for(tiny(), many, accelerator, batch=50)
    m = {}
    for name in ("harmful", "rows"):
        first = step_for(tiny(), many, accelerator).streams[name].take(128)
        assert take_first(step, name) == first
        m[name] = mean_end(tiny(), first)
        found = mean_state(read_states(step, many[name]), first)
        torch.testing.assert_close(found, m[name], rtol=0, atol=1e-13)
    apart = m["harmful"] - m["rows"]
    u = REFUSAL.prepare(step).u
    torch.testing.assert_close(u, apart / apart.norm(), rtol=0, atol=1e-12)
    assert not any(stream.position for stream in step.streams.values())
    assert not u.requires_grad


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("along", ["all", "refusal"])
def test_it_resumes_with_what_it_read_at_the_start(rows, tmp_path, lora, along):
    def fresh():
        return adapted() if lora else tiny(torch.float32)

    settings = Training(updates=8, lr=1e-2, batch=2, lora=None)
    check_resumes(fresh, Anchor(50.0, 3, along), rows, settings, tmp_path)


def test_the_state_is_made_again_from_its_fields():
    h, u = {"a": torch.ones(1, 3)}, torch.ones(3)
    assert Anchor().restore({"h": h, "u": u}) == EndStates(h, u)
    assert Anchor().restore({"h": h, "u": None}) == EndStates(h, None)
    assert anchor.MOST == 128


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"lam": -0.1}, "lam=-0.1: must be at least 0, and finite"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"prompts": 0}, "prompts=0: give at least 1, or lam=0"),
    ):
        with pytest.raises(ValueError, match=said):
            Anchor(**fields)
    step = step_for(tiny(), rows, accelerator)
    with pytest.raises(
        ValueError, match="prompts=21: the defender has 20 harmful rows; give at most"
    ):
        Anchor(prompts=21).prepare(step)
    with pytest.raises(ValueError, match="prompts=21"):
        Anchor(0.0, prompts=21).prepare(step)
    assert Anchor(prompts=20).prepare(step).u is None
    alike = step_for(tiny(), dict.fromkeys(("rows", "harmful"), rows["rows"][:1]), accelerator)
    with pytest.raises(
        ValueError, match="along='refusal': harmful and ordinary prompts end in the same"
    ):
        Anchor(prompts=1, along="refusal").prepare(alike)
    near = step_for(tiny(), {"rows": rows["rows"][:20], "harmful": rows["rows"][:19]}, accelerator)
    m, n = (mean_end(tiny(), near.streams[name].rows) for name in ("harmful", "rows"))
    assert 0.0 < (m - n).norm() < 1.0
    assert float(Anchor(along="refusal").prepare(near).u.norm()) == pytest.approx(1.0, rel=1e-12)
    lowest = {"method": "anchor", "lam": 0, "prompts": 1, "along": "refusal"}
    assert registry.build("defenses", lowest) == Anchor(0.0, 1, "refusal")
    assert {Anchor(), Anchor(50.0, 2, "all")} == {Anchor()}
    assert Anchor().needs == Needs(streams={"rows": Answers, "harmful": Harmful})
