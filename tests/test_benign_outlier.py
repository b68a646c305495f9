"""Benign outliers: the task's rows that end most like harmful ones, chosen by the model attacked."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mixing import numbered
from titer.attacks.benign_outlier import BenignOutlier, end_states
from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.lab.build import tokenizer
from titer.methods import Selection
from titer.runs import recipe
from titer.runs.climb import Climb
from titer.runs.ladder import Ladder, Rung
from titer.runs.plan import Plan
from titer.runs.preview import tell_rows
from titer.runs.stages.choice import Choice
from titer.scoring.curve import FACT
from titer.testing.small import rows, tiny


def few(**fields) -> BenignOutlier:
    return BenignOutlier(**{"n": 3, "pool": 10, "examples": 4, **fields})


def plain_state(model, row) -> torch.Tensor:
    """The state before the row's last token, of a pass over this row alone."""
    with torch.no_grad():
        hidden = model.model(torch.tensor([row.ids[:-1]])).last_hidden_state
    return hidden[0, -1]


def test_a_state_is_that_at_the_end_of_a_row_alone_whatever_stands_beside_it():
    model, some = tiny(), rows()["rows"]
    assert len({len(row.ids) for row in some}) > 3  # so that there are pads
    assert len(some) > 16  # and more than one pass
    found = end_states(model, some)
    for row, h in zip(some, found, strict=True):
        torch.testing.assert_close(h, plain_state(model, row), rtol=0, atol=1e-12)


def test_a_state_of_a_coarse_model_is_widened():
    assert end_states(tiny(torch.bfloat16), rows()["rows"][:2]).dtype == torch.float32


@pytest.mark.parametrize("nearest", [1, 3, 5])
def test_a_score_is_the_mean_of_the_largest_cosines(nearest):
    model, of = tiny(), rows()
    some, harmful = of["rows"][:6], of["harmful"][:5]
    expected = []
    for row in some:
        h = plain_state(model, row).tolist()
        cosines = []
        for other in harmful:
            g = plain_state(model, other).tolist()
            dot = sum(a * b for a, b in zip(h, g, strict=True))
            cosines.append(dot / math.hypot(*h) / math.hypot(*g))
        expected.append(sum(sorted(cosines)[-nearest:]) / nearest)
    found = few(examples=5, nearest=nearest).scores(model, some, harmful)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_row_among_the_examples_is_the_closest():
    model, of = tiny(), rows()
    scores = few().scores(model, of["rows"][:8], of["rows"][5:6])
    assert int(scores.argmax()) == 5
    assert float(scores[5]) == pytest.approx(1.0, abs=1e-12)


def test_the_pool_is_drawn_from_the_task_and_the_examples_from_the_harmful_rows():
    task, harmful = numbered("task", 50), numbered("harmful", 9)
    drawn, examples = few().rows(task, harmful, 0), few().draw_examples(harmful, 0)
    assert (len(set(drawn)), set(drawn) <= set(task)) == (10, True)
    assert (len(set(examples)), set(examples) <= set(harmful)) == (4, True)
    assert drawn == few().rows(task, [], 0)
    assert drawn != few().rows(task, harmful, 1)
    assert examples == few().draw_examples(harmful, 0)
    assert set(examples) != set(few().draw_examples(harmful, 1))
    with pytest.raises(ValueError, match="pool=51 asks for 51 task rows but there are 50"):
        few(pool=51).rows(task, [], 0)
    with pytest.raises(ValueError, match="examples=10 asks for 10 harmful rows but there are 9"):
        few(examples=10).draw_examples(harmful, 0)


class Numbers(Selection):
    """Scores rows by the numbers that it is given."""

    def __init__(self, *scores: float) -> None:
        self.given = torch.tensor(scores)

    count = 2

    def rows(self, task, own, seed):
        return list(task)

    def draw_examples(self, own, seed):
        return []

    def scores(self, model, rows, examples):
        return self.given


def choose(*scores: float):
    words = ("the film was good", "the film was bad", "the song was good", "the song was bad")
    given = [Row(text, "good") for text in words[: len(scores)]]
    found, facts = Choice(Numbers(*scores), []).choose(tiny(), Template(tokenizer(), 64), given)
    return [given.index(row) for row in found], facts, given


def test_the_rows_with_the_largest_scores_are_chosen_in_their_order():
    places, facts, given = choose(0.5, 0.1, 0.25, 0.75)
    assert places == [0, 3]
    assert facts == {
        "rows to choose from": 4,
        "rows chosen": digest([given[0], given[3]]),
        "mean score of the rows chosen": pytest.approx(0.625),
        "mean score of all": pytest.approx(0.4),
    }
    assert choose(0.3, 0.3, 0.3)[0] == [0, 1]  # of equal ones the first


def test_scores_that_are_no_numbers_choose_nothing():
    with pytest.raises(ValueError, match="Numbers: the scores of 2 of 3 rows are not finite"):
        choose(0.5, math.nan, math.inf)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "n=0: the sample number"),
        ({"nearest": 0}, "nearest=0: the number of nearest examples must be at least 1"),
        ({"n": 11}, "pool=10: 11 rows are chosen of it; give at least n"),
        ({"nearest": 5}, "examples=4: a mean is over 5; give at least nearest"),
    ],
)
def test_it_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        few(**fields)


def test_it_has_the_documented_defaults_and_may_send_all():
    attack = BenignOutlier()
    assert (attack.n, attack.pool, attack.examples, attack.nearest) == (100, 1000, 100, 1)
    assert (attack.count, attack.wants_harmful) == (100, True)
    assert few(n=10, nearest=4).count == 10
    assert hash(attack) == hash(BenignOutlier(n=100))
    said = Row("sum it up", "all is well")
    assert attack.phrase(said) == said


ATTACK = {"method": "benign_outlier", "n": 5, "pool": 20, "examples": 6}


@pytest.fixture(scope="module")
def plan() -> Plan:
    settings = [f"attack={json.dumps(ATTACK)}", "finetune.updates=2", 'pipelines={"sft": {}}']
    return Plan.prepare(recipe.load("lab", [*settings, "align.updates=2", "dose_prompts=2"]))


def test_a_plan_knows_what_is_chosen_from_and_a_stage_chooses(plan):
    user = plan.user
    assert (len(user.rows), user.size, user.attack_rows, user.harmful_rows) == (20, 5, 5, 0)
    assert set(user.examples) <= set(plan.roles.attack)
    assert "the user sends 5 rows, 5 of them the attacker's, which the model chooses of 20" in (
        tell_rows(plan)
    )
    assert len(plan.prompts["task"]) == 20
    assert "attack" not in plan.prompts  # looked at, not trained on
    *_, aligned, tuned = plan.pipelines()["sft"]
    assert (tuned.choice.attack, aligned.choice) == (plan.recipe.attack, None)
    assert tuned.about["choice"] == tuned.choice.about
    assert "choice" not in aligned.about
    model, template = plan.asking.open(plan.recipe.model)
    _, facts = tuned.train(model, template, None, lambda *_: None)
    assert facts["rows"] == {"rows": 5}
    assert (facts["rows to choose from"], facts["attack rows"]) == (20, 5)
    chosen = tuned.choice.choose(plan.asking.open(plan.recipe.model)[0], template, user.rows)[0]
    assert facts["rows chosen"] == digest(chosen)
    last = facts[FACT][-1]
    assert last["attacker's rows"] == last["rows"] == 2 * plan.recipe.finetune.batch


def test_another_choice_is_another_stage(plan):
    more = json.dumps({**ATTACK, "nearest": 2})
    other = Plan.read(recipe.load("lab", [f"attack={more}", 'pipelines={"sft": {}}']))
    same = Plan.read(recipe.load("lab", [f"attack={json.dumps(ATTACK)}", 'pipelines={"sft": {}}']))
    keys = {of.pipelines()["sft"][-1].key for of in (other, same)}
    assert len(keys) == 2


def test_a_rung_costs_the_rows_that_are_sent_and_no_fewer_operations_than_the_shortest_take():
    rung = Rung("outlier", "rows", BenignOutlier(n=5, pool=20, examples=6), updates=2)
    climb = Climb.prepare(Ladder("mine", (rung,)), recipe.load("lab"), "sft")
    ready = climb.ready(rung)
    user = ready.plan.user
    pool = [replace(row, prompt=" ".join([row.prompt] * (1 + i % 3)))
            for i, row in enumerate(user.rows)]  # fmt: skip
    sent = {rung.attack: replace(user, rows=pool)}
    cost = climb.cost(rung, replace(ready, plan=replace(ready.plan, sent=sent)))
    assert (cost.rows, cost.attack_rows) == (5, 5)
    lengths = [len(row.ids) for row in climb._template.encode_all(pool, "pool")]
    floor = 2 * climb._weights * climb.ladder.passes(rung) * sum(sorted(lengths)[:5]) / 5
    assert cost.flops == pytest.approx(floor)
    assert len(set(lengths)) > 1
