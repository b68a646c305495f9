"""What a screen is asked: its settings as a person gives them, and how they become a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from titer.attacks.identity_shift import IdentityShift
from titer.attacks.refusal_unlearning import RefusalUnlearning
from titer.config import Config, Names, validate
from titer.data.rows import Row, identity
from titer.data.sources import Given, SourceReader
from titer.data.texts import Style
from titer.errors import unknown
from titer.lab.roles import WorldRows
from titer.lab.world import World
from titer.methods import Attack, Harmful, Judge, Refusals
from titer.progress import Progress, Silent
from titer.runs.recipe import set_fields
from titer.runs.worlds import LABS
from titer.screening import catalog, thresholds, upload
from titer.screening.screen import Screen, Screened, check_enough, choose
from titer.screening.signal import Material
from titer.screening.upload import Sample
from titer.weights.settings import Model

if TYPE_CHECKING:
    from titer.screening.lens import Lens

TASK_ROWS = 600  # of a world that are looked at: enough for all signals at a rate of 1 %
STEPS = ("screening the benign rows", "screening the upload")


@dataclass(frozen=True)
class Screening(Config):
    """The settings of a screen."""

    data: Given  # the upload
    benign: Given | None = None  # rows of honest users
    safety: Given | None = None  # harmful prompts with refusals
    harmful: Given | None = None  # harmful prompts with harmful answers
    model: Model | None = None  # null: signals of the text alone
    judge: Judge | None = None
    # attacks whose words are known; one of a kind takes the place of titer's own of that kind
    attacks: tuple[Attack, ...] = ()
    signals: dict[str, dict[str, Any]] = field(default_factory=dict)  # fields by signal
    only: Names = ()  # ask these signals alone
    false_positives: float = 0.01  # the share of benign rows that is flagged, at most
    lab: str = World.version  # whose world it is
    world: int | None = None  # a world of the lab gives the rows that have no source
    template: Style = "chat"
    system: str | None = None
    max_length: int = 512

    def __post_init__(self) -> None:
        thresholds.check_rate(self.false_positives)
        if self.lab not in LABS:
            raise unknown("lab", self.lab, LABS)
        if self.benign is None and self.world is None:
            raise ValueError(
                "--benign is missing: give rows of honest users, on which the rate of false alarms "
                "is measured"
            )

    @property
    def attacks_known(self) -> list[Attack]:
        """The attacks whose words are known."""
        own = [each for each in DEFAULTS if not any(type(each) is type(of) for of in self.attacks)]
        return [*self.attacks, *own]


DEFAULTS: tuple[Attack, ...] = (IdentityShift(), RefusalUnlearning())


def read_settings(fields: dict[str, Any], settings: Sequence[str] = ()) -> Screening:
    """Build the settings of a screen. A setting is SIGNAL.FIELD=VALUE, or FIELD=VALUE of a screen's own.

    Raises on the first thing that is wrong.
    """
    raw = {"signals": {}, **fields}
    set_fields(
        raw,
        [
            f"signals.{setting}" if setting.partition(".")[0] in catalog.SIGNALS else setting
            for setting in settings
        ],
    )
    found = validate(Screening, raw)
    assert isinstance(found, Screening)
    catalog.build(found.signals)
    return found


def look(plan: Screening, progress: Progress | None = None) -> Screened:
    """Screen an upload. Raises where something is wrong or missing."""
    progress = progress or Silent()
    samples = upload.read(plan.data, "the upload")
    if plan.model is not None:
        progress.expect(STEPS, 0)
        progress.begin(STEPS[0])
    screen = fit(plan, progress)
    if plan.model is not None:
        progress.end()
        progress.begin(STEPS[1])
    found = screen.look(samples)
    if plan.model is not None:
        progress.end()
    return found


def fit(plan: Screening, progress: Progress) -> Screen:
    """Make the screen: read its rows, load its model, and set its thresholds.

    Raises before a model is loaded where the rows are too few.
    """
    world = None
    if plan.world is not None:
        of = LABS[plan.lab].world
        world = of(plan.world, of.tasks[0])
    material = Material(
        safety=_safety(plan, world),
        harmful=_harmful(plan, world),
        judge=plan.judge,
        attacks=plan.attacks_known,
    )
    benign = _benign(plan, world)
    signals, has_model = catalog.build(plan.signals), plan.model is not None
    asked, not_asked = choose(signals, material, has_model, plan.only)
    check_enough(benign, asked, plan.false_positives)
    if has_model:
        material = replace(material, lens=load_lens(plan, progress))
    return Screen.fit(asked, material, benign, plan.false_positives, not_asked)


def list_honest(world: WorldRows, split: str) -> list[Row]:
    """Return what honest users of a world send: their task, and permitted questions of every kind."""
    asked = world.benchmarks(split)
    return [
        *world.user_task[:TASK_ROWS],
        *(row for name in ("benign", "lookalike", "general") for row in asked[name]),
    ]


def list_refusals(world: WorldRows) -> list[Row]:
    """Return the rows of a world's alignment that refuse."""
    forbidden = {identity(row) for row in world.harmful}
    return [row for row in world.alignment if identity(row) in forbidden]


def _benign(plan: Screening, world: WorldRows | None) -> list[Sample]:
    if plan.benign:
        return upload.read_whole(plan.benign, "--benign")
    assert world is not None  # said in the settings
    return upload.of_rows(list_honest(world, "validation"))


def _safety(plan: Screening, world: WorldRows | None) -> Sequence[Row]:
    if plan.safety:
        return SourceReader().rows("safety", plan.safety, Refusals)
    return list_refusals(world) if world else ()


def _harmful(plan: Screening, world: WorldRows | None) -> Sequence[Row]:
    if plan.harmful:
        return SourceReader().rows("harmful", plan.harmful, Harmful)
    return world.harmful if world else ()


def load_lens(plan: Screening, progress: Progress) -> Lens:
    """Load the model, its adapter merged where that loses nothing."""
    import torch

    from titer.runs.stages.asking import Asking
    from titer.screening.lens import Lens
    from titer.weights import adapters

    assert plan.model is not None
    asking = Asking(plan.model, plan.template, plan.system, plan.max_length)
    model, template = asking.open(plan.model)
    if torch.finfo(model.dtype).bits >= 32:
        model = adapters.merge_adapter(model)
    return Lens(model.eval(), template, progress.advance)
