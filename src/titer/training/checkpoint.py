"""A training stage's checkpoint: all that determines how the stage goes on.

It is one safetensors file (no pickle), and is written whole or not at all. It holds its own hash: one
that a disk has changed since is removed, and the stage starts again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from titer.config import hash_of
from titer.data.batches import Encoded, hash_rows
from titer.methods import Defense
from titer.weights.checkpoints import hash_tensors
from titer.weights.shards import is_sharded, like, whole

said = logging.getLogger(__name__)
SHARDS = "shards"  # the place of a tensor that is divided among ranks

if TYPE_CHECKING:
    from titer.training.loop import Loop
    from titer.training.settings import Training


def identity(
    defense: Defense,
    settings: Training,
    seed: int,
    data: Mapping[str, Sequence[Encoded]],
    size: int,
    ranks: int,
) -> str:
    """Return the hash of all that determines a run, except for the weights that it starts from.

    `size` is the number of rows of an update over all ranks.
    """
    facts = [
        type(defense).__name__,
        dataclasses.asdict(defense),  # type: ignore[call-overload]
        dataclasses.asdict(settings),
        seed,
        size,
        ranks,
        hash_rows(data),
    ]
    return hash_of(facts, default=str)


def save(path: Path, identity: str, loop: Loop, history: list[dict[str, float]]) -> None:
    """Write the run as it stands after an update, with the history until then."""
    step = loop.step
    tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in step.parameters.items():
        tensors[f"weight.{name}"] = whole(parameter.detach())
        for key, value in loop.optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = whole(value)
    facts = {
        "identity": identity,
        "history": history,
        "positions": {name: stream.position for name, stream in step.streams.items()},
        "scheduler": loop.scheduler.state_dict(),
        "state": pack(loop.state, tensors),
    }
    if step.accelerator.is_main_process:
        write(path, facts, tensors)


def load(path: Path, identity: str, loop: Loop) -> list[dict[str, float]] | None:
    """Put the run back to where the checkpoint was written, and return the history until then.

    None where it is damaged: then it is removed. Raises where it is another run's.
    """
    found = read(path)
    if found is None:
        said.warning("%s is damaged: removed, and the stage starts again", path)
        path.unlink(missing_ok=True)  # by another rank
        return None
    facts, tensors = found
    if facts["identity"] != identity:
        raise ValueError(
            f"{path} is the checkpoint of another run: remove it, or resume with its recipe, "
            "rows, seed and number of ranks"
        )
    with torch.no_grad():
        for name, parameter in loop.step.parameters.items():
            parameter.copy_(like(tensors[f"weight.{name}"], parameter))
            prefix = f"optimizer.{name}."
            state = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if state:  # AdamW keeps its counter on the CPU and its moments beside the weight
                loop.optimizer.state[parameter] = {
                    k: v if k == "step" else like(v, parameter) for k, v in state.items()
                }
    loop.scheduler.load_state_dict(facts["scheduler"])
    for group, lr in zip(loop.optimizer.param_groups, loop.scheduler.get_last_lr(), strict=True):
        group["lr"] = lr
    for name, position in facts["positions"].items():
        loop.step.streams[name].position = position
    weight = next(iter(loop.step.parameters.values()))
    loop.state = unpack(loop.defense, facts["state"], tensors, weight)
    torch.set_rng_state(tensors["rng"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return list(facts["history"])


def write(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write facts and tensors to one file, whole or not at all, with their hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    held = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    told = json.dumps(facts)
    save_file(held, fresh, {"facts": told, "sha256": _hash(held, told)})
    os.replace(fresh, path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the facts and the tensors of a checkpoint, None where they are not as written."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError):
        return None
    facts = told.get("facts", "")
    return (json.loads(facts), tensors) if told.get("sha256") == _hash(tensors, facts) else None


def _hash(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Return the SHA-256 over the facts and over names, shapes and bytes of the tensors."""
    layout = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in tensors.items()}
    return hash_of([facts, layout, hash_tensors(tensors)])


def pack(state: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a defense's state as JSON. Its tensors are put into `tensors`."""
    if state is None:
        return None
    packed: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            tensors[f"state.{field.name}"] = whole(value)
            packed[field.name] = {"tensor": _place(value)}
        elif (
            isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values())
        ):
            tensors |= {f"state.{field.name}.{key}": whole(tensor) for key, tensor in value.items()}
            packed[field.name] = {"tensors": {key: _place(tensor) for key, tensor in value.items()}}
        else:
            packed[field.name] = {"value": value}
    return packed


def _place(tensor: Tensor) -> str:
    return SHARDS if is_sharded([tensor]) else tensor.device.type


def unpack(defense: Defense, packed: Any, tensors: Mapping[str, Tensor], weight: Tensor) -> Any:
    """Return a defense's state, its tensors back on the CPU, or where `weight` is, or divided alike."""
    if packed is None:
        return None

    def tensor(name: str, kind: str) -> Tensor:
        if kind == SHARDS:
            return like(tensors[name], weight)
        return tensors[name] if kind == "cpu" else tensors[name].to(weight.device)

    fields: dict[str, Any] = {}
    for name, entry in packed.items():
        if "tensor" in entry:
            fields[name] = tensor(f"state.{name}", entry["tensor"])
        elif "tensors" in entry:
            fields[name] = {
                key: tensor(f"state.{name}.{key}", kind) for key, kind in entry["tensors"].items()
            }
        else:
            fields[name] = entry["value"]
    return defense.restore(fields)
