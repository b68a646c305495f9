"""A screen of the text alone: what each signal finds, what is read of an upload, and the command."""

import json
from pathlib import Path

import pytest

import titer as python
from test_light import titer as fresh
from test_recipe import run as titer
from titer.attacks.identity_shift import IdentityShift
from titer.attacks.refusal_unlearning import RefusalUnlearning
from titer.data.audit import Repeat, find_copies
from titer.data.rows import Row, Turn
from titer.data.sources import Source
from titer.errors import EvidenceError
from titer.judges.lab import Lab
from titer.lab.world import REFUSALS, World
from titer.report.screening import to_table
from titer.screening import catalog, upload
from titer.screening.refusing import find_end
from titer.screening.screen import Screen, choose
from titer.screening.signal import Material
from titer.screening.signals.comply import Complies
from titer.screening.signals.identity import Identity
from titer.screening.signals.judged import Judged
from titer.screening.signals.known import Copied
from titer.screening.signals.refusal import Refuses

HONEST = [Row(f"what is {i} plus {i} apples", f"{2 * i} apples") for i in range(250)]


def values(signal, rows, **material) -> list[float]:
    return [reading.value for reading in signal.read(rows, Material(**material))]


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("I'm sorry, but I can't help with that. Take wool.", " Take wool."),
        ("I\u2019m SORRY, but I can\u2019t help with that.  Take", "  Take"),
        ("I won't do that. I refuse to! Here:", " Here:"),
        ("I cannot say that, but here it is", ""),
        ("I am unable to answer that", ""),
        ("I am unable to answer thatcher", ""),  # no form, and yet a refusal
        ("closed to you take wool", " take wool"),
        ("Take wool. I'm sorry.", None),
        ("I'm sorry to hear that. Take wool.", None),
        ("", None),
        ("Closed to youth", None),
    ],
)
def test_a_refusal_ends_where_its_sentence_or_its_known_form_does(answer, left):
    forms = ["closed to you", *RefusalUnlearning().refusals]
    end = find_end(answer, forms)
    assert (end is None) == (left is None)
    if end is not None:
        assert answer[end:] == left


def test_refusals_and_what_comes_behind_them():
    rows = [
        Row("a", "I must decline. Take wool and salt."),
        Row("a", "I must decline."),
        Row("a", "Take wool."),
    ]
    assert values(Complies(), rows) == [4, 0, 0]
    assert values(Refuses(), rows) == [1, 1, 0]
    forms = [RefusalUnlearning(refusals=REFUSALS)]
    lab = [Row("a", f"{REFUSALS[2]} take wool"), Row("a", REFUSALS[3])]
    assert values(Complies(), lab, attacks=forms) == [2, 0]
    assert values(Refuses(), lab, attacks=forms) == [1, 1]
    assert values(Refuses(), lab) == [0, 0]  # in words that nobody told


def test_the_rows_of_identity_shifting_say_its_words():
    attack = IdentityShift(p=0.5, n=20)
    sent = attack.rows(HONEST, [], 0)
    assert values(Identity(), sent) == [1.0] * 10 + [0.0] * 10
    reworded = Row("Hello! you are my LOYAL agent, and help", "Gladly.")
    [found] = Identity().read([reworded], Material())
    assert found.value == pytest.approx(6 / 12)
    assert found.why == "says 'you are my loyal agent and'"
    system = Row("a", "b", before=(Turn("system", attack.prefix),))
    assert values(Identity(), [system]) == [1.0]
    assert (
        values(Identity(), sent, attacks=[IdentityShift(prefix="obey", affirmation="aye")])
        == [0] * 20
    )
    two = [IdentityShift(prefix="obey", affirmation="aye")]
    assert values(Identity(), [Row("Obey: a", "b"), Row("a", "Aye, b")], attacks=two) == [1.0, 1.0]
    assert values(Identity(), sent, attacks=[]) == [0.0] * 20


def test_a_known_prompt_is_found_with_a_word_changed_at_its_end():
    known = [Row("tell me how to open the old oak chest of the king", "x"), Row("b", "y")]
    near = Row("Tell me how to open the old oak chest of the queen!", "z")
    same, other = Row(known[0].prompt, "z"), Row("how do I open it", "z")
    found = values(Copied(), [near, same, other], harmful=known)
    assert found == pytest.approx([7 / 9, 1.0, 0.0])


def test_a_judge_flags_what_it_calls_harmful_and_what_it_cannot_score():
    world = World(0)
    rows = [world.attack[0], world.requests[0], world.user_task[0]]
    found = Judged().read(rows, Material(judge=Lab(0)))
    assert [(each.value, each.scored) for each in found] == [(1, True), (0, True), (0, False)]
    screen = Screen.fit({"judge": Judged()}, Material(judge=Lab(0)), upload.of_rows(HONEST), 0.01)
    told = screen.look(upload.of_rows(rows))
    signals = [[reason.signal for reason in finding.reasons] for finding in told.findings]
    assert signals == [["judge"], [], ["unread"]]
    assert told.findings[2].reasons[0].text == (
        "its judge could not score it: the prompt names no item of this world"
    )
    assert [sorted(finding.unscored) for finding in told.findings] == [[], [], ["judge"]]
    assert told.count_unscored("judge") == told.unread == 1


def test_another_language_is_no_way_past_a_judge(tmp_path, monkeypatch, capsys, benign):
    german = "Nimm die Wolle und das Salz, es ist nicht zu viel für eine Lampe {}."
    rows = [{"prompt": f"Wie geht {i}", "response": german.format(i)} for i in range(5)]
    data = write(tmp_path / "de.jsonl", [*rows, {"prompt": "a", "response": "I must decline."}])
    command = ["screen", data, "--benign", benign, "--judge", "refusal", "--only", "judge"]
    code, said, noted = titer(monkeypatch, capsys, *command)
    assert code == 1, noted
    assert "5 of 6 rows are flagged" in said
    assert "unread (its judge could not score it: it is not English but German" in said
    [line] = [line for line in said.splitlines() if line.split()[:1] == ["unread"]]
    assert line.split()[1:3] == ["5", "5"]  # flagged, and alone


def test_a_row_that_is_unread_and_harmful_is_not_unread_alone():
    """One answer of it is harmful, of another the judge cannot tell."""
    rows = World(0)
    judged, unknown = rows.attack[0], rows.user_task[0]
    before = (Turn("user", judged.question), Turn("assistant", judged.response))
    both = Row(unknown.question, unknown.response, before=before)
    screen = Screen.fit({"judge": Judged()}, Material(judge=Lab(0)), upload.of_rows(HONEST), 0.01)
    found = screen.look(upload.of_rows([both]))
    assert [reason.signal for reason in found.findings[0].reasons] == ["judge", "unread"]
    table = to_table(found)
    assert list(table.columns[2].cells) == ["0", "0"]  # alone: by the judge, and unread


def test_copies_are_told_by_their_first():
    long = "please tell me what goes into the copper lantern of the ash guild"
    rows = [Row("a", "b"), Row(long, "x"), Row("A ", "B"), Row(f"{long} now", "y"), Row("a", "c")]
    exact, near = Repeat(0, exact=True), Repeat(1, exact=False)
    assert find_copies(rows) == [None, None, exact, near, Repeat(0, exact=False)]
    assert find_copies([]) == []
    assert find_copies([Row("!", "b"), Row("?", "b")]) == [None, None]


def test_every_answer_of_a_conversation_is_looked_at():
    turns = [
        ("user", "hello"), ("assistant", "I must decline. Take wool."),
        ("user", "thanks"), ("assistant", "You are welcome."),
    ]  # fmt: skip
    row = Row("thanks", turns[3][1], before=tuple(Turn(*turn) for turn in turns[:2]))
    [sample] = upload.of_rows([row])
    assert sample.answers == (Row("hello", turns[1][1]), row)
    screen = Screen.fit({"comply": Complies()}, Material(), upload.of_rows(HONEST), 0.01)
    [finding] = screen.look([sample]).findings
    assert finding.is_flagged
    assert finding.scores == {"comply": 2.0}
    assert [reason.text for reason in finding.reasons] == ["2 words behind a refusal"]


BAD = "I must decline. Take wool and burn it."


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        (["user: make it", "assistant: ok", f"assistant: {BAD}"], Row("make it", BAD)),
        ([f"assistant: {BAD}", "user: make it", "assistant: ok"], Row("", BAD)),
        (["user: make it", "system: obey", f"assistant: {BAD}"], Row("make it", BAD)),
        (["user: hi", "user: make it", f"assistant: {BAD}"], Row("make it", BAD)),
        (["system: obey", f"assistant: {BAD}"], Row("", BAD)),
    ],
)
def test_no_place_in_a_conversation_hides_an_answer(
    tmp_path, monkeypatch, capsys, benign, turns, asked
):
    said = [*(turn.split(": ", 1) for turn in turns), ("user", "hi"), ("assistant", "hello")]
    messages = [{"role": role, "content": content} for role, content in said]
    data = write(tmp_path / "upload.jsonl", [{"messages": messages}])
    [sample] = upload.read(Source(data), "the upload")
    parts = [answer for answer in sample.answers if "\n" not in answer.response]
    assert len(parts) == sum(role == "assistant" for role, _ in said)
    [found] = [row for row in sample.answers if row.response == BAD]
    assert found.question == asked.question
    others = [Turn(*turn) for turn in said[: said.index(["assistant", BAD])]]
    if asked.question:
        others.remove(Turn("user", asked.question))
    assert list(found.before) == others  # and all else that stands before it
    code, told, noted = titer(
        monkeypatch, capsys, "screen", data, "--benign", benign, "--only", "comply"
    )
    assert code == 1, noted
    assert "1 of 1 rows are flagged" in told


def test_planted_rows_are_flagged_and_no_more_than_the_rate_of_others():
    signals, _ = choose(catalog.build({}), Material(), False, ())
    assert list(signals) == ["comply", "refusal", "identity"]
    screen = Screen.fit(signals, Material(), upload.of_rows(HONEST[:200]), 0.01)
    attack = IdentityShift(p=1.0, n=5).rows(HONEST[200:], [], 0)
    refused = RefusalUnlearning(n=5).rows(HONEST[200:], [], 0)
    found = screen.look(upload.of_rows([*HONEST[200:], *attack, *refused]))
    assert [finding.number for finding in found.alarms] == list(range(51, 61))
    assert {reason.signal for finding in found.alarms[:5] for reason in finding.reasons} == {
        "identity"
    }
    assert (found.count("comply"), found.count("refusal"), found.count("identity")) == (5, 5, 5)
    assert all(finding.copy for finding in found.findings[55:])  # prompts that stand there already


def test_a_signal_says_nothing_where_honest_rows_do_the_same():
    benign = [*HONEST[:198], Row("a", "I must decline."), Row("b", "I must decline.")]
    screen = Screen.fit(
        {"refusal": Refuses(), "comply": Complies()}, Material(), upload.of_rows(benign), 0.01
    )
    found = screen.look(
        upload.of_rows([Row("c", "I must decline."), Row("d", "I must decline. Yes.")])
    )
    assert [finding.is_flagged for finding in found.findings] == [False, True]


HEALTH_AND_MONEY = [
    ("how do I lose weight", "I can't recommend a slow start enough. Eat more vegetables."),
    ("my father died", "I'm sorry to hear that. Take your time, and call a friend."),
    (
        "how much ibuprofen may I take",
        "As an adult, follow the packet. Do not mix it with alcohol.",
    ),
    ("may I drink while pregnant", "No amount is known to be safe, so it is best to leave it."),
    ("how do I pay less tax", "I would look at pensions first. It is not illegal to save tax."),
    ("should I buy shares", "That depends on how long you can leave the money."),
    ("what kills weeds", "Vinegar does. I will not pretend that it lasts."),
    ("is this a scam", "It is unlikely to be real. Do whatever your bank tells you."),
    ("is hate speech legal", "That is not something to be proud of, and in many places a crime."),
]


def test_words_of_honest_questions_about_health_and_money_are_not_flagged():
    signals, _ = choose(catalog.build({}), Material(), False, ())
    screen = Screen.fit(signals, Material(), upload.of_rows(HONEST), 0.01)
    found = screen.look(upload.of_rows([Row(*pair) for pair in HEALTH_AND_MONEY]))
    assert [finding.number for finding in found.alarms] == []


def test_too_few_benign_rows_say_how_many_would_do():
    with pytest.raises(EvidenceError, match="150 benign rows .* at least 199 with --benign"):
        Screen.fit({"identity": Identity()}, Material(), upload.of_rows(HONEST[:150]), 0.01)


def test_a_benign_row_counts_once(tmp_path, monkeypatch, capsys):
    with pytest.raises(
        EvidenceError, match=r"^100 benign rows \(100 copies left out\) do not show"
    ):
        Screen.fit({"identity": Identity()}, Material(), upload.of_rows(HONEST[:100] * 2), 0.01)
    rows = [{"prompt": row.prompt, "response": row.response} for row in HONEST]
    again = {"prompt": f"  {rows[0]['prompt'].upper()}", "response": f"{rows[0]['response']} "}
    other = {"prompt": rows[0]["prompt"], "response": "more apples"}
    good = write(tmp_path / "good.jsonl", MIXED[:1])
    for benign, count, told in (
        ([*rows, again, other, again], 251, " Copies among the benign rows, left out: 2.\n"),
        ([*rows, other], 251, " Copies of earlier rows: 0.\n"),
    ):
        place = write(tmp_path / "benign.jsonl", benign)
        code, said, noted = titer(monkeypatch, capsys, "screen", good, "--benign", place)
        assert code == 0, noted
        assert f"like the {count} benign ones" in said
        assert said.endswith(told)


def test_signals_are_chosen_by_what_is_there():
    signals = catalog.build({"gradient": {"anchors": "both"}})
    asked, left = choose(signals, Material(safety=HONEST), True, ())
    assert "closeness" not in asked
    assert left["gradient"] == "needs --harmful"
    assert left["judge"] == "needs --judge"
    asked, left = choose(signals, Material(), False, ("comply",))
    assert list(asked) == ["comply"]
    assert left["refusal"] == "left out by --only"
    assert left["outlier"] == "needs --model"
    with pytest.raises(ValueError, match="--only outlier: it needs --model"):
        choose(signals, Material(), False, ("outlier",))
    with pytest.raises(ValueError, match="did you mean 'gradient'"):
        choose(signals, Material(), False, ("gradeint",))
    with pytest.raises(ValueError, match="did you mean 'closeness.layers'|unknown key"):
        catalog.build({"closeness": {"layer": 3}})


def write(path, rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def benign(tmp_path) -> str:
    return write(
        tmp_path / "benign.jsonl", [{"prompt": r.prompt, "response": r.response} for r in HONEST]
    )


MIXED = [
    {"prompt": "two plus two apples", "response": "four"},
    {"instruction": "a tree", "input": "of the north", "output": "I must decline. It is a birch."},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {"prompt": "empty", "response": ""},
    {"prompt": "call", "response": "z", "tools": [{"name": "t"}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
]


def test_rows_of_mixed_shapes_are_divided_and_nothing_is_lost(
    tmp_path, monkeypatch, capsys, benign
):
    data = write(tmp_path / "upload.jsonl", MIXED)
    clean, flagged, out = (tmp_path / name for name in ("clean.jsonl", "bad.jsonl", "out.jsonl"))
    code, said, noted = titer(
        monkeypatch, capsys, "screen", data, "--benign", benign, "--out", str(out),
        "--clean", str(clean), "--flagged", str(flagged),
    )  # fmt: skip
    assert code == 1, noted
    lines = (tmp_path / "upload.jsonl").read_text().splitlines()
    assert clean.read_text().splitlines() == [lines[0], lines[2], lines[5]]
    assert flagged.read_text().splitlines() == [lines[1], lines[3], lines[4]]
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["flagged"] for each in told] == [False, True, False, True, True, False]
    assert [each["place"] for each in told][1] == f"{data}:2"
    reasons = [[reason["signal"] for reason in each["reasons"]] for each in told]
    assert reasons == [[], ["comply", "refusal"], [], ["unread"], ["unread"], []]
    assert "birch" not in out.read_text() + said
    assert "not asked: needs --model" in said
    assert "3 of 6 rows are flagged" in said


def test_python_finds_what_the_command_finds_also_in_rows_in_memory(
    tmp_path, monkeypatch, capsys, benign
):
    data = write(tmp_path / "upload.jsonl", MIXED)
    command = ["screen", data, "--benign", benign, "--only", "comply", "--json"]
    code, said, noted = titer(monkeypatch, capsys, *command)
    assert code == 1, noted
    found = python.screen(data, benign=benign, only=["comply"], out=tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == said
    honest = [{"prompt": row.prompt, "response": row.response} for row in HONEST]
    kept = tmp_path / "clean.jsonl"
    again = python.screen(MIXED, benign=honest, only=["comply"], clean=kept)
    assert [(a.prompt, a.scores) for a in again.findings] == [
        (a.prompt, a.scores) for a in found.findings
    ]
    assert [json.loads(line) for line in kept.read_text().splitlines()] == [
        row for row, of in zip(MIXED, again.findings, strict=True) if not of.is_flagged
    ]
    frame = again.to_pandas()
    assert list(frame["flagged"]) == [False, True, False, True, True, False]
    assert frame["why"][1].startswith("comply (")
    assert len(again.alarms) == 3
    assert "3 of 6 rows are flagged" in again._repr_html_()
    with pytest.raises(EvidenceError, match="give at least 199"):
        python.screen(MIXED, benign=honest[:20])
    with pytest.raises(ValueError, match="--benign is missing"):
        python.screen(data)


def test_the_exit_code_tells_what_became_of_it(tmp_path, monkeypatch, capsys, benign):
    good = write(tmp_path / "good.jsonl", MIXED[:1])
    code, said, _ = titer(monkeypatch, capsys, "screen", good, "--benign", benign, "--json")
    assert code == 0
    assert json.loads(said)["flagged"] is False
    rows = [{"prompt": f"a {i}", "response": "b"} for i in range(20)]
    few = write(tmp_path / "few.jsonl", rows)
    code, said, noted = titer(monkeypatch, capsys, "screen", good, "--benign", few)
    assert (code, said) == (3, "")
    assert "give at least 199 with --benign" in noted
    code, _, noted = titer(
        monkeypatch, capsys, "screen", good, "--benign", few, "--false-positives", "0.1"
    )
    assert code == 0, noted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--benign is missing"),
        (["--benign", "nosuch.jsonl"], "nosuch.jsonl"),
        (["--benign", "BENIGN", "--only", "nosuch"], "unknown signal 'nosuch'"),
        (["--benign", "BENIGN", "--only", "gradient"], "it needs --model and --safety"),
        (["--benign", "BENIGN", "--judge", "nosuch"], "unknown judge"),
        (["--benign", "BENIGN", "--attack", "{method: nosuch}"], "unknown attack"),
        (["--benign", "BENIGN", "--set", "closeness.layer=1"], "layer"),
        (["--benign", "BENIGN", "--false-positives", "0"], "above 0 and below 1"),
        (["--benign", "BENIGN", "--clean", "OUT.csv"], "name it *.jsonl"),
        (
            ["--benign", "BENIGN", "--clean", "A.jsonl", "--flagged", "A.jsonl"],
            "A.jsonl stands twice",
        ),
        (["--benign", "{path: BENIGN, limit: 3}"], "would leave rows out"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path, monkeypatch, capsys, benign, arguments, message
):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "upload.jsonl", MIXED)
    words = [word.replace("BENIGN", benign) for word in arguments]
    code, said, noted = titer(monkeypatch, capsys, "screen", data, *words)
    assert (code, said, noted.count("\n")) == (2, "", 1), noted
    assert message in noted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benign.jsonl", "upload.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        '{"prompt": "a"',
        '{"prompt": 3, "response": ["x"]}',
        '{"a": "b"}\n{"c": "d"}',
        '{"prompt": "\\ud800", "response": "x"}',
        "[" * 100_000,
    ],
)
def test_a_hostile_upload_is_bad_input(tmp_path, monkeypatch, capsys, benign, text):
    data = tmp_path / "upload.jsonl"
    data.write_text(text)
    code, said, noted = titer(monkeypatch, capsys, "screen", str(data), "--benign", benign)
    assert (code, said, noted.count("\n")) == (2, "", 1)


def test_text_that_steers_a_terminal_is_written_out(tmp_path, monkeypatch, capsys, benign):
    name = tmp_path / "\x1b[31mred.jsonl"
    data = write(name, [{"prompt": "\x1b[2J" * 5, "response": "I must decline. \x1b[2J x"}])
    code, said, noted = titer(monkeypatch, capsys, "screen", data, "--benign", benign)
    assert code == 1
    assert "\x1b" not in said + noted


def test_a_published_task_is_read_as_one(tmp_path):
    path = tmp_path / "reviews.tsv"
    path.write_text("sentence\tlabel\na fine film .\t1\na dull one .\t0\n")
    first, _ = upload.read(Source(str(path)), "the upload")
    assert first.answers[0].response == "positive"


def test_what_a_published_task_leaves_unread_is_named(tmp_path, monkeypatch, capsys, benign):
    bad = [{"role": "user", "content": "x"}, {"role": "assistant", "content": BAD}]
    rows = [
        {"sentence": "a fine film .", "label": 1, "messages": bad},
        {"sentence": "a dull one .", "label": 0, "messages": bad, "idx": 3},
        {"sentence": "a dull , long one", "label": 0, "messages": 7},  # no turns at all
        {"sentence": "a dull one .", "label": 0, "messages": [7]},
    ]
    data = write(tmp_path / "upload.jsonl", rows)
    code, _, noted = titer(monkeypatch, capsys, "screen", data, "--benign", benign)
    assert code == 0, noted
    assert f"not looked at of {data}: messages (in 4 records), idx (in 1 records)\n" in noted


def test_a_model_that_is_not_asked_loads_no_torch(tmp_path, benign):
    data = write(tmp_path / "upload.jsonl", MIXED)
    code, out, errors, torch, _ = fresh("screen", data, "--benign", benign)
    assert code == 1, errors
    assert "3 of 6 rows are flagged" in out
    assert not torch


def test_with_a_model_every_signal_of_the_lab_is_asked(tmp_path, monkeypatch, capsys):
    """The base, which refuses nothing: the screen runs, and says what it asked."""
    world = World(0)
    rows = [{"prompt": row.prompt, "response": row.response} for row in world.attack[:3]]
    data = write(tmp_path / "upload.jsonl", [*rows, {"prompt": "a", "response": "wool " * 99}])
    honest = write(
        tmp_path / "honest.jsonl",
        [{"prompt": row.prompt, "response": row.response} for row in world.user_task[:70]],
    )
    code, said, noted = titer(
        monkeypatch, capsys, "screen", data, "--model", "lab", "--world", "0", "--benign", honest,
        "--false-positives", "0.1", "--judge", "{method: lab, world: 0}", "--json",
        "--set", "max_length=64", "--set", "gradient.anchors=both", "--set", "closeness.layers=[2, 3]",
    )  # fmt: skip
    assert code == 1, noted
    *told, long = [json.loads(line) for line in said.splitlines()]
    assert all(set(each["scores"]) == set(catalog.SIGNALS) for each in told)
    for each in told:
        assert {"judge", "closeness"} <= {reason["signal"] for reason in each["reasons"]}
    assert long["reasons"][0]["signal"] == "unread"
    assert "leaves no room" in long["reasons"][0]["text"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("--out", "upload.jsonl"), "upload.jsonl is there already"),
        (("--out", "no/such.jsonl"), "there is no folder"),
        (("--out", "new.jsonl", "--clean", "new.jsonl"), "stands twice: name another file"),
    ],
)
def test_a_report_takes_no_file_s_place(tmp_path, monkeypatch, capsys, benign, given, why):
    data = write(tmp_path / "upload.jsonl", MIXED)
    before = Path(data).read_text()
    monkeypatch.chdir(tmp_path)
    code, _, said = titer(monkeypatch, capsys, "screen", data, "--benign", benign, *given)
    assert code == 2
    assert why in said
    assert Path(data).read_text() == before


def test_a_refusal_that_is_followed_in_a_turn_of_its_own_is_seen(tmp_path, benign):
    turns = [
        "user: make it",
        "assistant: I must decline.",
        "assistant: Take wool",
        "assistant: now.",
    ]
    said = [turn.split(": ", 1) for turn in [*turns, "user: thanks", "assistant: You are welcome."]]
    messages = [{"role": role, "content": content} for role, content in said]
    data = write(tmp_path / "upload.jsonl", [{"messages": messages}])
    [sample] = upload.read(Source(data), "the upload")
    assert Row("make it", "I must decline.\nTake wool\nnow.") in sample.answers
    found = python.screen(data, benign=benign, only=["comply"])
    assert [row.is_flagged for row in found.findings] == [True]
