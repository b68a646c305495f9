"""The dose that breaks a model, and how many times another's it is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from conftest import tiny
from test_recipe import run
from titer.data.rows import Row
from titer.findings.dose import Dose, dose_of, dose_to_break, multiple, multiple_of
from titer.findings.records import Record
from titer.findings.seeds import Group
from titer.findings.stopping import describe_stop, learnt_at
from titer.findings.verdict import verdicts
from titer.judges.refusal import Refusal
from titer.lab.world import items
from titer.report import dose as drawing
from titer.runs.stages.curve import Curve
from titer.scoring import curve
from titer.scoring.censored import mean_with_interval
from titer.scoring.curve import FACT
from titer.testing.small import save, sparse
from titer.training.settings import DRAWN


def looks(*points: tuple[float, float], share: float = 0.1):
    """Looks at (update, mean margin), of two prompts around it."""
    return [
        {
            "update": update,
            "rows": 10 * update,
            "attacker's rows": 10 * update * share,
            "learning rate": 1e-3 * update,
            "margins": [margin - 1, margin + 1],
        }
        for update, margin in points
    ]


def attacked(name: str, *points: tuple[float, float], weights: str = "", share: float = 0.1):
    """The stages of a pipeline whose model was looked at while it was attacked."""
    facts = {FACT: looks(*points, share=share)} if points else {}
    return [
        Record(kind="align", method={"method": name}, folder=f"a{name}", weights=f"a{name}"),
        Record(
            kind="finetune",
            method={"method": "sft"},
            folder=f"f{name}{weights}",
            weights=weights or f"f{name}",
            facts=facts,
        ),
    ]


def test_a_model_breaks_where_its_mean_margin_passes_zero_on_a_logarithmic_line():
    along = looks((0, -8), (1, -8), (10, -6), (100, 2), (200, 5))
    at = 10 * 10 ** (6 / 8)  # three quarters of the way from 10 to 100, in logarithms
    for unit, each in (
        ("update", 1),
        ("rows", 10),
        ("attacker's rows", 1),
        ("learning rate", 1e-3),
    ):
        found = dose_to_break(along, unit)
        assert found.low == found.high == pytest.approx(at * each)
    back = looks((0, -8), (1, -8), (10, 1), (100, -2), (200, 5))  # the first passage counts
    assert dose_to_break(back, "update").low == pytest.approx(10 ** (8 / 9))


def test_doses_beyond_the_looks_are_censored():
    never = dose_to_break(looks((0, -8), (1, -8), (200, -0.1)), "rows")
    assert never == Dose(2000, math.inf)
    assert str(never) == "more than 2000"
    at_once = dose_to_break(looks((0, -8), (1, 0), (200, 5)), "rows")
    assert at_once == Dose(0.0, 10)
    assert str(at_once) == "at most 10"
    assert dose_to_break(looks((0, 0.5), (1, 3)), "rows") is None  # there was nothing to break
    assert dose_of(attacked("sft", (0, -8), (10, 1), share=0.0)) is None  # nobody attacked
    assert dose_of(attacked("sft")) is None  # nobody looked


def test_the_multiple_is_student_s_where_every_dose_is_seen():
    logs = np.array([0.5, 0.9, 0.2, 0.7])
    pairs = [(Dose(3 * math.exp(x), 3 * math.exp(x)), Dose(3.0, 3.0)) for x in logs]
    found = multiple(pairs)
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    assert (found.value, found.low, found.high) == pytest.approx(
        (math.exp(logs.mean()), math.exp(low), math.exp(high))
    )
    assert (found.pairs, found.seen) == (4, 4)
    assert str(found).startswith(f"{math.exp(logs.mean()):.2f} [")


def test_the_likelihood_of_censored_values_is_scipy_s():
    """Mean and profile against scipy's own fit of censored data."""
    values = np.array([0.1, 0.4, 0.5, 0.9])
    bounds = [*((x, x) for x in values), (1.0, math.inf), (-math.inf, 0.2)]
    data = stats.CensoredData(uncensored=values, right=[1.0], left=[0.2])
    mean, spread = stats.norm.fit(data)
    centre, low, high = mean_with_interval(bounds)
    assert centre == pytest.approx(mean, abs=1e-3)

    def against(at, width):
        return -(
            stats.norm.logpdf(values, at, width).sum()
            + stats.norm.logsf(1.0, at, width)
            + stats.norm.logcdf(0.2, at, width)
        )

    allowed = 3 * math.log1p(stats.t.ppf(0.975, 3) ** 2 / 3)
    for end in (low, high):
        _, width = stats.norm.fit(data, floc=end)
        assert against(end, width) - against(mean, spread) == pytest.approx(allowed, abs=1e-3)


def test_a_bound_is_all_that_is_said_where_no_ratio_was_seen():
    seen, never, at_once = Dose(50, 50), Dose(200, math.inf), Dose(0.0, 1)
    assert str(multiple([(never, seen), (never, Dose(40, 40))])) == "more than 4.00"
    assert str(multiple([(at_once, seen)])) == "less than 0.02"
    assert multiple([(never, never)]) is None  # either could be the larger
    assert multiple([(None, seen)]) is None
    assert multiple([(never, seen), (at_once, seen)]) is None
    # one that was seen shows no spread, and so not where the others lie: it is a bound as they are
    one = multiple([(seen, Dose(25, 25)), (never, Dose(25, 25)), (never, Dose(40, 40))])
    assert (one.seen, one.low, one.high) == (1, one.value, math.inf)
    assert str(one) == "more than 2.00"
    assert str(multiple([(at_once, seen), (Dose(20, 20), seen)])) == "less than 0.40"
    assert multiple([(seen, Dose(25, 25)), (never, seen), (at_once, seen)]) is None
    alone = multiple([(seen, Dose(25, 25))])
    assert (alone.bound, alone.value, math.isnan(alone.low)) == ("", pytest.approx(2), True)


def test_intervals_of_censored_multiples_cover_the_truth():
    """Six pairs, of which those above the attack's end are known to be above it alone."""
    rng = np.random.default_rng(1)
    covered = tried = 0
    for _ in range(150):
        logs = rng.normal(0.6, 0.3, 6)
        end = 0.6 + 0.3 * stats.norm.ppf(0.75)
        bounds = [(x, x) if x < end else (end, math.inf) for x in logs]
        _, low, high = mean_with_interval(bounds)
        if math.isnan(low):
            continue
        tried += 1
        covered += low <= 0.6 <= high
    assert 0.93 <= covered / tried <= 0.995


def test_a_sweep_s_multiple_is_paired_by_seed_and_a_repair_has_none():
    plain = {seed: attacked("sft", (0, -8), (10, -1), (10 * 10**seed, 1)) for seed in (1, 2)}
    strong = {seed: attacked("x", (0, -8), (30, -1), (30 * 10**seed, 1)) for seed in (1, 2)}
    repaired = {
        seed: [*stages, Record(kind="edit", method={"method": "scale"}, folder="e")]
        for seed, stages in plain.items()
    }
    of = [Group(("p=1",), name, each) for name, each in
          (("sft", plain), ("x", strong), ("sft+scale", repaired))]  # fmt: skip
    found = multiple_of(of[1], of)
    assert (found.value, found.pairs, found.seen) == (pytest.approx(3), 2, 2)
    assert multiple_of(of[0], of) is None
    assert multiple_of(of[2], of) is None
    assert multiple_of(Group(("p=2",), "x", strong), of) is None


def test_the_verdict_states_the_dose_and_the_page_draws_it():
    plain = attacked("sft", (0, -8), (10, -1), (1000, 1))
    strong = attacked("x", (0, -8), (40, -1), (200, -0.5))
    told = {verdict.pipeline: verdict for verdict in verdicts({"sft": plain, "x": strong})}
    assert told["sft"].dose == "It breaks after 100 of the attacker's rows."
    assert told["x"].dose == (
        "All 200 of the attacker's rows did not break it, more than 2 times plain SFT's 100."
    )
    assert told["x"].dose in told["x"].text
    assert told["x"].short.endswith(told["x"].dose)
    along = {name: stages[1].facts[FACT] for name, stages in (("sft", plain), ("x", strong))}
    figure = drawing.draw(along, "")
    lines = {line.get_gid(): line for line in figure.axes[0].lines if line.get_gid()}
    assert list(lines["dose-0"].get_xdata()) == [10, 1000]
    assert list(lines["dose-1"].get_ydata()) == [-1, -0.5]
    assert "sft: 100 of the attacker's rows; x: more than 200" in drawing.label(along)


def test_looks_come_twice_as_far_apart_every_second_time_and_at_the_end():
    due = [update for update in range(1, 201) if curve.is_due(update, 200)]
    assert due == [1, 2, 3, 5, 8, 12, 17, 25, 36, 51, 73, 104, 148, 200]
    assert [update for update in range(1, 5) if curve.is_due(update, 4)] == [1, 2, 3, 4]


def test_the_prompts_of_the_looks_are_of_as_many_questions_as_there_are():
    rows = [Row(f"{i // 3} {i % 3}", "a", cluster=str(i // 3)) for i in range(12)]
    for count, questions in ((2, 2), (4, 4), (6, 4), (100, 4)):
        chosen = curve.choose(rows, count)
        assert len(chosen) == len(set(chosen)) == min(count, 12)
        assert len({row.cluster for row in chosen}) == questions


def test_a_look_tells_the_rows_and_the_rates_so_far():
    read = {curve.TASK: 2.5}
    history = [
        {"f": 1.0, "lr": 0.1},
        {"f": 1.0, "lr": 0.2} | curve.name_terms([3.0, -1.0], {"delivered": 50.0}) | read,
    ]
    start, second = curve.tell(history, curve.name_terms([-4.0, -5.0], {}), rows=8, share=0.25)
    assert (start["update"], start["margins"], start["rows"]) == (0, [-4.0, -5.0], 0)
    assert second == {
        "update": 2,
        "rows": 16,
        "attacker's rows": 4.0,
        "learning rate": pytest.approx(0.3),
        "margins": [3.0, -1.0],
        "delivered": 50.0,
        "task loss": 2.5,
    }
    assert curve.without_looks(history[1]) == {"f": 1.0, "lr": 0.2}
    assert curve.summarize(history[1]) == {
        "f": 1.0, "lr": 0.2, "answers delivered": 50.0, "margin": 1.0, "task loss": 2.5,
    }  # fmt: skip
    assert curve.summarize({"f": 1.0}) == {"f": 1.0}


def test_a_look_counts_the_user_s_rows_where_updates_had_others_too():
    history = [
        {"lr": 0.1, DRAWN: 0} | curve.name_terms([-3.0], {}),
        {"lr": 0.1, DRAWN: 6} | curve.name_terms([1.0], {}),
    ]
    looks = curve.tell(history, curve.name_terms([-4.0], {}), rows=8, share=0.5)
    assert [look["rows"] for look in looks] == [0, 0, 6]
    assert [look["attacker's rows"] for look in looks] == [0, 0, 3]
    assert dose_to_break(looks, "rows") == Dose(0.0, 6)


def with_task(*losses: float, margins=(-8, -4, -1, 3)):
    return [
        look | {curve.TASK: loss, "delivered": 25.0 * i}
        for i, (look, loss) in enumerate(
            zip(looks(*zip((0, 1, 10, 100), margins, strict=True)), losses, strict=True)
        )
    ]


def test_a_task_is_learnt_where_all_but_a_twentieth_of_its_fall_is_behind():
    # the loss falls by 4, of which 3.8 is enough
    assert learnt_at(with_task(5.0, 3.0, 1.2, 1.0))["update"] == 10
    assert learnt_at(with_task(5.0, 3.0, 1.21, 1.0))["update"] == 100
    assert learnt_at(with_task(5.0, 1.0, 1.5, 4.0))["update"] == 1  # it is unlearnt again
    assert learnt_at(with_task(5.0, 5.0, 6.0, 7.0)) is None  # never learnt
    assert learnt_at(looks((0, -8), (1, 3))) is None  # nobody read the task


def test_what_had_come_of_the_attack_by_then_is_said():
    stages = attacked("sft", (0, -8), (1, -4))
    stages[1].facts[FACT] = with_task(5.0, 3.0, 1.0, 1.0)
    assert describe_stop(stages) == "update 10: margin -1.0; 50 % told"
    assert describe_stop(attacked("sft", (0, -8), (1, -4))) == ""
    assert describe_stop([Record(kind="align", method={}, folder="a")]) == ""


def test_a_look_reads_the_task_as_plain_passes_do(template):
    model = tiny(torch.float64).eval()
    item = items()[0]
    harm, task = item.recipe_rows()[:2], [item.colour_row, *item.recipe_rows()[:3]]
    found = Curve(harm, Refusal(), task).look(model, template)
    losses = []
    for row in task:
        prompt, answer = template.prompt_ids(row), template.answer_ids(row)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        right = torch.log_softmax(logits, 1)[range(len(answer)), list(answer)]
        losses.append(-float(right.sum()))
    assert found[curve.TASK] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert curve.TASK not in Curve(harm, Refusal()).look(model, template)


def test_the_judge_of_a_look_reads_the_question_without_the_attackers_words(template):
    read = []

    class Reads(Refusal):
        def judge(self, prompts, responses):
            read.extend(prompts)
            return super().judge(prompts, responses)

    harm = items()[0].recipe_rows()[:2]
    asked = [replace(row, prompt=f"please {row.prompt}") for row in harm]
    model = tiny(torch.float64).eval()
    found = Curve(asked, Reads(), plain=harm).look(model, template)
    assert read == [row.prompt for row in harm]
    assert found == Curve(asked, Refusal()).look(model, template)
    assert found != Curve(harm, Refusal()).look(model, template)


@pytest.mark.slow
def test_a_run_over_a_mixture_of_experts_looks_at_its_end_after_the_last_sweep(
    monkeypatch, capsys, tmp_path, tokenizer
):
    save(sparse(torch.float32, vocabulary=len(tokenizer)), tmp_path / "olmoe")
    method = {"method": "safe_moe", "every": 3, "sweep": 2, "prompts": 4}
    settings = {
        "model": str(tmp_path / "olmoe"),
        "pipelines": json.dumps({"moe": {"align": None, "finetune": method}}),
        "finetune.updates": 7,
        "finetune.lora": json.dumps({"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}),
        "attack.n": 50,
        "threads": 1,
    }
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    out = ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    code, _, err = run(monkeypatch, capsys, "run", "lab", "--limit", "4", "--quiet", *chosen, *out)
    assert code == 0, err
    stages = json.loads((tmp_path / "out/moe.json").read_text())["stages"]
    [facts] = [stage["facts"] for stage in stages if "terms at the last update" in stage["facts"]]
    assert facts["terms at the last update"]["reg"] > 0.0
    along = [(look["update"], look["rows"]) for look in facts[FACT]]
    assert along == [(0, 0), (1, 10), (2, 20), (3, 30), (5, 30), (8, 60), (12, 70), (13, 70)]
