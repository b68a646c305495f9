"""Lisa against a plain computation of whole trajectories, and at its limits."""

from dataclasses import replace

import pytest
import torch

from conftest import tiny
from test_booster import plain_loss
from test_repnoise import _norms_in_float64  # noqa: F401  in float32 a trajectory would part from the plain one
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Stream
from titer.defenses.lisa import Lisa, Origin
from titer.defenses.sft import SFT
from titer.methods import Answers, Needs, Refusals
from titer.phase import Phase
from titer.training.settings import DRAWN, Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora
from trained import adapted, check_resumes

SETTINGS = Training(updates=11, lr=1e-3, batch=2, weight_decay=0.0, clip=None, lora=None)
LORA = Lora(r=2, alpha=6, targets=("q_proj", "down_proj"))
STATES = "aatttaatttaattt"  # of k1=2, k2=3


class Adam:
    """AdamW without decay, as its paper has it, with torch's defaults."""

    def __init__(self, weights, lr):
        self.weights, self.lr, self.t = weights, lr, 0
        self.m = [torch.zeros_like(weight) for weight in weights]
        self.v = [torch.zeros_like(weight) for weight in weights]

    def step(self, grads):
        self.t += 1
        with torch.no_grad():
            for i, (weight, g) in enumerate(zip(self.weights, grads, strict=True)):
                self.m[i] = 0.9 * self.m[i] + 0.1 * g
                self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
                m, v = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
                weight -= self.lr * m / (v.sqrt() + 1e-8)


def distance(weights, anchor, names, space):
    """Half the squared distance, the product's by the layer's whole matrix."""
    if space == "weights":
        return sum(((w - a) ** 2).sum() for w, a in zip(weights, anchor, strict=True)) / 2
    now, then = dict(zip(names, weights, strict=True)), dict(zip(names, anchor, strict=True))
    total = 0.0
    for name in names:
        if "lora_A" in name:
            b = name.replace("lora_A", "lora_B")
            total += (
                (LORA.alpha / LORA.r * (now[b] @ now[name] - then[b] @ then[name])) ** 2
            ).sum()
    return total / 2


def plain(model, base, rows, states, early, rho, space="weights", batch=2):
    """Return the weights after one update per letter of `states`, and a term or two of each."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    streams = {name: Stream(name, rows[name], seed=0) for name in ("rows", "alignment")}
    optimizer, ended = Adam(weights, SETTINGS.lr), {}
    start = [weight.detach().clone() for weight in weights]
    said = []
    for i, letter in enumerate(states):
        if i and letter != states[i - 1]:  # the other state has just ended
            ended[states[i - 1]] = [weight.detach().clone() for weight in weights]
        anchor = ended.get("t" if letter == "a" else "a", start)
        loss = plain_loss(base, streams["alignment" if letter == "a" else "rows"].take(batch))
        near = distance(weights, anchor, names, space)
        objective = loss + (rho * near if i >= early else 0.0)
        said.append((letter, loss.item(), near.item()))
        optimizer.step(torch.autograd.grad(objective, weights))
    return {name: weight.detach() for name, weight in zip(names, weights, strict=True)}, said


def both(lora, seed=1):
    """Two equal models, and the bare one within the second."""
    models = []
    for _ in range(2):
        bare = tiny()
        model = add_lora(bare, LORA).double() if lora else bare
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
                if "lora_A" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator))
        models.append(model)
    return *models, bare


@pytest.mark.parametrize(
    ("fields", "lora", "early"),
    [
        ({"rho": 0.7, "warmup": 0.0}, False, 0),
        ({"rho": 0.7, "warmup": 0.35}, False, 4),  # it ends within a state
        ({"rho": 3.0}, True, 1),
        ({"rho": 2.0, "space": "product", "warmup": 0.0}, True, 0),
        ({"rho": 0.3, "space": "product", "warmup": 0.5}, True, 6),
        ({"rho": 0.7, "warmup": 1.0}, False, 11),
    ],
)
def test_the_trajectory_is_that_of_the_two_problems_in_turn(rows, fields, lora, early):
    model, other, bare = both(lora)
    method = Lisa(k1=2, k2=3, **fields)
    history = train(model, method, rows, SETTINGS, seed=0)
    wanted, said = plain(
        other, bare, rows, STATES[:11], early, method.rho, fields.get("space", "weights")
    )
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.detach(), wanted[name], rtol=0, atol=1e-10)
    for i, (terms, (letter, loss, near)) in enumerate(zip(history, said, strict=True)):
        assert set(terms) - {"grad_norm", "lr", "drift"} == {
            DRAWN,
            "a" if letter == "a" else "f",
        }
        assert terms[DRAWN] == 2 * STATES[: i + 1].count("t")
        assert terms["a" if letter == "a" else "f"] == pytest.approx(loss, rel=1e-9)
        assert ("drift" in terms) == (i >= early)
        if i >= early:
            assert terms["drift"] == pytest.approx((2 * near) ** 0.5, rel=1e-7, abs=1e-12)
    reached = [terms["drift"] for terms in history[early:]]
    assert not reached or max(reached) > 1e-4


def test_an_anchor_is_where_the_other_state_ended(rows):
    """Shorter stages show where each state ended; the learning rate is constant."""
    ends = {}
    for updates in (3, 5, 7, 10):
        model = tiny()
        train(model, Lisa(2, 3, 0.5, 0.0), rows, replace(SETTINGS, updates=updates), seed=0)
        ends[updates] = state(model)
    seen = {}

    class Looking(Lisa):
        def gradient(self, step, state):
            vec = super().gradient(step, state)
            seen[step.update] = {name: weight.clone() for name, weight in state.weights.items()}
            assert not any(weight.requires_grad for weight in state.weights.values())
            return vec

    model = tiny()
    start = state(model)
    train(model, Looking(2, 3, 0.5, 0.0), rows, SETTINGS, seed=0)
    assert all(same(start, seen[update]) for update in (1, 2))
    assert all(same(seen[3], seen[update]) for update in (4, 5))
    assert all(same(ends[5], seen[update]) for update in (6, 7))
    assert all(same(ends[7], seen[update]) for update in (8, 9, 10))
    assert same(ends[10], seen[11])
    assert not same(seen[2], seen[3])
    assert not same(seen[3], ends[3])


@pytest.mark.parametrize("lora", [None, LORA])
def test_without_alignment_and_prox_it_is_sft_bit_for_bit(rows, lora):
    def end(method):
        torch.manual_seed(0)
        model = tiny(torch.float32)
        model = model if lora is None else add_lora(model, lora)
        history = train(model, method, rows, replace(SETTINGS, clip=1.0, weight_decay=0.1), seed=0)
        return state(model), history

    sft, history = end(SFT())
    for method, alike in (
        (Lisa(k1=0, rho=0.0), True),
        (Lisa(k1=0, k2=3, rho=0.0, warmup=0.0), True),
        (Lisa(k1=0, rho=1.0, warmup=1.0), True),
        (Lisa(k1=0, rho=1.0, warmup=0.0), False),
        (Lisa(k1=1, k2=3, rho=0.0), False),
    ):
        weights, terms = end(method)
        assert same(sft, weights) is alike
        assert (history == terms) is alike


def test_without_alignment_the_prox_is_to_the_start(rows):
    model, other, bare = both(lora=False)
    train(model, Lisa(k1=0, k2=3, rho=0.9, warmup=0.0), rows, SETTINGS, seed=0)
    wanted, _ = plain(other, bare, rows, "t" * 11, 0, 0.9)
    for name, weight in state(model).items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-10)


def test_a_larger_rho_stays_nearer(rows):
    moved = []
    for rho in (0.0, 1.0, 100.0):
        model = tiny()
        start = state(model)
        method = Lisa(k1=0, rho=rho, warmup=0.0)
        train(model, method, rows, replace(SETTINGS, updates=40), seed=0)
        moved.append(sum(float(((w - start[n]) ** 2).sum()) for n, w in state(model).items()))
    assert moved[0] > 1.05 * moved[1] > 1.1 * moved[2] > 0


def test_no_row_of_the_user_is_thrown_away(rows):
    """Those seen while tuning, and their order, are those of SFT; so are the defender's."""
    seen = {"rows": [], "alignment": []}

    class Drawing(Lisa):
        def gradient(self, step, state):
            vec = super().gradient(step, state)
            assert len(step._batches) == 1
            for name, batch in step._batches.items():
                seen[name] += [part.ids.tolist() for part in batch.parts]
            return vec

    class Plain(SFT):
        stream = "rows"

        def gradient(self, step, state):
            plain.extend(part.ids.tolist() for part in step.batch("rows").parts)
            return super().gradient(step, state)

    settings = replace(SETTINGS, updates=12, accumulate=2)
    train(tiny(torch.float32), Drawing(2, 3), rows, settings, seed=0)
    plain: list = []
    train(tiny(torch.float32), Plain(), rows, replace(settings, updates=6), seed=0)
    assert seen["rows"] == plain
    assert len(seen["alignment"]) == 2 * 6  # updates of two micro-batches
    order = Stream("alignment", rows["alignment"], seed=0).take(24)
    assert [row for part in seen["alignment"] for row in part] == [
        [*row.ids]
        + [0] * (max(len(r.ids) for r in order[i - i % 2 : i - i % 2 + 2]) - len(row.ids))
        for i, row in enumerate(order)
    ]


def names_of(method, updates):
    return [(phase.name, phase.updates) for phase in method.schedule(updates)]


def test_turns_are_counted_in_updates_and_the_warmup_ends_where_it_ends():
    assert names_of(Lisa(2, 3, warmup=0.0), 9) == [
        ("align", 2),
        ("tune", 3),
        ("align", 2),
        ("tune", 2),
    ]
    assert names_of(Lisa(2, 3, warmup=0.34), 12) == [
        ("early align", 2),
        ("early tune", 2),
        ("tune", 1),
        ("align", 2),
        ("tune", 3),
        ("align", 2),
    ]
    assert names_of(Lisa(1, 9, warmup=0.1), 30)[:4] == [
        ("early align", 1),
        ("early tune", 2),
        ("tune", 7),
        ("align", 1),
    ]
    assert names_of(Lisa(0, 3, warmup=0.2), 10) == [("early tune", 2), ("tune", 8)]
    assert names_of(Lisa(), 1000) == [("early align", 100), ("tune", 900)]
    assert all(
        phase == Phase(phase.name, phase.updates) for phase in Lisa().schedule(2000)
    )  # each counts, at the stage's rate, clipped
    with pytest.raises(ValueError, match="k1=5: a stage of 5 updates ends before its first one"):
        Lisa(5, 1).schedule(5)
    assert names_of(Lisa(5, 1, warmup=0.0), 6) == [("align", 5), ("tune", 1)]


def test_accumulation_changes_neither_turns_nor_weights(rows):
    """Two micro-batches of one row are one of two."""
    ends = []
    for settings in (SETTINGS, replace(SETTINGS, batch=1, accumulate=2)):
        model = tiny()
        train(model, Lisa(2, 3, 0.5, 0.0), rows, settings, seed=0)
        ends.append(state(model))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("every", [4, 5, 8])  # within a state, as one ends, within a later one
@pytest.mark.parametrize("space", ["weights", "product"])
def test_it_resumes_within_a_state_and_between_two(rows, tmp_path, every, space):
    method = Lisa(2, 3, 0.5, 0.0, space)

    def fresh():
        return adapted(LORA)

    check_resumes(fresh, method, rows, SETTINGS, tmp_path, every)


def test_what_the_gradient_does_not_reach_stays(rows, accelerator):
    """An expert that no row is sent to, say: SFT does not touch it either."""
    step = step_for(tiny(), rows, accelerator)
    step.phase = Phase("tune", 1)
    method = Lisa(rho=1.0)
    origin = method.prepare(step)
    method.gradient(step, origin)
    with torch.no_grad():
        for weight in step.parameters.values():
            weight.add_(0.01)
    full, part = step.grad, list(step.parameters)[1:]
    step.grad = lambda batch: full(batch).within(part)
    assert method.gradient(step, origin).names() == part


def test_products_that_are_equal_are_near_whatever_their_factors(rows, accelerator):
    model = both(lora=True)[0]
    step = step_for(model, rows, accelerator)
    step.phase = Phase("tune", 1)
    method = Lisa(rho=1.0, space="product")
    origin = method.prepare(step)
    plain = method.gradient(step, origin)
    with torch.no_grad():
        for name, weight in step.parameters.items():
            weight.mul_(2.0 if "lora_A" in name else 0.5)
    bare = SFT().gradient(step, None)
    assert (method.gradient(step, origin) - bare).norm() < 1e-12 * plain.norm()
    assert step.logged["drift"] < 1e-7
    apart = replace(method, space="weights").gradient(step, origin) - bare
    assert apart.norm() > 0.1
    with torch.no_grad():
        for weight in step.parameters.values():
            weight.mul_(2.0)
    assert (method.gradient(step, origin) - SFT().gradient(step, None)).norm() > 0.1


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        ({"k1": -1}, "k1=-1, k2=900: give at least 0"),
        ({"k2": 0}, "k1=100, k2=0: give at least 0"),
        ({"rho": -0.1}, "rho=-0.1"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"rho": float("inf")}, "rho=inf"),
        ({"warmup": -0.1}, "warmup=-0.1"),
        ({"warmup": 1.1}, "warmup=1.1"),
    ):
        with pytest.raises(ValueError, match=said):
            Lisa(**fields)
    with pytest.raises(ValueError, match="space='product' is the distance of what an adapter adds"):
        Lisa(space="product").prepare(step_for(tiny(), rows, accelerator))
    lowest = {"method": "lisa", "k1": 0, "k2": 1, "rho": 0, "warmup": 1}
    assert registry.build("defenses", lowest) == Lisa(0, 1, 0.0, 1.0)
    assert {Lisa(), Lisa(100, 900, 1.0, 0.1, "weights")} == {
        Lisa()
    }  # a value, by which stages are shared
    assert Lisa().needs == Needs(streams={"rows": Answers, "alignment": Refusals})
    assert Lisa().restore({"weights": {}, "state": "tune"}) == Origin({}, "tune")
