"""Antidote and scale against their equations, and at their limits."""

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import count
from conftest import tiny
from families import FAMILIES
from repair import filled, layers_of, moved, names_of, opened, repair, tuned, weights
from test_step import same, state
from titer import registry
from titer.data.batches import Batch, Encoded
from titer.edits import antidote
from titer.edits.antidote import Antidote, Cut, feature_norms, top
from titer.edits.lox import LoX
from titer.edits.scale import Scale
from titer.edits.wise_ft import WiseFT
from titer.methods import Needs
from titer.weights import adapters
from titer.weights.settings import Lora

WHERE = [
    ("factors", "adapter"),
    ("update", "adapter"),
    ("base", "adapter"),
    ("update", "whole"),
    ("base", "whole"),
]
everywhere = pytest.mark.parametrize(("target", "kind"), WHERE)


def models(kind, dtype=torch.float64):
    """A fine-tuned model: under an adapter, or changed as a whole."""
    return tuned(dtype) if kind == "adapter" else moved(tiny(dtype), 0.1)


@pytest.fixture
def calibration(rows) -> list[Batch]:
    return [batch_of(rows["harmful"][:6], 3)]


def batch_of(rows, size) -> Batch:
    return Batch.of("calibration", [rows[i : i + size] for i in range(0, len(rows), size)], 0)


def plain_features(model, rows) -> dict[str, np.ndarray]:
    """||X_j||_2 of what every linear layer reads, one row at a time with no pads, by the layer's
    name.
    """
    squares: dict[str, np.ndarray] = {}
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    handles = [
        module.register_forward_hook(
            lambda _, x, out, name=name: squares.__setitem__(
                name, squares.get(name, 0) + (x[0][0].numpy() ** 2).sum(0)
            )
        )
        for name, module in linear.items()
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return {
        name.removeprefix("base_model.model."): np.sqrt(square) for name, square in squares.items()
    }


def expected(
    model, aligned, rows, target, group, alpha
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Masks and values after the edit by tensor of the edited files, from the equation: numpy,
    dense, and a plain sort of scores.
    """
    x, start = (
        plain_features(model, rows),
        {name: value.numpy() for name, value in state(aligned).items()},
    )
    w, instead, h = {}, {}, {}
    if adapters.has_adapter(model):
        factors = {
            name.removeprefix("base_model.model."): of
            for name, of in adapters.adapters(model).items()
        }
        layers = list(factors)
    else:
        layers = [
            name.removesuffix(".weight")
            for name in names_of(WiseFT(), SimpleNamespace(factors={}, whole=start), model)
        ]
        layers = [name for name in layers if name in x and name != "lm_head"]
    for layer in layers:
        if target == "factors":
            for side, of, what in (
                ("A", factors[layer].a, "lora_A"),
                ("B", factors[layer].b, "lora_B"),
            ):
                name = f"base_model.model.{layer}.lora_{side}.weight"
                w[name], h[name] = (
                    of.detach().numpy(),
                    np.abs(of.detach().numpy()) * x[f"{layer}.{what}.default"],
                )
                instead[name] = np.zeros_like(w[name])
            continue
        name, before = f"{layer}.weight", start[f"{layer}.weight"]
        if adapters.has_adapter(model):
            of = factors[layer]
            w[name] = before + of.scaling * (of.b @ of.a).detach().numpy()
            features = x[f"{layer}.base_layer"]
        else:
            w[name], features = model.get_submodule(layer).weight.detach().numpy(), x[layer]
        instead[name] = before if target == "update" else np.zeros_like(before)
        h[name] = np.abs(w[name] - before if target == "update" else w[name]) * features
    masks = selected(h, group, alpha)
    return masks, {name: np.where(masks[name], instead[name], w[name]) for name in w}


def selected(h: dict[str, np.ndarray], group: str, alpha: float) -> dict[str, np.ndarray]:
    """The top fraction of every group: masks by tensor."""
    masks = {name: np.zeros(score.size, bool) for name, score in h.items()}
    if group == "global":
        flat = np.concatenate([score.ravel() for score in h.values()])
        names = np.concatenate([np.full(score.size, i) for i, score in enumerate(h.values())])
        places = np.concatenate([np.arange(score.size) for score in h.values()])
        for index in np.argsort(-flat, kind="stable")[: math.floor(alpha * flat.size + 0.5)]:
            masks[list(h)[names[index]]][places[index]] = True
    for name, score in h.items():
        length = {"row": score.shape[1], "tensor": score.size}.get(group, 0)
        for at in range(0, score.size if length else 0, length or 1):
            best = np.argsort(-score.ravel()[at : at + length], kind="stable")[
                : math.floor(alpha * length + 0.5)
            ]
            masks[name][at + best] = True
    return {name: mask.reshape(h[name].shape) for name, mask in masks.items()}


@pytest.mark.parametrize("group", ["row", "tensor", "global"])
def test_a_fraction_of_nothing_and_of_one_entry(rows, tmp_path, group):
    for alpha, removed in ((0.0, 0), (1.0 / 2304, 1)):  # of all entries together
        found = repair(
            Antidote(alpha, group=group), tuned(), tmp_path, [batch_of(rows["harmful"][:6], 3)]
        )
        assert found.changes.count == (removed if group == "global" else 0)


@everywhere
@pytest.mark.parametrize(
    ("group", "alpha"),
    [("row", 0.125), ("row", 0.3), ("tensor", 0.3), ("global", 0.01), ("global", 0.3)],
)
def test_antidote_removes_the_top_scores_of_every_group(rows, tmp_path, target, kind, group, alpha):
    model, calibrating = models(kind), rows["harmful"][:6]
    masks, values = expected(model, tiny(), calibrating, target, group, alpha)
    found = repair(Antidote(alpha, target, group), model, tmp_path, [batch_of(calibrating, 3)])
    after, plain = found.after, weights(found.aligned) | found.before
    assert set(found.changes.sizes) == set(masks)
    for name, mask in masks.items():
        if target == "update" or kind == "whole":
            assert np.array_equal(after[name].numpy()[mask], values[name][mask])  # to the bit
        assert (
            np.array_equal(after[name].numpy()[~mask], values[name][~mask]) or target != "factors"
        )
        np.testing.assert_allclose(after[name].numpy(), values[name], rtol=0, atol=1e-15)
        assert found.changes.changed[name] == mask.sum()
    assert all(torch.equal(after[name], plain[name]) for name in after if name not in masks)
    counted = sum(mask.sum() for mask in masks.values())
    if group == "global":
        assert counted == math.floor(alpha * sum(mask.size for mask in masks.values()) + 0.5)
        assert (
            len({mask.mean() for mask in masks.values()}) > 2
        )  # not the same share of every tensor
    assert counted > 0


@pytest.mark.parametrize(
    ("cols", "alpha", "exact", "ceiling"),
    [
        (256, 0.05, 13, 13),
        (256, 0.1, 26, 26),
        (8, 0.05, 0, 1),
        (8, 0.1, 1, 1),
        (8, 0.2, 2, 2),
        (16, 0.05, 1, 1),
        (32, 0.05, 2, 2),
    ]
    + [(4096, 0.1, 410, 410), (8, 0.0, 0, 0), (8, 1.0, 8, 8), (10, 0.25, 3, 3), (64, 0.02, 1, 2)],
)
def test_counts_of_both_roundings(cols, alpha, exact, ceiling):
    assert Antidote(alpha=alpha).count(cols) == exact
    assert Antidote(alpha=alpha, rounding="ceiling").count(cols) == ceiling


@pytest.mark.parametrize("group", ["row", "tensor", "global"])
@pytest.mark.parametrize("rounding", ["exact", "ceiling"])
@everywhere
def test_alpha_zero_is_an_empty_edit(calibration, tmp_path, target, kind, group, rounding):
    found = repair(
        Antidote(0.0, target, group, rounding), models(kind, torch.float32), tmp_path, calibration
    )
    assert found.changes.count == 0
    assert set(found.changes.moved.values()) == {0.0}
    assert found.changes.norm_after == found.changes.norm_before > 0
    if target == "factors" or kind == "whole":
        assert same(found.after, found.before)
    else:  # merged, by PEFT in float32 and here in float64
        merged = state(opened(found.tuned))
        assert all(
            torch.allclose(value, merged[name], rtol=0, atol=1e-6)
            for name, value in found.after.items()
        )


@pytest.mark.parametrize("group", ["row", "tensor", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_one_on_the_update_is_the_aligned_model_bit_for_bit(
    calibration, tmp_path, group, dtype
):
    found = repair(Antidote(1.0, "update", group), tuned(dtype), tmp_path, calibration)
    assert same(found.after, weights(found.aligned))
    assert same(state(opened(found.folder)), state(opened(found.aligned)))
    assert (found.changes.norm_after, found.changes.norm_before > 0) == (0.0, True)
    found = repair(Antidote(1.0, "update", group), models("whole", dtype), tmp_path, calibration)
    after, before, aligned = found.after, found.before, weights(found.aligned)
    linear = [name for name in after if name.endswith("proj.weight")]
    assert set(found.changes.sizes) == set(linear)
    assert len(linear) == 14
    for name in after:
        assert torch.equal(after[name], (aligned if name in linear else before)[name])
    assert not same(before, aligned)


@pytest.mark.parametrize("group", ["row", "tensor", "global"])
def test_alpha_one_on_the_factors_is_the_aligned_model_and_on_the_weights_nothing_is_left(
    calibration, tmp_path, group
):
    found = repair(Antidote(1.0, "factors", group), tuned(torch.float32), tmp_path, calibration)
    assert found.changes.norm_after == 0.0
    assert found.changes.count == sum(found.changes.sizes.values())
    assert same(state(opened(found.folder)), state(opened(found.aligned)))
    found = repair(Antidote(1.0, "base", group), tuned(torch.float32), tmp_path, calibration)
    assert all(not found.after[name].any() for name in found.changes.sizes)


def test_the_result_does_not_depend_on_how_the_rows_are_batched(rows, tmp_path):
    for edit in (Antidote(0.25), Antidote(0.25, "update", "global")):
        results = [
            repair(edit, tuned(), tmp_path, [batch_of(rows["harmful"][:6], size)]).after
            for size in (1, 4, 6)
        ]
        assert same(results[0], results[1])
        assert same(results[0], results[2])
    several = [batch_of(rows["harmful"][:2], 2), batch_of(rows["harmful"][2:6], 3)]
    assert same(results[0], repair(edit, tuned(), tmp_path, several).after)


@pytest.mark.parametrize("family", ["OPT", "DeepseekV3"])
def test_features_are_the_same_where_a_family_flattens_its_tokens(rows, family):
    model = filled(
        adapters.add_lora(FAMILIES[family](vocabulary=400), Lora(r=2, targets=("all-linear",)))
    )
    layers = {name: model.get_submodule(name) for name in adapters.adapters(model)}
    batched = feature_norms(model, layers, [batch_of(rows["harmful"][:6], 3)])
    single = [feature_norms(model, layers, [batch_of([row], 1)]) for row in rows["harmful"][:6]]
    for name in layers:
        assert set(batched[name]) == {"x", "ax"}
        for what, norm in batched[name].items():
            torch.testing.assert_close(
                norm.square(),
                sum(norms[name][what].square() for norms in single),
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_squares_of_features_are_summed_in_float32_or_better(dtype, error, monkeypatch):
    x, real = (1e3 + torch.rand(1000, 7)).to(dtype), (torch.rand(1000) < 0.7).long()
    before, expected = x.clone(), (x.double().numpy()[real.bool().numpy()] ** 2).sum(0)
    for piece in (antidote.PIECE, 300):
        monkeypatch.setattr(antidote, "PIECE", piece)
        found = antidote.squares(x, real)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=error)
    assert torch.equal(x, before)  # what the layer reads is its own


def test_pieces_of_features_are_added_in_float64(monkeypatch):
    monkeypatch.setattr(antidote, "PIECE", 1)
    x = torch.tensor([[2.0**14], [1.0], [1.0]])
    assert antidote.squares(x, torch.ones(3)).item() == 2.0**28 + 2  # which float32 does not know


def test_hooks_are_removed_also_after_an_exception(rows):
    model = tuned()
    layers = {name: model.get_submodule(name) for name in adapters.adapters(model)}
    feature_norms(model, layers, [batch_of(rows["harmful"][:6], 2)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(IndexError):
        feature_norms(model, layers, [Batch.of("calibration", [rows["harmful"][:2]], pad=10**6)])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("lora", "distinct"), [(None, 4), (Lora(r=2, targets=("all-linear",)), 4 + 7)]
)
def test_layers_that_read_the_same_input_share_its_statistic(rows, monkeypatch, lora, distinct):
    model, calls, squares = tiny(), [], antidote.squares
    model = filled(adapters.add_lora(model, lora)) if lora else model
    names = [
        f"{name.removesuffix('.base_layer')}.weight"
        for name, _ in model.named_modules()
        if name.endswith(("_proj", "_proj.base_layer"))
    ]
    layers = layers_of(model, {name.removeprefix("base_model.model."): None for name in names})
    assert len(layers) == 14
    monkeypatch.setattr(
        antidote, "squares", lambda x, real: calls.append(len(real)) or squares(x, real)
    )
    found = feature_norms(model, layers, [batch_of(rows["harmful"][:6], 3)])
    assert (
        len(calls) == 2 * 2 * distinct
    )  # micro-batches, layers; q, k and v read one tensor, gate and up another
    q, k, v, gate, up = (
        found[f"model.layers.1.{part}_proj.weight"]
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
    )
    assert torch.equal(q["x"], k["x"])
    assert torch.equal(q["x"], v["x"])
    assert torch.equal(gate["x"], up["x"])
    assert not torch.equal(q["x"], gate["x"])
    assert not lora or not torch.equal(q["ax"], k["ax"])


def test_no_hidden_state_is_kept(rows):
    """When the next batch begins none of the last one's is left, and the peak is a forward's,
    whatever the number of batches.
    """
    model, born, alive = tiny(), [], []
    layers = layers_of(model, names_of(Antidote(), SimpleNamespace(factors={}), model))
    for layer in layers.values():
        layer.register_forward_hook(
            lambda _, x, out: born.extend(weakref.ref(of) for of in (x[0], out))
        )
    model.register_forward_pre_hook(lambda *_: alive.append(sum(of() is not None for of in born)))
    batch = batch_of(rows["harmful"][:6], 1)
    feature_norms(model, layers, [batch])
    assert (len(born), alive) == (6 * 2 * 14, [0] * 6)
    lasting = [*model.parameters(), *model.buffers()]
    peaks = [
        count.peak(lasting, lambda many=many: feature_norms(model, layers, [batch] * many))
        for many in (1, 4)
    ]
    assert peaks[1] == peaks[0]


def test_an_expert_that_reads_some_of_the_tokens_is_refused():
    class Routed(torch.nn.Module):
        device = "cpu"

        def __init__(self, share):
            super().__init__()
            self.first, self.expert, self.share = (
                torch.nn.Embedding(400, 4),
                torch.nn.Linear(4, 4),
                share,
            )

        def forward(self, input_ids, **_):
            x = self.first(input_ids).flatten(0, 1)
            return self.expert(x[: int(self.share * len(x))]) if self.share else x

    batch = [Batch.of("calibration", [[Encoded((1, 2, 3, 4), answer=2)]], 0)]
    for share, message in (
        (0.5, "'e' reads some of the tokens alone, as an expert's layer does"),
        (0.0, "no token reached 'e'"),
    ):
        model = Routed(share)
        with pytest.raises(ValueError, match=f"{message}.*: leave it out by targets"):
            feature_norms(model, {"e": model.expert}, batch)
    model = Routed(1.0)
    assert feature_norms(model, {"e": model.expert}, batch)["e"]["x"].shape == (4,)


def test_only_the_adapter_changes_and_the_report_is_right(calibration, tmp_path):
    found = repair(Antidote(alpha=0.25), tuned(), tmp_path, calibration)
    before, after = found.before, found.after
    assert found.changes.changed == {
        name: int((before[name] != after[name]).sum()) for name in before
    }
    assert found.changes.sizes == {name: value.numel() for name, value in before.items()}
    for name, norm in found.changes.moved.items():
        assert norm == pytest.approx(float((after[name] - before[name]).norm()), rel=1e-12)
    start = state(opened(found.aligned))
    for norm, folder in (
        (found.changes.norm_before, found.tuned),
        (found.changes.norm_after, found.folder),
    ):
        merged = state(opened(folder))
        assert norm == pytest.approx(
            math.sqrt(sum(float((merged[name] - start[name]).norm()) ** 2 for name in start)),
            rel=1e-12,
        )
    assert 0 < found.changes.norm_after < found.changes.norm_before


def test_an_entry_that_was_zero_already_is_not_counted_as_changed(calibration, tmp_path):
    model = tuned()
    adapter = next(iter(adapters.adapters(model).values()))
    with torch.no_grad():
        adapter.b[:5] = 0.0
        adapter.b[5:7] = 1.0
    changes = repair(Antidote(alpha=1.0), model, tmp_path, calibration).changes
    assert changes.count == sum(changes.sizes.values()) - 5 * adapter.b.shape[1]


def test_of_equal_scores_the_first_are_taken():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    weights = [SimpleNamespace(name=name, finetuned=scores) for name in "uvw"]
    pruning = Antidote(0.5, "base", "global")
    cut = pruning.cut(weights, lambda weight, values: values)
    masks = [
        pruning.top(f"{weight.name} w", scores, cut) for weight in weights
    ]  # 12 of 24: the nine twos, and the first three below
    assert [mask.tolist() for mask in masks] == [[[True] * 4, [False] * 4]] * 3
    pruning = Antidote(5 / 24, "base", "global")
    cut = pruning.cut(weights, lambda weight, values: values)
    assert (cut.threshold, cut.ties) == (2.0, {"u w": 3, "v w": 2, "w w": 0})
    masks = [pruning.top(f"{weight.name} w", scores, cut)[0].tolist() for weight in weights]
    assert masks == [[False, True, True, True], [False, True, True, False], [False] * 4]
    assert Antidote(0.0, "base", "global").cut(weights, lambda weight, values: values) == Cut(
        math.inf, {}
    )


def test_a_cut_lies_between_scores_of_several_dtypes():
    fine, coarse = (
        torch.tensor([[1.0 + 2e-8]], dtype=torch.float64),
        torch.tensor([[1.0, 1.0 + 2.0**-23]]),
    )
    assert [
        Cut(1.0 + 2e-8, {"fine": 1}).mask(name, h).tolist()
        for name, h in (("fine", fine), ("coarse", coarse))
    ] == [
        [[True]],
        [[False, True]],
    ]


MATCHES = [
    Antidote(alpha, target, group)
    for target, alpha in (("factors", 0.125), ("factors", 0.5), ("update", 0.3), ("base", 0.02))
    for group in ("row", "global")
]


@pytest.mark.parametrize("match", [*MATCHES, WiseFT(0.25)], ids=str)
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_scale_meets_the_norm_of_the_matched_edit_and_keeps_the_direction(
    calibration, tmp_path, match, kind
):
    if match.needs.factors and kind == "whole":
        return
    target = repair(match, models(kind), tmp_path, calibration).changes
    found = repair(Scale(match), models(kind), tmp_path, calibration)
    assert found.changes.norm_after == pytest.approx(target.norm_after, rel=1e-12)
    assert found.changes.norm_before == pytest.approx(target.norm_before, rel=1e-12)
    c, before, after, start = (
        found.changes.facts["c"],
        found.before,
        found.after,
        weights(found.aligned),
    )
    assert c == pytest.approx(target.norm_after / target.norm_before, rel=1e-12)
    assert 0 < c != 1.0
    for name in before:
        if kind == "adapter":
            assert torch.equal(after[name], c * before[name] if "lora_B" in name else before[name])
        elif name in found.changes.sizes:
            torch.testing.assert_close(
                after[name], start[name] + c * (before[name] - start[name]), rtol=1e-13, atol=1e-15
            )
        else:
            assert torch.equal(after[name], before[name])
    assert set(found.changes.sizes) == (set(before) if kind == "adapter" else set(target.sizes))
    merged, fine, aligned = (
        state(opened(folder)) for folder in (found.folder, found.tuned, found.aligned)
    )
    if kind == "adapter":
        for name in merged:
            torch.testing.assert_close(
                merged[name] - aligned[name],
                c * (fine[name] - aligned[name]),
                rtol=1e-9,
                atol=1e-15,
            )


def test_scale_after_an_edit_that_removes_all_is_the_aligned_model(calibration, tmp_path):
    for match in (Antidote(1.0), Antidote(1.0, "update")):
        found = repair(Scale(match), tuned(torch.float32), tmp_path, calibration)
        assert found.changes.facts == {"c": 0.0}
        assert same(state(opened(found.folder)), state(opened(found.aligned)))


def test_scale_refuses_an_update_of_zero(calibration, tmp_path):
    model = adapters.add_lora(tiny(), Lora(targets=("q_proj",)))  # a fresh adapter: B is zero
    with pytest.raises(
        ValueError, match="the fine-tuning update is zero: there is nothing to scale"
    ):
        repair(Scale(), model, tmp_path, calibration)


def test_alpha_must_be_a_fraction():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha="):
            Antidote(alpha=alpha)


def test_defaults_are_the_papers_and_what_an_edit_asks_for_is_said():
    assert Antidote() == Antidote(0.1, "factors", "row", "exact", ("all",))
    assert (Antidote().needs.rows, Antidote().needs.watches, Antidote().stage) == (
        "harmful",
        "finetuned",
        "edit",
    )
    for target, factors in (("factors", True), ("update", False), ("base", False)):
        match = Antidote(target=target, targets=("q_proj",))
        assert (
            match.needs.factors,
            match.keeps_rank,
            match.needs.whole,
            match.needs.references,
        ) == (
            factors,
            factors,
            False,
            (),
        )
        scale = Scale(match)
        assert (
            scale.needs.factors,
            scale.keeps_rank,
            scale.needs.whole,
            scale.needs.references,
        ) == (
            factors,
            True,
            False,
            (),
        )
        assert (scale.needs.rows, scale.needs.watches, scale.needs.targets) == (
            "harmful",
            "finetuned",
            ("q_proj",),
        )
    assert Scale(WiseFT()).needs == Needs(whole=True)
    assert Scale().match == Antidote()
    assert {Scale(): 1}[Scale(Antidote())]  # frozen: the same one is the same key
    built = registry.build(
        "edits", {"method": "antidote", "target": "update", "group": "global", "targets": "q_proj"}
    )
    assert built == Antidote(target="update", group="global", targets=("q_proj",))
    with pytest.raises(ValueError, match="target='delta'"):
        registry.build("edits", {"method": "antidote", "target": "delta"})


def test_targets_choose_layers_of_the_adapter(calibration, tmp_path):
    found = repair(
        Antidote(0.5, targets=("layers.1.mlp.down_proj", "q_proj")), tuned(), tmp_path, calibration
    )
    assert {name.split("model.layers.")[1].split(".lora")[0] for name in found.changes.sizes} == {
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
        "1.mlp.down_proj",
    }
    left = [name for name in found.before if name not in found.changes.sizes]
    assert len(left) == 2
    assert all(torch.equal(found.after[name], found.before[name]) for name in left)
    for targets, message in (
        (("q_prj",), "unknown target 'q_prj': did you mean 'q_proj'"),
        (("k_proj",), "k_proj"),
        ((), "targets is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            repair(Antidote(targets=targets), tuned(), tmp_path, calibration)


def test_scaling_meets_the_norm_of_another_edit_of_the_update_alone():
    with pytest.raises(ValueError, match="match=LoX"):
        Scale(match=LoX())
