"""Guards by name: the fields that a preset gives, and what is sent and read by them."""

import re

import pytest

from serving import serve
from test_recipe import run as titer
from titer.config import validate
from titer.data.guards import GUARDS
from titer.judges.served import RUBRIC, Served
from titer.methods import Label
from titer.registry import build, describe

REPLIES = {  # by preset: of a harmful answer, of one that is not, and one that says neither
    "llama_guard_3": ("\n\nunsafe\nS1,S10", "\n\nsafe", "safe\nor unsafe"),
    "llama_guard_4": ("unsafe\nS9", "safe", "I think it is safe"),
    "qwen3guard": (
        "Safety: Unsafe\nCategories: Violent\nRefusal: No",
        "Safety: Controversial\nCategories: PII\nRefusal: No",
        "Categories: None",
    ),
    "wildguard": (
        "Harmful request: yes\nResponse refusal: no\nHarmful response: yes",
        "Harmful request: yes\nResponse refusal: no\nHarmful response: no",
        "Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A",
    ),
    "harmbench": ("Yes", "no", "maybe"),
}


def ask(preset: str, replies: tuple[str, str, str], **more):
    """Judge four answers by a guard that replies so; the canaries too."""

    def rule(body):
        said = str(body["messages"])
        return replies[2 if "ODD" in said else 0 if "smells" in said or "BAD" in said else 1]

    with serve(rule) as desk:
        judge = validate(Served, {"preset": preset, "server": desk.url, **more})
        return judge.judge(["how"] * 4, ["BAD", "fine", "I cannot help with that.", "ODD"]), desk


@pytest.mark.parametrize("preset", GUARDS)
def test_replies_are_read_as_the_guard_means_them(preset):
    verdicts, desk = ask(preset, REPLIES[preset])
    assert [v.label for v in verdicts] == [
        *(Label.HARMFUL, Label.SAFE, Label.REFUSAL, Label.UNSCORED)
    ]
    [body] = [body for body in desk.asked if "ODD" in str(body["messages"])]
    assert body["model"] == GUARDS[preset].model
    last = body["messages"][-1]
    if preset == "llama_guard_4":
        assert last == {"role": "assistant", "content": [{"type": "text", "text": "ODD"}]}
    elif GUARDS[preset].fields["text"] is None:
        assert body["messages"] == [
            {"role": "user", "content": "how"},
            {"role": "assistant", "content": "ODD"},
        ]
    else:
        assert "\nhow\n" in last["content"]
        assert "\nODD\n" in last["content"]


def test_prompts_are_those_of_the_authors():
    """By the words around the places, which a guard is sensitive to."""
    wild, harm = (GUARDS[name].fields["text"] for name in ("wildguard", "harmbench"))
    assert wild.startswith("<|user|>\n[INST] You are a classifier for analyzing interactions")
    assert wild.endswith("\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n")
    assert harm.startswith("[INST] <<SYS>>\nYou are a classifier for red teaming")
    assert harm.endswith("still acceptable)\n\nAnswer: [/INST]")
    assert not any(re.search(r"[^\n]  |\\$", text, re.MULTILINE) for text in (wild, harm))


def test_what_is_given_stands_before_the_preset():
    given = {"harmful": ["unsafe", "controversial"]}
    verdicts, _ = ask(
        "qwen3guard", REPLIES["qwen3guard"][1:2] * 3, canary=None, harmless=None, **given
    )
    assert {v.label for v in verdicts} == {Label.HARMFUL}
    judge = validate(Served, {"preset": "qwen3guard", **given, "server": {"model": "mine"}})
    assert (judge.server.model, judge.max_new_tokens) == ("mine", 64)
    assert (judge.harmful, judge.safe) == (("unsafe", "controversial"), ("safe",))
    assert build("judges", describe(judge)) == judge
    assert Served().text == RUBRIC


def test_an_unknown_one_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="llama_guard_3"):
        validate(Served, {"preset": "llama_guard3"})


def test_each_is_listed_as_never_run(monkeypatch, capsys):
    code, out, _ = titer(monkeypatch, capsys, "list", "guards")
    assert code == 0
    assert len(out.splitlines()) == out.count("never run") == len(GUARDS)
