"""The contract of a defense."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from titer import registry
from titer.methods import Defense
from titer.testing.ranks import run_on_ranks
from titer.testing.small import Stop, flags, hooks, rows, same, small_for, state, step_for
from titer.training.settings import Training
from titer.training.sharding import copy_shards, take_back
from titer.training.step import Step
from titer.training.train import accelerator_for, train

SETTINGS = Training(updates=8, lr=1e-3, batch=2, weight_decay=0.3, lora=None)
PASSES = 12  # forward passes of an update that are made to fail, one at a time


def keeps_frozen_weights(method: Defense, folder: Path) -> None:
    """A training with weight decay leaves frozen weights, flags, hooks and gradients alone."""
    model = small_for(method, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" not in name)
    before, flagged, hooked = state(model), flags(model), hooks(model)
    train(model, method, rows(), replace(SETTINGS, updates=20), seed=0)
    after = state(model)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved, "twenty updates changed nothing"
    frozen = [name for name in moved if "layers.0" in name]
    assert not frozen, f"frozen weights changed: {', '.join(frozen)}"
    assert flags(model) == flagged, "requires_grad is not as it was found"
    assert hooks(model) == hooked, "hooks were left on the model"
    left = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not left, f"gradients were left behind: {', '.join(left)}"


def draws_the_streams_it_declares(method: Defense, folder: Path) -> None:
    """The phases draw from each declared stream and no other, and an update one batch of its rows.

    That batch may be of another stream, or shared with one. An update that is not counted may draw none.
    """
    declared = set(method.needs.streams)
    assert "rows" in declared, "it declares no stream 'rows', which is what the stage trains on"
    step = step_for(small_for(method), rows(), accelerator_for("cpu"), batch=2, accumulate=2)
    prepared = method.prepare(step)
    for now in first_updates(method, step):
        before = {name: stream.position for name, stream in step.streams.items()}
        method.gradient(now, prepared)
        counts = {name: of.position - before[name] for name, of in step.streams.items()}
        count = counts["rows"]
        beside = not now.phase.counted and count == 0
        assert beside or count == 4 or (count < 4 and sum(counts.values()) == 4), (
            f"it draws {count} of its rows at an update of 4"
        )
    drawn = {name for name, stream in step.streams.items() if stream.position > 0}
    assert drawn == declared, f"it declares {sorted(declared)} and draws {sorted(drawn)}"


def first_updates(method: Defense, step: Step) -> list[Step]:
    """Return the first update of every kind of phase in a stage of the checks' length."""
    found: dict[str, Step] = {}
    update = 1
    for phase in method.schedule(SETTINGS.updates):
        found.setdefault(phase.name, replace(step, update=update, phase=phase, logged={}))
        update += phase.updates
    return [replace(now, _batches={}) for now in found.values()]


def leaves_the_weights_to_the_optimizer(method: Defense, folder: Path) -> None:
    """The gradient is finite, of trainable weights, and logged; the weights stay bit for bit."""
    model = small_for(method, torch.float32)
    before, step = state(model), step_for(model, rows(), accelerator_for("cpu"))
    prepared = method.prepare(step)
    for now in first_updates(method, step):
        vec = method.gradient(now, prepared)
        assert same(before, state(model)), "gradient() changed the weights"
        other = set(vec.names()) - set(step.parameters)
        assert not other, f"its gradient names what is not trained: {', '.join(sorted(other))}"
        finite = all(bool(torch.isfinite(value).all()) for value in vec.fold().values())
        assert finite, "its gradient is not finite"
        assert now.logged, "it logs no term of its objective"
        untouched = set(step.parameters) - set(vec.names())
        assert method.partial or not untouched, (
            "its gradient leaves weights alone, and `partial` is False: "
            f"{', '.join(sorted(untouched))}"
        )


def leaves_the_weights_after_a_failure(method: Defense, folder: Path) -> None:
    """An exception in any forward pass leaves the weights bit for bit as they were, and no hook."""
    model = small_for(method, torch.float32)
    step = step_for(model, rows(), accelerator_for("cpu"))
    for now in first_updates(method, step):
        for failing in range(PASSES):
            if fail_at(method, now, failing):
                break


def fail_at(method: Defense, step: Step, failing: int) -> bool:
    """Let one forward pass of an update fail. Return True where it had no such pass."""
    model, prepared = step.model, method.prepare(step)
    before, hooked, flagged = state(model), hooks(model), flags(model)
    left = failing

    def fail(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop

    handle = model.register_forward_pre_hook(fail)
    try:
        method.gradient(replace(step, _batches={}), prepared)
    except Stop:
        finished = False
    else:
        finished = True
    finally:
        handle.remove()
    where = f"a failure in forward pass {failing + 1}"
    assert same(before, state(model)), f"{where} left changed weights"
    assert hooks(model) == hooked, f"{where} left hooks on the model"
    assert flags(model) == flagged, f"{where} left requires_grad changed"
    return finished


def resumes_bit_for_bit(method: Defense, folder: Path) -> None:
    """A training that was killed and goes on ends bit for bit as one that was not."""

    def kill(update: int, of: int, terms: Mapping[str, float]) -> None:
        if update == 6:
            raise Stop

    checkpoint, whole = folder / "checkpoint.safetensors", small_for(method, torch.float32)
    train(whole, method, rows(), SETTINGS, seed=2)
    killed = small_for(method, torch.float32)
    with pytest.raises(Stop):
        train(killed, method, rows(), SETTINGS, seed=2, resume=checkpoint, every=5, watch=kill)
    resumed = small_for(method, torch.float32)
    train(resumed, method, rows(), SETTINGS, seed=2, resume=checkpoint, every=5)
    assert same(state(whole), state(resumed)), "a resumed run ends elsewhere than an unbroken one"


def divides_an_update_as_it_says(method: Defense, folder: Path) -> None:
    """Smaller micro-batches of the same update change nothing but rounding, in float64, or the needs
    say why they do.
    """
    ends = []
    for batch in (4, 2):
        model = small_for(method)
        settings = replace(SETTINGS, updates=4, batch=4).with_rows(batch)
        train(model, method, rows(), settings, seed=0)
        ends.append(state(model))
    apart = max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0])
    if method.needs.micro_batch:
        assert apart > 1e-9, "its needs give a reason for `micro_batch`, and it changes nothing"
    else:
        assert apart < 1e-9, (
            f"an update of two micro-batches ends {apart:.1e} away from one of a single one: say why in "
            "`Needs(micro_batch=...)`"
        )


def check_ranks(
    methods: Sequence[Defense], folder: Path, ranks: int = 2, shards: bool = False
) -> None:
    """Ranks of one micro-batch equal one rank of as many, to rounding.

    With `shards` each rank holds a part of every weight alone. Takes registered methods alone.
    """
    configs = [registry.describe(method) for method in methods]
    run_on_ranks(RANK, folder, json.dumps(configs), ranks=ranks, shards=shards)
    for i, one in enumerate(ends(methods, accelerator_for("cpu"), ranks)):
        two = load_file(folder / f"{i}.safetensors")
        for name in one:
            torch.testing.assert_close(
                two[name],
                one[name],
                rtol=1e-7,
                atol=1e-9,
                msg=lambda text, i=i, name=name: (  # type: ignore[misc]
                    f"{configs[i]['method']} on {ranks} ranks, {name}: {text}"
                ),
            )


def ends(
    methods: Sequence[Defense], accelerator: Accelerator, parts: int
) -> Iterator[dict[str, Tensor]]:
    """Return the weights after three updates of some micro-batches of two rows, by method, on any
    number of ranks that divides them.
    """
    whole = Training(updates=3, lr=1e-3, batch=2, accumulate=parts, lora=None)
    settings = whole.among(accelerator.num_processes)
    for method in methods:
        model = small_for(method)
        trained = copy_shards(model, accelerator)
        train(trained, method, rows(), settings, seed=0, accelerator=accelerator)
        take_back(model, trained)
        yield state(model)


RANK = textwrap.dedent("""
    import json, sys
    import torch
    from safetensors.torch import save_file
    from titer import registry
    from titer.testing import defenses

    torch.set_num_threads(1)
    accelerator = defenses.accelerator_for("cpu")
    methods = [registry.build("defenses", config) for config in json.loads(sys.argv[2])]
    for i, weights in enumerate(defenses.ends(methods, accelerator, accelerator.num_processes)):
        if accelerator.is_main_process:
            save_file(weights, f"{sys.argv[1]}/{i}.safetensors")
""")


CHECKS = (
    keeps_frozen_weights,
    draws_the_streams_it_declares,
    leaves_the_weights_to_the_optimizer,
    leaves_the_weights_after_a_failure,
    resumes_bit_for_bit,
    divides_an_update_as_it_says,
)
