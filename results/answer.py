"""`docs/answer.md`: what a defense buys and what it costs, from the bundles.

Every figure is over worlds (`titer.findings.worlds`), and every word by the rule of
`titer.scoring.pooled`: shown where Holm's test over the methods of a table says so.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from results.conditions import ALIGN, NONE, TUNE, at, multiples, order, orders, pools, value
from results.names import display_name
from titer.findings.frontier import Placement, is_free, place
from titer.findings.kept import share_kept
from titer.findings.worlds import Pool
from titer.methods import Defense, Kind
from titer.registry import name_of
from titer.runs import recipe
from titer.scoring.differences import holm
from titer.scoring.figures import NAMES
from titer.scoring.pooled import Pooled, pooled

REPAIR = "lab-edits"
FREE = "lab-frontier+lab-longer"
STRONG = "lab-strong"
NULLS = {  # the control of a method: as strong, without its idea
    "vaccine": "random_vaccine",
    "booster": "random_booster",
    "repnoise": "random_repnoise",
    "adversarial_loss": "random_adversarial_loss",
    "lox": "random_lox",
    "antidote, global": "random_mask",
    "lisa": "lisa, no turns",
    "safegrad": "safegrad, no projection",
    "constrained_sft": "constrained_sft, one beta",
    "ewc": "ewc, all weights alike",
    "sppft": "sppft, other layers",
    "booster+lisa": "booster",
    "vaccine+lisa": "vaccine",
}
# pipelines that no line of a table is of
CONTROLS = {"sft", "scale", "lisa, no prox", *NULLS.values()}
# words of a place among what is free that a method may be named for
PLACED = ("beyond", "not decided")
COSTS = {"task": -1, "benign": -1, "general": -1, "lookalike": 1}  # figures, and where a loss is
ROWS = {  # what a method draws from beside the rows that every alignment needs
    Kind.HARMFUL: "harmful rows",
    Kind.PAIRS: "a refusal and a harmful answer to the same prompts",
    Kind.HELD_OUT: "more of them, held out",
}
ORDINARY = (Kind.ANSWERS, Kind.REFUSALS)
MODELS = {
    "base": "the model before alignment",
    "safe": "a fine-tuning on the alignment rows",
    "unsafe": "a fine-tuning on harmful rows",
}


@dataclass(frozen=True)
class Line:
    """A method's results against its table's control."""

    name: str
    pool: Pool
    gain: Pooled
    null: Pooled | None
    costs: Mapping[str, Pooled]
    shown: set[str] = field(default_factory=set)  # of gain, null and costs, by Holm

    @cached_property
    def where(self) -> Placement[Pool]:
        """How it lies to what is free."""
        return placed(self.pool)

    @property
    def is_lower(self) -> bool:
        """Tell whether HS is shown to be lower."""
        return "gain" in self.shown and self.gain.value < 0


# the three tables


def aligned(claim: str = ALIGN) -> list[Line]:
    """Every method of the alignment stage against plain alignment, by the dose that breaks it."""
    of = at(claim)
    plain = of["sft"]
    lines = []
    for name, mine in of.items():
        gain = mine.times(plain)
        if name == "sft" or name.startswith("random") or gain is None:
            continue
        null = of.get(NULLS.get(name, ""))
        costs = {"task": mine.less(plain, "task")} | {
            figure: mine.at(-2).less(plain.at(-2), figure) for figure in COSTS if figure != "task"
        }
        lines.append(Line(name, mine, gain, null.times(plain) if null else None, costs))
    return mark(lines)


def ended(claim: str) -> list[Line]:
    """Every repair, or defense while fine-tuning, against the attacked model, by HS at its end."""
    of = at(claim)
    plain = of["sft"]
    lines = []
    for name, mine in of.items():
        if name in CONTROLS:
            continue
        null = of.get(NULLS.get(name, ""))
        costs = {figure: mine.less(plain, figure) for figure in COSTS}
        gain, other = mine.less(plain, "harm"), null.less(plain, "harm") if null else None
        lines.append(Line(name, mine, gain, other, costs))
    return mark(lines)


def mark(lines: Sequence[Line]) -> list[Line]:
    """Say what is shown: of each kind of comparison, by Holm's test over the lines."""
    for what in ("gain", "null", *COSTS):
        found = [
            line.costs[what] if what in line.costs else getattr(line, what, None) for line in lines
        ]
        for line, shown in zip(
            lines, holm([each.p if each else math.nan for each in found]), strict=True
        ):
            if shown:
                line.shown.add(what)
    return list(lines)


def align_table(found: Sequence[Line]) -> list[list[str]]:
    head = ["method", "needs", "attacker's rows to break it, times plain alignment's"]
    lines = [[*head, "the same, counted from its answers", "its null", "costs", "advice"]]
    of = at(ALIGN)
    for line in sorted(found, key=lambda line: -line.gain.value):
        by_answers = line.pool.times(of["sft"], by="answers")
        lines.append(
            [
                display_name(line.name),
                needs(ALIGN, line.name),
                with_word(line.gain.ratio, line, "times"),
                by_answers.ratio if by_answers else NONE,
                line.null.ratio if line.null else "none",
                f"{passes(ALIGN, line.name)}; {cost_words(line)}{broken(line.pool)}",
                align_advice(line),
            ]
        )
    return [*lines, *(free_line(*each) for each in free_doses())]


def tune_table(found: Sequence[Line]) -> list[list[str]]:
    head = [
        "method",
        "needs",
        "HS at its end",
        "change in HS",
        "HS with the first word given",
        "its null",
    ]
    lines = [
        [
            *head,
            "attacker's rows to break it, times plain fine-tuning's",
            "costs",
            "beside what is free",
            "advice",
        ]
    ]
    of = at(TUNE)
    plain = of["sft"]
    doses = [line.pool.times(plain) for line in found]
    delays = holm([each.p if each else math.nan for each in doses])
    each = zip(found, doses, delays, strict=True)
    for line, dose, is_shown in sorted(each, key=lambda of: of[0].gain.value):
        assert dose
        where, advice = frontier_words(line, "still refuses")
        null = of.get(NULLS.get(line.name, ""))
        its_dose = null.times(plain) if null else None
        if "gain" not in line.shown and is_shown and dose.value > 0:
            advice = "It delays the attack; that HS at its end is lower is not shown."
            if its_dose and its_dose.high >= dose.low:
                much = "more" if its_dose.low > dose.high else "as much"
                advice = f"Its null delays the attack {much}: the idea is not what helps."
        elif line.null and "gain" in line.shown and line.null.value <= line.gain.high:
            advice = "Its null does as much: the idea is not what helps."
        lines.append(
            [
                display_name(line.name),
                needs(TUNE, line.name),
                *harm_words(line),
                (f"**{dose.ratio}**" if is_shown else dose.ratio)
                + (f"; its null {its_dose.ratio}" if its_dose else ""),
                f"{passes(TUNE, line.name)}; {cost_words(line)}{broken(line.pool)}",
                where,
                advice,
            ]
        )
    return lines


def repair_table(found: Sequence[Line]) -> list[list[str]]:
    head = ["method", "needs", "HS after it", "change in HS", "HS with the first word given"]
    lines = [[*head, "its null", "training kept", "costs", "beside what is free", "advice"]]
    for line in sorted(found, key=lambda line: line.gain.value):
        lines.append(
            [
                display_name(line.name),
                needs(REPAIR, line.name),
                *harm_words(line),
                kept(line.pool),
                f"{cost_words(line)}{broken(line.pool)}",
                *frontier_words(line, "refuses again"),
            ]
        )
    return lines


def harm_words(line: Line) -> list[str]:
    """Say what HS is, how much less, what it is with the first word given, and what its null does."""
    return [
        whole(line.pool, "harm"),
        with_word(points(line.gain), line, "points"),
        whole(line.pool, "prefill"),
        points(line.null) if line.null else "none",
    ]


def frontier_words(line: Line, refuses: str) -> list[str]:
    """Say how a model lies to what is free, and what to do: it `refuses again`, or `still refuses`."""
    where = line.where
    if where.word == "no place":
        return [f"no place: {where.text}", ending_advice(line, where.word, refuses)]
    rival = where.text.rpartition("; ")[2].partition(" has ")[0]
    words = {"within": f"no better than {free_words(rival)}", "beyond": "better than all of it"}
    return [
        words.get(where.word, where.word),
        ending_advice(line, where.word, refuses),
    ]


# what is free


def free_words(rival: str) -> str:
    """Say in words what needs no method, from the name of its pipeline and its settings."""
    name, _, settings = rival.partition(" at ")
    method, _, value = name.partition(" ")
    what = {
        "wise_ft": f"{100 * float(value or 0):.0f} % of the update of plain fine-tuning",
        "ema": f"a running mean of plain fine-tuning's weights (decay {value})",
    }.get(method, "plain fine-tuning")
    titles = {
        "finetune.lr": "learning rate",
        "finetune.updates": "updates",
        "align.updates": "updates of alignment",
    }
    pairs = [each.partition("=") for each in settings.split()] if "=" in settings else []
    told = ", ".join(f"{titles[key]} {found}" for key, _, found in pairs)
    return f"{what} ({told})" if told else what


def free_doses() -> list[tuple[str, Pool, Pool, str]]:
    """Plain alignment for longer, and fine-tuning at half the rate, which need no method."""
    plain = at(FREE)["sft"]
    ways = {
        "plain alignment, twice as long": (("align.updates=500",), "2 passes"),
        "plain alignment, four times as long": (("align.updates=1000",), "4 passes"),
        "no method, half the learning rate for users": (("finetune.lr=0.0004",), "1 pass"),
    }
    return [
        (name, at(FREE, settings)["sft"], plain, cost) for name, (settings, cost) in ways.items()
    ]


def free_line(name: str, mine: Pool, plain: Pool, longer: str) -> list[str]:
    gain, answers = mine.times(plain), mine.times(plain, by="answers")
    cost = mine.less(plain, "task")
    [shown] = holm([cost.p])
    said = f"FA {points(cost)}" if shown else f"no loss of FA shown ({smallest(cost, 'points')})"
    return [
        f"*{name}*",
        "nothing",
        gain.ratio if gain else NONE,
        answers.ratio if answers else NONE,
        NONE,
        f"{longer}; {said}",
        "compare a method with this before you use it",
    ]


@cache
def rivals() -> list[Pool]:
    """Plain fine-tuning in all its forms, at every setting that was tried."""
    return [each for each in pools(FREE).values() if is_free(each) and not each.struck]


def placed(mine: Pool) -> Placement[Pool]:
    return place(mine, rivals())


# words


@cache
def pipelines(name: str) -> Mapping[str, recipe.Pipeline]:
    return recipe.load(name).pipelines


def needs(name: str, pipeline: str) -> str:
    """Say what the methods of a pipeline ask for beside what every alignment needs."""
    told = []
    for stage, method in pipelines(name)[pipeline].methods():
        held = [method, *method.held_methods.values()]
        for each in held:
            kinds = [*each.needs.streams.values(), *([each.needs.rows] if each.needs.rows else [])]
            told += [ROWS[kind] for kind in kinds if kind not in ORDINARY]
            told += [MODELS[model] for model in each.needs.references if model in MODELS]
            told += ["an adapter"] if each.needs.factors else []
            told += ["alignment rows"] * (stage == "finetune" and "alignment" in each.needs.streams)
            if each.needs.rows is Kind.REFUSALS:
                told.append("refusals")
    return ", ".join(dict.fromkeys(told)) or "nothing more"


def with_word(text: str, line: Line, unit: str) -> str:
    """Put a gain in bold where it is shown; beside one that is not, the smallest that would be."""
    if "gain" in line.shown:
        return f"**{text}**"
    return f"{text}, not shown ({smallest(line.gain, unit)})"


def smallest(found: Pooled, unit: str) -> str:
    if math.isnan(found.detectable):
        return "what would be missed is not known"
    if unit == "times":
        return f"less than {math.exp(found.detectable):.2f} times would be missed"
    return f"less than {found.detectable:.1f} {unit} would be missed"


def points(found: Pooled) -> str:
    value = f"{found.value:+z.1f}"
    return f"{value} [{found.low:+.1f}, {found.high:+.1f}]" if found.known else value


def losses(line: Line) -> list[str]:
    """The figures in which a loss is shown."""
    return [
        name
        for name, worse in COSTS.items()
        if name in line.shown and line.costs[name].value * worse > 0
    ]


def loss_words(line: Line) -> list[str]:
    return [f"{NAMES[name]} {points(line.costs[name])}" for name in losses(line)]


def cost_words(line: Line) -> str:
    lost, told = losses(line), loss_words(line)
    rest = [
        f"{NAMES[name]} {line.costs[name].detectable:.1f}"
        for name in COSTS
        if name not in lost and not math.isnan(line.costs[name].detectable)
    ]
    if rest:
        told.append(
            f"no {'other ' * bool(lost)}loss shown (missed would be less than: {', '.join(rest)})"
        )
    return "; ".join(told) or "no loss seen"


def share_left(mine: Pool) -> Pooled:
    """The share of the user's training that is left, over worlds."""
    shares = {
        world: [x for stages in group.seeds.values() if (x := share_kept(stages)) is not None]
        for world, group in mine.worlds.items()
    }
    return pooled([fmean(of) for of in shares.values() if of])


def kept(mine: Pool) -> str:
    found = share_left(mine)
    value = f"{found.value:.0f} %"
    return f"{value} [{found.low:.0f}, {found.high:.0f}]" if found.known else value


def align_advice(line: Line) -> str:
    if "gain" not in line.shown:
        return "No gain is shown here: do not pay for it."
    if line.gain.value < 0:
        return "It breaks sooner than plain alignment: do not use it."
    if line.null and "null" in line.shown and line.null.low > 0 and line.null.high >= line.gain.low:
        return "Its null does as much: the idea is not what helps."
    lost = losses(line)
    if line.pool.struck:
        worlds = f"{line.pool.struck} of {len(line.pool.last)} worlds"
        return (
            f"It delays the attack, and once attacked its models talk nonsense or lose half of an "
            f"ability in {worlds}: use it where that is better than harm."
        )
    if lost:
        prices = " and ".join(f"{abs(line.costs[n].value):.0f} points of {NAMES[n]}" for n in lost)
        return f"It delays the attack; use it if you can pay {prices}."
    return "It delays the attack at no loss that is shown: use it where alignment may take longer."


def ending_advice(line: Line, where: str, refuses: str) -> str:
    if "gain" not in line.shown:
        return "No gain is shown here: do not use it."
    if line.gain.value > 0:
        return "HS is higher after it: do not use it."
    if where == "no place":
        worlds = max(len({world for world, _ in line.pool.marks}), line.pool.struck)
        return f"It proves nothing in {worlds} of {len(line.pool.last)} worlds: do not rely on it."
    if where == "within":
        return "What stands beside it needs no method and does as well: do that instead."
    shallow = value(line.pool, "prefill") > 50
    told = f"It {refuses}" if value(line.pool, "harm") < 10 else "It lowers HS"
    if not shallow:
        return f"{told}."
    return f"{told}, but answers once its first word is given: use it where nobody can begin its answers."


def passes(claim: str, name: str) -> str:
    """Say how many forward and backward passes an update has, of the alignment or of fine-tuning."""
    pipeline = pipelines(claim)[name]
    method = pipeline.align if claim == ALIGN else pipeline.finetune
    assert isinstance(method, Defense)
    told = method.about.passes.replace("tau", str(getattr(method, "every", "tau")))
    if sum_of := re.fullmatch(r"(\d+) \+ (\d+)/(\d+)", told):
        first, above, below = map(int, sum_of.groups())
        told = f"{first + above / below:.3g}"
    for held in method.held_methods.values():
        if name_of(held) != "sft":
            told += f", of which 1 is {display_name(name_of(held))}'s {held.about.passes}"
    plain = re.fullmatch(r"[\d./]+(, of which .*)?|at most [\d./]+", told)
    return (
        f"{told} {'pass' if told in ('1', 'at most 1') else 'passes'}"
        if plain
        else f"passes: {told}"
    )


def broken(mine: Pool) -> str:
    """Say in how many worlds the HS of the last model is struck out; empty where in none."""
    return f"; struck out in {mine.struck} of {len(mine.last)} worlds" if mine.struck else ""


# agreement, and what would refute it


def predicted(found: Pooled) -> tuple[float, float]:
    """Return between which bounds the mean over as many other worlds lies in 95 of 100 cases."""
    reach = (found.high - found.low) / 2 * math.sqrt(2)
    return found.value - reach, found.value + reach


def refutations(found: Sequence[Line]) -> list[list[str]]:
    lines = [["method", "refuted if the mean multiple over six other worlds lies outside"]]
    for line in sorted(found, key=lambda line: -line.gain.value):
        if line.gain.known and math.isfinite(line.gain.high):
            low, high = predicted(line.gain)
            lines.append([display_name(line.name), f"{math.exp(low):.2f} to {math.exp(high):.2f}"])
    return lines


def page() -> str:
    """Return `docs/answer.md`."""
    lines, tuned, repairs, of = aligned(), ended(TUNE), ended(REPAIR), at(ALIGN)
    plain = of["sft"]
    worlds = list(plain.worlds)
    halves = worlds[: len(worlds) // 2], worlds[len(worlds) // 2 :]
    strong = at(STRONG)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("answer.md.j2").render(
        best=" ".join([best_before(lines), best_while(tuned), best_after(repairs)]),
        worlds=worlds,
        before=whole(plain.at(-2), "harm"),
        after=whole(plain, "harm"),
        prefill=whole(plain.at(-2), "prefill"),
        methods=len(lines),
        align_table=markdown(align_table(lines)),
        tune_table=markdown(tune_table(tuned)),
        repair_table=markdown(repair_table(repairs)),
        refutations=markdown(refutations(lines)),
        resisting=resisting(),
        free=len(rivals()),
        halves=halves,
        strong=strong["booster"].times(strong["sft"]),
        unrepaired=whole(strong["sft+antidote"], "harm"),
        tau=order(*(multiples(of, half) for half in halves)),
        orders=orders(ALIGN),
    )


def whole(mine: Pool, name: str) -> str:
    return f"{value(mine, name):.0f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def best_before(lines: Sequence[Line]) -> str:
    """Say what is best of the ways to align, and what it costs."""
    shown = [line for line in lines if "gain" in line.shown and line.gain.value > 0]
    if not shown:
        return "**No method of the alignment stage is shown to take more of the attacker's rows to break.**"
    top = max(shown, key=lambda line: line.gain.value)
    told = (
        f"**A model aligned with {display_name(top.name)} takes {top.gain.ratio} times as many harmful "
        f"rows to break**, for {passes(ALIGN, top.name)} an update where plain alignment has 1, and "
        f"{' and '.join(loss_words(top)) or 'no loss that is shown'}"
    )
    cheap = [line for line in shown if not losses(line) and not line.pool.struck]
    if cheap and top not in cheap:
        kind = max(cheap, key=lambda line: line.gain.value)
        told += f"; with {display_name(kind.name)} it is {kind.gain.ratio} at no loss that is shown"
    return f"{told}. It delays the attack and does not stop it."


def best_while(tuned: Sequence[Line]) -> str:
    """Say what is best of the defenses while fine-tuning, and what it costs."""
    good = [line for line in tuned if line.is_lower and line.where.word in PLACED]
    if not good:
        return "**While fine-tuning no method is shown to lower HS** by more than what needs no method."
    top = min(good, key=lambda line: line.gain.value)
    price = " and ".join(loss_words(top)) or "no loss that is shown"
    begun = value(top.pool, "prefill")
    told = (
        f"**Fine-tuned with {display_name(top.name)}, a model answers {whole(top.pool, 'harm')} % of harmful "
        f"requests where after plain fine-tuning it answers {whole(at(TUNE)['sft'], 'harm')} %**, at {price}"
    )
    if begun > 50:
        told += f"; given the first word of the answer, it still answers {begun:.0f} %"
    return f"{told}."


def best_after(repairs: Sequence[Line]) -> str:
    """Say what is best of the repairs, and what it leaves."""
    good = [line for line in repairs if line.is_lower]
    beyond = [line for line in good if line.where.word == "beyond"]
    if beyond:
        top = min(beyond, key=lambda line: line.gain.value)
        return (
            f"**After fine-tuning {display_name(top.name)} lowers HS by {-top.gain.value:.0f} points and "
            f"keeps {kept(top.pool)} of the user's training**, which nothing that is free does."
        )
    told = f"**After fine-tuning, {len(good)} of {len(repairs)} repairs lower that share"
    undecided = [line for line in good if line.where.word in PLACED]
    if undecided:
        undecided.sort(key=lambda line: line.gain.value)
        names = [
            f"{display_name(line.name)} (to {whole(line.pool, 'harm')} %)" for line in undecided
        ]
        return (
            f"{told}: most of all {join_words(names)}.** Whether that is better than to keep a part of the "
            "weights' change, which needs no method, is not decided; of the others it is not."
        )
    if good:
        return (
            f"{told}, and none does better than to keep a part of the weights' change**, which needs no "
            "method."
        )
    return "**No repair is shown to lower HS.**"


def join_words(of: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(of[:-1]), *of[-1:]]))


def resisting() -> str:
    """Name the methods whose aligned models do not tell when they are given the first word."""
    found = {
        name: score.value
        for name, mine in at(ALIGN).items()
        if not name.startswith("random") and (score := mine.at(-2).score("prefill"))
    }
    low = sorted(name for name, value in found.items() if value <= 30)
    if not low:
        return "No method here changes that (none is at 30 or below)."
    told = ", ".join(f"{display_name(name)} {found[name]:.0f} %" for name in low)
    return f"Deeper (30 or below): {told}."
