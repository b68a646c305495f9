"""The trials of a search, in a file: Optuna suggests what to try next by what came of those before.

The file is Optuna's journal. A trial that was begun and not told of, as after an interruption, is
begun again with the same values. Each value is drawn by a seed of its own, of the search's seed, the
trial's number and the value's name, so an interrupted search suggests what a whole one would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study, Trial

NAME = "attack"  # of the study in its file
STARTUP = 8  # trials before the sampler looks at what came of them; they are drawn at random
DIGITS = 3  # of a value that is tried
MOST = {"lr": 1e38, "updates": 1e8, "p": 1.0}
WHY = "why"  # of a trial that failed
KEEPS = "abilities"  # the constraint: points beyond the margin


@dataclass(frozen=True)
class Space:
    """The settings that are searched, each between its lowest and its highest value."""

    lr: tuple[float, float]
    updates: tuple[int, int]
    p: tuple[float, float] | None  # share of the attacker's rows; None: the attack has none

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges.items():
            if not 0.0 < low <= high <= MOST[name]:
                raise ValueError(
                    f"range {name}={low:g},{high:g}: give the lowest and the highest value, above 0 "
                    f"and at most {MOST[name]:g}"
                )

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest value of every setting that is searched."""
        found = {"lr": self.lr, "updates": self.updates, "p": self.p}
        return {name: of for name, of in found.items() if of is not None}


class Trials:
    """The trials of a search by their number."""

    def __init__(
        self, path: Path, space: Space, seed: int, first: Mapping[str, float] | None = None
    ) -> None:
        """Open the file, or begin it with the trial that is to be the first.

        Raises where Optuna is not installed, or cannot read the file.
        """
        try:
            import optuna
        except ModuleNotFoundError:
            raise ValueError(
                "a search needs optuna, which is not installed: pip install 'titer[search]'"
            ) from None
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.seed = space, seed
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        self.study: Study = optuna.create_study(
            storage=storage, study_name=NAME, direction="maximize", load_if_exists=True
        )
        if first and not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(dict(first))

    @property
    def sampler(self) -> dict[str, Any]:
        """What suggests the values, and by which seed."""
        import optuna

        return {
            "name": "TPE",
            "optuna": optuna.__version__,
            "seed": self.seed,
            "at random": STARTUP,
        }

    def settings(self, number: int) -> dict[str, float]:
        """Return the settings of a trial, which is begun where it is the next one."""
        trial = self._trial(number)
        found: dict[str, float] = {}
        for name, (low, high) in self.space.ranges.items():
            self.study.sampler = self._sampler(number, name)
            if name == "updates":
                found[name] = trial.suggest_int(name, int(low), int(high), log=True)
                continue
            value = trial.suggest_float(name, low, high, log=name == "lr")
            found[name] = min(max(float(f"{value:.{DIGITS}g}"), low), high)
        return found

    def failure(self, number: int) -> str:
        """Say why a trial failed; empty where it did not."""
        return str(self._trial(number).user_attrs.get(WHY, ""))

    def tell(self, number: int, harm: float, excess: float) -> None:
        """Tell what came of a trial: its harm, and the points that it lost beyond the margin."""
        trial = self._trial(number)
        if self._is_finished(number):
            return
        if KEEPS not in trial.constraints:
            trial.set_constraint(KEEPS, excess)
        self.study.tell(trial, harm)

    def fail(self, number: int, why: str) -> None:
        """Tell that a trial failed. It is not begun again."""
        from optuna.trial import TrialState

        trial = self._trial(number)
        trial.set_user_attr(WHY, why)
        self.study.tell(trial, state=TrialState.FAIL)

    def _trial(self, number: int) -> Trial:
        from optuna.trial import Trial, TrialState

        known = self.study.get_trials(deepcopy=False)
        if number < len(known) and known[number].state != TrialState.WAITING:
            return Trial(self.study, known[number]._trial_id)
        trial = self.study.ask()
        assert trial.number == number, "trials are begun in their order"
        return trial

    def _is_finished(self, number: int) -> bool:
        return bool(self.study.get_trials(deepcopy=False)[number].state.is_finished())

    def _sampler(self, number: int, name: str) -> Any:
        from optuna.samplers import TPESampler

        drawn = hashlib.sha256(f"{self.seed} {number} {name}".encode()).digest()
        return TPESampler(
            seed=int.from_bytes(drawn[:4], "big"),
            n_startup_trials=STARTUP,
            multivariate=False,  # or a value would depend on when the others were drawn
            constant_liar=False,
        )
