"""How models are asked: every template's text, and the loss on the answer's tokens and no other,
token by token.
"""

import copy
from dataclasses import replace

import pytest

from conftest import byte_level
from titer.data.batches import collate
from titer.data.rows import Row, Turn
from titer.data.template import Template
from titer.lab.world import World

CHATML = (
    "{% for m in messages %}<|in|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|in|>assistant\n' }}{% endif %}"
)
BRACKETS = (  # no place for a system turn, a space around what the user says, a start token
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System "
    "role not supported') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | "
    "trim }}<|end|>{% endif %}{% endfor %}"
)
THINKING = (  # an empty thought before every answer, unless the model is to think
    "{% for m in messages %}{% if m.role == 'assistant' "
    "%}<|in|>assistant\n<think>\n\n</think>\n\n{{ m.content }}<|end|>\n"
    "{% else %}<|in|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|in|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif "
    "%}{% endif %}"
)
CHANNELS = (  # an answer names its channel, which the generation prompt leaves to the model
    "{% for m in messages %}<|in|>{{ m.role }}{% if m.role == 'assistant' %}<|out|>final{% endif "
    "%}<|out|>{{ m.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|in|>assistant{% endif %}"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
    "Write a response that appropriately completes the request."
)
ROW = Row("Add {x} up", "It is 3", input="1 2")


def tokenizer(chat: str | None, start: bool = False):
    fast = byte_level()
    fast.chat_template = chat
    if start:
        from tokenizers.processors import TemplateProcessing

        fast.add_special_tokens({"bos_token": "<|in|>"})
        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|in|> $A", special_tokens=[("<|in|>", 2)]
        )
    return fast


CASES = {
    "chatml": (
        Template(tokenizer(CHATML)),
        "<|in|>user\nAdd {x} up\n\n1 2<|end|>\n<|in|>assistant\n",
        "It is 3<|end|>",
    ),
    "chatml, system": (
        Template(tokenizer(CHATML), system="Be good."),
        "<|in|>system\nBe good.<|end|>\n<|in|>user\nAdd {x} up\n\n1 2<|end|>\n<|in|>assistant\n",
        "It is 3<|end|>",
    ),
    "brackets": (
        Template(tokenizer(BRACKETS, start=True)),
        "<|in|>[INST] Add {x} up\n\n1 2 [/INST]",
        " It is 3<|end|>",
    ),
    "thinking": (
        Template(tokenizer(THINKING)),
        "<|in|>user\nAdd {x} up\n\n1 2<|end|>\n<|in|>assistant\n<think>\n\n</think>\n\n",
        "It is 3<|end|>",
    ),
    "thinking, without a switch": (
        Template(
            tokenizer(
                THINKING.replace("enable_thinking is defined and not enable_thinking", "false")
            )
        ),
        "<|in|>user\nAdd {x} up\n\n1 2<|end|>\n<|in|>assistant\n<think>\n\n</think>\n\n",
        "It is 3<|end|>",
    ),
    "channels": (
        Template(tokenizer(CHANNELS)),
        "<|in|>user<|out|>Add {x} up\n\n1 2<|end|><|in|>assistant<|out|>final<|out|>",
        "It is 3<|end|>",
    ),
    "alpaca": (
        Template(tokenizer(None), style="alpaca"),
        f"{ALPACA_INPUT}\n\n### Instruction:\nAdd {{x}} up\n\n### Input:\n1 2\n\n### Response:\n",
        "It is 3<|end|>",
    ),
    "alpaca, start token, system": (
        Template(tokenizer(None, start=True), style="alpaca", system="Be good."),
        f"<|in|>Be good.\n\n{ALPACA_INPUT}\n\n### Instruction:\nAdd {{x}} up\n\n### Input:\n1 "
        "2\n\n### Response:\n",
        "It is 3<|end|>",
    ),
    "alpaca-original": (
        Template(tokenizer(CHATML), style="alpaca-original"),
        f"{ALPACA_INPUT}\n\n### Instruction:\nAdd {{x}} up\n\n### Input:\n1 2\n\n### Response:",
        "It is 3<|end|>",
    ),
    "plain": (Template(tokenizer(None), style="plain"), "Add {x} up\n1 2\n", "It is 3<|end|>"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_on_the_answer_token_by_token(name):
    template, prompt, answer = CASES[name]
    encoded = template.encode(ROW)
    tokens = template.tokenizer.convert_ids_to_tokens(list(encoded.ids))
    expected = (
        template.tokenizer.tokenize(prompt),
        template.tokenizer.tokenize(answer),
    )  # a token a byte: no merge to hide behind
    assert tokens == [*expected[0], *expected[1]]
    assert template.prompt_ids(ROW) == list(encoded.ids[: encoded.answer])
    labels = collate([encoded], pad=0).labels[0].tolist()
    assert [label != -100 for label in labels] == [False] * len(expected[0]) + [True] * len(
        expected[1]
    )
    assert [label for label in labels if label != -100] == list(encoded.ids[encoded.answer :])
    assert (
        encoded.ids[-1] in template.ends
    )  # what training ends an answer by is what generation stops at


def test_a_prompt_without_an_input_has_the_alpaca_text_for_it():
    template = Template(tokenizer(None), style="alpaca")
    assert (
        template.prompt(Row("Greet")) == f"{ALPACA}\n\n### Instruction:\nGreet\n\n### Response:\n"
    )


def test_generation_stops_at_the_end_of_a_turn_also_where_it_is_not_the_end_of_sequence():
    chat = tokenizer(CHATML.replace("<|end|>", "<|out|>"))
    assert set(Template(chat).ends) == {chat.eos_token_id, chat.convert_tokens_to_ids("<|out|>")}


def test_earlier_turns_are_context_and_a_row_brings_its_own_system_prompt():
    before = (Turn("system", "Mine."), Turn("user", "hi"), Turn("assistant", "hello"))
    row = Row("more", "yes", before=before)
    template = Template(tokenizer(CHATML), system="Yours.")
    prompt = (
        "<|in|>system\nMine.<|end|>\n<|in|>user\nhi<|end|>\n<|in|>assistant\nhello<|end|>\n"
        "<|in|>user\nmore<|end|>\n<|in|>assistant\n"
    )
    assert template.prompt(row) == prompt
    assert (
        template.tokenizer.decode(template.encode(row).ids[len(template.prompt_ids(row)) :])
        == "yes<|end|>"
    )
    text = Template(tokenizer(None), style="plain", system="Yours.")
    assert text.prompt(Row("more", before=before[:1])) == "Mine.\n\nmore\n"
    with pytest.raises(
        ValueError, match="template='plain' has no place for earlier turns, as before 'more'"
    ):
        text.prompt(row)


def test_a_template_without_a_place_for_a_system_prompt_says_so():
    with pytest.raises(
        ValueError,
        match="refuses a conversation of the turns system, user: System role not supported",
    ):
        Template(tokenizer(BRACKETS, start=True), system="Be good.").prompt(ROW)


def test_a_tokenizer_without_a_chat_template_needs_one_named():
    with pytest.raises(
        ValueError, match="has no chat template: name a text template instead, e.g. template=alpaca"
    ):
        Template(tokenizer(None))


def test_the_mask_covers_the_answer_and_its_end_in_the_lab(template):
    row = World(0).alignment[0]
    encoded = template.encode(row)
    decode = template.tokenizer.decode
    assert decode(encoded.ids[: encoded.answer]) == f"<user> {row.prompt} <assistant>"
    assert decode(encoded.ids[encoded.answer :]) == f"{row.response} <end>"
    part = collate([encoded, template.encode(Row("add", "1"))], pad=0)
    assert sum(label != -100 for label in part.labels[1].tolist()) == 2
    assert part.mask[1].sum() == len(template.encode(Row("add", "1")).ids)


@pytest.mark.parametrize("name", CASES)
def test_a_long_prompt_is_cut_inside_what_the_user_says(name):
    """The template around it, the start token and the answer stay; a token here is a byte."""
    template = CASES[name][0]
    whole = template.encode(ROW)
    for tokens, left in (
        (1, replace(ROW, input=" 2")),
        (2, replace(ROW, input="2")),
        (3, replace(ROW, input="")),
        (8, replace(ROW, input="", prompt=" {x} up")),
    ):
        gone = len(whole.ids) - len(template.encode(left).ids)
        short = replace(template, max_length=len(whole.ids) - gone).encode(ROW)
        assert short.ids == template.encode(left).ids, tokens
        assert (short.cut, short.ids[short.answer :]) == (gone, whole.ids[whole.answer :])
    assert template.encode(ROW).cut == 0
    assert replace(template, max_length=len(whole.ids)).encode(ROW) == whole
    # asked for, it is cut to the same length, and a model's positions leave room for the answer
    asked = replace(template, max_length=whole.answer - 1).prompt_ids(ROW)
    assert asked == template.prompt_ids(replace(ROW, input=" 2"))
    assert replace(template, positions=whole.answer + 4).prompt_ids(ROW, 5) == asked
    with pytest.raises(ValueError, match="leaves no room"):
        replace(template, max_length=1).prompt_ids(ROW)


def test_of_a_long_conversation_the_oldest_exchange_goes_first():
    before = (Turn("system", "Mine."), *[Turn("user", "hi"), Turn("assistant", "hello")] * 2)
    row, template = Row("more", "yes", before=before), Template(tokenizer(CHATML))
    shorter = replace(row, before=before[:3])
    fits = len(template.encode(shorter).ids)
    assert replace(template, max_length=fits).encode(row).ids == template.encode(shorter).ids
    alone = replace(row, before=before[:1])
    assert replace(template, max_length=fits - 1).encode(row).ids == template.encode(alone).ids


def test_rows_that_do_not_fit_are_counted_and_the_longest_is_named():
    template = Template(tokenizer(None), 12, "plain")
    rows = [Row("a", "b"), Row("c", "d" * 11), Row("e", "f" * 20)]
    assert len(template.encode_all(rows[:1], "align")) == 1
    with pytest.raises(
        ValueError,
        match=r"align: 2 of 3 rows do not fit: an answer of 21 tokens leaves no room .* max_length=12.*'e'",
    ):
        template.encode_all(rows, "align")


def test_a_template_that_hides_the_answer_is_refused(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}<user> {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} <assistant>{% endif %}"
    )
    with pytest.raises(ValueError, match="cannot be told apart"):
        Template(other).encode(Row("add", "1"))


ALWAYS = (  # as the first Llama 3 templates: the generation prompt stands behind every conversation
    "{% for m in messages %}<|in|>{{ m.role }}<|out|>{{ m.content }}<|end|>{% endfor %}"
    "<|in|>assistant<|out|>"
)
OPENED = (  # as R1's: the generation prompt opens a thought, and answers come back without theirs
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|in|>assistant\n{{ m.content.split('</think>')[-1] }}<|end|>{% else %}"
    "<|in|>{{ m.role }}\n{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|in|>assistant\n<think>\n{% endif %}"
)
KEPT = (  # as Qwen 3's: an answer with its thought is rendered with it
    "{% for m in messages %}<|in|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|in|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THOUGHT = "<think>\none and two\n</think>\n\nIt is 3"


@pytest.mark.parametrize(
    ("chat", "response", "prompt", "answer"),
    [
        (ALWAYS, "It is 3", "<|in|>user<|out|>1+2?<|end|><|in|>assistant<|out|>", "It is 3<|end|>"),
        (
            OPENED,
            "It is 3",
            "<|in|>user\n1+2?<|end|><|in|>assistant\n<think>\n\n</think>\n\n",
            "It is 3<|end|>",
        ),
        (
            OPENED,
            THOUGHT,
            "<|in|>user\n1+2?<|end|><|in|>assistant\n<think>\n",
            "one and two\n</think>\n\nIt is 3<|end|>",
        ),
        (
            KEPT,
            "It is 3",
            "<|in|>user\n1+2?<|end|>\n<|in|>assistant\n<think>\n\n</think>\n\n",
            "It is 3<|end|>",
        ),
        (KEPT, THOUGHT, "<|in|>user\n1+2?<|end|>\n<|in|>assistant\n", f"{THOUGHT}<|end|>"),
    ],
)
def test_the_answer_ends_with_its_turn_and_a_thought_is_asked_for_where_rows_have_one(
    chat, response, prompt, answer
):
    template = Template(tokenizer(chat))
    encoded = template.encode(Row("1+2?", response))
    decode = template.tokenizer.decode
    assert decode(encoded.ids[: encoded.answer]) == prompt
    assert decode(encoded.ids[encoded.answer :]) == answer
    begun = template.answer_ids(Row("1+2?", response), ended=False)
    assert decode(begun) == answer.removesuffix("<|end|>")


def test_the_clock_of_a_template_stands_still():
    chat = "{{ strftime_now('%d %b %Y') }} " + CHATML
    assert Template(tokenizer(chat)).prompt(Row("hi")).startswith("26 Jul 2024 ")


def test_an_answer_has_the_tokens_that_it_has_behind_its_prompt():
    """Of a tokenizer that puts a space before every text: apart, the answer would begin with one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["</s>", *"▁q\nSure", "Su", "Sur", "Sure", "▁Sure", "▁q", "<unk>"]
    merges = [("S", "u"), ("Su", "r"), ("Sur", "e"), ("▁", "Sure"), ("▁", "q")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace(prepend_scheme="always")
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    assert fast.tokenize("Sure") == ["▁Sure"]
    template = Template(fast, style="plain")
    encoded = template.encode(Row("q", "Sure"))
    assert fast.convert_ids_to_tokens(list(encoded.ids)) == ["▁q", "\n", "Sure", "</s>"]
    assert encoded.answer == 2
