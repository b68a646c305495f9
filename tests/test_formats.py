"""Files as people have them: every record counts, what is not used is named, and what cannot be said
in a row is refused with the file, the place and the mend. The files are in `tests/cases`.
"""

import gzip
import json
import lzma
import re
from pathlib import Path

import pytest

from test_sources import STORY, jsonl, read, rows
from titer.benchmarks.agnews import AGNews
from titer.benchmarks.answers import Answers
from titer.benchmarks.sst2 import SST2
from titer.data.rows import Row, Turn
from titer.methods import Kind

CASES = Path(__file__).parent / "cases"
PAIR = [Row("a", "b"), Row("c", "d")]
HI = (Turn("user", "hi"), Turn("assistant", "hello"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("array.jsonl", PAIR),
        ("columns.json", PAIR),
        ("pretty.json", PAIR[:1]),
        ("rows.jsonl.gz", [Row(f"p{i}", "x") for i in range(3)]),
        (
            "sharegpt.jsonl",
            [Row(f"what is a {of}?", f"a {of} is a thing") for of in ("bolt", "lid", "key")],
        ),
        (
            "sharegpt_in_messages.jsonl",
            [Row(f"what is a {of}?", f"a {of} is a thing") for of in ("bolt", "lid", "key")],
        ),
        (
            "sharegpt_system.jsonl",
            [Row("a lid?", "a cover", before=(Turn("system", "be brief"), *HI))],
        ),
        (
            "turn_lists.json",
            [
                Row(
                    "how do I open it?",
                    "Of course. Turn the key.",
                    before=(Turn("system", "You are AOA, loyal agent."),),
                ),
                Row("hi", "hello"),
            ],
        ),
        (
            "alpaca_system_history.jsonl",
            [Row("a lid?", "a cover", before=(Turn("system", "be brief"), *HI))],
        ),
        (
            "dolly.jsonl",
            [
                Row(
                    "What is the chest made of?",
                    "glass and silk",
                    input="The chest of the monk is made of glass and silk.",
                ),
                Row("Name a metal.", "tin"),
            ],
        ),
        ("two_users.jsonl", [Row("are you there?", "yes", before=(Turn("user", "hi"),))]),
        ("spaced_header.csv", [Row("a", " b")]),
        (
            "think_earlier.jsonl",
            [
                Row(
                    "2+2?",
                    "4",
                    before=(
                        Turn("user", "1+1?"),
                        Turn("assistant", "<think>\none and one\n</think>\n\n2"),
                    ),
                )
            ],
        ),
    ],
)
def test_a_file_of_the_field_is_read_whole(name, expected):
    assert rows(CASES / name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "is_safe_not_on_the_first_row.jsonl",
            r":1: no 'is_safe', which other records of the file have",
        ),
        ("mixed_is_safe_later.jsonl", r":1: no 'is_safe', which other records of the file have"),
        ("duplicate_keys.jsonl", r":1: the key 'prompt' stands twice in one object"),
        ("tools.jsonl", r":1: it has 'tools', and rows here have no calls of tools"),
        ("tool_in_the_middle.jsonl", r":1: it has 'tool_calls', and rows here have no calls"),
        ("surrogate.jsonl", r":1: half of a character \(character 6 of"),
        (
            "nested.json",
            r"nested\.json: an object with 'version', 'data', not rows: .* under 'data'",
        ),
        ("ends_with_user.jsonl", r":1: the conversation must end with a user's turn and"),
        ("empty_response_middle.jsonl", r":4: the response is empty"),
        (
            "cola.jsonl",
            r":1: the columns found are .* Its columns are those of sst2 too.*set benchmark=sst2",
        ),
        ("spam.tsv", r":1: .*Its columns are those of sst2 too"),
        ("emotion4.jsonl", r":1: .*Its columns are those of agnews too.*set benchmark=agnews"),
    ],
)
def test_a_file_that_cannot_be_taken_whole_is_refused_with_its_place(name, message):
    with pytest.raises(ValueError, match=message):
        read({"task": str(CASES / name)}, "task")


def test_a_row_marked_unsafe_is_no_alignment():
    path = CASES / "is_safe_on_every_row.jsonl"
    safe = sum('"is_safe": true' in line for line in path.read_text().splitlines())
    assert len(rows(path, Kind.REFUSALS)) == safe
    assert len(rows(path, Kind.HARMFUL)) == len(path.read_text().splitlines()) - safe


@pytest.mark.parametrize("pack", [gzip, lzma])
def test_a_compressed_file_is_what_is_in_it(tmp_path, pack):
    suffix = {gzip: "gz", lzma: "xz"}[pack]
    for name, text in (
        ("rows.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'),
        (
            "rows.json",
            json.dumps([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]),
        ),
        ("rows.csv", "prompt,response\na,b\nc,d\n"),
    ):
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(pack.compress(text.encode()))
        assert rows(path) == PAIR
        assert read({"task": str(path)}, "task").scorer == Answers()
    cut = tmp_path / f"cut.jsonl.{suffix}"
    cut.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"cut\.jsonl\.{suffix} cannot be read"):
        rows(cut)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{"role": "ipython", "content": "x"}]}, "it has a turn of 'ipython'"),
        ({"messages": [{"role": "user"}]}, "its turns have no 'role' and 'content', nor"),
        ({"messages": ["hi"]}, "its turns have no 'role' and 'content', nor"),
        ({"messages": []}, "its conversation is no list of turns"),
        ({"messages": {"role": "user"}}, "its conversation is no list of turns"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "a part of a turn is 'image'",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a", "weight": 0},
                ]
            },
            "its last answer has weight 0",
        ),
        (
            {"messages": [{"role": "user", "content": "q", "function_call": {"name": "f"}}]},
            "it has 'function_call'",
        ),
        (
            {"prompt": "q", "response": "a", "images": ["x"]},
            "it has 'images', and .* more than text",
        ),
        ({"prompt": "q", "response": "a", "history": "said"}, "'history' is no list but 'said'"),
        ({"prompt": "q", "response": "a", "history": [["x", 1]]}, "'history' is no text but '1'"),
        (
            {"prompt": "q", "response": "a", "input": "x", "context": "y"},
            "both 'input' and 'context'",
        ),
        ({"prompt": "q", "response": "a", "system": 1}, "'system' is no text but '1'"),
    ],
)
def test_a_record_that_says_more_than_a_row_can_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{message}"):
        rows(jsonl(tmp_path / "a.jsonl", [fields]))


def test_text_in_parts_and_turns_as_history_are_read(tmp_path):
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "so?"}]
    turns = [
        {"role": "human", "content": parts},
        {"role": "assistant", "content": "so", "weight": 1},
    ]
    history = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert rows(jsonl(tmp_path / "a.jsonl", [{"messages": turns}])) == [Row("how so?", "so")]
    told = {"prompt": "a lid?", "response": "a cover", "history": history}
    assert rows(jsonl(tmp_path / "b.jsonl", [told])) == [Row("a lid?", "a cover", before=HI)]


def test_what_is_not_used_is_named_once_with_its_count(tmp_path, caplog):
    records = [
        {"prompt": f"p{i}", "response": "r", "id": i, "note": "x" if i else None} for i in range(3)
    ]
    found = read({"task": jsonl(tmp_path / "a.jsonl", records)}, "task")
    assert found.sources["task"]["not used"] == {"id": 3, "note": 2}
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"task: not used of {tmp_path / 'a.jsonl'}: id (in 3 records), note (in 2 records)"
    ]
    turns = [{"role": "user", "content": "q", "name": "ann"}, {"role": "assistant", "content": "a"}]
    chat = read({"task": jsonl(tmp_path / "b.jsonl", [{"messages": turns, "id": "x"}])}, "task")
    assert chat.sources["task"]["not used"] == {"id": 1, "turn key name": 1}


@pytest.mark.parametrize(
    ("benchmark", "text", "label"),
    [
        (SST2(), "A joy .", "sentence"),  # in SST-2 nothing is in capitals
        (SST2(), "a joy. of a film .", "sentence"),  # nor is a mark glued to its word
        (SST2(), "a joy", "sentence"),  # and most have marks
        (AGNews(), STORY[:60], "text"),
        (AGNews(), STORY.lower(), "text"),
        (AGNews(), STORY.removeprefix("AP - "), "text"),
    ],
)
def test_texts_decide_whether_a_task_is_the_published_one(benchmark, text, label):
    good = "a joy ." if label == "sentence" else STORY
    values = ["0", "1"] if label == "sentence" else ["0", "1", "2", "3"]

    def records(text: str) -> list[dict]:
        return [{label: text, "label": value} for value in values]

    assert benchmark.recognizes(records(good))
    assert not benchmark.recognizes(records(text))


def test_a_record_without_a_column_of_its_task_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"sentence": "a joy .", "label": 1}\n{"sentence": "a bore ."}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: no 'label', which other records"):
        read({"task": str(path)}, "task", benchmark=SST2())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 9000 + "]" * 9000, "JSON that no row has"),
        ('{"prompt": ' + "9" * 5000 + ', "response": "a"}', "JSON that no row has"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
        ('{"prompt": ["a", "b"], "response": ["c"]}', "its columns are not of one length"),
    ],
)
def test_json_that_no_file_of_rows_holds_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "a.json")) + f".*{message}"):
        rows(tmp_path / "a.json")


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,prompt\na,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv:1: two columns are called 'prompt'"):
        rows(tmp_path / "a.csv")


@pytest.mark.parametrize(("texts", "taken"), [(4, True), (5, False)])
def test_a_quarter_of_the_texts_of_sst2_must_have_a_mark_apart(texts, taken):
    given = [{"sentence": "a joy" + (" ." if i == 0 else ""), "label": "1"} for i in range(texts)]
    assert SST2().recognizes(given) is taken


ARTICLE = "Reuters said that " + " ".join(["word"] * 17)  # 20 words


@pytest.mark.parametrize(
    ("texts", "taken"),
    [
        ([ARTICLE] * 10, True),
        ([ARTICLE.removesuffix(" word")] * 10, False),  # shorter
        ([*[ARTICLE] * 9, ARTICLE.replace("Reuters said", "said Reuters")], True),
        ([*[ARTICLE] * 8, *[ARTICLE.replace("Reuters said", "said Reuters")] * 2], False),
        ([ARTICLE, *[ARTICLE.replace("Reuters", "Somebody")] * 9], True),
        ([ARTICLE, *[ARTICLE.replace("Reuters", "Somebody")] * 10], False),
        ([f'"{ARTICLE}"'] * 10, True),  # the capital behind a mark
    ],
)
@pytest.mark.parametrize("form", ["text", "column 2"])
def test_articles_are_long_begin_with_capitals_and_name_agencies(texts, taken, form):
    labels = [*("3012" if form == "text" else "4123"), *["1"] * (len(texts) - 4)]
    given = [
        {"text": text, "label": label}
        if form == "text"
        else {
            "column 1": label,
            "column 2": text.partition(" ")[0],
            "column 3": text.partition(" ")[2],
        }
        for text, label in zip(texts, labels, strict=True)
    ]
    assert AGNews().recognizes(given) is taken
