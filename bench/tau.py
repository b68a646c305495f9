"""The cost of Vaccine that perturbs each hundredth update, over plain SFT's, as the mean over two whole periods: `python -m bench.tau`.

`bench.cost` measures few updates of a method; here the one in a hundred has to be among them. Blocks of ten updates take turns with SFT's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench import shapes, subjects
from bench.clock import seconds
from titer.defenses.sft import SFT
from titer.defenses.vaccine import Vaccine
from titer.training.train import accelerator_for

EVERY, PERIODS, BLOCK = 100, 2, 10
BAR = 1.02


def ratio(
    mine: subjects.Subject, baseline: subjects.Subject, updates: int = PERIODS * EVERY
) -> float:
    """Seconds of `updates` updates of one over those of the other, after a block of each that is not counted."""
    spent = {id(mine): 0.0, id(baseline): 0.0}
    for block in range(1 + updates // BLOCK):
        for subject in (baseline, mine):
            taken = sum(seconds(subject.kinds[0].update) for _ in range(BLOCK))
            spent[id(subject)] += taken if block else 0.0
    return spent[id(mine)] / spent[id(baseline)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.tau", description=__doc__)
    parser.add_argument("--shape", default="v512", help="one of shapes.yaml")
    options = parser.parse_args(arguments)
    at, lora = shapes.load()
    accelerator, missed = accelerator_for(), False
    for trained, adapter in (("lora", lora), ("full", None)):
        mine, baseline = (
            subjects.defense_updates(one, at[options.shape], adapter, accelerator)
            for one in (Vaccine(every=EVERY), SFT())
        )
        found = ratio(mine, baseline)
        missed |= found > BAR
        print(
            f"{options.shape} {trained}: {found:.3f} of SFT's time over {PERIODS * EVERY} updates; bar {BAR}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
