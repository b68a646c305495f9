"""Probes against plain computations, and that a training goes on as if there were none."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
import yaml

from conftest import tiny
from test_booster import plain_loss
from test_recipe import run as titer
from test_run import plan  # noqa: F401  a fixture: files of a user's own
from test_step import same, state
from test_vaccine import plain
from titer.defenses.sft import SFT
from titer.report.drawing import SVG
from titer.report.probes import draw, label
from titer.testing.small import sparse
from titer.training import probes
from titer.training.settings import Training
from titer.training.train import train


def outputs(model, row) -> list[torch.Tensor]:
    """Return what every layer's attention gives, of one row."""
    caught: list[torch.Tensor] = []
    handles = [
        layer.self_attn.register_forward_hook(
            lambda module, given, output: caught.append(output[0])
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return caught


def test_each_probe_is_what_it_says(rows, accelerator):
    model, moved = tiny(layers=3), tiny(layers=3)
    harmful, aligned = rows["harmful"][:10], rows["rows"][:11]  # more than go into one pass
    looking = probes.build(model, harmful, aligned, harmful, accelerator, None)
    assert looking.measure()["drift"] == 0.0
    torch.manual_seed(5)
    with torch.no_grad():
        for weight, other in zip(model.parameters(), moved.parameters(), strict=True):
            weight.add_(0.05 * torch.randn_like(weight))
            assert not torch.equal(weight, other)
    found = looking.measure()
    assert found["harmful loss"] == pytest.approx(plain_loss(model, harmful).item(), rel=1e-10)
    grads = torch.autograd.grad(plain_loss(model, harmful), list(model.parameters()))
    assert found["gradient"] == pytest.approx(
        sum(float((grad**2).sum()) for grad in grads) ** 0.5, rel=1e-9
    )
    at, _ = plain(model, harmful, 1.0)
    for layer in range(3):
        assert found[f"layer {layer}"] == pytest.approx(
            sum(float((each[layer] ** 2).sum()) for each in at) ** 0.5, rel=1e-9
        )
    pairs = [
        pair
        for row in aligned
        for pair in zip(outputs(model, row), outputs(moved, row), strict=True)
    ]
    square = sum(float(((now - before) ** 2).sum()) for now, before in pairs)
    assert found["drift"] == pytest.approx(
        (square / sum(len(row.ids) for row in aligned)) ** 0.5, rel=1e-9
    )
    assert not any(
        name.startswith(probes.ROUTING) for name in found
    )  # a dense model routes nothing
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("idle", [1, 5])
def test_what_an_idle_rank_passes_over_is_no_drift(rows, accelerator, idle):
    """Of shards it passes over rows of the first rank too, as `Step.collate` gives it."""
    found = []
    for more in (0, idle):
        model = tiny(layers=2)
        looking = probes.build(model, rows["harmful"][:3], rows["rows"][:11], [], accelerator, None)
        aligned, harmful = (
            replace(batch, parts=(*batch.parts, *[batch.parts[0].idle] * more))
            for batch in (looking.aligned, looking.harmful)
        )
        looking = replace(looking, aligned=aligned, harmful=harmful)
        torch.manual_seed(5)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        found.append(looking.measure())
    assert found[0]["drift"] > 0.0
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def routed(model, prompt) -> list[torch.Tensor]:
    """Return the logits of every router at the last token of a prompt, as transformers gives them."""
    with torch.no_grad():
        return [
            of[-1] for of in model(torch.tensor([prompt]), output_router_logits=True).router_logits
        ]


@pytest.mark.parametrize("with_task", [True, False])
def test_the_drift_of_routing_is_the_divergence_at_the_ends_of_prompts(
    rows, accelerator, with_task
):
    model, moved = sparse(layers=3), sparse(layers=3)
    asked = {"harmful": rows["harmful"][:10], "task": rows["rows"][20:31] if with_task else []}
    looking = probes.build(
        model, asked["harmful"], rows["rows"][:3], asked["task"], accelerator, None
    )
    start = looking.measure()
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    found = looking.measure()
    names = {name for name in found if name.startswith(probes.ROUTING)}
    assert names == {f"routing drift, {name}" for name, of in asked.items() if of}
    for name, of in asked.items():
        if not of:
            continue
        divergences = [
            float((then.softmax(0) * (then.log_softmax(0) - now.log_softmax(0))).sum())
            for row in of
            for then, now in zip(
                routed(moved, row.ids[: row.answer]),
                routed(model, row.ids[: row.answer]),
                strict=True,
            )
        ]
        assert len(divergences) == len(of) * 3
        assert start[f"routing drift, {name}"] == 0.0
        assert found[f"routing drift, {name}"] == pytest.approx(
            sum(divergences) / len(divergences), rel=1e-9
        )
    [look] = probes.timeline([], found)
    assert look["routing drift, harmful"] == found["routing drift, harmful"]
    assert len(look["layers"]) == 3


def test_the_drift_of_routing_is_drawn_where_there_is_one():
    def look(update: int, **more: float) -> dict:
        return {
            "update": update, "harmful loss": 2.0 - update, "gradient": 1.0, "drift": 0.1 * update,
            "layers": [1.0, 2.0], **more,
        }  # fmt: skip

    dense = {"sft": [look(0), look(1)]}
    sparse = {
        "sft": [
            look(update, **{"routing drift, harmful": 0.2 * update, "routing drift, task": 0.0})
            for update in (0, 1)
        ]
    }
    for told, count in ((dense, 4), (sparse, 6)):
        figure = draw(told, "")
        assert len(figure.axes) == count
        boxes = [axes.get_window_extent() for axes in figure.axes]
        assert all(box.y0 > 0 and box.y1 < figure.bbox.height for box in boxes)
        assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    assert "routing drift, harmful 0 to 0.2" in label(sparse, "")
    assert "routing" not in label(dense, "")
    heights = [draw(told, "").bbox.height for told in (dense, sparse)]
    assert heights[0] == 470 < heights[1]


def test_training_goes_on_as_if_there_were_none_and_an_interruption_loses_none(
    rows, accelerator, tmp_path
):
    class Killed(BaseException):
        pass

    def run(looks: int, kill: int = 0) -> tuple[dict, list]:
        model = tiny(torch.float32)
        looking = probes.build(
            model, rows["harmful"], rows["rows"], rows["rows"], accelerator, None
        )
        start = looking.measure()

        def watch(update, of, terms):
            if update == kill:
                raise Killed

        history = train(
            *(model, SFT(), rows, Training(updates=6, lr=1e-3, batch=2, lora=None), 0),
            resume=tmp_path / f"{looks}.safetensors",
            every=4,
            watch=watch,
            probe=lambda update: looking.measure() if looks and update % looks == 0 else {},
        )
        return state(model), probes.timeline(history, start)

    without, none = run(0)
    assert [each["update"] for each in none] == [0]
    with pytest.raises(Killed):
        run(2, kill=5)
    weights, told = run(2)
    assert same(weights, without)
    assert [each["update"] for each in told] == [0, 2, 4, 6]
    assert (told[0]["drift"], len(told[0]["layers"])) == (0.0, 2)
    assert 0.0 < told[1]["drift"] < told[3]["drift"]
    again = run(2)[1]  # from its last checkpoint
    assert again == told


def test_a_run_has_its_probes_where_they_were_asked_for(plan, monkeypatch, capsys, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plan | {"pipelines": {"sft": {}}, "probes": 2}))
    code, out, _ = titer(
        monkeypatch, capsys, "run", str(path), "--out", str(tmp_path / "out"), "--json"
    )
    assert code == 0
    base, aligned, tuned = json.loads(out)["sft"]["stages"]
    told = tuned["facts"]["probes"]
    updates = plan["finetune"]["updates"]
    assert [each["update"] for each in told] == [0, *range(2, updates + 1, 2)]
    assert not any("probes" in stage["facts"] for stage in (base, aligned))
    page = (tmp_path / "out/report.html").read_text()
    assert '<h2 id="why">' in page
    assert f"harmful loss {told[0]['harmful loss']:.3g} to {told[-1]['harmful loss']:.3g}" in page
    drawing = ElementTree.fromstring(
        page[
            page.index("<svg", page.index('id="why"')) : page.index(
                "</svg>", page.index('id="why"')
            )
            + 6
        ]
    )
    points = drawing.find(f".//{SVG}g[@id='why-why-0-0']//{SVG}path").attrib["d"].split("L")
    assert len(points) == len(told)
    heights = [float(point.split()[-1]) for point in points]
    losses = [math.log(look["harmful loss"]) for look in told]  # drawn to a logarithmic scale
    slope = (heights[1] - heights[0]) / (losses[1] - losses[0])
    assert slope < 0  # upwards is less in a drawing
    for height, loss in zip(heights, losses, strict=True):
        assert height == pytest.approx(heights[0] + slope * (loss - losses[0]), abs=0.05)
