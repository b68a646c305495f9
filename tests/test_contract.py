"""The contract, kept by every registered method: a new file is tested at once."""

import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from titer import registry, testing
from titer.attacks.benign import Benign
from titer.attacks.benign_outlier import BenignOutlier
from titer.attacks.harmful_few import HarmfulFew
from titer.attacks.harmful_mix import HarmfulMix
from titer.attacks.identity_shift import IdentityShift
from titer.data.rows import Row
from titer.defenses.sft import SFT
from titer.defenses.vaccine import Vaccine
from titer.edits.wise_ft import WiseFT
from titer.methods import About, Defense, Harmful, Needs, Refusals
from titer.phase import Phase
from titer.testing.ranks import run_on_ranks

ROOT = Path(__file__).parent.parent
SHORTER = {  # what would take minutes with its defaults, or longer stages and batches
    "lisa": {"k1": 2, "k2": 3},
    "safe_mix": {"share": 0.5},
    "sppft": {"layers": [1, 1]},
    "safe_moe": {"every": 3, "sweep": 2, "prompts": 4},
    "tar": {"k": 3, "every": 2, "switch": 0.0},
}

MICRO = Vaccine(norm="micro")  # which smaller micro-batches change, where the default stays

SHARED = [  # other settings by which ranks share an update in another way
    {"method": "anchor", "prompts": 1},
    {"method": "anchor", "prompts": 9, "along": "refusal"},
    {"method": "kl", "on": "rows"},
    {"method": "safe_moe", "every": 2, "sweep": 2, "prompts": 2, "random": True},
    {"method": "safe_moe", "every": 3, "sweep": 2, "prompts": 5, "lr": None},
]


def methods(kind: str) -> list:
    return [
        registry.build(kind, {"method": name} | SHORTER.get(name, {}))
        for name in registry.names(kind)
    ]


test_contract = testing.contract(
    *(method for kind in registry.KINDS for method in methods(kind)), MICRO
)


@pytest.mark.slow
def test_two_ranks_equal_two_micro_batches(tmp_path):
    others = [registry.build("defenses", fields) for fields in SHARED]
    testing.check_ranks(cast(list[Defense], [*methods("defenses"), *others]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_four_ranks_equal_four_micro_batches(tmp_path, shards):
    """An adapter's defense, one that looks inside, one with fewer prompts than ranks, and the reference."""
    names = ["booster", "t_vaccine", "anchor", "ldifs", "ewc", "lisa"]
    some = [registry.build("defenses", {"method": name} | SHORTER.get(name, {})) for name in names]
    testing.check_ranks(some, tmp_path, ranks=4, shards=shards)


@pytest.mark.slow
def test_two_ranks_with_shards_equal_two_micro_batches(tmp_path):
    """Every rank holds a part of every weight alone; two methods say why they cannot do so."""
    others = [registry.build("defenses", fields) for fields in SHARED]
    found = cast(list[Defense], [*methods("defenses"), *others])
    whole = {registry.name_of(method) for method in found if method.needs.unsharded}
    assert whole == {"repnoise", "safe_moe"}
    sharded = [method for method in found if not method.needs.unsharded]
    testing.check_ranks(sharded, tmp_path, shards=True)


def test_unconnected_ranks_are_refused(monkeypatch):
    from titer.training.train import accelerator_for

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 but this process sees 1 ranks"):
        accelerator_for("cpu")


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_every_method_says_where_it_comes_from_and_what_it_was_compared_with(kind):
    titles = []
    for name in registry.names(kind):
        method = registry.load(kind, name)
        assert "about" in vars(method), f"{name} states no facts of its own"
        assert isinstance(method.about, About)
        titles.append(method.about.title)
        assert bool(method.about.passes) == (kind == "defenses")
        if kind == "edits":
            assert method.stages == (method.stage,)
        else:
            assert method.stages == (("align", "finetune") if kind == "defenses" else ())
        fidelity = method.about.fidelity
        assert (ROOT / fidelity.equation).is_file() or fidelity.equation == "never"
        for said in (fidelity.code, fidelity.real_model):
            assert said == "never" or re.search(r", \d{4}-\d\d-\d\d$", said)
        repository = fidelity.code.split()[0]
        assert repository == "never" or repository in (ROOT / "docs/log.md").read_text()
    assert all(titles)
    assert len(set(titles)) == len(titles)


COUNT = itertools.count()


@dataclass(frozen=True)
class Thaws(SFT):
    """Moves a frozen weight at the end."""

    def finish(self, step, state):
        with torch.no_grad():
            step.model.model.layers[0].self_attn.q_proj.weight.add_(1.0)


@dataclass(frozen=True)
class Idles(SFT):
    """Declares a stream that it never draws from."""

    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})


@dataclass(frozen=True)
class Stops(SFT):
    """Has a gradient of the first micro-batch alone, and does not say so."""

    def gradient(self, step, state):
        batch = step.batch("rows")
        step._batches["rows"] = replace(batch, parts=batch.parts[:1])
        return super().gradient(step, state)


@dataclass(frozen=True)
class Excuses(SFT):
    """Gives a reason for what is not so."""

    needs = Needs(streams={"rows": Refusals}, micro_batch="it is said to")


@dataclass(frozen=True)
class Steps(SFT):
    """Moves the weights itself."""

    def gradient(self, step, state):
        with torch.no_grad():
            next(iter(step.parameters.values())).add_(1e-3)
        return super().gradient(step, state)


@dataclass(frozen=True)
class Strays(SFT):
    """Does not put back what it moved when a pass fails."""

    def gradient(self, step, state):
        weight = next(iter(step.parameters.values()))
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(1e-3)
            vec = super().gradient(step, state)
            weight.copy_(kept)
        return vec


@dataclass(frozen=True)
class Hooks(SFT):
    """Leaves a hook behind when a pass fails."""

    def gradient(self, step, state):
        handle = step.model.lm_head.register_forward_hook(lambda *_: None)
        vec = super().gradient(step, state)
        handle.remove()
        return vec


@dataclass(frozen=True)
class Remembers(SFT):
    """Keeps a state that no checkpoint has."""

    def gradient(self, step, state):
        return (1.0 + next(COUNT) % 7) * super().gradient(step, state)


@dataclass(frozen=True)
class Skips(SFT):
    """Leaves a weight alone and does not say so."""

    def gradient(self, step, state):
        vec = super().gradient(step, state)
        return vec.within(list(vec.names())[:-1])


@dataclass(frozen=True)
class Turns(SFT):
    """Leaves the user's rows alone at an update that is counted."""

    needs = Needs(streams={"rows": Refusals, "harmful": Harmful})

    def gradient(self, step, state):
        return step.grad(step.prompts("harmful", 3))


@dataclass(frozen=True)
class Nibbles(SFT):
    """Draws some of the user's rows at an update that is not counted."""

    def schedule(self, updates):
        return [Phase("nibble", 1, counted=False), *super().schedule(updates)]

    def gradient(self, step, state):
        if step.phase.name == "train":
            return super().gradient(step, state)
        return step.grad(step.draw("rows", 3))


@dataclass(frozen=True)
class Unnamed(SFT):
    """Plain fine-tuning."""


@dataclass(frozen=True)
class Holds(SFT):
    """Holds another method and passes nothing on (arXiv 2310.03693)."""

    inner: Defense = field(default_factory=SFT)


@dataclass(frozen=True)
class Rolls(WiseFT):
    """Comes to something else each time."""

    def edit(self, weight, state):
        return (0.1 + 0.01 * next(COUNT)) * weight.update


@dataclass(frozen=True)
class Peeks(WiseFT):
    """Asks for a model that it does not declare."""

    def prepare(self, weights):
        return [weight.base for weight in weights]


@dataclass(frozen=True)
class Pathless(WiseFT):
    """Has no paper."""

    about: ClassVar[About] = About(title="none")


@dataclass(frozen=True)
class Wanders(HarmfulFew):
    """Sends other rows each time."""

    def rows(self, task, own, seed):
        return super().rows(task, own, next(COUNT))


@dataclass(frozen=True)
class Takes(HarmfulFew):
    """Takes what it sends out of the pool."""

    def rows(self, task, own, seed):
        return [own.pop() for _ in range(self.k)]


@dataclass(frozen=True)
class Settles(HarmfulFew):
    """Sends the same rows for every seed."""

    def rows(self, task, own, seed):
        return super().rows(task, own, 0)


@dataclass(frozen=True)
class Repeats(HarmfulFew):
    """Sends every row twice."""

    def rows(self, task, own, seed):
        return 2 * super().rows(task, own, seed)[: self.k // 2]


@dataclass(frozen=True)
class Shortens(HarmfulMix):
    """Sends one harmful row less, by a strict inequality."""

    def rows(self, task, own, seed):
        return super().rows(task, own, seed)[1:]


@dataclass(frozen=True)
class Dilutes(HarmfulMix):
    """Sends so many rows, and fewer of its own than p says."""

    def rows(self, task, own, seed):
        return HarmfulMix(self.p / 2, self.n).rows(task, own, seed)


@dataclass(frozen=True)
class Grows(Benign):
    """Sends all that the user has."""

    def rows(self, task, own, seed):
        return list(task)


@dataclass(frozen=True)
class Makes(HarmfulFew):
    """Makes do with the rows that there are."""

    def rows(self, task, own, seed):
        return HarmfulFew(k=min(self.k, len(own))).rows(task, own, seed)


@dataclass(frozen=True)
class Hushes(HarmfulFew):
    """Does not say how many rows there are."""

    def rows(self, task, own, seed):
        if len(own) < self.k:
            raise ValueError("too few rows")
        return super().rows(task, own, seed)


@dataclass(frozen=True)
class Wants(Benign):
    """Wants harmful rows, and sends none."""

    wants_harmful = True


@dataclass(frozen=True)
class Lacks(HarmfulFew):
    """Sends what it does not want."""

    wants_harmful = False

    def rows(self, task, own, seed):
        return super().rows(task, own, seed) if own else [*task[:1]]


@dataclass(frozen=True)
class Invents(HarmfulFew):
    """Sends a prompt that nobody gave it."""

    def rows(self, task, own, seed):
        return [Row(f"invented {seed}", own[0].response), *super().rows(task, own, seed)[1:]]


@dataclass(frozen=True)
class Reads(HarmfulFew):
    """Has read a held-out prompt, and says so in its own words."""

    def phrase(self, row):
        return Row(testing.attacks.WORLD.benchmarks("test")["harm"][0].prompt, row.response)

    def rows(self, task, own, seed):
        return [*map(self.phrase, super().rows(task, own, seed))]


@dataclass(frozen=True)
class Forgets(IdentityShift):
    """Asks without the turns before."""

    def phrase(self, row):
        return Row(f"{self.prefix} {row.prompt}", row.response)


@dataclass(frozen=True)
class Sends(BenignOutlier):
    """Sends the harmful rows that it compares with."""

    def rows(self, task, own, seed):
        return [*super().rows(task, own, seed), own[0]]


@dataclass(frozen=True)
class Crowds(BenignOutlier):
    """Scores a row by those beside it."""

    def scores(self, model, rows, examples):
        found = super().scores(model, rows, examples)
        return found - found.mean()


@dataclass(frozen=True)
class Levels(BenignOutlier):
    """Scores all rows alike."""

    def scores(self, model, rows, examples):
        return torch.zeros(len(rows))


@dataclass(frozen=True)
class Overrates(BenignOutlier):
    """Sends more rows than its field says."""

    @property
    def count(self):
        return self.n + 1


@dataclass(frozen=True)
class Damages(BenignOutlier):
    """Leaves the model other than it was."""

    def scores(self, model, rows, examples):
        found = super().scores(model, rows, examples)
        with torch.no_grad():
            next(model.parameters()).add_(1e-6)
        return found


BROKEN: list[tuple[Any, str, str]] = [
    (Wanders(), "tampers_the_same_way", "other rows for the same seed"),
    (Takes(), "tampers_the_same_way", "other rows for the same seed"),
    (Settles(), "draws_anew_for_another_seed", "same prompts for every seed"),
    (Repeats(), "sends_no_row_twice", "sends a prompt twice"),
    (Shortens(), "counts_exactly", "sends 999 rows, and its field says 1000"),
    (Dilutes(), "counts_exactly", "sends 50 of its own rows, and p n is 100"),
    (Grows(), "counts_exactly", "more or fewer rows for another seed, or other pools"),
    (Makes(), "refuses_too_few_rows", "sends of 0 task rows and 99 of its own what is not there"),
    (Hushes(), "refuses_too_few_rows", "does not say how many rows are asked for and there"),
    (Wants(), "wants_what_it_sends", "wants harmful rows, and sends none"),
    (Lacks(), "wants_what_it_sends", "without rows of its own it sends another number"),
    (Sends(), "wants_what_it_sends", "it may send an example"),
    (Overrates(), "counts_exactly", "it sends 101 rows, and its field says 100"),
    (Overrates(n=1000), "counts_exactly", "it chooses 1001 of 1000 rows"),
    (Crowds(), "chooses_by_the_model_alone", "another score beside others"),
    (Levels(), "chooses_by_the_model_alone", "scores all rows alike"),
    (Damages(), "chooses_by_the_model_alone", "changed the weights of the model"),
    (Invents(), "keeps_apart_from_what_is_asked", "a prompt that it was not given: 'invented 3'"),
    (Reads(), "keeps_apart_from_what_is_asked", "sends a held-out prompt"),
    (Forgets(), "asks_in_words_alone", "asks with more than another prompt"),
    (Thaws(), "keeps_frozen_weights", "frozen weights changed"),
    (Idles(), "draws_the_streams_it_declares", "declares .'harmful', 'rows'. and draws .'rows'."),
    (Turns(), "draws_the_streams_it_declares", "draws 0 of its rows at an update of 4"),
    (Nibbles(), "draws_the_streams_it_declares", "draws 3 of its rows at an update of 4"),
    (Steps(), "leaves_the_weights_to_the_optimizer", "gradient.. changed the weights"),
    (Strays(), "leaves_the_weights_after_a_failure", "forward pass 1 left changed weights"),
    (Hooks(), "leaves_the_weights_after_a_failure", "forward pass 1 left hooks"),
    (Remembers(), "resumes_bit_for_bit", "a resumed run ends elsewhere"),
    (Stops(), "divides_an_update_as_it_says", "of two micro-batches ends .* away from one of a"),
    (
        Excuses(),
        "divides_an_update_as_it_says",
        "a reason for `micro_batch`, and it changes nothing",
    ),
    (
        Skips(),
        "leaves_the_weights_to_the_optimizer",
        "leaves weights alone, and `partial` is False",
    ),
    (Unnamed(), "names_its_paper", "docstring does not name '2310.03693'"),
    (
        Unnamed(),
        "builds_and_round_trips",
        "is no name among the defenses: give its package an entry point",
    ),
    (Holds(), "says_what_it_holds", "'inner' holds another method: derive it from one of Composed"),
    (Rolls(), "edits_an_adapter", "comes to other values"),
    (Rolls(), "edits_a_whole_model", "comes to other values"),
    (Peeks(), "edits_an_adapter", "base"),
    (Pathless(), "names_its_paper", "`about` names no paper"),
]


@pytest.mark.parametrize(
    ("method", "name", "message"),
    BROKEN,
    ids=[f"{type(method).__name__}-{name}" for method, name, _ in BROKEN],
)
def test_the_contract_notices_what_breaks_it(method, name, message, tmp_path):
    [check] = [check for check in testing.checks(method) if check.__name__ == name]
    with pytest.raises((AssertionError, ValueError, KeyError), match=message):
        check(method, tmp_path)


UNLIKE = """
import sys
from pathlib import Path

import torch

from titer.defenses.sft import SFT
from titer.testing import defenses
from titer.testing.small import rows, tiny
from titer.training.settings import Training
from titer.training.train import train

accelerator = defenses.accelerator_for("cpu")
model = tiny()
if accelerator.process_index == 1:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
try:
    train(model, SFT(), rows(), Training(1, 1e-3, lora=None), 0, accelerator=accelerator)
    said = "trained"
except ValueError as error:
    said = str(error)
Path(sys.argv[1], f"{accelerator.process_index}.txt").write_text(said)
"""


def test_ranks_that_begin_with_unlike_weights_are_refused_on_each(tmp_path):
    """A single weight that differs by a millionth; else each rank would train another model."""
    run_on_ranks(UNLIKE, tmp_path)
    for rank in (0, 1):
        assert "different trainable weights" in (tmp_path / f"{rank}.txt").read_text()
