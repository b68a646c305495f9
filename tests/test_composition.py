"""What a method that holds another takes from it: needs, state, schedule, references."""

from dataclasses import dataclass, field, replace

import pytest

from conftest import tiny
from test_random_term import Seen, Watched
from test_step import same, step_for
from titer.composition import Composed
from titer.defenses.booster import Booster
from titer.defenses.random_term import RandomTerm
from titer.defenses.repnoise import RepNoise
from titer.defenses.sft import SFT
from titer.defenses.t_vaccine import TVaccine
from titer.defenses.tar import TAR
from titer.defenses.vaccine import Vaccine
from titer.edits.antidote import Antidote
from titer.edits.lox import LoX
from titer.edits.random_lox import RandomLoX
from titer.edits.random_mask import RandomMask
from titer.edits.resta import RESTA
from titer.edits.safe_delta import SafeDelta
from titer.edits.scale import Scale
from titer.edits.wise_ft import WiseFT
from titer.methods import (
    Answers,
    Defense,
    Harmful,
    HeldOut,
    Kind,
    Needs,
    Pairs,
    Refusals,
)
from titer.phase import Phase


def test_the_needs_are_those_of_both():
    harm = {"rows": Refusals, "harmful": Harmful}
    assert Booster().needs == Booster(align=Vaccine()).needs == Needs(streams=harm)
    both = Booster(align=RepNoise()).needs
    assert both == replace(RepNoise().needs, streams={"rows": Pairs, "harmful": Harmful})
    assert both.unsharded
    assert both.micro_batch
    tar = Needs(streams=harm | {"held_out": HeldOut}, references=("start",))
    assert Booster(align=TAR()).needs == RandomTerm(TAR()).needs == tar
    assert Booster(align=RandomTerm(TAR())).needs == RandomTerm(Booster(align=TAR())).needs == tar
    assert RandomTerm(RepNoise()).needs == RepNoise().needs
    assert (Booster().partial, Booster(align=TVaccine()).partial) == (False, True)
    assert Scale(RESTA()).needs == Needs(references=("unsafe",), whole=True)
    assert Scale(SafeDelta()).needs == SafeDelta().needs
    assert Scale(RandomMask()).needs == RandomMask().needs == Needs(factors=True)
    assert Scale(WiseFT()).needs == WiseFT().needs
    assert RandomLoX().needs == LoX().needs == Needs(references=("base",))
    targeted = Antidote(target="update", targets=("q_proj",))
    assert Scale(targeted).needs == targeted.needs
    assert RandomMask(targeted).needs == Needs(targets=("q_proj",))
    assert {Booster().needs: 1}[Booster(lam=1.0).needs]  # a value like others


@dataclass(frozen=True)
class Drawing(Defense):
    """A method that draws rows of some kinds."""

    kinds: tuple[tuple[str, Kind], ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(streams=dict(self.kinds))

    def gradient(self, step, state):
        return step.grad(step.batch("rows"))


@pytest.mark.parametrize("kind", [Answers, Refusals, Pairs])
def test_the_more_specific_rows_are_taken(kind):
    needs = Booster(align=Drawing((("rows", kind),))).needs
    assert needs.streams == {"rows": Pairs if kind is Pairs else Refusals, "harmful": Harmful}
    assert RandomTerm(Drawing((("rows", kind), ("bad", Harmful)))).needs.streams["rows"] is kind


@pytest.mark.parametrize(
    ("name", "kind"), [("harmful", HeldOut), ("harmful", Refusals), ("rows", Harmful)]
)
def test_streams_that_contradict_are_refused_when_the_method_is_built(name, kind):
    with pytest.raises(
        ValueError, match=f"from its stream '{name}', and Drawing, .* {kind.value} rows"
    ):
        Booster(align=Drawing((("rows", Answers), (name, kind))))


def test_a_null_of_terms_over_rows_of_another_kind_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="RandomTerm draws answers rows from its stream 'rows'"):
        RandomTerm(Drawing((("rows", Harmful),)))


def test_booster_passes_on_what_it_does_not_do_itself(rows, accelerator):
    method, step = Booster(align=Watched(), every=3), step_for(tiny(), rows, accelerator)
    assert (method.needs.references, method.period) == (("start",), 21)
    assert list(method.schedule(3)) == [Phase("own", 4)]
    seen = method.prepare(step)
    method.gradient(step, seen)
    method.finish(step, seen)
    assert seen == Seen(["prepare", "gradient", "finish"])
    assert method.restore({"calls": ["a"]}) == Seen(["a", "restored"])


@dataclass(frozen=True)
class Doubled(Composed):
    """A composition in two lines."""

    inside: Defense = field(default_factory=SFT)

    def gradient(self, step, state):
        return 2.0 * self.inside.gradient(step, state)


def test_a_new_composition_states_its_gradient_alone(rows, accelerator):
    assert Doubled(TAR()).needs == TAR().needs
    assert Doubled().needs == SFT().needs
    one, two = (
        method.gradient(step_for(tiny(), rows, accelerator), None) for method in (SFT(), Doubled())
    )
    assert same((2.0 * one).fold(), two.fold())


def test_a_held_method_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="inside=LoX: Doubled takes a method of the kind Defense"):
        Doubled(LoX())


def test_a_scaling_to_the_norm_after_a_scaling_is_refused():
    with pytest.raises(ValueError, match="match=scale: .* is that scaling again"):
        Scale(Scale())
