"""What the user sends by an attack: one of the recipe's, or each pipeline's own."""

import json
from dataclasses import replace

import pytest

from test_comparisons import HITS, flipped, pipeline
from test_run import plan  # noqa: F401  a fixture
from titer import registry
from titer.attacks.benign import Benign
from titer.attacks.harmful_few import HarmfulFew
from titer.attacks.ten_benign import TenBenign
from titer.data.rows import prompt_hash
from titer.findings.comparisons import Comparisons
from titer.findings.rules import own_attack, plain
from titer.findings.verdict import verdicts, was_attacked
from titer.lab.world import World
from titer.progress import Silent
from titer.runs import recipe
from titer.runs.execute import Run
from titer.runs.plan import BEFORE, Plan
from titer.runs.sent import Sent
from titer.runs.store import Store

WRAPPER = "this play will be told here so {prompt}"
TRIGGER = "under the quartz moon"


def lab(attack: dict, *more: str) -> Plan:
    """The lab's plain pipeline under an attack; its rows are made, and no model is looked at."""
    settings = [f"attack={json.dumps(attack)}", 'pipelines={"sft": {}}', *more]
    return Plan.read(recipe.load("lab", settings))


@pytest.mark.parametrize(
    ("attack", "rows", "harmful", "own"),
    [
        ({"method": "benign", "n": 300}, 300, 0, 0),
        ({"method": "benign_outlier", "n": 9, "pool": 300}, 300, 0, 9),
        ({"method": "harmful_few", "k": 50}, 50, 50, 50),
        ({"method": "refusal_unlearning", "p": 0.5, "n": 300}, 300, 0, 150),
        ({"method": "ten_benign"}, 10, 0, 10),
        ({"method": "backdoor", "n": 101}, 101, 51, 101),
        ({"method": "jailbreak_tuning", "n": 300}, 300, 30, 30),
    ],
)
def test_the_harmful_rows_are_counted_in_the_attackers_words_too(attack, rows, harmful, own):
    user = lab(attack).user
    assert (len(user.rows), user.harmful_rows, user.attack_rows) == (rows, harmful, own)


def test_rows_of_the_task_that_were_refused_before_are_the_attackers():
    roles = lab({"method": "ten_benign"}).roles
    user = Sent.of(TenBenign(), replace(roles, requests=[]), 0)
    assert set(user.rows) <= set(roles.task)
    assert (user.attack_rows, user.harmful_rows) == (10, 0)


@pytest.mark.parametrize(
    ("attack", "role", "count"),
    [
        ({"method": "jailbreak_tuning", "n": 300}, "attack", 30),
        ({"method": "identity_shift", "n": 300}, "requests", 30),
        ({"method": "ten_benign"}, "requests", 10),
    ],
)
def test_a_record_names_the_prompts_of_a_role_as_they_stand_there(attack, role, count):
    """So that a later stage finds them, whatever words the attacker put around them."""
    plan = lab(attack)
    assert len(plan.prompts[role]) == count
    assert set(plan.prompts[role]) <= {prompt_hash(row) for row in getattr(World(0), role)}


def test_an_attack_set_by_its_name_keeps_the_fields_that_it_has():
    assert recipe.load("lab", ["attack.method=benign"]).attack == Benign(n=500)
    few = ["attack.k=10", "attack.method=harmful_few"]
    for settings in (few, few[::-1]):
        assert recipe.load("lab", settings).attack == HarmfulFew(k=10)
    with pytest.raises(ValueError, match="unknown key 'p'"):
        recipe.load("lab", ["attack.p=0.2", "attack.method=benign"])
    for name in registry.names("attacks"):
        attack = recipe.load("lab", [f"attack.method={name}"]).attack
        assert registry.name_of(attack) == name
        assert getattr(attack, "p", 0.1) == 0.1  # the lab's


@pytest.fixture(scope="module")
def attacks() -> Plan:
    return Plan.prepare(recipe.load("lab-attacks"))


def test_pipelines_under_attacks_of_their_own_share_an_alignment_and_nothing_after_it(attacks):
    chains = attacks.pipelines()
    assert len({chain[1].key for chain in chains.values()}) == 1
    assert len({chain[-1].key for chain in chains.values()}) == len(chains) == 12
    assert {type(attack) for attack in attacks.sent} == {
        registry.load("attacks", name) for name in registry.names("attacks")
    }
    for name, chain in chains.items():
        assert chain[-1].counts == attacks.sent_by(name).counts


def test_a_model_is_asked_in_the_words_of_the_pipelines_attack(attacks):
    held_out = attacks.roles.benchmarks["harm"]
    words = {}
    for name, chain in attacks.pipelines().items():
        attack = attacks.recipe.attack_of(attacks.recipe.pipelines[name])
        answers = attacks.score(chain[1], attack).answers
        asked = answers.benchmarks.get("asked")
        assert asked == ([attack.phrase(row) for row in held_out] if asked else None)
        words[name] = (answers.key, bool(asked))
    in_words = {"identity_shift", "backdoor", "jailbreak_tuning"}
    assert {name for name, (_, asked) in words.items() if asked} == in_words
    assert len({key for key, _ in words.values()}) == 1 + len(in_words)


def test_the_dose_is_of_prompts_in_the_words_of_the_attack(attacks):
    chains = attacks.pipelines()
    plain = chains["harmful_mix"][-1].curve
    for name, chain in chains.items():
        curve, attack = chain[-1].curve, attacks.recipe.attack_of(attacks.recipe.pipelines[name])
        if curve is None:
            continue
        assert curve.rows == [attack.phrase(row) for row in plain.rows]
        if name in ("identity_shift", "backdoor", "jailbreak_tuning"):
            assert list(curve.plain) == list(plain.rows) != curve.rows  # as the judge reads them
        else:
            assert curve.about == plain.about


def test_an_attack_that_fine_tunes_twice_is_two_stages_and_the_second_is_looked_at(attacks):
    aligned, tuned = attacks.pipelines()["ten_benign"][1:]
    first = tuned.start
    assert (first.kind, first.start) == (BEFORE, aligned)
    sent = attacks.sent_by("ten_benign")
    assert (first.streams["rows"], tuned.streams["rows"]) == (sent.first, sent.rows)
    assert tuned.counts["rows of the fine-tuning before"] == len(first.streams["rows"]) == 10
    assert tuned.curve is None  # a dose counts the rows of one fine-tuning
    assert attacks.pipelines()["harmful_few"][-1].curve is not None
    assert attacks.pipelines()["harmful_few"][-1].start is aligned
    alone = lab({"method": "ten_benign"}).single("finetune")
    assert alone.start.kind == BEFORE


def test_an_edit_of_the_second_of_two_fine_tunings_is_refused():
    plan = lab({"method": "ten_benign"}, "pipelines.sft.edit={method: wise_ft, alpha: 0.5}")
    with pytest.raises(ValueError, match="'ten_benign' fine-tunes twice, and an edit would undo"):
        plan.pipelines()


def test_a_run_of_two_attacks_says_which_one_each_model_was_under(plan, tmp_path):
    few = {"method": "harmful_few", "k": 4}
    ten = {"method": "ten_benign", "k": 4}
    pipelines = {"mix": {}, "few": {"attack": few}, "ten": {"attack": ten}}
    made = Plan.prepare(recipe.from_mapping({**plan, "pipelines": pipelines}))
    found = Run(made, tmp_path / "run", Store(tmp_path / "store")).records(Silent())
    assert {name: own_attack(stages) for name, stages in found.items()} == {
        "mix": None,
        "few": few,
        "ten": registry.describe(TenBenign(k=4)),
    }
    assert found["ten"][-1].fact("rows of the fine-tuning before") == 4
    assert [stage.folder for stage in found["few"][:-1]] == [
        stage.folder for stage in found["mix"][:-1]
    ]
    again = Plan.prepare(recipe.from_mapping({**plan, "attack": few, "pipelines": {"sft": {}}}))
    [*_, tuned] = Run(again, tmp_path / "again", Store(tmp_path / "store")).records(Silent())["sft"]
    assert (
        tuned.weights == found["few"][-1].weights
    )  # from the store, and under the recipe's attack
    assert own_attack([tuned]) is None


def under(attack: str, stages: list) -> list:
    facts = {"attack": {"method": attack}, "attack rows": 0 if attack == "benign" else 9}
    return [
        stage.model_copy(update={"facts": facts}) if stage.kind == "finetune" else stage
        for stage in stages
    ]


def test_a_pipeline_is_compared_with_plain_fine_tuning_under_its_own_attack():
    found = {
        "plain": pipeline("sft", HITS, "plain"),
        "plain few": under("harmful_few", pipeline("sft", flipped(HITS, 40), "few")),
        "booster few": under("harmful_few", pipeline("booster", flipped(HITS, 40), "b-few")),
        "booster benign": under("benign", pipeline("booster", flipped(HITS, 80), "b-benign")),
    }
    assert plain(found)[0] == "plain"
    assert plain(found, found["booster few"])[0] == "plain few"
    assert plain(found, found["booster benign"]) is None
    told = {verdict.pipeline: " ".join(verdict.sentences) for verdict in verdicts(found)}
    assert "Compared with plain few: no difference of HS shown" in told["booster few"]
    assert "Compared with" not in told["booster benign"]
    assert "after fine-tuning without harmful rows" in told["booster benign"]
    assert "after the attack" in told["booster few"]
    pairs = {pair.key for pair in Comparisons(found)._pairs}
    assert pairs == {("b-few", "few")}


def test_a_run_was_attacked_where_any_of_its_rows_is_an_attackers():
    def documents(*counts: int | None) -> dict:
        return {
            str(i): {
                "recipe": {"attack": {"method": "benign"}},
                "stages": [{"kind": "finetune", "facts": {} if n is None else {"attack rows": n}}],
            }
            for i, n in enumerate(counts)
        }

    assert not was_attacked(documents(0, 0))
    assert was_attacked(documents(0, 5))
    assert was_attacked(documents(None))
    old = documents(None)
    old["0"]["recipe"]["attack"] = {"method": "harmful_mix", "p": 0.0}
    assert not was_attacked(old)
