"""Names of methods, pipelines and stages, as tables have them."""

from collections.abc import Iterable
from functools import cache

from titer import registry
from titer.findings.worlds import Pool

# the alignment stage in the order of its tables, a null behind its method
METHODS = (
    *("sft", "vaccine", "random_vaccine", "t_vaccine", "booster", "random_booster"),
    *("booster+t_vaccine", "repnoise", "random_repnoise", "tar", "random_tar"),
    *("adversarial_loss", "random_adversarial_loss", "lox", "random_lox", "booster+lox"),
)


@cache
def title(name: str) -> str:
    """Name a method as its class does; of a null that is `random_term`, what it matches."""
    for kind in ("defenses", "edits"):
        if name in registry.names(kind):
            return registry.load(kind, name).about.title or name
    of = name.removeprefix("random_")
    return f"random {title(of)}" if of != name else name


def stage_name(group: Pool) -> str:
    kind, _, method = group.label.partition(" ")
    name = title(method)
    return {
        "align": f"{name}-aligned",
        "finetune": "... attacked",
        "release": f"... + {name}",
        "edit": f"... + {name}",
    }.get(kind, kind)


def display_name(pipeline: str) -> str:
    """Name its methods; a comma stands before what tells one from another of the same method."""
    methods = (name.partition(", ") for name in pipeline.split("+"))
    return "+".join(title(name) + comma + variant for name, comma, variant in methods)


def in_order(pipelines: Iterable[str]) -> list[str]:
    """Every name once, those of the alignment stage in its order."""
    return sorted(
        dict.fromkeys(pipelines),
        key=lambda name: METHODS.index(name) if name in METHODS else len(METHODS),
    )
