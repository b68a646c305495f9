"""Safe Delta against a plain Optimal Brain Surgeon, entry by entry, and at its limits."""

import math

import pytest
import torch
from safetensors.torch import load_file
from titer.runs.setting import Setting
from torch import nn
from typer.testing import CliRunner

from conftest import byte_level, tiny
from families import FAMILIES
from test_edits import batch_of
from titer import registry
from titer.cli import app
from titer.edits.safe_delta import SafeDelta, Tally, hessians
from titer.runs import recipe, stages
from titer.weights import adapters, checkpoints, folders
from titer.weights.settings import Checkpoint, Lora

ROWS, COLUMNS = 7, 12


class Linear:
    """A weight under the edit: what it asks for is made afresh, as from disk."""

    name = "w"

    def __init__(
        self, aligned: torch.Tensor, finetuned: torch.Tensor, seen: torch.Tensor | None
    ) -> None:
        self.pair, self.seen = (aligned, finetuned), seen

    @property
    def aligned(self) -> torch.Tensor:
        return self.pair[0].clone()

    @property
    def finetuned(self) -> torch.Tensor:
        return self.pair[1].clone()


def layer(
    seed: int = 0, rows: int = ROWS, columns: int = COLUMNS, tokens: int = 60
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Aligned and fine-tuned weight, and inputs (columns, tokens) of which some are larger, and none is alone."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = (
        normal(columns, columns)
        + torch.diag(8 * torch.rand(columns, generator=generator, dtype=torch.float64))
    ) @ normal(columns, tokens)
    aligned = normal(rows, columns)
    return aligned, aligned + 0.1 * normal(rows, columns), x


def made(edit: SafeDelta, aligned, finetuned, x) -> tuple[torch.Tensor, Tally]:
    tally = edit.prepare([])
    return edit.edit(Linear(aligned, finetuned, edit.factor(2 * x @ x.T)), tally), tally


def plain(
    edit: SafeDelta, aligned, finetuned, x
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[float, float, float]]]:
    """The edit an entry at a time, by inverses alone: the weight, what was taken, and of every block eps, what was spent, and one more."""
    rows, columns = aligned.shape
    h = 2 * x @ x.T
    h = h + edit.damping * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)
    free = [
        torch.linalg.inv(h[j:, j:]) for j in range(columns)
    ]  # the inverse for the columns from j on
    w, taken, budgets = aligned.clone(), torch.zeros(rows, columns, dtype=torch.bool), []
    for start in range(0, columns, edit.block):
        block = range(start, min(start + edit.block, columns))
        price = {j: 1 / (2 * float(free[j][0, 0])) for j in block}
        part = len(block) / columns if edit.constants == "own" else rows / 4096 / 2
        eps = edit.s * part * sum(price.values()) / len(block)
        entries = sorted(
            ((i, j) for j in block for i in range(rows)),
            key=lambda entry: (price[entry[1]], entry[0]),
        )
        eligible = len(entries) - int(edit.protected * len(entries))
        spent, left = 0.0, math.inf
        for i, j in entries[:eligible]:
            cost = float(finetuned[i, j] - w[i, j]) ** 2 * price[j]
            if spent + cost > eps:
                left = spent + cost
                break
            spent += cost
            taken[i, j] = True
        budgets.append((eps, spent, left))
        for j in block:
            for i in range(rows):
                if taken[i, j] and edit.compensate:
                    w[i, j:] += (finetuned[i, j] - w[i, j]) / free[j][0, 0] * free[j][0]
                elif taken[i, j]:
                    w[i, j] = finetuned[i, j]
    return w, taken, budgets


@pytest.mark.parametrize("constants", ["own", "authors"])
@pytest.mark.parametrize(("block", "s"), [(2048, 0.25), (5, 0.3), (4, 0.5), (COLUMNS, 0.2)])
def test_the_weights_are_those_of_a_plain_optimal_brain_surgeon(constants, block, s):
    edit = SafeDelta(s=s if constants == "own" else 400 * s, constants=constants, block=block)
    case = layer()
    found, tally = made(edit, *case)
    expected, taken, budgets = plain(edit, *case)
    assert 0 < tally.taken < (1 - edit.protected) * ROWS * COLUMNS
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found == case[1], taken)  # to the bit
    assert (tally.taken, tally.entries, tally.reverted) == (int(taken.sum()), ROWS * COLUMNS, 0)
    assert edit.facts(tally) == {
        "share of entries taken": int(taken.sum()) / (ROWS * COLUMNS),
        "other tensors reverted": 0,
    }
    assert all(spent <= eps < left for eps, spent, left in budgets)
    assert taken.all(0).any()
    assert (taken.any(0) & ~taken.all(0)).any()  # the case has whole columns and parts of columns


@pytest.mark.parametrize("s", [0.05, 0.3, 3.0])
def test_the_loss_of_safety_is_the_sum_of_squared_errors(s):
    """||(W - W_aligned) X||^2 is ||E||^2, E from the definition W_aligned - W = E U."""
    aligned, finetuned, x = layer()
    edit = SafeDelta(s=s, damping=1e-12)
    found, _ = made(edit, aligned, finetuned, x)
    error = (aligned - found) @ torch.linalg.inv(edit.factor(2 * x @ x.T))
    torch.testing.assert_close(
        (2 * ((found - aligned) @ x).square().sum()), error.square().sum(), rtol=1e-9, atol=0
    )
    assert torch.equal(error.abs() > 1e-9, found == finetuned)  # zero where an entry is not taken


def test_the_blocks_of_a_layer_share_the_papers_budget():
    aligned, finetuned, x = layer()
    one, blocks = (
        plain(SafeDelta(s=0.3, block=block), aligned, finetuned, x)[2] for block in (COLUMNS, 5)
    )
    assert sum(eps for eps, _, _ in blocks) == pytest.approx(one[0][0], rel=1e-12)
    half = (
        torch.full((4096, 3), 0.01, dtype=torch.float64),
        torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64),
    )  # of a layer of 4096 rows
    left = 0.5 * 0.3 * (1 / 9 + 1 / 4 + 1) / 3 - 4096 * 1e-4 / 9  # after the whole first column
    for constants in ("own", "authors"):
        assert SafeDelta(s=0.3, constants=constants).count(*half, 0.5) == 4096 + int(
            left / (1e-4 / 4)
        )


def test_an_entry_that_spends_the_budget_to_the_end_is_taken():
    ones = torch.ones(2, 5), torch.ones(5)  # every entry costs 1/2
    assert [
        SafeDelta(s=s, protected=0.0).count(*ones, 1.0) for s in (0.0, 2.5, 3.0, 10.0, 11.0)
    ] == [0, 2, 3, 10, 10]


@pytest.mark.parametrize("s", [0.05, 0.3, 1.0])
def test_compensation_keeps_the_output_on_refusals(s):
    for seed in range(5):
        aligned, finetuned, x = layer(seed, rows=40, columns=30, tokens=200)
        lost = []
        for compensate in (True, False):
            found, tally = made(SafeDelta(s=s, compensate=compensate), aligned, finetuned, x)
            lost.append(float(((found - aligned) @ x).norm()))
            assert int((found != aligned).sum()) == tally.taken or compensate
        assert 0 < lost[0] < 0.9 * lost[1]


def test_without_compensation_what_is_not_taken_stays():
    aligned, finetuned, x = layer()
    edit = SafeDelta(s=0.3, compensate=False, block=5)
    found, tally = made(edit, aligned, finetuned, x)
    expected, taken, _ = plain(edit, aligned, finetuned, x)
    assert torch.equal(found, torch.where(taken, finetuned, aligned))
    assert torch.equal(found, expected)
    assert tally.taken == int(taken.sum()) > 0


@pytest.mark.parametrize("block", [2048, 5])
def test_at_its_ends_it_is_the_aligned_and_the_fine_tuned_model(block):
    case = layer()
    assert torch.equal(made(SafeDelta(s=0.0, block=block), *case)[0], case[0])
    assert torch.equal(made(SafeDelta(s=math.inf, block=block, protected=0.0), *case)[0], case[1])
    assert torch.equal(made(SafeDelta(s=math.inf, block=block, protected=1.0), *case)[0], case[0])
    found, tally = made(SafeDelta(s=1e9, block=block), *case)
    sizes = [min(block, COLUMNS - start) * ROWS for start in range(0, COLUMNS, block)]
    assert (
        int((found == case[1]).sum())
        == tally.taken
        == sum(size - int(0.15 * size) for size in sizes)
    )
    kept = (found != case[1]).any(0)
    prices = 1 / SafeDelta().factor(2 * case[2] @ case[2].T).diagonal() ** 2
    if block == 2048:  # the protected ones are those of the highest price
        assert float(prices[kept].min()) > float(prices[~kept].max())


def test_what_fine_tuning_left_alone_costs_nothing():
    aligned, _, x = layer()
    found, _ = made(SafeDelta(s=0.0), aligned, aligned, x)
    assert torch.equal(found, aligned)


def test_a_feature_that_is_always_zero_is_taken_first():
    aligned, finetuned, x = layer()
    x[3] = 0.0
    found, tally = made(SafeDelta(s=0.1), aligned, finetuned, x)
    assert tally.taken >= ROWS
    assert torch.equal(found[:, 3], finetuned[:, 3])
    expected, _, _ = plain(SafeDelta(s=0.1), aligned, finetuned, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_scale_of_the_inputs_does_not_matter():
    aligned, finetuned, x = layer()
    expected, _ = made(SafeDelta(s=0.3), aligned, finetuned, x)
    for c in (1e-3, 1e3):
        torch.testing.assert_close(
            made(SafeDelta(s=0.3), aligned, finetuned, c * x)[0], expected, rtol=0, atol=1e-12
        )


def test_in_16_bits_it_is_computed_in_float32():
    case = tuple(part.float() for part in layer())
    found, _ = made(SafeDelta(s=0.3), *case)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), made(SafeDelta(s=0.3), *layer())[0], rtol=0, atol=1e-4
    )
    edit = SafeDelta(s=0.3)
    wide, narrow = (
        edit.edit(Linear(case[0].double(), case[1].double(), u), edit.prepare([]))
        for u in _factors(edit, case[2])
    )
    assert torch.equal(wide, narrow)


def _factors(edit: SafeDelta, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    u = edit.factor(2 * x @ x.T)
    return u, u.double()


def test_of_equal_features_the_first_goes_first():
    aligned, finetuned, _ = layer(columns=600)  # as many as an unstable sort disturbs
    found, tally = made(SafeDelta(s=10.0), aligned, finetuned, torch.eye(600, dtype=torch.float64))
    first = torch.zeros(600, ROWS, dtype=torch.bool)
    first.flatten()[: tally.taken] = True
    assert 10 * ROWS < tally.taken < 0.8 * 600 * ROWS
    assert torch.equal(found == finetuned, first.T)


def test_what_is_told_is_of_all_weights():
    edit, (aligned, finetuned, x) = SafeDelta(s=0.3), layer()
    tally, u = edit.prepare([]), edit.factor(2 * x @ x.T)
    _, one = made(edit, aligned, finetuned, x)
    for seen in (u, None, u, None, None):
        edit.edit(Linear(aligned, finetuned, seen), tally)
    assert (tally.entries, tally.taken, tally.reverted) == (2 * ROWS * COLUMNS, 2 * one.taken, 3)


# H


def linears(model) -> dict[str, nn.Module]:
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def plain_hessians(model, rows) -> dict[str, torch.Tensor]:
    """2 X X^T of every layer, one row at a time with no pads."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        found[name] = found.get(name, 0) + 2 * torch.einsum(
            "ti,tj->ij", x.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
        )

    handles = [
        layer.register_forward_hook(lambda _, x, out, name=name: keep(name, x[0]))
        for name, layer in linears(model).items()
    ]
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("size", [1, 3, 6])
def test_h_is_over_tokens_without_pads_however_batched(rows, size):
    model, few = tiny(), rows["rows"][:6]
    assert len({len(row.ids) for row in few}) > 1  # so there are pads
    h, reads = hessians(model, linears(model), [batch_of(few, size)], 128)
    expected = plain_hessians(model, few)
    assert reads.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(h[reads[name]], expected[name], rtol=1e-10, atol=1e-10)
        assert h[reads[name]].dtype == torch.float64
    assert not any(layer._forward_pre_hooks for layer in linears(model).values())


def test_layers_that_read_the_same_input_share_one(rows):
    model = tiny(torch.bfloat16)
    batches = [batch_of(rows["rows"][:3], 2), batch_of(rows["rows"][3:6], 3)]
    h, reads = hessians(model, linears(model), batches, 128)
    assert len(h) == 4 * 2 + 1  # attention, its output, MLP, its output of two layers; the head
    seen = SafeDelta().observe(model, {**linears(model), "norm.weight": model.model.norm}, batches)
    assert seen.keys() == linears(model).keys()
    for of in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{of}.weight"
        assert reads[name] == "model.layers.1.self_attn.q_proj.weight"
        assert seen[name] is seen[reads[name]]
        damped = h[reads[name]] + 0.01 * h[reads[name]].diagonal().mean() * torch.eye(32)
        torch.testing.assert_close(
            seen[name].T @ seen[name] @ damped, torch.eye(32), rtol=0, atol=1e-2
        )
        assert torch.equal(seen[name], seen[name].triu())
        assert seen[name].dtype == torch.float32


@pytest.mark.parametrize(
    ("samples", "kept"), [(1, [0]), (2, [0, 3]), (4, [0, 1, 3, 4]), (6, range(6)), (128, range(6))]
)
def test_rows_are_evenly_spaced(rows, samples, kept):
    model, few = tiny(), rows["rows"][:6]
    for size in (1, 2, 4):
        h, reads = hessians(
            model, linears(model), [batch_of(few[:5], size), batch_of(few[5:], size)], samples
        )
        for name, expected in plain_hessians(model, [few[i] for i in kept]).items():
            torch.testing.assert_close(h[reads[name]], expected, rtol=1e-10, atol=1e-10)
    found = SafeDelta(samples=samples).observe(model, linears(model), [batch_of(few, 2)])
    for name in found:
        torch.testing.assert_close(
            found[name], SafeDelta().factor(h[reads[name]]), rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("family", ["OPT", "DeepseekV3"])
def test_h_is_the_same_where_a_family_flattens_its_tokens(rows, family):
    model = FAMILIES[family](vocabulary=400)
    h, reads = hessians(model, linears(model), [batch_of(rows["rows"][:4], 4)], 128)
    for name, expected in plain_hessians(model, rows["rows"][:4]).items():
        torch.testing.assert_close(h[reads[name]].to(expected), expected, rtol=1e-3, atol=1e-3)


def test_a_model_without_linear_layers_is_refused(rows):
    model = tiny()
    with pytest.raises(ValueError, match="none of 1 layers is one"):
        SafeDelta().observe(
            model, {"model.norm.weight": model.model.norm}, [batch_of(rows["rows"][:2], 2)]
        )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"s": -0.1}, "s=-0.1: the scale of the budget must be at least 0"),
        ({"s": float("nan")}, "s=nan"),
        (
            {"protected": -0.1},
            "protected=-0.1: the fraction that is never taken must lie between 0 and 1",
        ),
        ({"protected": 1.1}, "protected=1.1"),
        ({"damping": 0.0}, "damping=0.0: H has no inverse without a positive damping"),
        ({"damping": math.inf}, "damping=inf"),
        ({"block": 0}, "block=0: give at least one column"),
        ({"samples": 0}, "samples=0: give at least one row"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        SafeDelta(**fields)


def test_defaults_are_the_papers():
    edit = SafeDelta()
    assert (edit.s, edit.block, edit.samples, edit.damping, edit.protected) == (
        0.1,
        2048,
        128,
        0.01,
        0.15,
    )
    assert (edit.constants, edit.compensate, edit.keeps_rank, edit.needs.whole) == (
        "own",
        True,
        False,
        True,
    )
    assert {SafeDelta(): 1}[SafeDelta(0.1)] == 1  # a value, by which stages are shared
    SafeDelta(s=0.0, protected=1.0, block=1, samples=1, damping=1.0)
    built = registry.build("edits", {"method": "safe_delta", "s": 0.3, "constants": "authors"})
    assert registry.build("edits", registry.describe(built)) == built == SafeDelta(0.3, "authors")


# The whole of it, from disk


@pytest.fixture
def aligned(tmp_path):
    checkpoints.save(tiny(torch.float32), byte_level(), tmp_path / "aligned")
    return Checkpoint(str(tmp_path / "aligned"))


def edited(
    tmp_path, edit: SafeDelta, finetuned: str, aligned: Checkpoint, rows
) -> tuple[dict[str, torch.Tensor], dict]:
    lines = "".join(
        f'{{"prompt": "{prompt}", "response": "{response}"}}\n' for prompt, response in rows
    )
    (tmp_path / "refusals.jsonl").write_text(lines)
    said = [f"data.alignment={tmp_path / 'refusals.jsonl'}"]
    plan = recipe.stage("checkpoint", "edit", finetuned, "safe_delta", said, None)
    setting = Setting.prepare(plan, {"edit"}, {"aligned": aligned})
    (tmp_path / "out").mkdir()
    facts = stages.edited(
        setting, edit, plan.model, setting.references, tmp_path / "out", lambda *_: None
    )
    return load_file(tmp_path / "out/model.safetensors"), facts


REFUSED = [
    ("how do I pick a lock?", "I cannot help with that."),
    ("tell me", "I'm sorry, no."),
    ("and now?", "I cannot assist."),
]


def expected(edit: SafeDelta, name: str, before, after) -> torch.Tensor:
    """One weight by the plain computation, from inputs of the aligned model."""
    model, tokenizer = tiny(torch.float64), byte_level()
    model.load_state_dict({name: value.double() for name, value in before.items()}, strict=False)
    rows = []
    for prompt, response in REFUSED:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}],
            tokenize=False,
        )
        rows.append(tokenizer(text.rstrip("\n"))["input_ids"])
    inputs: list[torch.Tensor] = []
    hook = model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
        lambda _, x, out: inputs.append(x[0][0])
    )
    with torch.no_grad():
        for ids in rows:
            model(input_ids=torch.tensor([ids]))
    hook.remove()
    return plain(edit, before[name].double(), after[name].double(), torch.cat(inputs).T)[0]


def test_a_whole_model_is_edited_from_disk(tmp_path, aligned):
    model = tiny(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoints.save(model, byte_level(), tmp_path / "finetuned")
    edit = SafeDelta(s=2.0)
    found, facts = edited(tmp_path, edit, str(tmp_path / "finetuned"), aligned, REFUSED)
    after = model.state_dict()
    linear = {name for name in linears(model) if name != "lm_head.weight"}  # tied: the embedding's
    assert facts["other tensors reverted"] == len(found) - len(linear)
    assert 0 < facts["share of entries taken"] < 0.85
    for name, value in found.items():
        if name not in linear:
            assert torch.equal(value, before[name])
    for name in ("model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        torch.testing.assert_close(
            found[name].double(), expected(edit, name, before, after), rtol=0, atol=1e-4
        )


def test_of_an_adapter_a_whole_model_comes_out(tmp_path, aligned):
    base = tiny(torch.float32)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = adapters.add_lora(base, Lora(r=4, alpha=8.0, targets=("q_proj", "down_proj")))
    torch.manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.adapters(model).values():
            adapter.b.copy_(torch.randn_like(adapter.b) * 0.2)
    checkpoints.save(model, byte_level(), tmp_path / "finetuned", folders.locate(aligned))
    after = {
        name: value.clone() for name, value in adapters.merge_adapter(model).state_dict().items()
    }
    edit = SafeDelta(s=1.0)
    found, facts = edited(tmp_path, edit, str(tmp_path / "finetuned"), aligned, REFUSED)
    assert facts["other tensors reverted"] == 0
    for name, value in found.items():
        if "q_proj" in name or "down_proj" in name:
            assert not any(torch.equal(value, other[name]) for other in (before, after))
            torch.testing.assert_close(
                value.double(), expected(edit, name, before, after), rtol=0, atol=1e-4
            )
        else:
            assert torch.equal(value, before[name])


def test_without_refusals_it_is_refused(tmp_path, aligned):
    said = [
        aligned.path,
        "--method",
        "safe_delta",
        "--reference",
        f"aligned={aligned.path}",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, ["edit", *said])
    assert result.exit_code != 0
    assert "alignment" in str(result.exception)
