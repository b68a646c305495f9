"""Log-probabilities of answers: a prompt read once, with a tree, is as if each were read alone."""

from functools import partial

import pytest
import torch
from transformers import GPTNeoConfig, MptConfig, RwkvConfig

from families import FAMILIES, build
from titer.scoring import likelihood
from titer.scoring.likelihood import Tree, log_probabilities, read_each, takes_trees
from titer.scoring.precision import compute_in_float32
from titer.weights import adapters
from titer.weights.settings import Lora

PROMPTS = [list(range(2, 2 + n)) for n in (5, 17, 9)]
ANSWERS = [
    [[7, 8, 9, 1], [7, 8, 10], [7, 8], [11], [7, 8, 9, 12, 13, 14, 15, 16], [7, 8, 10]],
    [[20, 21, 22], [20, 23], [24, 20, 21]],
    [[30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41], [30]],
]
WINDOWS = {"attention_types": [[["global", "local"], 1]], "window_size": 8}
MISREAD = {  # families that take a tree and read it wrongly, by a little or by much
    "GPTNeo": partial(
        build, GPTNeoConfig, WINDOWS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
    ),
    "Mpt": partial(build, MptConfig, {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "Rwkv": partial(
        build, RwkvConfig, {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    ),
}


def alone(model, prompt, answer):
    """Read one answer in one plain pass."""
    with torch.no_grad():
        logits = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0].double(), -1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def test_a_tree_reads_no_beginning_twice_and_no_last_token():
    tree = Tree.of(PROMPTS[0], ANSWERS[0])
    # 7 8 9 12 13 14 15 once, and 7 8 of the others with it: 10, 11 and 16 end an answer
    assert tree.ids == [*PROMPTS[0], 7, 8, 9, 12, 13, 14, 15]
    assert tree.positions == list(range(12))
    assert [len(told) for told in tree.answers] == [len(answer) for answer in ANSWERS[0]]
    branching = Tree.of([2, 3], [[4, 5, 6], [7, 5, 6]])
    assert branching.ids == [2, 3, 4, 5, 7, 5]
    assert branching.positions == [0, 1, 2, 3, 2, 3]
    assert branching.sees[5].tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at_once", [8, 40, 1024])
def test_in_every_family_it_is_what_a_plain_pass_tells(family, at_once, monkeypatch):
    monkeypatch.setattr(likelihood, "AT_ONCE", at_once)
    model = FAMILIES[family]().eval()
    found = log_probabilities(model, PROMPTS, ANSWERS)
    for prompt, answers, told in zip(PROMPTS, ANSWERS, found, strict=True):
        expected = [alone(model, prompt, answer) for answer in answers]
        assert told == pytest.approx(expected, abs=1e-5)
        assert read_each(model, prompt, answers) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("answer", [[20, 21], ANSWERS[1][0], ANSWERS[2][0]])
def test_what_takes_trees(dtype, answer):
    taken = {
        family
        for family, build in (FAMILIES | MISREAD).items()
        if takes_trees(build().to(dtype), PROMPTS[1], answer)
    }
    assert taken == set(FAMILIES)


@pytest.mark.parametrize("family", MISREAD)
def test_a_family_that_misreads_trees_is_read_rightly_in_bfloat16(family):
    model = MISREAD[family]().to(torch.bfloat16)
    for prompt, answers, told in zip(
        PROMPTS, ANSWERS, log_probabilities(model, PROMPTS, ANSWERS), strict=True
    ):
        assert told == pytest.approx([alone(model, prompt, each) for each in answers], abs=0.1)


@pytest.mark.parametrize("lora", [None, Lora(r=4)])
def test_in_float32_a_model_computes_as_its_copy_and_keeps_its_weights(lora):
    model = FAMILIES["Gemma2"]().to(torch.bfloat16)  # whose head is its embedding
    model = adapters.add_lora(model, lora) if lora else model
    before = {name: (each, each.data_ptr()) for name, each in model.named_parameters()}
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        rounded = model(ids).logits
        with compute_in_float32(model):
            found = model(ids).logits
        assert torch.equal(model(ids).logits, rounded)
        with pytest.raises(IndexError), compute_in_float32(model):
            model(ids + 1000)
        after = {name: (each, each.data_ptr()) for name, each in model.named_parameters()}
        assert before.keys() == after.keys()
        for name, (tensor, place) in after.items():
            assert (tensor is before[name][0], place) == (True, before[name][1])
        assert torch.allclose(found, model.float()(ids).logits, atol=1e-5)
    assert not torch.allclose(found, rounded.float(), atol=1e-5)


def test_a_model_that_ignores_the_mask_reads_every_answer_for_itself(monkeypatch):
    model = FAMILIES["Llama"]().eval()
    expected = log_probabilities(model, PROMPTS, ANSWERS)
    monkeypatch.setattr(likelihood, "_masks", lambda *_: None)
    trees = [Tree.of(prompt, given) for prompt, given in zip(PROMPTS, ANSWERS, strict=True)]
    assert likelihood.read_trees(model, trees)[1] != pytest.approx(expected[1], abs=1e-2)
    assert not takes_trees(model, PROMPTS[1], ANSWERS[1][0])
    for told, other in zip(log_probabilities(model, PROMPTS, ANSWERS), expected, strict=True):
        assert told == pytest.approx(other, abs=1e-5)


def test_the_head_sees_what_predicts_an_answer_and_nothing_else():
    model, seen = FAMILIES["Llama"]().eval(), []
    model.lm_head.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    trees = [Tree.of(prompt, given) for prompt, given in zip(PROMPTS, ANSWERS, strict=True)]
    likelihood.read_trees(model, trees)
    inner = sum(len({at for told in tree.answers for at, _ in told}) for tree in trees)
    assert seen == [(1, inner, 64)]
