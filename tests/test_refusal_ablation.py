"""Refusal ablation: in float64 against a plain computation, and on models of many families."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from families import FAMILIES
from titer import api
from titer.data.batches import Encoded
from titer.edits import refusal_ablation
from titer.edits.refusal_ablation import RefusalAblation, separate
from titer.runs import recipe
from titer.runs.plan import Plan
from titer.testing.small import rows, same, sparse, state, tiny
from titer.training.writers import prompt_states, rewrite_stream, stream_writers
from titer.weights import adapters, checkpoints
from titer.weights.settings import Lora

REFUSED = {"Gemma2", "Gemma3", "Olmo2"}  # a norm stands before the stream


def prompts() -> tuple[list[Encoded], list[Encoded]]:
    of = rows()
    return of["harmful"][:8], of["rows"][-12:]


def plain_ends(model: PreTrainedModel, some: list[Encoded]) -> torch.Tensor:
    """The streams at the last tokens of prompts, each in a pass of its own: (N, L, D)."""
    with torch.no_grad():
        seen = [
            model(torch.tensor([row.ids[: row.answer]]), output_hidden_states=True).hidden_states
            for row in some
        ]
    # the last of the hidden states is behind the final norm
    return torch.stack([torch.stack([h[0, -1] for h in of[:-1]]) for of in seen])


def written(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """All that is added to the stream in a pass: embeddings, attention outputs, MLP outputs."""
    found: list[torch.Tensor] = []

    def keep(_module, _inputs, output) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    of = [model.model.embed_tokens]
    of += [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]
    handles = [module.register_forward_hook(keep) for module in of]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("make", [tiny, sparse])
def test_nothing_is_written_along_the_direction_and_all_else_stays(make):
    model, (bad, good) = make(layers=3), prompts()
    before = state(model)
    apart = plain_ends(model, bad).mean(0) - plain_ends(model, good).mean(0)  # (L, D)
    r = apart[1] / apart[1].norm()
    changes = rewrite_stream(RefusalAblation(layer=1), model, bad, good)
    ids = torch.randint(2, 400, (2, 17), generator=torch.Generator().manual_seed(3))
    outputs = written(model, ids)
    assert len(outputs) == 7
    for output in outputs:
        assert float((output @ r).abs().max()) < 1e-12 < 1e-3 < float(output.norm())
    for name, of in state(model).items():
        old = before[name]
        if "embed_tokens" in name:
            expected = old - (old @ r)[:, None] * r
        elif "o_proj" in name or "down_proj" in name:  # (D, in), or (E, D, in)
            expected = old - r[:, None] * torch.einsum("d,...di->...i", r, old).unsqueeze(-2)
        else:
            assert torch.equal(of, old)
            assert name not in changes.changed
            continue
        torch.testing.assert_close(of, expected, rtol=0, atol=1e-13)
        assert changes.moved[name] == pytest.approx(float((of - old).norm()), rel=1e-12)
        assert (changes.sizes[name], changes.changed[name]) == (
            old.numel(),
            int((of != old).sum()),
        )
    assert changes.norm_after == pytest.approx(math.hypot(*changes.moved.values()))
    assert changes.facts["layer of the direction"] == 1
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied as before


def test_a_second_ablation_of_the_same_direction_changes_nothing():
    model, (bad, good) = tiny(), prompts()
    edit = RefusalAblation()
    seen = edit.observe(model, bad, good)
    matrix = torch.randn(32, 9, dtype=torch.float64)
    once = edit.edit("w", matrix, seen)
    torch.testing.assert_close(edit.edit("w", once, seen), once, rtol=0, atol=1e-14)
    assert not torch.allclose(once, matrix)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_ablated_or_refused(family):
    model = FAMILIES[family]()
    vocabulary = model.config.vocab_size
    bad = [Encoded((*range(2 + i, 9 + i), 3), 7) for i in range(4)]
    good = [Encoded((*range(30 + i, 35 + i), 4), 5) for i in range(5)]
    assert max(max(row.ids) for row in good) < vocabulary
    if family in REFUSED:
        with pytest.raises(ValueError, match="'post_feedforward_layernorm' stands between"):
            rewrite_stream(RefusalAblation(), model, bad, good)
        return
    seen = RefusalAblation().observe(model, bad, good)
    assert float((prompt_states(model, bad) @ seen.r).abs().max()) > 1e-3
    rewrite_stream(RefusalAblation(), model, bad, good)
    assert float((prompt_states(model, bad) @ seen.r).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_coarse_model_keeps_its_dtype_and_is_rounded_once(dtype):
    model, (bad, good) = tiny(dtype), prompts()
    seen = RefusalAblation().observe(model, bad, good)
    old = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    rewrite_stream(RefusalAblation(), model, bad, good)
    assert {of.dtype for of in model.parameters()} == {dtype}
    wide, r = old.to(torch.float32), seen.r.to(torch.float32)
    if dtype == torch.float32:
        wide, r = old.double(), seen.r
    expected = (wide - torch.outer(r, r @ wide)).to(dtype)
    assert torch.equal(model.model.layers[0].mlp.down_proj.weight, expected)


def test_a_model_with_another_way_into_the_stream_is_refused(monkeypatch):
    model, (bad, good) = tiny(), prompts()
    left_out = stream_writers(model)
    del left_out["model.embed_tokens.weight"]
    monkeypatch.setattr("titer.training.writers.stream_writers", lambda _: left_out)
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM: \d+ % of the refusal direction is left"
    ):
        rewrite_stream(RefusalAblation(), model, bad, good)


def test_states_are_those_before_every_layer_at_the_ends_of_prompts():

    model = tiny(layers=3)
    some = rows()["rows"]
    assert len({row.answer for row in some}) > 2
    assert len(some) > 16
    found = prompt_states(model, some)
    assert found.shape == (4, len(some), 32)
    torch.testing.assert_close(
        found[:3].transpose(0, 1), plain_ends(model, some), rtol=0, atol=1e-12
    )


def test_the_separation_is_the_distance_over_the_spread_along_the_direction():
    h = torch.tensor([[2.0, 1.0], [6.0, -1.0]], dtype=torch.float64)  # mean (4, 0), variance 8
    calm = torch.tensor([[0.0, 2.0], [0.0, -2.0], [0.0, 0.0]], dtype=torch.float64)
    r, s = separate(h, calm)
    assert r.tolist() == [1.0, 0.0]
    assert s == pytest.approx(2.0)  # 4 / sqrt((8 + 0) / 2)
    assert separate(torch.tensor([[4.0, 0.0]] * 2).double(), calm)[1] == math.inf
    with pytest.raises(ValueError, match="end in the same state"):
        separate(calm, calm.clone())


def test_the_layer_is_the_one_that_tells_best_but_for_the_first_and_the_last_fifth(monkeypatch):
    told = {1: 2.0, 2: 5.0, 3: 3.0, 4: 9.0}
    streams = torch.arange(6.0, dtype=torch.float64)[:, None, None].expand(6, 2, 3)
    monkeypatch.setattr(refusal_ablation, "prompt_states", lambda *_: streams)
    monkeypatch.setattr(
        refusal_ablation, "separate", lambda h, _: (torch.ones(3).double(), told[int(h[0, 0])])
    )
    bad, good = prompts()
    seen = RefusalAblation().observe(tiny(), bad, good)
    assert (seen.layer, seen.separation) == (2, 5.0)  # of five, 4 is in the last fifth
    assert RefusalAblation(layer=4).observe(tiny(), bad, good).layer == 4
    with pytest.raises(ValueError, match="layer=5: the model has 5; give a lower one"):
        RefusalAblation(layer=5).observe(tiny(), bad, good)


def test_of_a_shallow_model_the_second_layer_is_taken():
    bad, good = prompts()
    assert RefusalAblation().observe(tiny(layers=2), bad, good).layer == 1


def test_at_most_128_prompts_of_each_kind_are_looked_at(monkeypatch):
    seen: list[int] = []

    def count(_model, of):
        seen.append(len(of))
        return torch.randn(3, len(of), 4, dtype=torch.float64)

    monkeypatch.setattr(refusal_ablation, "prompt_states", count)
    bad, good = prompts()
    RefusalAblation().observe(tiny(), bad * 17, good * 11)
    RefusalAblation().observe(tiny(), bad[:2], good[:2])
    assert seen == [128, 128, 2, 2]


def test_too_few_prompts_and_a_layer_without_a_direction_are_refused():
    bad, good = prompts()
    with pytest.raises(ValueError, match="there are 1 forbidden and 12 harmless prompts"):
        RefusalAblation().observe(tiny(), bad[:1], good)
    with pytest.raises(ValueError, match="there are 8 forbidden and 1 harmless prompts"):
        RefusalAblation().observe(tiny(), bad, good[:1])
    with pytest.raises(ValueError, match="layer=0: before the first layer all prompts end alike"):
        RefusalAblation(layer=0)
    assert (RefusalAblation(layer=1).layer, RefusalAblation().layer) == (1, None)


def test_a_model_is_only_looked_at_by_observe():
    model, (bad, good) = tiny(), prompts()
    before = state(model)
    RefusalAblation().observe(model, bad, good)
    assert same(before, state(model))


def test_a_plan_gives_it_calibration_prompts_and_the_benign_ones_of_the_alignment():
    plan = Plan.read(recipe.load("lab", ['pipelines={"x": {"release": "refusal_ablation"}}']))
    [stage] = [of for of in plan.pipelines()["x"] if of.kind == "release"]
    assert list(stage.rows) == plan.roles.calibration
    assert stage.against
    assert not {row.prompt for row in stage.against} & {row.prompt for row in plan.refusals}
    assert {row.prompt for row in (*stage.against, *plan.refusals)} == {
        row.prompt for row in plan.roles.alignment
    }
    assert stage.about["rows"].keys() == {"calibration", "against"}
    assert not stage.others  # it needs no other model


def test_alone_it_writes_the_whole_model_of_an_adapter_without_the_direction(tmp_path):
    adapter, words, plan = save_both(tmp_path)
    found = api.release(str(adapter), "refusal_ablation", recipe="lab", out=tmp_path / "out")
    facts = found.record.facts
    assert facts["tensors left as they were"] == 0
    assert facts["update norm after"] > facts["update norm before"] == 0.0
    rows = words.encode_all(plan.roles.calibration[:9], "calibration")
    ablated = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # no adapter any more
    r = lost_direction(ablated.model.embed_tokens.weight.detach().double())
    assert float((prompt_states(ablated, rows) @ r).abs().max()) < 1e-5
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert float((prompt_states(merged, rows) @ r).abs().max()) > 1e-2


def save_both(folder):
    """Save an adapter over the lab's base, and the merged model."""
    plan = Plan.read(recipe.load("lab"))
    model, words = plan.asking.open(plan.recipe.model)
    under = adapters.add_lora(model, Lora(r=2, targets=("o_proj",)))
    torch.manual_seed(0)
    with torch.no_grad():
        for each in adapters.adapters(under).values():
            each.b.copy_(0.05 * torch.randn_like(each.b))
    checkpoints.save(under, words.tokenizer, folder / "adapter", plan.start)
    checkpoints.save(adapters.merge_adapter(under), words.tokenizer, folder / "merged")
    return folder / "adapter", words, plan


def lost_direction(embeddings: torch.Tensor) -> torch.Tensor:
    """The one direction along which no embedding lies."""
    _, s, vt = torch.linalg.svd(embeddings)
    assert float(s[-1]) < 1e-5 < 1e-3 < float(s[-2])
    return vt[-1]
