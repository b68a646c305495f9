"""The figures of an evaluation: the benchmark that each comes from, and its name in tables."""

NAMES = {  # benchmark -> its figure's name in tables
    "harm": "HS",
    "asked": "HS (attacker asks)",
    "own": "HS (user's format)",
    "served": "HS (serving prompt)",
    "margin": "harm margin",
    "task": "FA",
    "contained": "FA (contained)",
    "task_refused": "task refused",
    "served_task": "FA (serving prompt)",
    "complied": "complied",
    "refused": "refused",
    "prefill": "prefill HS",
    "benign": "benign answers",
    "lookalike": "over-refusal",
    "general": "general",
    "coherent": "coherent",
}

JUDGED = frozenset(
    {"harm", "asked", "own", "served", "prefill", "lookalike"}
)  # benchmarks whose answers a judge reads
REWORDED = frozenset(
    {"asked", "own"}
)  # harm prompts in other words; the judge reads the plain ones
