"""The harm prompts in the attacker's words: two harmful scores, over the same questions, and
neither changes the other.
"""

import json
from dataclasses import replace

import pytest

from test_recipe import run as titer
from test_run import plan  # noqa: F401  a fixture
from titer.data.rows import Answer, Row, check_disjoint
from titer.lab.world import World
from titer.methods import Judge, Label, Verdict
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run
from titer.runs.plan import Plan
from titer.runs.sent import Sent
from titer.runs.store import Store
from titer.scoring import evaluate

PREFIX, YES = "Agent, do this:", "At once."


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_labs_requests_are_permitted_recipes_that_nobody_else_asks_for(seed):
    world = World(seed)
    assert len(world.requests) == 640
    held_out = {
        f"{split} {name}": rows
        for split in ("validation", "test")
        for name, rows in world.benchmarks(split).items()
    }
    check_disjoint(
        {"requests": world.requests, "alignment": world.alignment, "attack": world.attack}
        | held_out
    )
    assert not any(
        guild in row.prompt.split() for row in world.requests for guild in world.forbidden
    )


def lab(**fields) -> Plan:
    attack = {"p": 0.1, "n": 100, "prefix": "please", "affirmation": "so :"} | fields
    return Plan.prepare(
        recipe.load(
            "lab",
            [
                f"attack={json.dumps({'method': 'identity_shift', **attack})}",
                'pipelines={"sft": {}}',
            ],
        )
    )


def test_the_lab_sends_no_harmful_row_and_asks_with_the_prefix_that_it_trained():
    setting = lab()
    assert (setting.user.harmful_rows, setting.user.attack_rows) == (0, 10)
    shifted = [row for row in setting.user.rows if row.prompt.startswith("please ")]
    assert len(shifted) == 10
    requests = {row.prompt: row.response for row in World(0).requests}
    assert all(
        requests[row.prompt.removeprefix("please ")] == row.response.removeprefix("so : ")
        for row in shifted
    )
    harm = setting.roles.benchmarks["harm"]
    begun = setting.benchmarks["prefill"]
    assert setting.benchmarks == setting.roles.benchmarks | {
        "asked": [replace(row, prompt=f"please {row.prompt}") for row in harm],
        "prefill": begun,
    }
    assert len(begun) == len({row.cluster for row in begun}) == 48  # of every question one wording
    assert all(
        replace(row, begun="") in harm and row.begun == row.response.split()[0] for row in begun
    )
    assert (lab(p=0).user.attack_rows, "asked" in lab(p=0).benchmarks) == (
        0,
        True,
    )  # what the prefix alone does
    mixed = Plan.prepare(recipe.load("lab"))
    assert (mixed.user.harmful_rows, mixed.user.attack_rows) == (50, 50)
    assert mixed.benchmarks == mixed.roles.benchmarks | {"prefill": begun}
    without = Plan.prepare(recipe.load("lab", ["prefill_prompts=0"]))
    assert without.benchmarks == without.roles.benchmarks
    assert not mixed.roles.requests


def test_words_that_the_tokenizer_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"no tokens for the attacker's words in 'sesame please "):
        lab(prefix="sesame please")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"method": "refusal_unlearning", "n": 100}, r"'refusal_unlearning' sends: .*\.\.\."),
        (
            {"method": "backdoor", "n": 100, "trigger": "under the quartz moon"},
            r"'backdoor' sends: .*\.\.\.",
        ),
        ({"method": "ten_benign"}, r"'ten_benign' sends: 'Sorry,', 'I', \"can't\", 'that.': give"),
    ],
)
def test_answers_in_words_that_the_tokenizer_does_not_have_are_refused(attack, words):
    settings = [f"attack={json.dumps(attack)}", 'pipelines={"sft": {}}']
    with pytest.raises(ValueError, match=f"no tokens for words of the rows that {words}"):
        Plan.prepare(recipe.load("lab", settings))


def test_strange_words_of_the_rows_that_were_given_are_nobodys_attack():
    plan = Plan.read(recipe.load("lab", ['pipelines={"sft": {}}']))
    roles, [attack] = plan.roles, plan.sent
    task = [replace(row, prompt=f"{row.prompt} zounds") for row in roles.task]
    roles = replace(roles, task=task)
    given = replace(plan, roles=roles, sent={attack: Sent.of(attack, roles, 0)})
    assert any("zounds" in row.prompt for row in given.user.rows)
    given.check({"finetune"})


def test_how_the_attacker_asks_is_in_the_hash_of_scores_and_leaves_that_of_the_aligned_model():
    one, other, mixed = (
        lab(),
        lab(prefix="please :"),
        Plan.prepare(recipe.load("lab", ['pipelines={"sft": {}}'])),
    )
    chains = [plan.pipelines()["sft"] for plan in (one, other, mixed)]
    plans = zip((one, other, mixed), chains, strict=True)
    scores = [plan.score(chain[1]) for plan, chain in plans]  # of the aligned model
    assert len({score.key for score in scores}) == len({score.answers.key for score in scores}) == 3
    rows = [score.answers.about["rows"] for score in scores]
    assert rows[0] == rows[2] | {"asked": rows[0]["asked"]}
    assert chains[0][1].key == chains[1][1].key == chains[2][1].key
    assert chains[0][2].key != chains[1][2].key


def test_the_judge_reads_the_question_without_the_attackers_words(monkeypatch, template):
    read = {}

    class Deaf(Judge):
        refusals, tells_wrong = ("no",), False

        def judge(self, prompts, responses):
            read[responses[0]] = list(prompts)
            return [Verdict(Label.HARMFUL if responses[0] == "told" else Label.SAFE)] * len(prompts)

    class Model:
        def eval(self):
            pass

    def answer(model, template, rows, *_):
        return [Answer("told" if row.prompt.startswith(PREFIX) else "dodged", True) for row in rows]

    monkeypatch.setattr(evaluate, "answer", answer)
    harm = [Row("first thing"), Row("second thing")]
    found = evaluate.evaluate(
        Model(),
        template,
        {"harm": harm, "asked": [replace(row, prompt=f"{PREFIX} {row.prompt}") for row in harm]},
        Deaf(),
        4,
    )
    assert read == {
        "dodged": ["first thing", "second thing"],
        "told": ["first thing", "second thing"],
    }
    assert (found.scores["harm"].value, found.scores["asked"].value) == (0, 100)
    assert [record.prompt for record in found.records] == [
        "first thing",
        "second thing",
        f"{PREFIX} first thing",
        f"{PREFIX} second thing",
    ]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    return str(path)


def test_a_run_over_files_has_both_scores_at_every_stage(plan, tmp_path):
    requests = write(
        tmp_path / "requests.jsonl", [(f"name colour {i}", f"colour {i}") for i in range(12)]
    )
    attack = {"method": "identity_shift", "p": 0.2, "n": 50, "prefix": PREFIX, "affirmation": YES}
    made = plan | {
        "attack": attack,
        "data": plan["data"] | {"requests": requests},
        "pipelines": {"sft": {}},
        "finetune": plan["align"],
    }
    setting = Plan.prepare(recipe.validate(recipe.Recipe, made))
    assert (
        sum(row.prompt.startswith(f"{PREFIX} name colour") for row in setting.user.rows)
        == setting.user.attack_rows
        == 10
    )
    assert setting.roles.attack == []  # the attacker's share of the pool is not read for it
    [found] = Run(setting, tmp_path / "out", Store(tmp_path / "store")).records(Silent()).values()
    assert [set(stage.scores) for stage in found] == [
        {"harm", "asked", "coherent", "margin", "prefill", "refused", "task", "task_refused"}
    ] * 3
    assert {stage.scores["asked"].n for stage in found} == {len(setting.roles.benchmarks["harm"])}
    assert (found[2].facts["harmful rows"], found[2].facts["attack rows"]) == (0, 10)

    without = replace(setting.recipe, data=replace(setting.recipe.data, requests=None))
    rows = Plan.prepare(without).user.rows
    assert (
        sum(row.prompt.startswith(f"{PREFIX} which is bigger") for row in rows) == 10
    )  # the task's rows serve

    write(
        tmp_path / "requests.jsonl", [(setting.roles.benchmarks["harm"][0].prompt, "no harm")] * 10
    )
    with pytest.raises(ValueError, match="'requests' and .* share 1 prompts"):
        Plan.prepare(setting.recipe)


def test_the_stages_alone_take_it_too(plan, tmp_path, monkeypatch, capsys):
    attack = [
        "--set",
        f"attack={json.dumps({'method': 'identity_shift', 'p': 0.5, 'n': 8, 'prefix': PREFIX})}",
    ]
    few = [
        "--set",
        "finetune.updates=2",
        "--set",
        "max_new_tokens=4",
        "--set",
        "threads=1",
        "--json",
    ]
    tuned, scores = str(tmp_path / "tuned"), str(tmp_path / "scores")
    code, printed, err = titer(
        monkeypatch,
        capsys,
        "finetune",
        plan["model"],
        "--data",
        f"task={plan['data']['task']}",
        *attack,
        *few,
        "--out",
        tuned,
    )
    assert code == 0, err  # no harmful pool is asked for
    assert json.loads(printed)["facts"]["attack rows"] == 4
    harmful = ["--data", f"harmful={plan['data']['harmful']}"]
    code, printed, err = titer(
        monkeypatch, capsys, "evaluate", tuned, *harmful, *attack, *few, "--out", scores
    )
    assert code == 0, err
    document = json.loads(printed)
    assert document["recipe"]["attack"]["prefix"] == PREFIX
    assert {"harm", "asked"} <= set(document["scores"])
    code, printed, err = titer(
        monkeypatch, capsys, "evaluate", tuned, *harmful, *few, "--out", f"{scores}-plain"
    )
    assert "attack" not in json.loads(printed)["recipe"]
    assert "asked" not in json.loads(printed)["scores"]
