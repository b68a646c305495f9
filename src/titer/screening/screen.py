"""A screen: the signals that can be asked, their thresholds on benign rows, and what they flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from titer.data.audit import Repeat, find_copies
from titer.data.rows import prompt_hash, whole_identity
from titer.errors import EvidenceError
from titer.screening import thresholds
from titer.screening.signal import NEEDED, Material, Reading, Signal, check_names
from titer.screening.upload import Sample

NOTHING: Mapping[str, str] = MappingProxyType({})
# the reason of a record that could not be read, or not scored, in the place of a signal
UNREAD = "unread"


@dataclass(frozen=True)
class Reason:
    """Why a row is flagged."""

    signal: str
    text: str


@dataclass(frozen=True, eq=False)
class RowFinding:
    """What the screen says of a row."""

    number: int  # from 1
    place: str
    prompt: str  # the hash of its last prompt; empty where it could not be read
    scores: Mapping[str, float]  # by signal; of several answers the largest
    reasons: tuple[Reason, ...]  # none: it is not flagged
    unscored: Mapping[str, str]  # by signal that could not tell, why
    copy: Repeat | None  # the earlier row that it is a copy of

    @property
    def is_flagged(self) -> bool:
        return bool(self.reasons)

    def document(self) -> dict[str, Any]:
        """Return what a line of JSON says of it, without a word of the row."""
        copied = {"copy of": self.copy.of + 1, "exact": self.copy.exact} if self.copy else {}
        return {
            "row": self.number,
            "place": self.place,
            "prompt": self.prompt,
            "flagged": self.is_flagged,
            "reasons": [vars(reason) for reason in self.reasons],
            "scores": dict(self.scores),
            **({"unscored": dict(self.unscored)} if self.unscored else {}),
            **copied,
        }


@dataclass(frozen=True, eq=False)
class Screened:
    """What a screen found in an upload."""

    findings: list[RowFinding]
    rate: float  # of false alarms, at most
    benign: int  # rows that the thresholds rest on
    copies: int  # rows that are copies of those, and were left out
    thresholds: Mapping[str, float]  # by signal that was asked
    not_asked: Mapping[str, str]  # by signal, what it needs

    @property
    def alarms(self) -> list[RowFinding]:
        return [finding for finding in self.findings if finding.is_flagged]

    @property
    def unread(self) -> int:
        """How many records could not be read, or not scored by a signal."""
        return self.count(UNREAD)

    def count(self, signal: str) -> int:
        """Return how many rows a signal flags, alone or with others."""
        return sum(
            any(reason.signal == signal for reason in finding.reasons) for finding in self.findings
        )

    def count_unscored(self, signal: str) -> int:
        return sum(signal in finding.unscored for finding in self.findings)


@dataclass(frozen=True, eq=False)
class Screen:
    """Signals with their thresholds."""

    signals: Mapping[str, Signal]  # that are asked
    material: Material
    rate: float
    benign: int  # records that the thresholds rest on
    copies: int  # records that are copies of those, and were left out
    thresholds: Mapping[str, float]
    not_asked: Mapping[str, str]

    @staticmethod
    def fit(
        asked: Mapping[str, Signal],
        material: Material,
        benign: Sequence[Sample],
        rate: float,
        not_asked: Mapping[str, str] = NOTHING,
    ) -> Screen:
        """Set the thresholds of the signals on benign records, each counted once.

        Raises EvidenceError where these are too few for the rate.
        """
        check_enough(benign, asked, rate)
        once = drop_copies(benign)
        answers = [(i, row) for i, sample in enumerate(once) for row in sample.answers]
        records, rows = zip(*answers, strict=True)
        material = replace(material, benign=rows, records=records)
        _check_readable(material)
        read = _read_all(asked, once, material)
        values = np.array([[of[name].worst.value for name in asked] for of in read])
        found = thresholds.fit(values, rate)
        limits = dict(zip(asked, found.tolist(), strict=True))
        copies = len(benign) - len(once)
        return Screen(asked, material, rate, len(once), copies, limits, not_asked)

    def look(self, samples: Sequence[Sample]) -> Screened:
        """Look at every record of an upload."""
        samples = [self._check(sample) for sample in samples]
        read = _read_all(self.signals, samples, self.material)
        whole = [i for i, sample in enumerate(samples) if not sample.fault]
        copies = find_copies([samples[i].answers[-1] for i in whole])
        copy_of = {
            i: replace(copy, of=whole[copy.of]) if copy else None
            for i, copy in zip(whole, copies, strict=True)
        }
        findings = [
            self._find(i + 1, sample, of, copy_of.get(i))
            for i, (sample, of) in enumerate(zip(samples, read, strict=True))
        ]
        return Screened(
            findings, self.rate, self.benign, self.copies, self.thresholds, self.not_asked
        )

    def _check(self, sample: Sample) -> Sample:
        """Mark a record that the model cannot read."""
        lens = self.material.lens
        faults = [lens.find_fault(row) for row in sample.answers] if lens else []
        fault = next(filter(None, faults), "")
        return replace(sample, answers=(), fault=fault) if fault else sample

    def _find(
        self, number: int, sample: Sample, read: Mapping[str, Read], copy: Repeat | None
    ) -> RowFinding:
        if sample.fault:
            reason = Reason(UNREAD, f"cannot be read: {sample.fault}")
            return RowFinding(number, sample.place, "", {}, (reason,), {}, None)
        unscored = {name: why for name, of in read.items() if (why := of.unscored) is not None}
        reasons = [
            Reason(name, self._tell(name, of.worst))
            for name, of in read.items()
            if of.worst.value > self.thresholds[name]
        ]
        reasons += [
            Reason(UNREAD, f"its {self.signals[name].title} could not score it: {why}")
            for name, why in unscored.items()
        ]
        return RowFinding(
            number,
            sample.place,
            prompt_hash(sample.answers[-1]),
            {name: of.worst.value for name, of in read.items()},
            tuple(reasons),
            unscored,
            copy,
        )

    def _tell(self, name: str, reading: Reading) -> str:
        """Say why a row is flagged by a signal."""
        if not self.signals[name].graded:
            return reading.why or self.signals[name].title
        above = f"{reading.value:.3g} is above {self.thresholds[name]:.3g}"
        return f"{above}; {reading.why}" if reading.why else above


@dataclass(frozen=True)
class Read:
    """What a signal says of the answers of one record."""

    of: Sequence[Reading]

    @property
    def worst(self) -> Reading:
        return max(self.of, key=lambda each: each.value)

    @property
    def unscored(self) -> str | None:
        """Say why it could not tell of an answer; None where it could of all."""
        return next((each.why for each in self.of if not each.scored), None)


def choose(
    signals: Mapping[str, Signal], material: Material, model: bool, only: Sequence[str]
) -> tuple[dict[str, Signal], dict[str, str]]:
    """Return the signals that can be asked, with a model or without, and by name why others are not.

    Raises where one of `only` lacks what it needs.
    """
    check_names(only, list(signals))
    lacking = {
        name: [need for need in material.lacks(of.needs) if need != "lens" or not model]
        for name, of in signals.items()
    }
    for name in only:
        if lacking[name]:
            raise ValueError(f"--only {name}: it needs {_options(lacking[name])}")
    asked = {
        name: of for name, of in signals.items() if not lacking[name] and (not only or name in only)
    }
    left = {
        name: f"needs {_options(lacks)}" if lacks else "left out by --only"
        for name, lacks in lacking.items()
        if name not in asked
    }
    return asked, left


def drop_copies(samples: Sequence[Sample]) -> list[Sample]:
    """Return the records without those that have the same words as an earlier one.

    A benign record is not compared with itself, so that its values are those of a record that is not
    among the benign ones. It would find itself in a copy.
    """
    first: dict[tuple[tuple[str, str], ...], Sample] = {}
    for sample in samples:
        first.setdefault(tuple(map(whole_identity, sample.answers)), sample)
    return list(first.values())


def check_enough(benign: Sequence[Sample], asked: Mapping[str, Signal], rate: float) -> None:
    """Raise EvidenceError where benign records are too few for the thresholds of these signals."""
    thresholds.check_rate(rate)
    needed = thresholds.count_needed(rate, sum(of.graded for of in asked.values()))
    count = len(drop_copies(benign))
    if count < needed:
        copies = len(benign) - count
        raise EvidenceError(
            f"{count} benign rows{f' ({copies} copies left out)' if copies else ''} do not show a "
            f"rate of {rate:g} with the signals "
            f"{', '.join(asked)}: give at least {needed} with --benign, or raise "
            "--false-positives, or ask fewer signals with --only"
        )


def _read_all(
    signals: Mapping[str, Signal], samples: Sequence[Sample], material: Material
) -> list[dict[str, Read]]:
    """Return what every signal says of every record; of one without answers, nothing."""
    rows = [row for sample in samples for row in sample.answers]
    by_signal = {
        name: iter(of.read(rows, material) if rows else []) for name, of in signals.items()
    }
    return [
        {name: Read([next(found) for _ in sample.answers]) for name, found in by_signal.items()}
        for sample in samples
    ]


def _check_readable(material: Material) -> None:
    """Raise where the model cannot read a row of the screener's own."""
    for name in ("benign", "safety", "harmful"):
        for row in getattr(material, name) if material.lens else ():
            assert material.lens is not None
            if fault := material.lens.find_fault(row):
                raise ValueError(f"--{name}: {fault}")


def _options(needs: Sequence[str]) -> str:
    return " and ".join(NEEDED[name] for name in needs)
