"""Random numbers for edits: every weight draws its own."""

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """By a seed and a weight's name: the same on any machine, as it is on the CPU, whichever other weights there are."""
    return torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])
    )
