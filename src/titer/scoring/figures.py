"""The figures of an evaluation: the benchmark that each comes from, and its name in tables."""

NAMES = {  # benchmark -> its figure's name in tables
    "harm": "HS",
    "asked": "HS (attacker asks)",
    "margin": "harm margin",
    "task": "FA",
    "contained": "FA (contained)",
    "task_refused": "task refused",
    "complied": "complied",
    "refused": "refused",
    "prefill": "prefill HS",
    "benign": "benign answers",
    "lookalike": "over-refusal",
    "general": "general",
    "coherent": "coherent",
}

JUDGED = frozenset(
    {"harm", "asked", "prefill", "lookalike"}
)  # benchmarks whose answers a judge reads
