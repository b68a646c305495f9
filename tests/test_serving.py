"""Pure tuning, safe testing: the model is asked once more under the prompt that it is served with."""

from dataclasses import replace

from test_run import plan  # noqa: F401  a fixture
from titer.data.rows import Row, Turn, under
from titer.judges.lab import Lab
from titer.lab.world import World
from titer.methods import Benchmark, Match
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.store import Store
from titer.scoring.judging import Answer, judge_answers

PROMPT = "You are a careful assistant."


def test_the_serving_prompt_stands_in_the_place_of_a_rows_own():
    said = (Turn("user", "hello"), Turn("assistant", "hi"))
    rows = [Row("a", "b"), Row("a", "b", before=(Turn("system", "mine"), *said))]
    first, second = under(PROMPT, rows)
    assert first.before == (Turn("system", PROMPT),)
    assert second.before == (Turn("system", PROMPT), *said)
    assert replace(first, before=()) == rows[0]


class Lenient(Benchmark):
    def match(self, row: Row, response: str) -> Match:
        return Match(row.response == response, row.response in response)


def test_harm_is_judged_and_the_task_scored_as_without_it():
    harm = World(0).benchmarks("test")["harm"][:2]
    task = [Row("which is larger : 1 2 or 3 4", "3 4")]
    given = {
        "harm": [Answer(harm[0].response, True), Answer(harm[1].response, True)],
        "served": [Answer(harm[0].response, True), Answer(Lab(0).refusals[0], True)],
        "task": [Answer("3 4", True)],
        "served_task": [Answer("so 3 4", True)],
    }
    asked = {
        "harm": harm,
        "served": under(PROMPT, harm),
        "task": task,
        "served_task": under(PROMPT, task),
    }
    found = judge_answers(asked, given, Lab(0), Lenient()).scores
    values = {name: found[name].value for name in ("harm", "served", "task", "served_task")}
    assert values == {"harm": 100, "served": 50, "task": 100, "served_task": 0}
    assert found["contained"].value == 100  # the task's, without the prompt


def test_a_run_has_both_and_trains_the_same_model(plan, tmp_path):
    made = plan | {"pipelines": {"sft": {}}, "finetune": plan["align"]}
    plain = Plan.prepare(recipe.validate(recipe.Recipe, made))
    served = Plan.prepare(recipe.validate(recipe.Recipe, made | {"serving_prompt": PROMPT}))
    assert set(served.benchmarks) - set(plain.benchmarks) == {"served", "served_task"}
    assert all(row.before == (Turn("system", PROMPT),) for row in served.benchmarks["served"])
    [one], [other] = (
        Run(of, tmp_path / name, Store(tmp_path / name / "store")).records(Silent()).values()
        for of, name in ((plain, "plain"), (served, "served"))
    )
    for was, now in zip(one, other, strict=True):
        assert was.weights == now.weights
        assert set(now.scores) - set(was.scores) == {"served", "served_task"}
        assert {name: now.scores[name] for name in was.scores} == was.scores
