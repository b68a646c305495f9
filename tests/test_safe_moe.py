"""SafeMoE against plain computations, prompt by prompt and as whole trajectories, and at its limits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.overrides import TorchFunctionMode

import trained
from conftest import tiny
from families import FAMILIES, SPARSE
from test_booster import plain_loss
from test_step import same, state, step_for
from titer import registry, testing
from titer.data.batches import Encoded, Stream, collate
from titer.defenses.safe_moe import Routing, SafeMoE
from titer.defenses.sft import SFT
from titer.methods import Answers, Harmful, Needs
from titer.phase import Phase
from titer.testing.small import sparse
from titer.training.layers import layers, watch_routers
from titer.training.routing import end_logits
from titer.training.settings import DRAWN, Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora
from trained import check_resumes, move

LORA = Lora(r=2, alpha=4, targets=("q_proj", "v_proj"))  # the authors'
SWEEP = Phase("sweep", 2, lr=2e-3, clipped=False, counted=False)
SHORT = SafeMoE(every=3, sweep=2, prompts=4, lr=2e-3)
SETTINGS = Training(updates=8, lr=1e-3, batch=2, weight_decay=0.0, clip=0.05, lora=None)

test_contract = testing.contract(replace(SHORT, random=True), replace(SHORT, lam=30.0, lr=None))


class Wide(TorchFunctionMode):
    """Inside, whatever a model computes in float32 it computes in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            return args[0].double()
        named = {name: widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(widen, args), **named)


@pytest.fixture
def wide():
    with Wide():
        yield


def pair(lora, make=sparse):
    return trained.pair(lora, make, LORA)


def routes(model, row):
    """The logits of every router at the last token of a prompt, which alone is read: [(E,)]."""
    found = model(torch.tensor([row.ids[: row.answer]]), output_router_logits=True).router_logits
    return [logits[-1] for logits in found]


def plain_reg(model, start, prompts, tau, turn=lambda logits: logits):
    """`turn` makes the target of the start's logits, a list over layers."""
    total = 0.0
    for row in prompts:
        with torch.no_grad():
            then = turn(routes(start, row))
        for now, of_start in zip(routes(model, row), then, strict=True):
            total = total + kl_divergence(
                Categorical(logits=of_start / tau), Categorical(logits=now / tau)
            )
    return total / len(prompts) / len(then)


def sweeping(model, rows, accelerator, **more):
    step = step_for(model, rows, accelerator, **more)
    step.phase = SWEEP
    return step


def off(vec, objective, step):
    """The distance of a gradient from that of an objective by plain autograd, over its norm."""
    names, weights = zip(*step.parameters.items(), strict=True)
    grads = torch.autograd.grad(objective, weights, allow_unused=True)
    wanted = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    assert set(vec.names()) == set(wanted)
    size = math.sqrt(sum(float((grad**2).sum()) for grad in wanted.values()))
    assert size > 0.0
    apart = [float(((vec.value(name) - grad) ** 2).sum()) for name, grad in wanted.items()]
    return math.sqrt(sum(apart)) / size


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    "method", [SafeMoE(prompts=4), SafeMoE(1.0, prompts=7, lam=3.0), SafeMoE(prompts=3)]
)
@pytest.mark.parametrize("batch", [2, 3])
def test_the_gradient_of_a_sweep_is_that_of_the_divergence(
    wide, rows, accelerator, lora, method, batch
):
    model, bare, start = pair(lora)
    step = sweeping(model, rows, accelerator, batch=batch)
    prepared = method.prepare(step)
    prompts = step_for(model, rows, accelerator).streams["harmful"].take(method.prompts)
    assert len({row.answer for row in prompts}) > 1  # so that there are pads
    move(model)
    vec = method.gradient(step, prepared)
    reg = plain_reg(bare, start, prompts, method.tau)
    assert reg > 1e-3
    assert off(vec, method.lam * reg, step) < 1e-10
    assert step.logged == {"reg": pytest.approx(reg.item(), rel=1e-10)}
    assert any("gate" in name for name in vec.names()) is not lora  # frozen under an adapter
    assert {name: stream.position for name, stream in step.streams.items()} == {
        "rows": 0,
        "harmful": method.prompts,
        "held_out": 0,
        "alignment": 0,
    }


def family_of(name):
    def made():
        model = FAMILIES[name](vocabulary=400).double()
        model.set_experts_implementation("eager")  # the others know no float64
        return model

    return made


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", SPARSE)
def test_every_sparse_family_s_routers_are_read(wide, rows, accelerator, family, lora):
    """Dense layers do not count: two families here have one."""
    model, bare, start = pair(False, family_of(family))
    if lora:
        targets = ("q_b_proj", "o_proj") if "Deepseek" in family else ("q_proj", "o_proj")
        model = add_lora(bare, replace(LORA, targets=targets)).double()
    step = sweeping(model, rows, accelerator)
    method = SafeMoE(prompts=6)
    prepared = method.prepare(step)
    assert {r.shape for r in prepared.r.values()} == {(1, len(SPARSE[family]), 4)}
    move(model, by=0.02)
    prompts = step_for(model, rows, accelerator).streams["harmful"].take(6)
    reg = plain_reg(bare, start, prompts, method.tau)
    assert off(method.gradient(step, prepared), reg, step) < 1e-9
    assert reg > 0.0


@pytest.mark.parametrize("family", SPARSE)
def test_every_sparse_family_is_trained_in_float32(rows, family):
    model = add_lora(FAMILIES[family](vocabulary=400), replace(LORA, targets=("all-linear",)))
    history = train(model, SHORT, rows, replace(SETTINGS, updates=4), seed=0)
    told = [terms["reg"] for terms in history if "reg" in terms]
    assert len(told) == 4
    assert all(0.0 < reg < math.inf for reg in told)


class Trajectory:
    """Plain SFT and plain sweeps in turn, under torch's own AdamW, with a fresh gradient each."""

    def __init__(self, model, bare, start, rows, method, settings):
        self.method, self.settings = method, settings
        self.bare, self.start = bare, start
        self.named = {n: w for n, w in model.named_parameters() if w.requires_grad}
        self.streams = {name: Stream(name, rows[name], seed=0) for name in ("rows", "harmful")}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=1.0, weight_decay=0.0)
        self.terms, self.lrs = [], []

    def update(self, objective, lr, clip=None):
        for weight in self.named.values():
            weight.grad = None
        objective.backward()
        reached = [weight for weight in self.named.values() if weight.grad is not None]
        if clip:
            assert nn.utils.clip_grad_norm_(reached, clip) > clip
        else:
            norm = sum(float((weight.grad**2).sum()) for weight in reached) ** 0.5
            assert norm > self.settings.clip  # so that clipping would show
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.terms.append(objective.item())
        self.lrs.append(lr)

    def follow(self, phases, updates):
        done = 0
        for letter in phases:
            scheduled = self.settings.lr * (1 - done / updates)
            if letter == "t":
                rows = self.streams["rows"].take(self.settings.batch)
                self.update(plain_loss(self.bare, rows), scheduled, self.settings.clip)
                done += 1
            else:
                prompts = self.streams["harmful"].take(self.method.prompts)
                reg = plain_reg(self.bare, self.start, prompts, self.method.tau)
                lr = scheduled if self.method.lr is None else self.method.lr
                self.update(self.method.lam * reg, lr)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", [replace(SHORT, lam=4.0), replace(SHORT, lr=None, lam=9.0)])
def test_the_trajectory_is_sft_with_sweeps_between(wide, rows, lora, method):
    """No gradient of one kind is left over for the other, no sweep is clipped, and the schedule is that of
    the user's updates: at its end the learning rate of sweeps that follow it is 0.
    """
    settings = replace(SETTINGS, schedule="linear", clip=0.01)
    model, _, _ = pair(lora)
    history = train(model, method, rows, settings, seed=0)
    phases = "tttsstttssttss"
    other = Trajectory(*pair(lora), rows, method, settings)
    other.follow(phases, settings.updates)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(
                weight.detach(), other.named[name].detach(), rtol=0, atol=1e-9
            )
    for letter, terms, plain, lr in zip(phases, history, other.terms, other.lrs, strict=True):
        if letter == "t":
            assert terms["f"] == pytest.approx(plain, rel=1e-8)
        else:
            assert method.lam * terms["reg"] == pytest.approx(plain, rel=1e-6)
        assert ("reg" in terms) is (letter == "s")
        assert ("f" in terms) is (letter == "t")
        assert terms["lr"] == pytest.approx(lr, abs=1e-15)
    assert (history[-1]["lr"] == 0.0) is (method.lr is None)
    plain = train(pair(lora)[0], SFT(), rows, settings, seed=0)
    tuned = [terms["lr"] for terms in history if "f" in terms]
    assert tuned == [terms["lr"] for terms in plain]  # its schedule is that of SFT
    assert history[-1][DRAWN] == 2 * 8


def names_of(method, updates):
    return [(phase.name, phase.updates) for phase in method.schedule(updates)]


def test_a_sweep_follows_every_turn_and_the_last_one():
    method = SafeMoE(every=3, sweep=2)
    turn = [("tune", 3), ("sweep", 2)]
    assert names_of(method, 8) == [*turn, *turn, ("tune", 2), ("sweep", 2)]
    assert names_of(method, 6) == turn * 2
    assert names_of(method, 1) == [("tune", 1), ("sweep", 2)]
    assert names_of(SafeMoE(), 500) == [("tune", 172), ("sweep", 4)] * 2 + [
        ("tune", 156),
        ("sweep", 4),
    ]
    assert names_of(replace(method, sweep=0), 8) == [("tune", 8)]
    for lr in (3e-4, None):
        first, second, *_ = replace(method, lr=lr).schedule(8)
        assert first == Phase("tune", 3)
        assert second == Phase("sweep", 2, lr=lr, clipped=False, counted=False)


def test_without_a_sweep_it_is_sft_bit_for_bit_and_with_sweeps_routing_stays_nearer(rows):
    settings = replace(SETTINGS, updates=12, lr=3e-3, clip=1.0, weight_decay=0.1)
    ends, regs = [], []
    strong = replace(SHORT, sweep=4, prompts=20, lr=3e-3, lam=100.0)
    for method in (SFT(), SafeMoE(every=5, sweep=0, prompts=20), strong):
        model = sparse(torch.float32)
        history = train(model, method, rows, settings, seed=0)
        ends.append((state(model), history))
        with torch.no_grad():
            start = sparse(torch.float32)
            regs.append(float(plain_reg(model, start, rows["harmful"], 0.1)))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not same(ends[0][0], ends[2][0])
    assert regs[0] > 3 * regs[2] > 0.0


@pytest.mark.parametrize(
    ("dtype", "autocast", "rounding"),
    [
        (torch.float64, None, 1e-7),
        (torch.float32, None, 1e-5),
        (torch.float32, torch.bfloat16, 0.1),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_at_the_start_it_is_what_rounding_leaves(
    rows, accelerator, dtype, autocast, rounding, lora
):
    model = sparse(dtype)
    step = sweeping(add_lora(model, LORA).to(dtype) if lora else model, rows, accelerator)
    step.autocast = autocast
    prepared = SHORT.prepare(step)
    vec = SHORT.gradient(step, prepared)
    assert abs(step.logged["reg"]) <= rounding**2
    start_norm = vec.norm()
    move(model)
    assert start_norm <= 10 * rounding * SHORT.gradient(step, prepared).norm()
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {r.dtype for r in prepared.r.values()} == {kept}


def test_at_the_start_it_is_exactly_nothing_in_the_batch_that_was_read(rows, accelerator):
    few = rows | {"harmful": sorted(rows["harmful"], key=lambda row: row.answer)[:1]}
    step = sweeping(sparse(torch.float32), few, accelerator)
    method = replace(SHORT, prompts=1)
    vec = method.gradient(step, method.prepare(step))
    assert step.logged["reg"] == 0.0
    assert not any(vec.value(name).any() for name in vec.names())


def test_a_high_temperature_leaves_nothing_to_hold(wide, rows, accelerator):
    """KL of nearly uniform distributions is a square of differences over 2 E tau^2."""
    found = []
    for tau in (1e3, 1e4):
        model = sparse()
        step = sweeping(model, rows, accelerator)
        method = SafeMoE(tau, prompts=4)
        prepared = method.prepare(step)
        move(model)
        vec = method.gradient(step, prepared)
        found.append((tau**2 * step.logged["reg"], tau**2 * vec.norm()))
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert found[0][0] > 0.01


def test_the_reference_stands_first(wide, rows, accelerator):
    """KL(reference || current): of two that are far apart it is not that of the other order."""
    model, start = sparse(), sparse()
    step = sweeping(model, rows, accelerator)
    prepared = SHORT.prepare(step)
    move(model, by=0.3)
    SHORT.gradient(step, prepared)
    prompts = step_for(model, rows, accelerator).streams["harmful"].take(SHORT.prompts)
    with torch.no_grad():
        there, back = (plain_reg(*each, prompts, 0.1) for each in ((model, start), (start, model)))
    assert step.logged["reg"] == pytest.approx(float(there), rel=1e-10)
    assert abs(float(back) - float(there)) > 0.1 * float(there)


def test_the_null_has_the_same_probabilities_at_other_experts(wide, rows, accelerator):
    null = replace(SHORT, random=True)
    prepared, turned = {}, {}
    for seed in range(8):
        model = sparse(layers=3)
        step = sweeping(model, rows, accelerator)
        step.streams["rows"].seed = seed
        kept, other = SHORT.prepare(step).r, null.prepare(step).r
        assert kept.keys() == other.keys()
        places = []
        for layer in range(3):
            found = {
                place
                for place in range(4)
                if all(
                    torch.equal(kept[name][0, layer].roll(place), other[name][0, layer])
                    for name in kept
                )
            }
            assert len(found) == 1  # the same one for every prompt
            places += found
        assert 0 not in places  # else a layer would be held to where it was
        turned[seed] = tuple(places)
        prepared[seed] = other
    assert same(null.prepare(step).r, other)  # the seed's alone
    assert len(set(turned.values())) > 4
    assert {place for places in turned.values() for place in places} == {1, 2, 3}
    assert any(len(set(places)) > 1 for places in turned.values())

    model, start = sparse(layers=3), sparse(layers=3)
    step = sweeping(model, rows, accelerator)
    step.streams["rows"].seed = 5
    move(model)
    prompts = step_for(model, rows, accelerator).streams["harmful"].take(4)

    def turn(logits):
        return [of.roll(place) for of, place in zip(logits, turned[5], strict=True)]

    reg = plain_reg(model, start, prompts, 0.1, turn)
    assert off(null.gradient(step, Routing(prepared[5])), reg, step) < 1e-10


def test_prompts_are_read_once_each_and_answers_not_at_all(wide, rows, accelerator):
    found = []
    for answer in (None, (7,), (9, 8, 7)):
        given = rows["harmful"][:6]
        if answer is not None:
            given = [Encoded(row.ids[: row.answer] + answer, row.answer) for row in given]
        model = sparse()
        passes = []
        handle = model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        step = sweeping(model, rows | {"harmful": [*given, *given[:3]]}, accelerator, batch=2)
        prepared = SHORT.prepare(step)
        handle.remove()
        assert len(passes) == 3  # six prompts, two at a time
        assert len(prepared.r) == 6
        assert not any(stream.position for stream in step.streams.values())
        move(model)
        found.append((SHORT.gradient(step, prepared), step.logged["reg"]))
    for vec, reg in found[1:]:
        assert reg == pytest.approx(found[0][1], rel=1e-9)
        assert (vec - found[0][0]).norm() < 1e-9 * vec.norm()


def test_micro_batches_change_nothing(wide, rows, accelerator):
    found = []
    for batch in (4, 3, 1):
        model = sparse()
        step = sweeping(model, rows, accelerator, batch=batch)
        prepared = SHORT.prepare(step)
        move(model)
        found.append(SHORT.gradient(step, prepared))
    for other in found[1:]:
        assert (found[0] - other).norm() < 1e-11 * found[0].norm()


def test_a_sweep_of_as_many_prompts_as_there_are_has_each_once(rows):
    seen = []

    class Looking(SafeMoE):
        def gradient(self, step, state):
            before = step.streams["harmful"].position
            vec = super().gradient(step, state)
            now = Stream("harmful", rows["harmful"], 0).take(step.streams["harmful"].position)
            seen.append(now[before:])
            return vec

    train(
        sparse(torch.float32),
        Looking(every=4, sweep=4, prompts=5),
        rows,
        replace(SETTINGS, lr=1e-4),
        seed=0,
    )
    for i in (4, 12):
        drawn = [row.ids for rows in seen[i : i + 4] for row in rows]
        assert sorted(drawn) == sorted(row.ids for row in rows["harmful"])
    assert not any(seen[:4] + seen[8:12])


@pytest.mark.parametrize("every", [2, 4, 5])  # before a sweep, within it, behind it
@pytest.mark.parametrize("method", [SHORT, replace(SHORT, random=True)])
def test_it_resumes_within_a_sweep_and_between_two(rows, tmp_path, every, method):
    def fresh():
        torch.manual_seed(0)
        return add_lora(sparse(torch.float32), LORA)

    check_resumes(fresh, method, rows, SETTINGS, tmp_path, every)


def test_only_what_lies_before_a_router_is_trained_by_a_sweep(rows, accelerator):
    model = sparse(torch.float32)
    step = sweeping(model, rows, accelerator)
    prepared = SHORT.prepare(step)
    move(model)
    left = set(step.parameters) - set(SHORT.gradient(step, prepared).names())
    assert left == {
        "model.norm.weight",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.down_proj",
    }
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in left)
    step = sweeping(model, rows, accelerator)
    with pytest.raises(ValueError, match="no trained weight lies before a router: adapt linear"):
        SHORT.gradient(step, prepared)


def test_a_dense_model_is_refused_in_one_line_that_names_another_method(rows, accelerator):
    with pytest.raises(ValueError, match="safe_moe works on how layers route tokens") as error:
        SHORT.prepare(step_for(tiny(), rows, accelerator))
    assert "all 2 layers of this model are dense: choose" in str(error.value)
    assert "anchor" in str(error.value)
    assert "\n" not in str(error.value)


class Bare(nn.Module):
    """A router as of other families: something else comes first, or nothing but logits."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, hidden):
        return self.change(*self.inner(hidden))


def call(found, routers):
    """Watch the routers of layers while some modules run."""
    with watch_routers(found) as seen:
        for router in routers:
            router(torch.ones(3, 32))
    return seen


def test_only_the_first_pass_is_seen():
    found = layers(sparse(torch.float32))
    first, second = (layer.router for layer in found)
    assert [logits.shape for logits in call(found, [first, second, first])] == [(3, 4), (3, 4)]


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, weights, experts: logits,
        lambda logits, weights, experts: (weights, logits, experts),
        lambda logits, weights, experts: (logits, weights),
        lambda logits, weights, experts: (logits, weights, experts, experts),
        lambda logits, weights, experts: (logits[None], weights, experts),
        lambda logits, weights, experts: (logits, weights, 2),
        lambda logits, weights, experts: (logits.softmax(1).bfloat16(), weights, experts),
        lambda logits, weights, experts: (logits, weights[:2], experts[:2]),
    ],
)
def test_a_router_that_cannot_be_read_is_refused_by_its_layer(change):
    model = sparse(torch.float32)
    gate = model.model.layers[1].mlp.gate
    found = layers(model)
    found[1] = replace(found[1], router=Bare(gate, change))
    with pytest.raises(
        ValueError, match=r"router of layer 'model.layers.1' does not return logits"
    ):
        call(found, [found[0].router, found[1].router])


def test_a_router_that_is_not_called_is_refused_by_its_layer():
    found = layers(sparse(torch.float32))
    with pytest.raises(ValueError, match=r"router of layer 'model.layers.1' runs in no pass"):
        call(found, [found[0].router, found[0].router])
    assert not any(layer.router._forward_hooks for layer in found)


def test_logits_are_those_before_the_softmax_at_the_ends_of_prompts(wide, rows):
    model = sparse()
    part = collate([row.opening for row in rows["harmful"][:4]], 0)
    with torch.no_grad():
        found = end_logits(layers(model))(model, part)
        wanted = [torch.stack(routes(model, row)) for row in rows["harmful"][:4]]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)


def test_the_state_survives_a_checkpoint():
    r = {"a": torch.ones(1, 2, 4)}
    assert SafeMoE().restore({"r": r}) == Routing(r)


def test_what_makes_no_sense_is_refused(rows, accelerator):
    for fields, said in (
        *(
            ({name: value}, f"{name}={value}: must be above 0, and finite")
            for name in ("tau", "lr", "lam")
            for value in (0.0, -0.1, float("nan"), float("inf"))
        ),
        ({"every": 0}, "every=0, sweep=4: give at least 1 update"),
        ({"sweep": -1}, "every=172, sweep=-1: give at least 1 update"),
        ({"prompts": 0}, "prompts=0: give at least 1, or sweep=0"),
    ):
        with pytest.raises(ValueError, match=said):
            SafeMoE(**fields)
    step = step_for(sparse(), rows, accelerator)
    with pytest.raises(
        ValueError, match="prompts=21: the defender has 20 harmful rows; give at most"
    ):
        SafeMoE(prompts=21).prepare(step)
    assert SafeMoE(prompts=20, sweep=0).prepare(step) is None
    assert len(SafeMoE(prompts=20).prepare(step).r) == len(
        {row.ids[: row.answer] for row in rows["harmful"]}
    )
    lowest = {"method": "safe_moe", "every": 1, "sweep": 0, "prompts": 1, "lr": None}
    assert registry.build("defenses", lowest) == SafeMoE(0.1, 1, 0, 1, None)
    assert {SafeMoE(), SafeMoE(0.1, 172, 4, 25, 1e-4, 1.0, False)} == {SafeMoE()}
    needs = replace(SafeMoE().needs, unsharded="")
    assert needs == Needs(streams={"rows": Answers, "harmful": Harmful}, sparse=True)
    assert SafeMoE().partial
