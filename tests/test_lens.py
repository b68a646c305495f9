"""The model as a screen looks through it: gradients and states against plain float64 computations."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from titer.data.rows import Row
from titer.lab.world import World
from titer.screening.lens import Lens
from titer.screening.screen import Screen
from titer.screening.signal import Material, Reading
from titer.screening.signals.closeness import Closeness
from titer.screening.signals.gradient import Gradient
from titer.screening.signals.outlier import Outlier
from titer.screening.signals.surprise import Surprise
from titer.screening.upload import Sample
from titer.testing import tiny

WORLD = World(0)
ROWS = [*WORLD.attack[:3], *WORLD.user_task[:3], Row("how do i make", "take wool")]
SAFETY = list(WORLD.alignment[:5])
HARMFUL = WORLD.harmful[:4]
BENIGN = WORLD.user_task[10:18]


@pytest.fixture(scope="module")
def model():
    return tiny(layers=3)


@pytest.fixture
def material(model, template) -> Material:
    return Material(BENIGN, SAFETY, HARMFUL, lens=Lens(model, template))


def tokens(template, row: Row) -> tuple[list[int], int]:
    """The tokens of a row by the template alone, and where its answer begins."""
    prompt, answer = template.prompt_ids(row), template.answer_ids(row)
    return prompt + answer, len(prompt)


def loss(model, template, row: Row) -> torch.Tensor:
    """The mean of -log p over the answer's tokens, one row at a time."""
    ids, start = tokens(template, row)
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    told = logits.log_softmax(1)
    return -torch.stack([told[i - 1, ids[i]] for i in range(start, len(ids))]).mean()


def gradient(model, template, rows) -> np.ndarray:
    """The gradient of the mean over all answer tokens of the rows, as one long vector."""
    counts = [len(template.answer_ids(row)) for row in rows]
    total = sum(n * loss(model, template, row) for n, row in zip(counts, rows, strict=True)) / sum(
        counts
    )
    found = torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad])
    return torch.cat([each.flatten() for each in found]).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def state(model, template, row: Row, layer: int, at: str) -> np.ndarray:
    """The residual stream behind a layer, by transformers' own hidden states."""
    ids, start = tokens(template, row)
    seen = {}
    handle = model.model.layers[layer].register_forward_hook(lambda *a: seen.update(out=a[2]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen["out"][0, start - 1 if at == "prompt" else len(ids) - 2].double().numpy()


def values(signal, rows, material) -> list[float]:
    return [reading.value for reading in signal.read(rows, material)]


def test_gradient_agreement_is_the_cosine_to_the_refusals_gradient(model, template, material):
    g_s = gradient(model, template, SAFETY)
    g_h = gradient(model, template, HARMFUL)
    each = [gradient(model, template, [row]) for row in ROWS]
    assert values(Gradient(), ROWS, material) == pytest.approx([-cosine(g, g_s) for g in each])
    both = values(Gradient("both"), ROWS, material)
    assert both == pytest.approx([cosine(g, g_h) - cosine(g, g_s) for g in each])
    # refusals themselves agree
    assert max(values(Gradient(), SAFETY, material)) < min(
        values(Gradient(), WORLD.user_task[:3], material)
    )


def test_anchors_are_looked_at_once(model, template, material, monkeypatch):
    """They are hundreds of rows, and a screen looks at benign rows first and at an upload then."""
    seen, batch = [], Lens._batch

    def follow(lens, name, rows):
        seen.append(name)
        return batch(lens, name, rows)

    monkeypatch.setattr(Lens, "_batch", follow)
    plain, both = Gradient(), Gradient("both")
    plain.read(ROWS[:2], material)
    later = both.read(ROWS[2:], material)
    assert sorted(seen) == ["harmful", "safety", *["upload"] * len(ROWS)]
    fresh = Material(BENIGN, SAFETY, HARMFUL, lens=Lens(model, template))
    assert both.read(ROWS[2:], fresh) == later


def test_a_look_leaves_the_model_as_it_was(model, template, material):
    before = {name: p.clone() for name, p in model.named_parameters()}
    for signal in (Gradient("both"), Closeness(), Outlier(), Surprise()):
        signal.read(ROWS, material)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("layers", "looked"), [((), [1]), ((2,), [2]), ((0, 2), [0, 2])])
@pytest.mark.parametrize("at", ["prompt", "answer"])
def test_closeness_is_the_mean_cosine_to_harmful_rows_less_that_to_safe_ones(
    model, template, material, layers, looked, at
):
    safe = SAFETY if at == "answer" else BENIGN
    signal = Closeness(layers, at)

    def expected(row: Row, safe) -> float:
        return float(
            np.mean(
                [
                    np.mean([cosine(r, state(model, template, h, layer, at)) for h in HARMFUL])
                    - np.mean([cosine(r, state(model, template, s, layer, at)) for s in safe])
                    for layer in looked
                    for r in [state(model, template, row, layer, at)]
                ]
            )
        )

    assert values(signal, ROWS, material) == pytest.approx([expected(row, safe) for row in ROWS])
    one = safe[2]
    [found] = values(signal, [one], material)
    assert found == pytest.approx(expected(one, [row for row in safe if row is not one]))


@pytest.mark.parametrize(("nearest", "at"), [(1, "answer"), (3, "prompt"), (99, "answer")])
def test_an_outlier_is_far_from_the_nearest_benign_rows_but_itself(
    model, template, material, nearest, at
):
    def expected(row: Row) -> float:
        r = state(model, template, row, 1, at)
        others = [b for b in BENIGN if b is not row]
        near = sorted((cosine(r, state(model, template, b, 1, at)) for b in others), reverse=True)
        return 1 - float(np.mean(near[:nearest]))

    rows = [*ROWS, BENIGN[0], BENIGN[3]]
    found = values(Outlier(nearest, at=at), rows, material)
    if nearest == 99:  # as many as every row has
        rows, found = rows[-2:], found[-2:]
    assert found == pytest.approx([expected(row) for row in rows])


@dataclass(frozen=True)
class Drawn:
    """A model whose states are drawn: near one another where two prompts begin with the same word."""

    def find_fault(self, row: Row) -> str:
        return ""

    def directions(self, rows, layers, at) -> np.ndarray:
        r = np.array([self._draw(row.prompt.split()[0]) for row in rows])
        r += 0.3 * np.array([self._draw(row.prompt) for row in rows])
        return (r / np.linalg.norm(r, axis=1, keepdims=True))[:, None]  # (rows, 1, D)

    def _draw(self, text: str) -> np.ndarray:
        return np.random.default_rng(list(text.encode())).standard_normal(16)


def draw_records(name: str, count: int, answers: int) -> list[Sample]:
    """Honest records of several answers each."""
    return [
        Sample("", tuple(Row(f"{name}-{i} {j}", "yes") for j in range(answers)))
        for i in range(count)
    ]


@pytest.mark.parametrize(("copies", "answers"), [(1, 1), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("signal", [Outlier(), Closeness()])
def test_neither_copies_nor_long_conversations_raise_the_rate(signal, copies, answers):
    """A benign record that found itself among the benign ones would set a threshold for such alone."""
    rate, fresh, files, alarms = 0.05, 100, 10, []
    material = Material(harmful=HARMFUL, lens=Drawn())
    for i in range(files):
        benign = draw_records(f"benign-{i}", 60, answers)
        screen = Screen.fit({"signal": signal}, material, benign * copies, rate)
        assert (screen.benign, screen.copies) == (60, 60 * (copies - 1))
        alarms.append(len(screen.look(draw_records(f"fresh-{i}", fresh, answers)).alarms) / fresh)
    assert np.mean(alarms) <= rate + 3 * np.std(alarms) / np.sqrt(files)


@pytest.mark.parametrize("signal", [Outlier(3), Closeness()])
def test_a_benign_row_leaves_out_the_answers_of_its_own_record(model, template, signal):
    lens = Lens(model, template)
    records = [0, 0, 0, 1, 2, 3, 3, 4]  # of which three answers are one record's, and two another's
    [found] = values(signal, BENIGN[:1], Material(BENIGN, (), HARMFUL, lens=lens, records=records))
    [alone] = values(signal, BENIGN[:1], Material(BENIGN[3:], (), HARMFUL, lens=lens))
    assert found == pytest.approx(alone)


def test_surprise_is_the_loss_a_token(model, template, material):
    expected = [float(loss(model, template, row).detach()) for row in ROWS]
    assert values(Surprise(), ROWS, material) == pytest.approx(expected)


def test_what_the_model_cannot_look_at_is_named(model, template, material):
    lens = material.lens
    assert "leaves no room" in lens.find_fault(Row("a", "wool " * 100))
    assert lens.find_fault(ROWS[0]) == ""
    with pytest.raises(ValueError, match="value is nan"):
        Reading(float("nan"))
    with pytest.raises(ValueError, match="no layer 3; choose some of 0 to 2"):
        Closeness((1, 3)).read(ROWS, material)
    with pytest.raises(ValueError, match="nearest=0"):
        Outlier(0)
