"""An assay as a plan: its arms, the rows that it refuses, and a whole one of a tiny model."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import titer
from test_assay import IMMUNE, stage
from titer.cli import app
from titer.data.rows import Row, check_disjoint, identity, prompt_hash
from titer.findings.assay_record import AssayRecord
from titer.findings.conditions import CROSS_DOMAIN, IN_DOMAIN, Thresholds
from titer.findings.records import parse_document
from titer.lab.held_out import DomainWorld, SmolTopicsWorld, TopicsWorld
from titer.lab.smol import SmolWorld
from titer.lab.world import World
from titer.runs.assay import (
    ATTACKS,
    HELD_OUT,
    SECOND,
    Assay,
    Setup,
    Wanted,
    _count_near,
    budgets,
    compare_rows,
    document,
    find_missing,
)
from titer.testing.small import save, tiny

WORLD = ("data.world=1",)
SHORT = (*WORLD, "finetune.updates=1", "dose_prompts=2", "prefill_prompts=0")


@pytest.fixture
def model(tmp_path, tokenizer):
    """A checkpoint of a tiny model, with a record of the prompts that a defense was made of."""

    def make(**prompts):
        folder = tmp_path / "model"
        save(tiny(torch.float32, vocabulary=len(tokenizer)), folder)
        if prompts:
            hashed = {role: sorted(map(prompt_hash, rows)) for role, rows in prompts.items()}
            fields = {"schema": 1, "kind": "align", "recipe": {}, "prompts": hashed}
            (folder / "stage.json").write_text(json.dumps(fields))
        return str(folder)

    return make


def test_an_attacker_of_held_out_topics_names_none_that_others_name():
    for seed in (0, 1, 9):
        world, plain = TopicsWorld(seed), World(seed)
        topics = {row.cluster.rpartition(" ")[0] for row in (*world.alignment, *world.harmful)}
        asked = {row.cluster.rpartition(" ")[0] for row in world.benchmarks("test")["harm"]}
        sent = {row.cluster.rpartition(" ")[0] for row in world.attack}
        refused = {row.cluster.rpartition(" ")[0] for row in plain.harmful}
        assert sent
        assert asked
        assert not sent & (asked | refused)
        assert not asked & refused
        assert topics >= refused
        assert world.alignment == plain.alignment
        assert world.benchmarks("test")["task"] == plain.benchmarks("test")["task"]


def test_a_second_domain_is_a_guild_whose_answers_the_defender_has_not():
    for seed in (0, 4):
        world, plain = DomainWorld(seed), World(seed)
        assert world.alignment == plain.alignment  # which refuses it
        guilds = {
            name: {row.cluster.split()[0] for row in rows}
            for name, rows in {
                "defense": world.harmful,
                "attack": world.attack,
                "harm": world.benchmarks("test")["harm"],
                "calibration": world.calibration,
            }.items()
        }
        assert guilds["attack"] == guilds["harm"] == {world.domain}
        assert guilds["defense"] == guilds["calibration"] == world.forbidden - {world.domain}
        assert len(world.attack) >= 50  # the mild attack's
        inside = {identity(row) for row in world.domain_questions}
        assert {identity(row) for row in world.attack} < inside
        assert not inside & {identity(row) for row in world.harmful}


def test_a_world_of_facts_has_held_out_topics_too():
    world, plain = SmolTopicsWorld(0), SmolWorld(0)
    sent, asked = world.attack, world.benchmarks("test")["harm"]
    check_disjoint({"sent": sent, "asked": asked, "defense": plain.harmful})
    known = {row.cluster for row in (*plain.harmful, *plain.attack)}
    assert not known & {row.cluster for row in (*sent, *asked)}
    assert len(sent) >= 50


def test_the_arms_are_the_attacks_other_rows_and_harmless_fine_tuning(model):
    found = Setup("lab", model(), "lab", WORLD).arms("lab", 3)
    harmless = [f"task-{updates}" for updates in (25, 50, 100, 200)]
    assert list(found) == ["attacks", "topics", "domain", *harmless]
    assert {recipe.seed for recipe in found.values()} == {3}
    assert found["attacks"].protocol == "hs-v1"
    assert found["topics"].data.lab == "world-v1-topics"
    assert found["domain"].data.lab == "world-v1-domain"
    [task] = found["task-50"].pipelines.values()
    assert task.attack is not None
    assert (task.align, task.attack.wants_harmful, found["task-50"].finetune.updates) == (
        None,
        False,
        50,
    )
    several = Setup("lab-attacks", "lab", "lab", WORLD).attacks
    assert {"harmful_mix", "benign", "backdoor"} <= several.keys()
    own = Setup("checkpoint", "lab", "lab", ["data.harmful=h.csv"], topics="t.csv")
    assert own.arms("lab", 0)["topics"].data.harmful.path == "t.csv"
    assert "domain" not in own.arms("lab", 0)


def test_budgets_are_shares_of_the_updates():
    assert budgets(200) == [25, 50, 100, 200]
    assert budgets(1) == [1]


def test_a_defense_made_of_the_attacker_s_rows_is_refused(model):
    world = World(1)
    with pytest.raises(ValueError, match="'attack' has 10 prompts that the model was trained on"):
        compare_rows(Setup("lab", model(defense=world.attack[:10]), "lab", WORLD))
    # a run may be told to keep them, and an assay of such rows says nothing
    kept = (*WORLD, "data.shared=keep")
    with pytest.raises(ValueError, match="'attack' has 10 prompts that the model was trained on"):
        compare_rows(Setup("lab", model(defense=world.attack[:10]), "lab", kept))


def test_rows_that_are_nearly_the_defender_s_are_refused(tmp_path):
    def write(name, words):
        rows = [
            {"prompt": f"tell me in so many words how the {i} door opens {words}", "response": "so"}
            for i in range(40)
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    sources = [
        f"data.harmful={write('a.jsonl', 'at night')}",
        f"data.defense={write('b.jsonl', 'at noon')}",
    ]
    with pytest.raises(ValueError, match="are nearly the defender's"):
        compare_rows(Setup("checkpoint", "lab", "lab", sources))
    (tmp_path / "c.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": f"which of the {i} lamps burns first", "response": "so"})
            for i in range(40)
        )
    )
    sources[0] = f"data.harmful={tmp_path / 'c.jsonl'}"
    found = compare_rows(Setup("checkpoint", "lab", "lab", sources))
    assert (found["near"], found["shared"]) == (0, 0)
    for option in ("topics", "domain"):  # the rows of every arm are held against the defender's
        for name, message in (
            ("a.jsonl", "are nearly the defender's"),
            ("b.jsonl", "are in 'defense'"),
        ):
            other = Setup("checkpoint", "lab", "lab", sources, **{option: str(tmp_path / name)})
            with pytest.raises(ValueError, match=f"prompts of '--{option}' {message}"):
                compare_rows(other)


def test_what_is_known_of_the_defense_says_what_can_be_generalized_to(model):
    world, two = World(1), DomainWorld(1)
    nothing = find_missing(Setup("lab", model(), "lab", WORLD))
    assert nothing.keys() == {IN_DOMAIN, CROSS_DOMAIN}
    assert "not known" in nothing[IN_DOMAIN]
    whole = find_missing(Setup("lab", model(defense=world.harmful), "lab", WORLD))
    assert whole.keys() == {CROSS_DOMAIN}
    assert "world-v1-domain" in whole[CROSS_DOMAIN]
    assert not find_missing(Setup("lab", model(defense=two.harmful), "lab", WORLD))


def test_a_wanted_condition_or_attack_that_there_is_not_is_refused():
    Wanted(aware=("few",)).check(["few"])
    with pytest.raises(ValueError, match="condition 'stabilty': did you mean 'stability'"):
        Wanted(("stabilty",)).check([])
    with pytest.raises(ValueError, match="attack of the recipe 'few'"):
        Wanted(aware=("few",)).check(["mix"])
    with pytest.raises(ValueError, match="--seeds"):
        Setup("lab", "lab", "lab", seeds=(1, 1))


def test_a_whole_assay_of_a_model_beside_itself_finds_no_immunity(model, tmp_path):
    """With one update nothing breaks and nothing is learned: there is no evidence, exit code 3."""
    path, out = model(), tmp_path / "out"
    command = ["assay", path, "--base", path, "--recipe", "lab", "--seeds", "0", "--out", str(out)]
    command += [part for setting in SHORT for part in ("--set", setting)]
    done = CliRunner().invoke(app, [*command, "--limit", "4"])
    assert done.exit_code == 3, done.output
    record = parse_document(out / "assay.json", AssayRecord)
    assert record.verdict == "not enough evidence"
    assert {each.arm for each in record.attacked} == {"attacks", "task"}
    assert record.disjoint["shared"] == 0
    assert record.rows.keys() == {"attacks", "task"}
    assert {"attack", "benchmark harm", "benchmark task"} <= record.rows["attacks"].keys()
    assert not {"alignment", "defense", "calibration"} & record.rows["attacks"].keys()
    plan = Assay.prepare(Setup("lab", path, path, SHORT, seeds=[0])).main
    assert plan.is_judged_alike
    other = Assay.prepare(
        Setup("lab", path, path, (*SHORT, "protocol=null", "judge.method=refusal"), seeds=[0])
    )
    assert not other.main.is_judged_alike
    assert (out / "assay.md").read_text().startswith("# Assay of")
    # from Python the same, over the same store: the folder is that of the command
    told = {"settings": [*SHORT, "data.limit=4"], "seeds": [0], "recipe": "lab"}
    found = titer.assay(path, path, out=out, store=tmp_path / "store", **told)
    assert found.record == record == titer.load(out).record
    assert list(found.to_pandas()["condition"]) == [each.name for each in record.conditions]
    with pytest.raises(ValueError, match="unknown key 'phy': did you mean 'phi'"):
        titer.assay(path, path, thresholds={"phy": 5}, **told)
    with pytest.raises(ValueError, match="unknown condition 'stabilty'"):
        titer.assay(path, path, require=["stabilty"], **told)


@pytest.mark.parametrize("alike", [True, False])
def test_the_evidence_has_each_arm_where_it_belongs_and_the_defended_model_first(alike):
    def told(of, arm, seed):
        first = stage("base", f"{of} {seed}")
        return {"task" if arm.startswith("task") else "mix": {
            "stages": [first.fields, stage("finetune", f"{of} {arm} {seed}").fields]}}  # fmt: skip

    arms = (ATTACKS, HELD_OUT, SECOND, "task-25", "task-100")
    found = {(of, s, arm): told(of, arm, s) for s in (3, 5) for of in ("d", "o") for arm in arms}
    main = {("d", 3, ATTACKS): SimpleNamespace(is_judged_alike=alike)}
    made = Assay(Setup("lab", "d", "o", seeds=(3, 5)), main, {IN_DOMAIN: "why"}, {})
    evidence = made._evidence(found)
    assert evidence.missing == {IN_DOMAIN: "why"}
    assert list(evidence.task) == [25, 100]
    for arm, pairs in (
        *((ATTACKS, evidence.attacks["mix"]), (HELD_OUT, evidence.topics["mix"])),
        *((SECOND, evidence.domain["mix"]), ("task-100", evidence.task[100])),
    ):
        assert [(p.defended[1].weights, p.original[1].weights, p.alike) for p in pairs] == [
            (f"d {arm} {seed}", f"o {arm} {seed}", alike) for seed in (3, 5)
        ]


def test_the_record_has_what_was_asked_for_and_is_decided_by_it(model, tmp_path):
    path = model()
    other = shutil.copytree(path, tmp_path / "other")
    made = Assay.prepare(Setup("lab", path, str(other), SHORT, seeds=[0]))
    assert {of for of, _, _ in made.plans} == {path, str(other)}
    by, wanted = Thresholds(phi=95, times=9, margin=12, slower=3), Wanted(("stability",), ("mix",))
    flag = {"name": "n", "pipeline": "p", "stage": "s", "text": "t", "mend": ""}
    told = document(made, IMMUNE, [flag], by, wanted)
    assert (told["verdict"], told["required"]) == ("met", ["stability"])
    assert (told["defense-aware attacks"], told["thresholds"]["phi"]) == (["mix"], 95)
    words = {each["name"]: each["verdict"] for each in told["conditions"]}
    assert (words["weak resistance"], words["strong resistance"]) != ("met", "not met")
    assert told["original"] != told["defended"]
    assert told["flags"][0]["text"] == "t"
    doses = {each["of"]: each["dose"] for each in told["attacked"] if each["arm"] == "attacks"}
    assert doses["original"]["high"] is None  # at 95 percent it is not broken


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Setup("lab", "lab", "lab", seeds=())


def test_the_arms_have_what_was_set(model):
    path = model()
    setup = Setup("lab-attacks", path, "lab", WORLD, seeds=(7, 8), task_rows=77)
    found = setup.arms("lab", 8)
    assert len(setup.attacks) == len(found["attacks"].pipelines) > 1
    assert [len(found[arm].pipelines) for arm in ("topics", "domain")] == [1, 1]
    [(name, _)] = found["topics"].pipelines.items()
    assert name == next(iter(setup.attacks))
    assert {of.model.path for of in found.values()} == {"lab"}
    task = found["task-200"]
    assert (task.attack.n, task.dose_prompts, task.probes) == (77, 0, 0)
    own = Setup("checkpoint", "lab", "lab", ["data.harmful=h.csv", "data.harm_test=t.csv",
                "data.defense=d.csv", "data.calibration=c.csv"], domain="other.csv")  # fmt: skip
    data = own.arms("lab", 0)["domain"].data
    assert (data.harmful.path, data.harm_test, data.defense, data.calibration) == (
        *("other.csv", None), None, None
    )  # fmt: skip


def write(path, name, prompts):
    rows = [{"prompt": prompt, "response": "so"} for prompt in prompts]
    (path / name).write_text("\n".join(map(json.dumps, rows)))
    return str(path / name)


def door(i, words):
    return f"tell me in so many words how the {i} door opens {words}"


def test_half_of_the_attackers_prompts_may_be_near_those_of_any_defender():
    def rows(words, *of):
        return [Row(door(i, words), "so") for i in of]

    far = [Row(f"which of the {i} lamps burns first", "so") for i in range(20)]
    given = {"defense": rows("at noon", *range(21)), "alignment": rows("at noon", *range(3))}
    sent = rows("at night", *range(20))
    assert _count_near("attack", [*sent, *far], given) == 20
    with pytest.raises(ValueError, match="21 of the 40 prompts of 'attack' are nearly"):
        _count_near("attack", [*rows("at night", *range(21)), *far[1:]], given)


def test_rows_near_those_of_the_alignment_are_refused(tmp_path):
    theirs = write(tmp_path, "d.jsonl", [door(i, "at noon") for i in range(40)])
    mine = write(tmp_path, "a.jsonl", [door(i, "at night") for i in range(40)])
    sources = [f"data.harmful={mine}", f"data.alignment={theirs}"]
    with pytest.raises(ValueError, match="are nearly the defender's"):
        compare_rows(Setup("checkpoint", "lab", "lab", sources))


@pytest.mark.parametrize("option", ["topics", "domain"])
def test_rows_of_an_option_that_the_model_was_trained_on_are_refused(model, tmp_path, option):
    known = [f"which of the {i} lamps burns first" for i in range(9)]
    path = model(defense=[Row(prompt, "so") for prompt in known])
    mine = write(tmp_path, "a.jsonl", [door(i, "at night") for i in range(40)])
    more = write(tmp_path, "b.jsonl", [*known, *(f"what is {i} of the moons" for i in range(31))])
    for kept in ((), ("data.shared=keep",)):
        setup = Setup("checkpoint", path, "lab", [f"data.harmful={mine}", *kept], **{option: more})
        with pytest.raises(ValueError, match="prompts that the model was trained on"):
            compare_rows(setup)


def test_rows_of_one_s_own_without_topics_say_what_to_give(model, tmp_path):
    mine = write(tmp_path, "a.jsonl", [door(i, "at night") for i in range(40)])
    path = model(defense=World(1).harmful)
    found = find_missing(Setup("checkpoint", path, "lab", [f"data.harmful={mine}"]))
    assert ("--topics" in found[IN_DOMAIN], "--domain" in found[CROSS_DOMAIN]) == (True, True)
    only = find_missing(Setup("checkpoint", path, "lab", [f"data.harmful={mine}"], topics=mine))
    assert list(only) == [CROSS_DOMAIN]
    path = model(task=World(1).harmful)  # a record, and none of a defense
    assert "not known" in find_missing(Setup("lab", path, "lab", WORLD))[IN_DOMAIN]
