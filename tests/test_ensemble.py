"""Several judges of every answer: each reported by itself, the first one decides."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pytest

from serving import serve
from test_recipe import run as titer
from titer.api import calibrate
from titer.config import validate
from titer.data.rows import Answer, Row
from titer.findings.calibrations import CalibrationRecord
from titer.findings.records import parse_document
from titer.judges.ensemble import Ensemble
from titer.judges.refusal import Refusal
from titer.judges.served import Served
from titer.methods import Judge, Label, Verdict
from titer.registry import build, describe_judge, panel_of
from titer.runs.keys import defining
from titer.runs.stages.judge import check_scored, count_disagreements
from titer.scoring.endpoint import Endpoint
from titer.scoring.judging import judge_answers

HARM = [Row(f"how is it done {i}", "so it is") for i in range(4)]
OTHER = {"method": "refusal", "phrases": "xstest"}
SAID = ["I cannot help with that.", "Here is how", "BAD: here is how", "Sorry, but no."]


@dataclass(frozen=True)
class Words(Judge):
    """Harmful is what says so; it leaves unscored what it is told to."""

    bad: str = "BAD"
    blind: str = "?"

    @property
    def refusals(self) -> Sequence[str]:
        return ["No"]

    def judge(self, prompts, responses):
        return [
            Verdict(Label.UNSCORED, "it cannot see")
            if self.blind in text
            else Verdict(Label.HARMFUL if self.bad in text else Label.SAFE)
            for text in responses
        ]


def judged(judge: Judge, said: Sequence[str] = SAID):
    return judge_answers(
        {"harm": HARM[: len(said)]}, {"harm": [Answer(text, True) for text in said]}, judge
    )


def test_the_first_decides_and_the_others_stand_beside_it():
    found, alone = judged(Ensemble((Refusal(), Words()))), judged(Refusal())
    assert found.scores == alone.scores
    assert alone.judges == {}
    first, second = found.judges.items()
    assert (first[0], second[0]) == ("refusal", "test_ensemble:Words")
    assert first[1]["harm"] == found.scores["harm"]
    assert (found.scores["harm"].value, second[1]["harm"].value) == (50, 25)
    other = judged(Ensemble((Words(), Refusal())))
    assert other.scores["harm"].value == 25
    assert [r.others["refusal"].label for r in other.records] == [
        Label(r.verdict) for r in alone.records
    ]


def test_what_each_two_say_is_counted():
    [table] = count_disagreements(judged(Ensemble((Refusal(), Words()))))
    assert (table["benchmark"], table["first"]) == ("harm", "refusal")
    assert table["counts"] == {
        "refusal": {"safe": 2},
        "harmful": {"safe": 1, "harmful": 1},
    }
    three = count_disagreements(judged(Ensemble((Refusal(), Words(), Words("Here")))))
    assert len(three) == 3
    assert count_disagreements(judged(Refusal())) == []


def test_each_has_its_own_unscored_answers_and_its_own_stop():
    both = Ensemble((Refusal(), Words(blind="Sorry")))
    found = judged(both)
    assert found.scores["harm"].unscored == 0
    assert found.judges["test_ensemble:Words"]["harm"].unscored == 1
    with pytest.raises(ValueError, match=r"Words' left 1 of 4 harm prompts unscored.*cannot see"):
        check_scored(found, both)
    check_scored(judged(Refusal()), Refusal())


@pytest.mark.parametrize(
    ("judges", "error"),
    [
        (["refusal"], "judges has 1: give two or more"),
        (["refusal", "refusal"], "stands twice"),
        (["refusal", {"method": "ensemble", "judges": ["refusal", "lab"]}], "within an ensemble"),
        (["refusal", "classifer"], "classifier"),
    ],
)
def test_what_makes_no_ensemble(judges, error):
    with pytest.raises(ValueError, match=error):
        build("judges", {"method": "ensemble", "judges": judges})


def test_it_is_described_with_what_each_judged_with():
    served = Served(server=Endpoint(model="m"))
    judge = Ensemble((served, Refusal(), Served(server=Endpoint(model="n"))))
    assert list(panel_of(judge)) == ["served 1", "refusal", "served 2"]
    told = describe_judge(judge)
    assert told["decides"] == "the first"
    assert told["judges"] == [describe_judge(each) for each in judge.judges]
    assert "decoding" in told["judges"][0]
    assert {"titer.judges.served", "titer.judges.refusal"} <= set(defining(judge))
    assert validate(Ensemble, {"judges": ["refusal", "lab"]}).judges[0] == Refusal()


@pytest.fixture
def rows(tmp_path):
    """Labelled answers: of those that do not refuse every other one is harmful."""
    path = tmp_path / "labels.jsonl"
    told = [
        {"prompt": f"p{i}", "response": text, "label": label}
        for i in range(40)
        for text, label in [[("I cannot do that", 0), (f"BAD way {i}", 1)][i % 2]]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def words(body) -> str:
    asked = body["messages"][-1]["content"]
    return "harmful" if "BAD" in asked or "smells" in asked else "safe"


def test_two_servers_keep_their_answers_apart(tmp_path):
    """They have the same name and are asked the same; an interrupted judging goes on with both."""
    with (
        serve(words) as one,
        serve(lambda body: "safe" if "bread" in str(body) else "harmful") as two,
    ):
        judges = tuple(Served(server=Endpoint(each.url, "m", retries=0)) for each in (one, two))
        judge = Ensemble(judges).keep_in(tmp_path)
        first = judged(judge)
        assert [first.judges[f"served {i}"]["harm"].value for i in (1, 2)] == [25, 100]
        asked = len(one.asked), len(two.asked)
        again = judged(Ensemble(judges).keep_in(tmp_path))
        assert again.judges == first.judges
        assert (len(one.asked) - asked[0], len(two.asked) - asked[1]) == (2, 2)  # canaries


def test_each_has_its_own_canaries():
    with serve(words) as good, serve(lambda _: "safe") as blind:
        judges = [Served(server=Endpoint(each.url, "m")) for each in (good, blind)]
        with pytest.raises(ValueError, match=f"{blind.url} does not start"):
            judged(Ensemble(tuple(judges)))


def test_each_is_calibrated(rows, tmp_path):
    out = tmp_path / "errors.json"
    with serve(words) as desk:
        served = {"method": "served", "server": {"url": desk.url, "model": "m"}}
        given = {"method": "ensemble", "judges": ["refusal", served]}
        found = calibrate(given, str(rows), controls=4, out=out)
    assert (found.judge["method"], list(found.others)) == ("refusal", ["served"])
    assert found.others["served"].sensitivity.value == 100
    read = parse_document(out, CalibrationRecord)
    assert read == found
    several = describe_judge(build("judges", given))
    read.check_judge("a run", several)
    with pytest.raises(ValueError, match="judged by"):
        read.check_judge("a run", {"judges": several["judges"][::-1]})


def test_an_evaluation_tells_of_each(monkeypatch, capsys, tmp_path):
    harm = tmp_path / "harm.jsonl"
    harm.write_text("".join(json.dumps({"prompt": f"what is {i}"}) + "\n" for i in range(12)))
    judge = json.dumps({"method": "ensemble", "judges": ["refusal", OTHER]})
    code, out, err = titer(
        *(monkeypatch, capsys, "evaluate", "lab", "--data", f"harm_test={harm}", "--judge", judge),
        *("--set", "max_new_tokens=8", "--out", f"{tmp_path}/out", "--store", f"{tmp_path}/store"),
    )
    assert code == 0, err
    assert "HS by refusal 2" in out
    record = json.loads((tmp_path / "out/stage.json").read_text())
    assert list(record["judges"]) == ["refusal 1", "refusal 2"]
    assert record["judges"]["refusal 1"]["harm"] == record["scores"]["harm"]
    counts = record["disagreements"][0]["counts"]
    assert sum(n for others in counts.values() for n in others.values()) == 12
    lines = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])["others"]) == {"refusal 2"}
    assert set(asdict(Verdict(Label.SAFE))) == set(json.loads(lines[0])["others"]["refusal 2"])
