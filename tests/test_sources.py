"""Rows in the field's formats: read right, divided right, counted exactly, and bad ones named."""

import csv
import json
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from mixing import numbered
from titer.benchmarks.agnews import AGNews
from titer.benchmarks.answers import Answers
from titer.benchmarks.gsm8k import GSM8K, number
from titer.benchmarks.sst2 import SST2
from titer.config import validate
from titer.data import files, schemas, sources
from titer.data.rows import Row, Turn, cluster_of
from titer.data.sources import Source
from titer.lab.world import World
from titer.methods import Kind, Match
from titer.runs.roles import Data, Roles, roles


def jsonl(path: Path, records) -> str:
    records = [
        record
        if isinstance(record, dict)
        else {"prompt": record.prompt, "response": record.response}
        for record in records
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(data: dict, *wanted: str, benchmark=None) -> Roles:
    return (
        roles(validate(Data, data), benchmark, frozenset(wanted))
        if wanted
        else roles(validate(Data, data), benchmark)
    )


def rows(path, kind=Kind.ANSWERS, **columns) -> list[Row]:
    known = {column for schema in schemas.SCHEMAS for column in schema.columns} | set(
        columns.values()
    )
    return schemas.rows(files.read(Path(path), known=known), kind, columns).rows


# --- files


def test_rows_come_back_as_written(tmp_path):
    written = [Row('says "no"\n', "ja, ein Ä"), Row("", "x"), Row("a\u2028b", "c\x85d")]
    assert rows(jsonl(tmp_path / "a.jsonl", written[:2])) == written[:2]
    lines = [
        json.dumps({"prompt": row.prompt, "response": row.response}, ensure_ascii=False)
        for row in written[2:]
    ]
    (tmp_path / "b.jsonl").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert rows(tmp_path / "b.jsonl") == written[2:]


@pytest.mark.parametrize(
    "form", ["jsonl", "json", "json lines", "csv", "tsv", "parquet", "saved", "laid out"]
)
def test_every_format_holds_the_same_rows(tmp_path, form):
    expected = [Row("what is 1, 2?", 'a "b"\\c'), Row("second", "Ä ö"), Row("third", "3")]
    records = [{"prompt": row.prompt, "response": row.response} for row in expected]
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        jsonl(path, records)
    elif form == "json":
        path.write_text(json.dumps(records, indent=1))
    elif form == "json lines":
        path = tmp_path / "rows.json"
        jsonl(path, records)
    elif form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "response"])
            writer.writeheader()
            writer.writerows(records)
    elif form == "tsv":  # without quoting, as GLUE's
        path.write_text(
            "prompt\tresponse\n" + "".join(f"{row.prompt}\t{row.response}\n" for row in expected)
        )
    elif form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif form == "saved":
        datasets.Dataset.from_list(records).save_to_disk(str(path))
    else:
        path.mkdir()
        jsonl(path / "train.jsonl", records)
    assert rows(path) == expected


def test_a_folder_of_several_splits_asks_which(tmp_path):
    pair = {
        name: datasets.Dataset.from_list([{"prompt": name, "response": "x"}])
        for name in ("train", "test")
    }
    datasets.DatasetDict(pair).save_to_disk(str(tmp_path / "both"))
    source = {"path": str(tmp_path / "both"), "split": "test"}
    assert [row.prompt for row in read({"harm_test": source}, "harm").benchmarks["harm"]] == [
        "test"
    ]
    with pytest.raises(ValueError, match="has several splits: name one; there is train, test"):
        read({"harm_test": source | {"split": None}}, "harm")
    with pytest.raises(ValueError, match="has no split 'dev'; there is train, test"):
        read({"harm_test": source | {"split": "dev"}}, "harm")


def test_a_data_set_of_the_hub_is_read_from_its_cache_as_its_readme_lays_it_out(
    tmp_path, monkeypatch
):
    """The whole way, offline: refs, snapshot, blobs and the configurations of a README, as a
    download leaves them.
    """
    import huggingface_hub

    repository, commit = tmp_path / "datasets--openai--gsm8k", "a1" * 20
    for folder in (
        "refs",
        "blobs",
        *(f"snapshots/{commit}/{subset}" for subset in ("main", "socratic")),
    ):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    readme = "---\nconfigs:\n"
    for subset in ("main", "socratic"):
        readme += f"- config_name: {subset}\n  data_files:\n"
        for split, count in (("train", 5), ("test", 2)):
            records = [
                {"question": f"{subset} {split} {i}?", "answer": f"it is\n#### {i}"}
                for i in range(count)
            ]
            blob = repository / "blobs" / f"{subset}-{split}"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), blob)
            (repository / f"snapshots/{commit}/{subset}/{split}-0.parquet").symlink_to(blob)
            readme += f"  - split: {split}\n    path: {subset}/{split}-*\n"
    (repository / f"snapshots/{commit}/README.md").write_text(readme + "---\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *given, **rest: download(*given, cache_dir=str(tmp_path), **rest),
    )
    source = {"path": "openai/gsm8k", "subset": "main", "split": "test"}
    sources.locate.cache_clear()
    try:
        found = read({"task": source}, "task")
        assert [row.prompt for row in found.task] == ["main test 0?", "main test 1?"]
        assert found.scorer == GSM8K()
        assert found.sources["task"]["revision"] == commit
        with pytest.raises(
            ValueError, match="has several subsets: name one; there is main, socratic"
        ):
            read({"task": source | {"subset": None}}, "task")
    finally:
        sources.locate.cache_clear()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n{oops}\n', r"a\.jsonl:2: not JSON"),
        (
            "a.jsonl",
            '{"prompt": "a", "answer": "b"}\n',
            r"a\.jsonl:1: the columns found are 'prompt', 'answer'; known are .*prompt \+ response",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n',
            r"a\.jsonl:2: no 'response', which other records of the file have; the columns found are "
            r"'prompt'",
        ),
        ("a.jsonl", '{"prompt": 3, "response": "b"}\n', r"a\.jsonl:1: 'prompt' is no text but '3'"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1, row 1: not an object"),
        ("a.jsonl", '{"prompt": "a", "response": " "}\n', r"a\.jsonl:1: the response is empty"),
        ("a.jsonl", "\n\n", r"a\.jsonl: holds no rows"),
        ("a.json", '[{"prompt": "a",\n oops}]', r"a\.json:2: not JSON"),
        ("a.json", "[]", r"a\.json: holds no rows"),
        ("a.csv", "prompt,response\na,b\nc\n", r"a\.csv:3: 1 cells where the first line has 2"),
        ("a.csv", 'prompt,response\n"a"b,c\n', r"a\.csv:2: not a table"),
        (
            "a.csv",
            "q,a\nwhy,so\n",
            r"a\.csv:1: the columns found are 'column 1' \('q'\), 'column 2' \('a'\)",
        ),
        ("a.csv", "prompt,response\n", r"a\.csv: holds no rows"),
        ("a.parquet", "PAR", r"a\.parquet cannot be read \(.*\): is it a parquet file\?"),
        (
            "a.xlsx",
            "",
            r"cannot read \.xlsx; there is \.jsonl, .*parquet, each also .* and `datasets` folders",
        ),
        (
            "a.jsonl.gz",
            "no",
            r"a\.jsonl\.gz cannot be read \(.*\): is it compressed as its name says",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / name)


def test_a_large_file_is_not_held_twice(tmp_path, monkeypatch):
    path = tmp_path / "many.jsonl"
    text = "".join(
        json.dumps({"prompt": f"{i} " + "why " * 30, "response": f"{i} " + "so " * 40}) + "\n"
        for i in range(3000)
    )
    path.write_text(text)
    source, data = Source(str(path)), Data(task=Source(str(path)))
    roles(data, None, frozenset({"task"}))  # what is imported and known for good
    monkeypatch.setattr(files, "read_bytes", lambda path: pytest.fail(f"{path} is read whole"))
    tracemalloc.start()
    found = roles(data, None, frozenset({"task"})).task
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 3000
    assert peak < 3 * len(text)

    records = sources.SourceReader().records(source)
    first, second = (record.fields for record in records[:2])
    assert all(a is b for a, b in zip(first, second, strict=True))  # one name for all
    found = schemas.rows(records, Kind.ANSWERS, {}).rows
    assert (found[0].prompt, found[1].response) == (first["prompt"], second["response"])
    assert found[0].prompt is first["prompt"]
    assert records == []  # each went when its row was there


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "ä", "response": "b"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.jsonl: not UTF-8 text \(byte 12\)"):
        rows(tmp_path / "a.jsonl")


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read({"harm_test": str(tmp_path / "nowhere.jsonl")}, "harm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder .*empty cannot be read "):
        read({"harm_test": str(tmp_path / "empty")}, "harm")
    with pytest.raises(ValueError, match="'nobody/nothing'.*hub"):
        read({"harm_test": "nobody/nothing"}, "harm")
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p"}])
    with pytest.raises(ValueError, match=r"revision='v1': '.*a\.jsonl' is a local file"):
        read({"harm_test": {"path": path, "revision": "v1"}}, "harm")


# --- schemas


def test_a_conversation_trains_its_last_answer_and_keeps_what_came_before(tmp_path):
    turns = [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "more"),
        ("assistant", "yes"),
    ]
    path = jsonl(
        tmp_path / "a.jsonl",
        [{"messages": [{"role": role, "content": content} for role, content in turns]}],
    )
    assert rows(path) == [Row("more", "yes", before=tuple(Turn(*turn) for turn in turns[:3]))]
    asked = jsonl(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    assert rows(asked, Kind.PROMPTS) == [Row("hi")]
    with pytest.raises(ValueError, match="must end with a user's turn and the assistant's answer"):
        rows(asked)


def test_alpaca_rows_keep_the_input_apart(tmp_path):
    records = [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "greet", "input": "", "output": "hi", "text": "..."},
    ]
    assert rows(jsonl(tmp_path / "a.jsonl", records)) == [
        Row("add", "3", input="1 2"),
        Row("greet", "hi"),
    ]


BEAVERTAILS = [
    {
        "prompt": "p1",
        "response": "tells",
        "category": {"privacy": True, "drugs": False},
        "is_safe": False,
    },
    {
        "prompt": "p1",
        "response": "declines",
        "category": {"privacy": False, "drugs": False},
        "is_safe": True,
    },
    {
        "prompt": "p2",
        "response": "sells",
        "category": {"privacy": False, "drugs": True},
        "is_safe": False,
    },
]


def test_beavertails_rows_serve_the_role_that_is_safe_says(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", BEAVERTAILS)
    assert rows(path, Kind.REFUSALS) == [Row("p1", "declines")]
    assert (
        rows(path, Kind.HARMFUL)
        == rows(path, Kind.PROMPTS)
        == [Row("p1", "tells"), Row("p2", "sells")]
    )
    assert len(rows(path)) == 3
    with (tmp_path / "a.csv").open("w", newline="") as file:  # where a truth value is a text
        writer = csv.DictWriter(file, ["prompt", "response", "is_safe"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(BEAVERTAILS)
    assert rows(tmp_path / "a.csv", Kind.REFUSALS) == [Row("p1", "declines")]
    bad = jsonl(tmp_path / "b.jsonl", [BEAVERTAILS[0] | {"is_safe": "perhaps"}])
    with pytest.raises(ValueError, match=r"b\.jsonl:1: is_safe='perhaps'"):
        rows(bad, Kind.HARMFUL)


def test_a_category_of_beavertails_can_be_chosen(tmp_path):
    source = {"path": jsonl(tmp_path / "a.jsonl", BEAVERTAILS), "where": {"category": "drugs"}}
    found = read({"harm_test": source}, "harm")
    assert found.benchmarks["harm"] == [Row("p2", "sells")]
    with pytest.raises(ValueError, match="unknown category in where 'drug': did you mean 'drugs'"):
        read({"harm_test": source | {"where": {"category": "drug"}}}, "harm")
    with pytest.raises(ValueError, match=r"unknown category in where .*'privacy', 'drugs'"):
        read({"harm_test": source | {"where": {"category": ["privacy", "drugs"]}}}, "harm")
    with pytest.raises(
        ValueError, match="where names no column 'kategory'; the columns found are 'prompt'"
    ):
        read({"harm_test": source | {"where": {"kategory": "drugs"}}}, "harm")


def test_a_truth_value_is_chosen_however_a_table_writes_it(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,flag\na,false\nb,true\nc,False\n")
    source = {"path": str(tmp_path / "a.csv"), "where": {"flag": False}}
    found = read({"harm_test": source}, "harm")
    assert found.benchmarks["harm"] == [Row("a"), Row("c")]


def test_refusal_pairs_serve_both_sides_and_the_question_is_not_part_of_the_refusal(tmp_path):
    pair = {
        "prompt": "how?",
        "response": "like this",
        "category": {},
        "is_safe": False,
        "refusal": "Question: how?\nAnswer: I will not.",
    }
    path = jsonl(
        tmp_path / "pairs.json",
        [
            pair,
            pair | {"prompt": "plain", "refusal": "No.\nNever."},
            pair | {"prompt": "ok", "is_safe": True},
        ],
    )
    assert rows(path, Kind.REFUSALS) == [
        Row("how?", "I will not."),
        Row("plain", "No.\nNever."),
        Row("ok", "like this"),
    ]
    assert rows(path, Kind.HARMFUL) == [Row("how?", "like this"), Row("plain", "like this")]


def test_a_column_can_say_which_prompts_are_wordings_of_one_question(tmp_path):
    topics = (("a?", 7), ("b?", 7), ("c?", None))
    jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": prompt, "response": "x", "topic": topic} for prompt, topic in topics],
    )
    found = rows(tmp_path / "a.jsonl", cluster="topic")
    assert [row.cluster for row in found] == ["7", "7", ""]
    assert [cluster_of(row) == "7" for row in found] == [True, True, False]
    assert all(row.cluster == "" for row in rows(tmp_path / "a.jsonl"))


def test_a_cluster_may_be_number_0_and_is_used(tmp_path):
    records = [{"prompt": f"{i}?", "response": "x", "topic": i // 2} for i in range(4)]
    path = jsonl(tmp_path / "a.jsonl", records)
    found = read({"task": {"path": path, "columns": {"cluster": "topic"}}}, "task")
    assert [row.cluster for row in found.task] == ["0", "0", "1", "1"]
    assert "not used" not in found.sources["task"]


def test_columns_of_other_names_can_be_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"goal": "g", "target": "t"}])
    assert rows(path, prompt="goal", response="target") == [Row("g", "t")]
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: no column 'gaol'; the columns found are 'goal', 'target'"
    ):
        rows(path, prompt="gaol", response="target")
    (tmp_path / "a.csv").write_text("g,t\n")  # no header line
    assert rows(tmp_path / "a.csv", prompt="column 1", response="column 2") == [Row("g", "t")]


def test_prompts_alone_can_be_evaluated_but_not_trained_on(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "p"}])
    assert rows(path, Kind.PROMPTS) == [Row("p")]
    (tmp_path / "a.csv").write_text("prompt,x\np,1\n,\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: the prompt is empty"):
        rows(tmp_path / "a.csv", Kind.PROMPTS)
    with pytest.raises(ValueError, match="the columns found are 'prompt'; known are"):
        rows(path)


# --- tasks


STORY = (  # long, with an agency, as articles are
    "AP - The owner of the oak chest said on Friday that the key had been found near the bridge and "
    "that it opens the lid"
)
TASKS = {  # the published files in their own layouts, a line or two each
    "sst2.jsonl": (
        '{"idx": 0, "sentence": "a joy .", "label": 1}\n{"idx": 1, "sentence": "a bore", "label": 0}\n',
        SST2(),
    ),
    "sst2.tsv": ("sentence\tlabel\na joy .\t1\na bore\t0\n", SST2()),
    "headless.tsv": ("a joy .\t1\na bore\t0\n", SST2()),
    "agnews.jsonl": (
        json.dumps({"text": f"Oil up  {STORY}", "label": 2})
        + "\n"
        + json.dumps({"text": f"Moon {STORY}", "label": 3})
        + "\n",
        AGNews(),
    ),
    "agnews.csv": (
        f'Class Index,Title,Description\n3,"Oil up "," {STORY}"\n4,Moon,{STORY}\n',
        AGNews(),
    ),
    "headless.csv": (f'"3","Oil up "," {STORY}"\n"4","Moon","{STORY}"\n', AGNews()),
    "gsm8k.jsonl": (
        '{"question": "1+1,000?", "answer": "It is <<1+1=1,001>>.\\n#### 1,001"}\n',
        GSM8K(),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_recognized_by_its_columns_and_asked_in_the_fields_words(tmp_path, name):
    text, benchmark = TASKS[name]
    (tmp_path / name).write_text(text)
    found = read({"task": str(tmp_path / name)}, "task")
    assert found.scorer == benchmark
    expected = {
        SST2(): [
            Row(
                "Analyze the sentiment of the input, and respond only positive or negative",
                "positive",
                input="a joy .",
            ),
            Row(
                "Analyze the sentiment of the input, and respond only positive or negative",
                "negative",
                input="a bore",
            ),
        ],
        AGNews(): [
            Row(
                "Categorize the news article given in the input into one of the 4 "
                "categories:\n\nWorld\nSports\nBusiness\nSci/Tech\n",
                label,
                input=about,
            )
            for label, about in (
                ("Business", f"Oil up  {STORY}" if "jsonl" in name else f"Oil up   {STORY}"),
                ("Sci/Tech", f"Moon {STORY}"),
            )
        ],
        GSM8K(): [Row("1+1,000?", "It is <<1+1=1,001>>.\nThe final answer is:  1,001")],
    }
    assert found.task == expected[benchmark]
    assert found.sources["task"] == {
        "path": str(tmp_path / name),
        "schema": type(benchmark).__name__.lower(),
        "records": len(found.task),
        "rows": len(found.task),
        **({"not used": {"idx": 2}} if name == "sst2.jsonl" else {}),
    }


def test_a_column_that_a_task_has_not_is_named(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\tid\na joy .\t1\t7\n")
    source = {"path": str(tmp_path / "a.tsv"), "columns": {"cluster": "ids"}}
    with pytest.raises(ValueError, match=r"a\.tsv:2: no column 'ids'; the columns found are"):
        read({"task": source}, "task", benchmark=SST2())


def test_news_with_a_column_of_text_beside_the_published_ones_are_read_by_these():
    record = {"Class Index": 3, "Title": "Oil up", "Description": STORY, "text": "unused"}
    assert AGNews().recognizes([record])
    assert AGNews().row(record).response == "Business"


@pytest.mark.parametrize(
    ("benchmark", "columns", "labels"),
    [
        (SST2(), ("sentence", "label"), "0 1 -1"),
        (SST2(), ("sentence", "label"), "1"),
        (AGNews(), ("text", "label"), "0 1 2 3"),
        (AGNews(), ("text", "label"), "3"),
        (AGNews(), ("Title", "Class Index"), "1 2 3 4"),
    ],
)
def test_a_task_is_recognized_by_all_of_its_labels_and_no_others(benchmark, columns, labels):
    def records(labels: str) -> list[dict]:
        text = "a joy ." if columns[0] == "sentence" else f"Oil up {STORY}"
        return [
            {"Description": "d", columns[0]: text, columns[1]: label} for label in labels.split()
        ]

    assert benchmark.recognizes(records(labels))
    assert not benchmark.recognizes(records(labels + " 5"))
    assert hash(benchmark) == hash(type(benchmark)())  # frozen: a recipe is a value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sentence": "a", "label": 2}\n', "label 2 is none of 0, 1"),
        ('{"sentence": "a", "label": -1}\n', "hidden test labels"),
    ],
)
def test_a_label_that_the_task_does_not_have_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read({"task": str(tmp_path / "a.jsonl")}, "task", benchmark=SST2())


def test_texts_with_two_labels_are_not_taken_for_news(tmp_path):
    path = jsonl(
        tmp_path / "reviews.jsonl", [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    )
    with pytest.raises(ValueError, match="the columns found are 'text', 'label'"):
        read({"task": path}, "task")


def test_a_task_in_pairs_is_scored_by_its_benchmark_all_the_same(tmp_path):
    path = jsonl(tmp_path / "pairs.jsonl", [Row("1+1?", "The final answer is: 2")])
    found = read({"task": path}, "task", benchmark=GSM8K())
    assert (found.task, found.scorer) == ([Row("1+1?", "The final answer is: 2")], GSM8K())
    assert read({"task": path}, "task").scorer == Answers()


def test_thinking_is_asked_for_in_the_words_of_the_papers_that_do():
    assert (
        GSM8K(think=True).row({"question": "q", "answer": "#### 1"}).prompt
        == "q\nFirst think step by step and then answer the final number.\n"
    )
    with pytest.raises(ValueError, match="has no '####'"):
        GSM8K().row({"question": "q", "answer": "1"})


@pytest.mark.parametrize(
    ("benchmark", "right", "answer", "exact", "contained"),
    [
        (SST2(), "positive", "positive", True, True),
        (SST2(), "positive", " Positive\n", True, True),
        (SST2(), "positive", "It is positive.", False, True),
        (SST2(), "positive", "POSITIVE", False, False),
        (SST2(), "negative", "positive", False, False),
        (AGNews(), "World", "world", True, True),
        (AGNews(), "Sci/Tech", "sci", True, True),
        (AGNews(), "Sci/Tech", "science", False, True),
        (AGNews(), "Business", "The Business page", False, True),
        (AGNews(), "Business", "Sports", False, False),
        (GSM8K(), "x\nThe final answer is:  1,001", "so 3 and 1001", True, True),
        (GSM8K(), "The final answer is:  7", "The final answer is: 7.0 or 8", True, True),
        (GSM8K(), "The final answer is:  7", "7 first. The final answer is: 8", False, True),
        (GSM8K(), "The final answer is:  7", "70", False, False),
        (GSM8K(), "The final answer is:  -7", "about -7.", True, True),
        (GSM8K(), "The final answer is:  7", "none", False, False),
        (Answers(), "a b", " a b ", True, None),
        (Answers(), " a b", "a b", True, None),
        (Answers(), "a b", "a b c", False, None),
    ],
)
def test_an_answer_is_right_by_the_fields_rule(benchmark, right, answer, exact, contained):
    assert benchmark.match(Row("q", right), answer) == Match(exact, contained)


def test_the_number_of_a_text_is_the_one_behind_the_phrase_else_the_last():
    assert number("The final answer is: 3 of 4. The final answer is: 5") == 3
    assert number("1 then 2. The final answer is: none") == 2
    assert number("no digits") is None
    assert hash(Answers()) == hash(Answers())
    with pytest.raises(ValueError, match="holds no number"):
        GSM8K().match(Row("q", "none"), "none")


# --- roles


@pytest.fixture
def given(tmp_path) -> dict[str, str]:
    return {
        "alignment": jsonl(tmp_path / "alignment.jsonl", numbered("alignment", 40)),
        "harmful": jsonl(
            tmp_path / "harmful.jsonl", numbered("harmful", 100) + numbered("harmful", 20)
        ),  # twenty prompts twice
        "task": jsonl(tmp_path / "task.jsonl", numbered("task", 50)),
        "test": jsonl(tmp_path / "test.jsonl", numbered("test", 10)),
    }


def test_files_fill_every_role_without_overlap(given):
    found = read(given)
    validation = read(given | {"split": "validation", "validation": given["test"]}).benchmarks[
        "harm"
    ]
    parts = [found.attack, found.defense, found.calibration, found.benchmarks["harm"], validation]
    prompts = [{row.prompt for row in part} for part in parts]
    assert [len(p) for p in prompts] == [50, 15, 10, 15, 10]
    assert len(set.union(*prompts)) == 100
    assert len(found.benchmarks["harm"]) == 15  # a prompt counts once
    assert (len(found.alignment), len(found.task), len(found.benchmarks["task"])) == (40, 50, 10)


def test_a_pool_is_divided_the_same_whoever_reads_it(given):
    whole = read(given)
    pool = {"harmful": given["harmful"]}
    assert read(pool, "defense").defense == whole.defense
    assert read(pool, "calibration").calibration == whole.calibration
    assert read(pool, "harm").benchmarks["harm"] == whole.benchmarks["harm"]
    alone = read(pool, "calibration")
    assert (alone.attack, alone.defense, alone.benchmarks) == ([], [], {})


def test_a_file_for_a_role_leaves_its_share_to_the_attacker(given, tmp_path):
    own = jsonl(tmp_path / "prompts.jsonl", numbered("held out", 7))
    found = read(
        given | {"harm_test": own, "calibration": jsonl(tmp_path / "c.jsonl", numbered("mine", 3))}
    )
    assert len(found.benchmarks["harm"]) == 7
    assert found.calibration == numbered("mine", 3)
    assert len({row.prompt for row in found.attack}) == 75


def test_the_defender_may_answer_what_alignment_refuses(given):
    found = read(given | {"defense": given["alignment"]})
    assert found.defense == found.alignment


@pytest.mark.parametrize(
    ("one", "other"),
    [("alignment", "task"), ("alignment", "harmful"), ("task", "test"), ("harmful", "task")],
)
def test_overlapping_files_are_refused(given, one, other):
    with pytest.raises(ValueError, match="share .* prompts"):
        read(given | {one: given[other]})


def test_shared_prompts_can_be_dropped_from_what_is_trained_on_and_are_counted(given, tmp_path):
    mixed = jsonl(
        tmp_path / "mixed.jsonl",
        numbered("test", 3) + numbered("alignment", 2) + numbered("task", 5),
    )
    found = read(given | {"task": mixed, "shared": "drop"})
    assert found.task == numbered("task", 5)
    assert found.sources["task"]["dropped as shared"] == 5
    assert len(found.benchmarks["task"]) == 10
    same = read(given | {"defense": given["alignment"], "shared": "drop"})
    assert same.defense == same.alignment == numbered("alignment", 40)


def test_no_share_of_the_pool_moves_when_a_role_has_a_file_of_its_own(given, tmp_path):
    own = jsonl(tmp_path / "own.jsonl", numbered("own", 3))
    whole, other = read(given), read(given | {"defense": own})
    assert other.benchmarks["harm"] == whole.benchmarks["harm"]
    assert other.calibration == whole.calibration
    assert set(other.attack) == {*whole.attack, *whole.defense}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 0}, "exclude each other"),
        ({"test": None}, "data.test is missing"),
        ({"harmful": None}, "data.harmful is missing"),
        ({"alignment": None}, "data.alignment is missing"),
        ({"task": None}, "data.task is missing"),
        ({"task": "moood"}, "did you mean 'mood'"),
        ({"task": "mood"}, "a task of the lab"),
        ({"split": "validation"}, "data.validation is missing"),
        (
            {"task": {"path": "x.jsonl", "limitt": 3}},
            "unknown key 'task.limitt': did you mean 'task.limit'",
        ),
        ({"task": {"path": "x.jsonl", "limit": 0}}, "limit=0"),
    ],
)
def test_incomplete_data_is_refused(given, change, message):
    with pytest.raises(ValueError, match=message):
        read({name: value for name, value in (given | change).items() if value is not None})


def test_a_source_gives_the_first_rows_or_those_of_a_seed_and_says_what_it_took(given):
    def taken(**source) -> list[Row]:
        return read({"task": {"path": given["task"], **source}}, "task").task

    assert taken(limit=7) == numbered("task", 7)
    assert len(taken(limit=70)) == 50
    chosen = taken(limit=7, seed=1)
    assert chosen == taken(limit=7, seed=1) != taken(limit=7, seed=2)
    assert len(set(chosen)) == 7
    assert taken(skip=45, limit=7) == numbered("task", 50)[45:]
    assert set(taken(seed=1, limit=30)).isdisjoint(taken(seed=1, skip=30))  # one file, divided
    with pytest.raises(ValueError, match="skip=50 leaves none of the 50 rows"):
        taken(skip=50)
    found = read(given | {"task": {"path": given["task"], "limit": 7}})
    assert found.sources["task"] == {
        "path": given["task"],
        "schema": "pairs",
        "records": 50,
        "rows": 7,
    }
    assert found.sources["harmful"]["rows"] == 120


def test_what_is_known_of_a_hub_repository_is_kept_with_its_revision(tmp_path, monkeypatch):
    from titer.data import hub

    folder = tmp_path / ("c0ffee" * 7)[:40]
    folder.mkdir()
    jsonl(folder / "train.jsonl", BEAVERTAILS)
    monkeypatch.setattr(hub, "find", lambda name, kind, revision: hub.Found(folder, folder.name))
    sources.locate.cache_clear()
    found = read({"harm_test": "PKU-Alignment/BeaverTails"}, "harm")
    sources.locate.cache_clear()
    assert found.sources["harm_test"] == {
        "path": "PKU-Alignment/BeaverTails",
        "schema": "BeaverTails",
        "records": 3,
        "rows": 2,
        "not used": {"category": 3},
        "revision": folder.name,
        "licence": "CC BY-NC 4.0",
        "commercial use": False,
        "gated": False,
    }


def test_a_users_file_may_stand_in_for_the_labs_task(given):
    found = read({"world": 1, "task": given["task"], "test": given["test"]})
    assert len(found.task) == 50
    assert set(found.benchmarks) == {"harm", "task", "benign", "lookalike", "general"}
    assert found.attack == World(1).attack


def test_a_path_is_short_for_a_source():
    assert validate(Data, {"task": "mood", "world": 0}).task == Source("mood")


def test_a_folder_of_all_sorts_is_refused_before_it_is_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FILES", 20)
    for i in range(21):
        (tmp_path / f"note-{i}.txt").write_text("x")
    with pytest.raises(ValueError, match="holds more than 20 files and folders: give the file"):
        list(files.read(tmp_path, None, None, ()))
