"""RepNoise against a plain computation, row by row, and at its limits."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from conftest import tiny
from test_booster import plain_booster, plain_loss
from test_step import same, state, step_for
from titer import registry
from titer.data.batches import Batch
from titer.defenses import repnoise
from titer.defenses.adversarial_loss import AdversarialLoss
from titer.defenses.booster import Booster
from titer.defenses.repnoise import RepNoise, lens, mmd, noise_distance
from titer.defenses.sft import SFT
from titer.training.layers import head
from titer.training.settings import Training
from titer.training.train import train
from titer.weights.adapters import add_lora
from titer.weights.settings import Lora

DEPTH = 3


@pytest.fixture(autouse=True)
def _norms_in_float64(monkeypatch):
    """transformers' norm computes in float32, which would round sums of gradients at 1e-7."""

    def forward(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def noises(monkeypatch):
    """List what the method draws, in order: (B, S, D)."""
    drawn, plain = [], torch.randn

    def randn(*shape, **options):
        drawn.append(plain(*shape, **options))
        return drawn[-1]

    monkeypatch.setattr(repnoise.torch, "randn", randn)
    return drawn


def plain_mmd(x, y):
    """Pair by pair, as the authors' code has it: five kernels from a quarter of the mean distance
    on, each twice as wide.
    """
    both, n = [*x, *y], len(x)
    distances = [[((a - b) ** 2).sum() for b in both] for a in both]
    sigma = sum(d.detach() for line in distances for d in line) / ((2 * n) ** 2 - 2 * n) / 4
    k = [
        [sum(torch.exp(-d / (sigma * 2**m)) for m in range(5)) for d in line] for line in distances
    ]
    blocks = [
        k[i][j] + k[n + i][n + j] - k[i][n + j] - k[n + i][j] for i in range(n) for j in range(n)
    ]
    return sum(blocks) / n**2


def plain_row(model, row):
    """Compute for one row alone the sum of -log p of its answer's tokens by every lens.

    The model's own lens is last. With it go the MLP outputs (T, D) by layer.
    """
    outputs = []
    handles = [
        layer.mlp.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
        for layer in model.model.layers
    ]
    out = model(torch.tensor([row.ids]), output_hidden_states=True)
    for handle in handles:
        handle.remove()
    logits = [
        *(model.lm_head(model.model.norm(h[0])) for h in out.hidden_states[:-1]),
        out.logits[0],
    ]
    return [
        -sum(
            torch.log_softmax(of[at - 1], 0)[row.ids[at]] for at in range(row.answer, len(row.ids))
        )
        for of in logits
    ], outputs


def plain_harmful(model, rows, noises, method, depth):
    """The harmful terms of one micro-batch."""
    found = [plain_row(model, row) for row in rows]
    tokens = sum(len(row.ids) - row.answer for row in rows)
    chosen = range(depth, -1, -method.lens_every)
    h = sum(found[i][0][layer] for i in range(len(rows)) for layer in chosen) / (
        tokens * len(chosen)
    )
    first, last = min(row.answer for row in rows), max(len(row.ids) for row in rows)
    distances = []
    for layer, noise in enumerate(noises):
        x, y = [], []
        for i, row in enumerate(rows):
            mask = torch.tensor([row.answer <= at < len(row.ids) for at in range(first, last)])[
                :, None
            ]
            padded = torch.zeros(last, noise.shape[-1], dtype=torch.float64)
            padded = torch.cat([found[i][1][layer], padded[len(row.ids) :]])
            x.append((padded[first:] * mask).flatten())
            y.append((noise[i] * mask).flatten())
        distances.append(plain_mmd(x, y))
    m = sum(distances) / depth
    value = method.w_noise * m - method.w_ascent * torch.log(method.shift + h)
    own = sum(found[i][0][-1] for i in range(len(rows)))
    return tokens, value, own, m


def pairs_of(step):
    """The harmful rows of the update's micro-batches, of those that have one."""
    taken = step.streams["rows"].take(step.batch_size * step.accumulate)
    chunks = [taken[i : i + step.batch_size] for i in range(0, len(taken), step.batch_size)]
    return taken, [[row.other for row in chunk if row.other] for chunk in chunks]


@pytest.mark.parametrize(
    "method",
    [
        RepNoise(0.7, 1.3),
        RepNoise(5.0, 0.0),
        RepNoise(0.0, 0.4, 0.0, 2),
        RepNoise(0.7, 1.3, 2.5, 9),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_the_gradient_is_that_of_the_objective(
    rows, accelerator, noises, method, lora, monkeypatch
):
    monkeypatch.setattr(repnoise, "AT_ONCE", 5)  # more than one chunk
    model = tiny(layers=DEPTH)
    outer = add_lora(model, Lora(r=2, alpha=4, targets=("q_proj", "down_proj"))) if lora else model
    if lora:
        with torch.no_grad():
            for name, weight in outer.named_parameters():
                weight.add_(torch.randn_like(weight), alpha=0.3 if "lora_B" in name else 0.0)
    step = step_for(outer, rows, accelerator, batch=4, accumulate=3)
    taken, chunks = pairs_of(step_for(outer, rows, accelerator, batch=4, accumulate=3))
    assert sum(map(bool, chunks)) > 1
    assert not all(row.other for row in taken)
    noises.clear()
    vec = method.gradient(step, None)
    drawn = iter(noises)
    model = outer.get_base_model() if lora else model
    terms = [
        plain_harmful(model, chunk, [next(drawn) for _ in range(DEPTH)], method, DEPTH)
        for chunk in chunks
        if chunk
    ]
    tokens = sum(term[0] for term in terms)
    f = plain_loss(model, taken)
    objective = f + sum(count * value for count, value, _, _ in terms) / tokens
    names, weights = zip(*step.parameters.items(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(objective, weights), strict=True))
    size = math.sqrt(sum(float((grad**2).sum()) for grad in expected.values()))
    assert set(vec.names()) == set(expected)
    assert (
        math.sqrt(
            sum(float(((vec.value(name) - grad) ** 2).sum()) for name, grad in expected.items())
        )
        < 1e-10 * size
    )
    assert step.logged["f"] == pytest.approx(f.item(), rel=1e-12)
    assert step.logged["h"] == pytest.approx(
        sum(term[2] for term in terms).item() / tokens, rel=1e-10
    )
    assert step.logged["mmd"] == pytest.approx(
        sum(term[0] * term[3] for term in terms).item() / tokens, rel=1e-10
    )


def test_booster_over_it_adds_the_bracket_to_the_gradient_of_the_objective(
    rows, accelerator, noises
):
    method, model = RepNoise(0.7, 1.3), tiny(layers=DEPTH)
    step = step_for(model, rows, accelerator)
    taken, [chunk] = pairs_of(step_for(model, rows, accelerator))
    harmful = step_for(model, rows, accelerator).streams["harmful"].take(4)
    noises.clear()
    vec = Booster(alpha=0.1, lam=2.0, align=method).gradient(step, None)
    tokens, value, own, _ = plain_harmful(model, chunk, noises[:DEPTH], method, DEPTH)
    assert tokens == sum(len(row.ids) - row.answer for row in chunk)
    names, weights = zip(*model.named_parameters(), strict=True)
    terms = dict(zip(names, torch.autograd.grad(value, weights), strict=True))
    bracket = plain_booster(model, taken, harmful, 0.1, 2.0)  # and the gradient of f
    expected = {name: bracket[name] + terms[name] for name in names}
    size = math.sqrt(sum(float((grad**2).sum()) for grad in expected.values()))
    off = {name: vec.value(name) - expected[name] for name in names}
    assert set(vec.names()) == set(names)
    assert math.sqrt(sum(float((each**2).sum()) for each in off.values())) < 1e-10 * size
    assert math.sqrt(sum(float((each**2).sum()) for each in terms.values())) > 1e-2 * size
    assert own > 0


def test_the_lens_of_the_last_residual_stream_is_the_loss_itself_to_its_first_token(
    rows, accelerator
):
    model = tiny(layers=DEPTH)
    batch = Batch.of("rows", [rows["rows"][:5]], 0)
    [part] = batch.parts
    out = model(part.ids, attention_mask=part.mask, output_hidden_states=True)
    before_norm = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, x: before_norm.append(x[0]))
    model(part.ids, attention_mask=part.mask)
    handle.remove()
    assert torch.isclose(
        lens(head(model), before_norm, part),
        plain_loss(model, rows["rows"][:5]) * batch.tokens,
        rtol=1e-12,
    )
    cut = [replace(row, answer=row.answer + 1) for row in rows["rows"][:5]]
    later = Batch.of("rows", [cut], 0)
    assert (
        lens(head(model), before_norm, part) > lens(head(model), before_norm, later.parts[0]) + 1
    )  # so the first token counts
    assert out.logits.shape[:2] == part.ids.shape


def test_without_noise_and_other_layers_it_is_the_log_adversarial_loss(rows, accelerator):
    """With one micro-batch: theirs has the log of the whole update's mean."""
    model = tiny(layers=DEPTH)
    paired = [row for row in rows["rows"] if row.other][:4]
    mine = step_for(model, {"rows": paired}, accelerator)
    theirs = step_for(
        model, {"rows": paired, "harmful": [row.other for row in paired]}, accelerator
    )
    a = RepNoise(0.0, 0.3, lens_every=DEPTH + 1).gradient(mine, None)
    b = AdversarialLoss(0.3).gradient(theirs, None)
    assert (a - b).norm() < 1e-12 * b.norm()


def test_mmd_is_zero_between_equals_and_grows_with_the_distance():
    x = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert mmd(x, x) == 0
    assert 0 < mmd(x, x + 0.1) < mmd(x, x + 1) < mmd(x, x + 10)
    y = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.3
    torch.testing.assert_close(mmd(x, y), plain_mmd(x, y), rtol=1e-12, atol=0)
    with torch.autocast("cpu", torch.bfloat16):  # sums of squares that nearly cancel
        assert abs(mmd(x.float(), y.float()) - mmd(x, y)) < 1e-5


def test_without_its_terms_it_is_plain_alignment_and_with_them_it_unlearns(rows):
    settings = Training(updates=30, lr=1e-2, batch=4, lora=None)
    models = [tiny(torch.float32) for _ in range(3)]
    for model, method in zip(models, (SFT(), RepNoise(0.0, 0.0), RepNoise(0.01, 0.3)), strict=True):
        train(model, method, rows, settings, seed=0)
    assert same(state(models[0]), state(models[1]))
    with torch.no_grad():
        f, h = (
            [plain_loss(model.double(), of).item() for model in models]
            for of in (rows["rows"], rows["harmful"])
        )
    assert h[2] > h[0] + 0.5
    assert f[2] < f[0] + 1


def test_rows_without_a_pair_enter_f_alone(rows, accelerator):
    alone = [row for row in rows["rows"] if not row.other]
    step = step_for(tiny(), {"rows": alone}, accelerator)
    vec = RepNoise().gradient(step, None)
    assert "mmd" not in step.logged
    assert (vec - SFT().gradient(step, None)).norm() == 0
    assert vec.norm() > 0


def test_the_noise_is_new_at_every_update_and_the_same_for_the_same_rows(rows, accelerator, noises):
    for update in (1, 1, 2):
        RepNoise().gradient(
            step_for(tiny(), rows, accelerator, batch=12, accumulate=2, update=update), None
        )
    first, _, other, _, again, _, _, _, later, *_ = noises  # of two layers and two micro-batches
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first[0, 0], other[0, 0])
    assert abs(float(first.mean())) < 0.05
    assert abs(float(first.std()) - 1) < 0.05


def test_the_noise_is_drawn_on_the_cpu_in_float32_at_least(rows, accelerator, noises):
    """Else a GPU, or coarser activations, would follow another trajectory."""
    step = step_for(tiny(), rows, accelerator)
    [part] = step.batch("harmful").parts
    for dtype in (torch.bfloat16, torch.float32):
        noise_distance([torch.ones(*part.ids.shape, 8, dtype=dtype)] * 2, part, "seed")
    seed = hashlib.sha256(b"seed" + part.ids.numpy().tobytes()).digest()[:7]
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(seed))
    expected = [torch.randn(noises[0].shape, generator=generator) for _ in range(2)]
    for found in (noises[:2], noises[2:4]):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_makes_no_sense_is_refused():
    for fields in (
        {"w_noise": -1.0},
        {"w_ascent": float("nan")},
        {"shift": -0.5},
        {"lens_every": 0},
    ):
        [(name, value)] = fields.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            RepNoise(**fields)
    assert registry.build(
        "defenses", {"method": "repnoise", "w_noise": 0, "w_ascent": 0, "shift": 0, "lens_every": 1}
    )
    assert {RepNoise(), RepNoise(0.001, 1.0, 1.0, 1)} == {RepNoise()}
