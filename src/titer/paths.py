"""Every name that titer writes under, and how a person's names become file names.

They lie in a run's folder, in the store, beside a checkpoint, or in a sweep's folder.
"""

from __future__ import annotations

from pathlib import Path

from titer.printable import printable

# a run's folder, and that of a single command
RUN = "run.json"  # what the folder was claimed for
STAGES = "stages"  # one folder a stage
MODEL = "model"  # in a stage's folder: the way to its checkpoint in the store
RECORD = "stage.json"  # what a stage came to
ANSWERS = "answers.jsonl"  # what the model answered, for its maker alone
TABLE = "table.md"
PAGE = "report.html"
FIGURES = "figures.json"  # of the page, drawn
NULLS = "nulls"  # of an edit: one folder a control
TRACKED = "tracked"  # beside it: the files of a tracker
GIVEN = "given"  # models and rows that were handed over in memory
STORE = "store"  # beside a run's folder, unless another is given

# a gate's folder
GATE, GATE_PAGE, JUNIT = "gate.json", "gate.md", "junit.xml"

# folders of the store: finished stages, those begun, locks, what unfinished runs need
FINISHED, PARTIAL, LOCKS, RUNS = "stages", "partial", "locks", "runs"

# a stage in the store
MANIFEST = "manifest.json"  # the hash of every file
MADE = "made.json"  # facts of the computation, seconds and memory
RESUME = "checkpoint.safetensors"  # while a stage trains: where it goes on after an interruption
FITTED = (
    "micro-batch.txt"  # beside it: the rows of a micro-batch, where those asked for did not fit
)
TRAINER = "titer.safetensors"  # in a checkpoint of a trainer of another library: a defense's state
CHANGES = "changes.json"  # of an edit, by tensor
MERGED = "merged"  # while an edit works: the merged models of adapters
JOURNAL = "journal.jsonl"  # while a server is asked: what it has answered
MARGINS = "margins.json"  # of the harm margin, by prompt
SCORES = "scores.json"  # figures and outcomes

# beside a checkpoint
OVER = "titer.json"  # beside an adapter: the hash of the base that it was trained over
BASE = "base"  # under an adapter: the merged model that it lies over
DEQUANTIZED = "dequantized.json"  # of a checkpoint from a GGUF: what it was made from
STACKED = "stacked.json"  # of a checkpoint from a base and adapters: which
# no part of what a checkpoint answers
BESIDE = (OVER, DEQUANTIZED, STACKED, RUN, RECORD, MADE, MANIFEST, CHANGES, SCORES)

# a sweep's folder
SWEEP = "sweep.json"
CELLS = "cells"

# an assay's folder
ASSAY = "assay.json"
ASSAY_PAGE = "assay.md"
CARD = "card.json"
CARD_PAGE = "card.md"
LADDER = "ladder.json"
ATTACK_SEARCH = "search.json"
TRIALS = "trials.log"  # of a search, in Optuna's journal
ARMS = "arms"  # one run a model, a seed and an arm

# what a pipeline's document may not be called, since it would be read as another file
TAKEN = (RUN, FIGURES, RECORD, OVER, SCORES, SWEEP, LADDER, ASSAY, CARD, ATTACK_SEARCH, GATE)
LONGEST = 100  # bytes of a name; a file system takes 255, with a suffix and a number behind it


def file_name(name: str, what: str) -> str:
    """Return a person's name for something, which becomes the name of a file.

    Raises where it would not lie in the folder that it is written to, or would hide another file.
    """
    wrong = (
        "is empty"
        if not name.strip()
        else "holds a slash"
        if "/" in name or "\\" in name
        else "begins with a dot"
        if name.startswith(".")
        else "holds characters that cannot be seen"
        if printable(name) != name or "\n" in name or "\t" in name
        else f"is longer than {LONGEST} bytes"
        if len(name.encode()) > LONGEST
        else "is the name of another file there"
        if f"{name}.json".casefold() in TAKEN
        else ""
    )
    if wrong:
        raise ValueError(f"{what} {name!r} {wrong}, and it names a file: choose another")
    return name


def expand(path: str | Path) -> Path:
    """Return a path with `~` written out. Raises where it names a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r}: there is no user of that name") from None
