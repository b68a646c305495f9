"""The engines that generate answers: the same greedy answers by each, and what a record says of it."""

import json
from typing import get_args, get_type_hints

import pytest
import torch
import transformers

from conftest import tiny
from test_recipe import run as titer
from test_run import plan, recipe_file  # noqa: F401  fixtures
from titer.data.rows import Row
from titer.lab.world import World
from titer.runs.recipe import Recipe
from titer.scoring import continuous
from titer.scoring.engines import ENGINES, HOW
from titer.scoring.generate import answer
from titer.training.ranks import Ranks

ROWS = [*World(0).alignment[::60], Row("add"), Row("which theme fits : wave")]
QUICK = ["data.limit=2", "finetune.updates=1", "max_new_tokens=2", "dose_prompts=0"]
QUICK += ["prefill_prompts=0"]
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture
def model():
    """A model whose answers differ in their lengths."""
    model = tiny(torch.float32)
    with torch.no_grad():  # larger weights make larger differences between prompts
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def test_a_recipe_names_the_engines_that_there_are():
    assert set(get_args(get_type_hints(Recipe)["engine"])) == ENGINES.keys() == HOW.keys()


@pytest.mark.parametrize("at_once", [1, 3, 128])
def test_continuous_batching_gives_the_same_answers(model, template, at_once):
    before = model.config._attn_implementation
    ticks = []
    expected = answer(model, template, ROWS, 8)
    found = answer(
        model,
        template,
        ROWS,
        8,
        at_once,
        watch=lambda *at: ticks.append(at),
        engine=ENGINES["continuous"],
    )
    assert found == expected
    assert len({given.text for given in found}) > 5  # the check is not vacuous
    assert [done for done, _, _ in ticks] == list(range(1, len(ROWS) + 1))
    assert {of for _, of, _ in ticks} == {len(ROWS)}
    assert model.config._attn_implementation == before


def test_ranks_divide_the_prompts_of_continuous_batching(model, template):
    whole = answer(model, template, ROWS, 4)

    class Second(Ranks):
        def join(self, found):
            assert sorted(found) == list(range(1, len(ROWS), 2))
            return found | {i: [0] for i in range(0, len(ROWS), 2)}

    mine = answer(model, template, ROWS, 4, ranks=Second(1, 2), engine=continuous.complete)
    assert mine[1::2] == whole[1::2]
    with pytest.raises(ValueError, match="divided among ranks: set engine=transformers"):
        answer(model, template, ROWS, 4, ranks=Ranks(0, 2, True), engine=continuous.complete)


def test_a_cache_that_does_not_fit_is_halved_and_no_answer_is_lost(model, template, monkeypatch):
    rows = ROWS[:6]
    expected = answer(model, template, rows, 4)
    serve, asked = continuous._serve, []

    def tight(model, prompts, config, batch):
        asked.append((len(prompts), batch))
        for given, found in enumerate(serve(model, prompts, config, batch)):
            if batch > 3 and given == 2:
                raise FULL if batch == 10 else MemoryError("more than available")
            yield found

    monkeypatch.setattr(continuous, "_serve", tight)
    said: list[str] = []
    found = answer(model, template, rows, 4, 10, said.append, engine=continuous.complete)
    assert found == expected
    assert asked == [(6, 10), (4, 5), (2, 3)]
    assert said == [
        "out of memory with 10 answers at a time; going on with 5",
        "out of memory with 5 answers at a time; going on with 3",
    ]


def test_a_failure_of_the_engine_is_raised(model, template, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("another fault")

    warm = transformers.generation.continuous_batching.ContinuousBatchingManager
    with monkeypatch.context() as patch:
        patch.setattr(warm, "_generation_step", fail)
        with pytest.raises(RuntimeError, match="another fault"):
            answer(model, template, ROWS, 4, engine=continuous.complete)
    assert answer(model, template, ROWS, 4, engine=continuous.complete)  # nothing was left behind


@pytest.mark.slow
def test_a_run_says_which_engine_answered(monkeypatch, capsys, recipe_file, tmp_path):
    documents = {}
    for name in ENGINES:
        out = tmp_path / name
        told = ["pipelines={one: {align: null}}", f"engine={name}", *QUICK]
        options = [part for setting in told for part in ("--set", setting)]
        options += ["--store", str(tmp_path / "store")]
        code, _, err = titer(monkeypatch, capsys, "run", recipe_file, *options, "--out", str(out))
        assert code == 0, err
        documents[name] = json.loads((out / "one.json").read_text())
    one, two = documents.values()
    version = transformers.__version__
    assert one["environment"]["engine"] == f"transformers {version}, in batches"
    assert two["environment"]["engine"] == f"transformers {version}, continuous batching"
    assert [stage["scores"] for stage in one["stages"]] == [
        stage["scores"] for stage in two["stages"]
    ]
