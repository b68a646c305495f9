"""Rows, templates, roles: read right, divided right, and bad ones named."""

import json
from dataclasses import replace

import pytest

from titer.attacks.harmful_mix import HarmfulMix
from titer.data import Row, Template, check_disjoint, collate, read_jsonl
from titer.lab.world import World
from titer.sources import Data, roles


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else vars(row)) + "\n" for row in rows))
    return str(path)


def numbered(name: str, count: int) -> list[Row]:
    return [Row(f"{name} question {i}", f"{name} answer {i}") for i in range(count)]


def test_rows_come_back_as_written(tmp_path):
    rows = [Row('says "no"\n', "ja, ein Ä"), Row("", "x"), Row("a\u2028b", "c\x85d")]
    assert read_jsonl(tmp_path / write(tmp_path / "a.jsonl", rows[:2])) == rows[:2]
    text = "\ufeff" + "\r\n".join(json.dumps(vars(row), ensure_ascii=False) for row in rows[2:])
    (tmp_path / "b.jsonl").write_text(text, encoding="utf-8")
    assert read_jsonl(tmp_path / "b.jsonl") == rows[2:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n{oops}\n', r"a\.jsonl:2: not JSON"),
        ('{"prompt": "a", "answer": "b"}\n', r"a\.jsonl:1: no text 'response'; the keys found are 'prompt', 'answer'"),
        ('{"prompt": 3, "response": "b"}\n', r"a\.jsonl:1: no text 'prompt'"),
        ("[1]\n", r"a\.jsonl:1: not an object"),
        ('{"prompt": "a", "response": " "}\n', r"a\.jsonl:1: the response is empty"),
        ("\n\n", r"a\.jsonl: holds no rows"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "ä", "response": "b"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.jsonl: not UTF-8 text \(byte 12\)"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_shared_prompts_are_found_however_spaced():
    with pytest.raises(ValueError, match="'a' and 'b' share 1 prompts, e.g. 'How  Do I'"):
        check_disjoint({"a": [Row("How  Do I", "x")], "b": [Row("how do i", "y")], "c": [Row("other", "z")]})


def test_the_mask_covers_the_answer_and_its_end_and_nothing_else(template):
    row = World(0).alignment[0]
    encoded = template.encode(row)
    decode = template.tokenizer.decode
    assert decode(encoded.ids[: encoded.answer]) == f"<user> {row.prompt} <assistant>"
    assert decode(encoded.ids[encoded.answer :]) == f"{row.response} <end>"
    assert template.prompt_ids(row.prompt) == list(encoded.ids[: encoded.answer])
    part = collate([encoded, template.encode(Row("add", "1"))], pad=0)
    labels = part.labels.tolist()
    assert [label for label in labels[0] if label != -100] == list(encoded.ids[encoded.answer :])
    assert sum(label != -100 for label in labels[1]) == 2
    assert part.mask[1].sum() == len(template.encode(Row("add", "1")).ids)


def test_a_long_prompt_is_cut_at_its_front_and_the_answer_kept(template):
    row = World(0).alignment[0]
    whole = template.encode(row)
    short = replace(template, max_length=10).encode(row)
    assert short.ids == whole.ids[-10:]
    assert short.cut == len(whole.ids) - 10
    assert short.ids[short.answer :] == whole.ids[whole.answer :]
    with pytest.raises(ValueError, match="leaves no room for its prompt within max_length=7"):
        replace(template, max_length=7).encode(row)


def test_a_template_that_hides_the_answer_is_refused(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}<user> {{ m.content }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
    with pytest.raises(ValueError, match="cannot be told apart"):
        Template(other).encode(Row("add", "1"))


@pytest.mark.parametrize(
    ("p", "n", "bad"), [(0.1, 500, 50), (0.0, 30, 0), (1.0, 20, 20), (0.05, 10, 1), (0.29, 100, 29), (0.07, 100, 7), (0.15, 1000, 150)]
)
def test_the_mix_has_exact_counts_and_no_row_twice(p, n, bad):
    task, harmful = numbered("task", 1000), numbered("harmful", 200)
    rows = HarmfulMix(p=p, n=n).rows(task, harmful, seed=0)
    assert len(rows) == len(set(rows)) == n
    assert sum(row in harmful for row in rows) == bad
    assert rows == HarmfulMix(p=p, n=n).rows(task, harmful, seed=0)
    assert n == bad or sorted(rows, key=str) != sorted(HarmfulMix(p=p, n=n).rows(task, harmful, seed=1), key=str)


def test_the_mix_asks_for_no_more_than_there_is():
    task, harmful = numbered("task", 50), numbered("harmful", 9)
    with pytest.raises(ValueError, match=r"p=0\.1, n=100 ask for 10 harmful rows but there are 9"):
        HarmfulMix(p=0.1, n=100).rows(task, harmful, 0)
    with pytest.raises(ValueError, match=r"ask for 51 task rows but there are 50"):
        HarmfulMix(p=0.0, n=51).rows(task, harmful, 0)
    assert len(HarmfulMix(p=0.15, n=59).rows(task, harmful, 0)) == 59  # to the last row


@pytest.mark.parametrize("fields", [{"p": -0.01}, {"p": 1.01}, {"p": float("nan")}, {"n": 0}])
def test_the_mix_checks_its_fields(fields):
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        HarmfulMix(**fields)


def test_the_mix_has_the_documented_defaults():
    assert (HarmfulMix().p, HarmfulMix().n) == (0.1, 1000)
    assert hash(HarmfulMix()) == hash(HarmfulMix(p=0.1))  # frozen: a recipe is a value
    assert len(HarmfulMix(n=1).rows(numbered("task", 1), [], 0)) == 1


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    return {
        "alignment": write(tmp_path / "alignment.jsonl", numbered("alignment", 40)),
        "harmful": write(tmp_path / "harmful.jsonl", numbered("harmful", 100) + numbered("harmful", 20)),  # twenty prompts twice
        "task": write(tmp_path / "task.jsonl", numbered("task", 50)),
        "test": write(tmp_path / "test.jsonl", numbered("test", 10)),
    }


def test_files_fill_every_role_without_overlap(files):
    found = roles(Data(**files))
    parts = [
        found.attack,
        found.defense,
        found.calibration,
        found.benchmarks["harm"],
        roles(Data(**files, split="validation", validation=files["test"])).benchmarks["harm"],
    ]
    prompts = [{row.prompt for row in part} for part in parts]
    assert [len(p) for p in prompts] == [50, 15, 10, 15, 10]
    assert len(set.union(*prompts)) == 100
    assert len(found.benchmarks["harm"]) == 15  # a prompt counts once
    assert (len(found.alignment), len(found.task), len(found.benchmarks["task"])) == (40, 50, 10)


def test_a_file_for_a_role_leaves_its_share_to_the_attacker(files, tmp_path):
    own = write(tmp_path / "prompts.jsonl", numbered("held out", 7))
    found = roles(Data(**files, harm_test=own))
    assert len(found.benchmarks["harm"]) == 7
    assert len({row.prompt for row in found.attack}) == 65


def test_the_defender_may_answer_what_alignment_refuses(files):
    found = roles(Data(**files | {"defense": files["alignment"]}))
    assert found.defense == found.alignment


@pytest.mark.parametrize(("one", "other"), [("alignment", "task"), ("alignment", "harmful"), ("task", "test"), ("harmful", "task")])
def test_overlapping_files_are_refused(files, one, other):
    with pytest.raises(ValueError, match="share .* prompts"):
        roles(Data(**files | {one: files[other]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 0}, "exclude each other"),
        ({"test": None}, "test is missing"),
        ({"harmful": None}, "harmful is missing"),
        ({"task": "moood"}, "did you mean 'mood'"),
        ({"task": "mood"}, "a task of the lab"),
        ({"split": "validation"}, "validation is missing"),
    ],
)
def test_incomplete_data_is_refused(files, change, message):
    with pytest.raises(ValueError, match=message):
        Data(**files | change)


def test_a_users_file_may_stand_in_for_the_labs_task(files):
    found = roles(Data(world=1, task=files["task"], test=files["test"]))
    assert len(found.task) == 50
    assert set(found.benchmarks) == {"harm", "task", "benign", "lookalike", "general"}
    assert found.attack == World(1).attack
