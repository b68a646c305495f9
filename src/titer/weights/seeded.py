"""Random numbers for edits: every weight draws its own."""

import hashlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """Return a random generator that a seed and a weight's name determine.

    It is on the CPU, so its numbers are the same on any machine, whichever other weights there are.
    """
    return torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])
    )
