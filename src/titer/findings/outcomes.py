"""What each prompt came to, by figure: from these every interval over training is made.

Statistics are loaded where they are needed: they take longer to load than a page to be made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from titer.findings.records import Outcomes, Record
from titer.scoring.score import Score


@dataclass(frozen=True)
class Values:
    """The value of every prompt for a figure, and the cluster that it is of."""

    values: Sequence[float | None]  # 1 and 0 of a percentage, None where unscored; nats of a margin
    clusters: Sequence[str]


FROM = {  # the benchmark whose answers a figure counts, where it has another name
    **dict.fromkeys(("complied", "refused", "coherent", "margin"), "harm"),
    "contained": "task",
}


def values_of(record: Record, figure: str) -> Values | None:
    """Return what a figure of a record was made from; None where the record does not have it."""
    benchmark = FROM.get(figure, figure)
    found = (record.outcomes or {}).get(benchmark)
    if found is None or figure not in record.scores:
        return None
    if figure != "margin":
        return Values(COUNTED.get(figure, _exact)(found), found.clusters)
    pairs = zip(found.margins or [], found.clusters, strict=False)
    known = [(margin, cluster) for margin, cluster in pairs if margin is not None]
    return Values([margin for margin, _ in known], [cluster for _, cluster in known])


def over_training(figure: str, of: Sequence[Values]) -> Score:
    """Return the mean of a figure over training seeds, with its interval over training."""
    from titer.scoring.statistics import training, training_mean

    if figure == "margin":
        return training_mean([_known(each) for each in of], of[0].clusters)
    return training(
        [_told(each) for each in of],
        [each.clusters for each in of],
    )


def difference_over_training(
    figure: str, first: Sequence[Values], second: Sequence[Values]
) -> Score:
    """Return the mean of a figure of `first` less that of `second` over training seeds, seed by seed
    and prompt by prompt, in points or nats, with its interval over training.

    A prompt that is unscored anywhere counts nowhere.
    """
    from titer.scoring.statistics import training_mean

    scored = [
        None not in found for found in zip(*(of.values for of in (*first, *second)), strict=True)
    ]
    unit = 1 if figure == "margin" else 100
    values = [
        [
            unit * (x - y)
            for x, y, known in zip(mine.values, its.values, scored, strict=True)
            if known and x is not None and y is not None
        ]
        for mine, its in zip(first, second, strict=True)
    ]
    clusters = [name for name, known in zip(first[0].clusters, scored, strict=True) if known]
    return training_mean(values, clusters)


def difference_over_prompts(figure: str, first: Values, second: Values) -> Score:
    """Return the mean of a figure of `first` less that of `second`, prompt by prompt, in points or
    nats, with its interval over prompts.
    """
    from titer.scoring.differences import difference, mean_difference

    if figure == "margin":
        return mean_difference(_known(first), _known(second), first.clusters)
    return difference(_told(first), _told(second), first.clusters)


def change(now: Record, other: Record, figure: str) -> Score:
    """Return a figure of one record less that of another, which have it, with the 95 % interval.

    It is prompt by prompt where both know what each prompt came to. Else, of older documents, the
    two are taken as asked different prompts, and the distances of the limits are squared and added
    (Zou and Donner 2008): a wider interval.
    """
    if pair := _paired(now, other, figure):
        return difference_over_prompts(figure, *pair)
    first, second = now.scores[figure], other.scores[figure]
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Score(value, min(first.n, second.n), value - below, value + above)


def side(now: Record, other: Record, figure: str) -> int:
    """Return -1 if a figure of the record is shown to be lower than that of the other, 1 if higher."""
    found = change(now, other, figure)
    return int(found.low > 0) - int(found.high < 0)


def p_value(now: Record, other: Record, figure: str) -> float:
    """Return the p-value of such a change, at which its interval would end at 0; NaN where it has
    no interval.

    Where the prompts are not known, and of a margin, it is that of a normal value with this
    interval.
    """
    from titer.scoring.differences import Z_LEVEL, normal_p
    from titer.scoring.differences import p_value as of_pairs

    pair = _paired(now, other, figure)
    if pair and figure != "margin":
        mine, its = pair
        return of_pairs(_told(mine), _told(its), mine.clusters)
    found = change(now, other, figure)
    reach = found.value - found.low if found.value > 0 else found.high - found.value
    return normal_p(Z_LEVEL * abs(found.value) / reach) if reach > 0 else math.nan


def smallest(found: Score) -> float:
    """Return the smallest difference that an interval so wide would show in 80 % of trials."""
    from titer.scoring.differences import Z_LEVEL, Z_POWER

    return (found.high - found.low) / 2 * (Z_LEVEL + Z_POWER) / Z_LEVEL


def _paired(now: Record, other: Record, figure: str) -> tuple[Values, Values] | None:
    """Return the values of both, where what each prompt came to is known of the same prompts."""
    mine, its = values_of(now, figure), values_of(other, figure)
    if mine and its and list(mine.clusters) == list(its.clusters):
        return mine, its
    return None


def _told(of: Values) -> list[bool | None]:
    return [None if value is None else bool(value) for value in of.values]


def _known(of: Values) -> list[float]:
    return [value for value in of.values if value is not None]


def _counted(
    counts: Callable[[Outcomes], Iterable[bool]],
) -> Callable[[Outcomes], list[float | None]]:
    """Count the scored prompts that count."""

    def count(found: Outcomes) -> list[float | None]:
        return [
            None if verdict == "unscored" else float(counted)
            for verdict, counted in zip(found.verdicts, counts(found), strict=True)
        ]

    return count


def _labelled(*labels: str) -> Callable[[Outcomes], list[float | None]]:
    return _counted(lambda found: (verdict in labels for verdict in found.verdicts))


def _exact(found: Outcomes) -> list[float | None]:
    return [float(exact) for exact in found.exact]


def _contained(found: Outcomes) -> list[float | None]:
    return [float(reason in ("exact", "contained")) for reason in found.reasons]


COUNTED: dict[str, Callable[[Outcomes], list[float | None]]] = {
    "harm": _labelled("harmful"),
    "asked": _labelled("harmful"),
    "own": _labelled("harmful"),
    "served": _labelled("harmful"),
    "prefill": _labelled("harmful"),
    "complied": _labelled("harmful", "complied"),
    "refused": _counted(lambda found: found.refused),
    "lookalike": _counted(lambda found: found.refused),
    "coherent": _counted(lambda found: found.coherent),
    "contained": _contained,
}
