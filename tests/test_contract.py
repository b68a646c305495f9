"""What every registered defense keeps, whichever it is: a new file is tested before its author writes a test."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import tiny
from test_step import same, state, step_for
from titer import registry
from titer.methods import Defense
from titer.training.settings import Training
from titer.training.train import train

SETTINGS = Training(updates=8, lr=1e-3, batch=2, weight_decay=0.3, lora=None)
NAMES = registry.names("defenses")


SHORTER = {"tar": {"k": 3, "every": 2, "switch": 0.0}}  # what would take minutes with its defaults


def defense(name: str) -> Defense:
    built = registry.build("defenses", {"method": name} | SHORTER.get(name, {}))
    assert isinstance(built, Defense)
    return built


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_and_flags_stay(rows, name):
    model = tiny(torch.float32)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" not in parameter_name)
    before, flags = state(model), {n: p.requires_grad for n, p in model.named_parameters()}
    hooks = [
        len(module._forward_hooks) + len(module._backward_hooks) + len(module._forward_pre_hooks)
        for module in model.modules()
    ]
    train(model, defense(name), rows, replace(SETTINGS, updates=20), seed=0)
    after = state(model)
    assert all(torch.equal(before[n], after[n]) for n in before if "layers.0" in n)
    assert not same(before, after)
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert hooks == [
        len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
        for m in model.modules()
    ]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_streams_are_consumed_as_declared(rows, accelerator, name):
    method = defense(name)
    assert "rows" in method.needs.streams
    step = step_for(tiny(), rows, accelerator, batch=2, accumulate=2)
    method.gradient(step, method.prepare(step))
    for stream in step.streams:
        assert (step.streams[stream].position > 0) == (stream in method.needs.streams)
    assert step.streams["rows"].position == 4


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_taken_at_the_weights_and_leaves_them(rows, accelerator, name):
    model, method = tiny(torch.float32), defense(name)
    before, step = state(model), step_for(model, rows, accelerator)
    vec = method.gradient(step, method.prepare(step))
    assert same(before, state(model))
    assert set(vec.names()) <= set(step.parameters)
    assert all(torch.isfinite(value).all() for value in vec.fold().values())
    assert step.logged


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_bit_for_bit_the_same(rows, tmp_path, name):
    class Killed(BaseException):
        pass

    def kill(update, of, terms):
        if update == 6:
            raise Killed

    method, checkpoint, whole = (
        defense(name),
        tmp_path / "checkpoint.safetensors",
        tiny(torch.float32),
    )
    train(whole, method, rows, SETTINGS, seed=2)
    with pytest.raises(Killed):
        train(
            tiny(torch.float32),
            method,
            rows,
            SETTINGS,
            seed=2,
            resume=checkpoint,
            every=5,
            watch=kill,
        )
    resumed = tiny(torch.float32)
    train(resumed, method, rows, SETTINGS, seed=2, resume=checkpoint, every=5)
    assert same(state(whole), state(resumed))


def ends(rows, accelerator) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Where every defense comes to after three updates of four rows, however many ranks share them."""
    settings = Training(
        updates=3, lr=1e-3, batch=2, accumulate=2 // accelerator.num_processes, lora=None
    )
    for name in NAMES:
        model = tiny()
        train(model, defense(name), rows, settings, seed=0, accelerator=accelerator)
        yield name, state(model)


RANK = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from safetensors.torch import save_file
from conftest import streams
from test_contract import ends
from titer.lab.build import tokenizer
from titer.data.template import Template
from titer.training.train import accelerator_for

torch.set_num_threads(1)
accelerator = accelerator_for("cpu")
assert accelerator.num_processes == 2
for name, weights in ends(streams(Template(tokenizer(), 64)), accelerator):
    if accelerator.is_main_process:
        save_file(weights, f"{sys.argv[1]}/{name}.safetensors")
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_equal_two_micro_batches(rows, accelerator, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(script), str(tmp_path), str(Path(__file__).parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launch, *arguments], check=True, env=environment, capture_output=True, timeout=600
    )
    for name, one in ends(rows, accelerator):
        two = load_file(tmp_path / f"{name}.safetensors")
        for weight in one:
            torch.testing.assert_close(two[weight], one[weight], rtol=1e-7, atol=1e-9)


def test_unconnected_ranks_are_refused(monkeypatch):
    from titer.training.train import accelerator_for

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 but this process sees 1 ranks"):
        accelerator_for("cpu")
