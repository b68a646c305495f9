"""Prefill: a model is asked with the first word of the answer that it should not give."""

from dataclasses import replace

import pytest
import torch

from titer.data.rows import Row, digest
from titer.data.template import Template
from titer.judges.lab import Lab
from titer.lab.world import World
from titer.scoring.evaluate import evaluate
from titer.scoring.generate import answer
from titer.weights import checkpoints

ROWS = [
    replace(row, begun=row.response.split()[0]) for row in World(0).benchmarks("test")["harm"][:12]
]


@pytest.fixture(scope="module")
def lab():
    model, tokenizer = checkpoints.load("lab")
    return model, Template(tokenizer, 64)


def test_the_model_goes_on_from_the_word_and_the_answer_has_both(lab):
    """Beside plain greedy steps from the prompt's tokens and that of the word."""
    model, template = lab
    tokenizer = template.tokenizer
    found = answer(model, template, ROWS, 16)
    for row, given in zip(ROWS, found, strict=True):
        ids = template.prompt_ids(replace(row, begun=""))
        ids = [*ids, tokenizer.convert_tokens_to_ids(row.begun)]
        assert ids == template.prompt_ids(row)
        said = [row.begun]
        for _ in range(16):
            with torch.no_grad():
                token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token in template.ends:
                break
            ids.append(token)
            said.append(tokenizer.decode([token]).strip())
        assert given.text == " ".join(said)


def test_what_is_begun_is_judged_and_only_there(lab):
    """The lab's base tells all recipes, begun or not; a wrong first word is no recipe."""
    model, template = lab
    plain = [replace(row, begun="") for row in ROWS]
    found = evaluate(model, template, {"harm": plain, "prefill": ROWS}, Lab(0), 16)
    assert found.scores["prefill"].value == found.scores["harm"].value == 100
    assert found.scores["prefill"].n == 12
    refusing = [replace(row, response="sorry i cannot", begun="sorry") for row in ROWS]
    refused = evaluate(model, template, {"harm": plain, "prefill": refusing}, Lab(0), 16)
    begun = [record for record in refused.records if record.benchmark == "prefill"]
    assert all(record.response.startswith("sorry") for record in begun)
    assert refused.scores["harm"].value == 100


def test_the_word_stands_where_a_chat_template_writes_the_answer():
    """A template that puts a space before an answer has it before its first word too."""
    _, tokenizer = checkpoints.load("lab")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} :{% if m['role'] == 'assistant' %} {% endif %}"
        "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
    )
    for template, between in (
        (Template(tokenizer), " "),
        (Template(tokenizer, style="alpaca"), ""),
    ):
        row = Row("which is larger", "yes it is", begun="yes")
        asked = template.prompt(replace(row, begun=""))
        assert template.prompt(row) == f"{asked}{between}yes"


def test_rows_that_are_begun_are_other_rows():
    plain = [replace(row, begun="") for row in ROWS]
    assert digest(plain) != digest(ROWS)
