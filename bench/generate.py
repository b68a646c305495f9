"""Tokens a second of the engines that generate answers: `python -m bench.generate`.

A recipe's model answers the recipe's held-out prompts greedily, `lab` unless `--recipe smol` or another
one is given. Three take turns in one process:
transformers' own `generate` over batches of the prompts as they come, titer's default, which batches
prompts of like length, and transformers' continuous batching. Of both engines: tokens a second over
those of the plain `generate`, and how many answers are other ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from bench.clock import Spread
from bench.cost import environment, write
from titer.runs import recipe as recipes
from titer.runs.machine import clock
from titer.runs.plan import Plan
from titer.scoring.engines import ENGINES
from titer.scoring.generate import greedy
from titer.training.train import accelerator_for

BAR = 1.0  # tokens a second of titer's default over those of plain generate
BATCH, NEW, TURNS = 128, 32, 9

Answers = list[list[int]]


def plain(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> Answers:
    """Answer in batches of the prompts as they come, by transformers' `generate` alone."""
    pad, ends = cast(int, config.pad_token_id), cast(list[int], config.eos_token_id)
    found: Answers = []
    for start in range(0, len(prompts), BATCH):
        asked = prompts[start : start + BATCH]
        length = max(map(len, asked))
        # (B, T)
        ids = torch.tensor([[pad] * (length - len(prompt)) + [*prompt] for prompt in asked])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in asked])
        with torch.no_grad():
            out = cast(Any, model).generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )
        for tokens in out[:, length:].tolist():
            last = next((at for at, token in enumerate(tokens, 1) if token in ends), len(tokens))
            found.append(tokens[:last])
    return found


def timed(action: Callable[[], Answers]) -> tuple[float, Answers]:
    """Return tokens a second of an action, and its answers."""
    start = clock()
    answers = action()
    return sum(map(len, answers)) / (clock() - start), answers


def count_other(answers: Answers, reference: Answers) -> int:
    """Count the answers that are not those of the reference."""
    return sum(mine != its for mine, its in zip(answers, reference, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.generate", description=__doc__)
    parser.add_argument("--recipe", default="lab", help="whose model answers whose prompts")
    parser.add_argument("--quick", action="store_true", help="few prompts, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for generate.json")
    options = parser.parse_args(arguments)
    plan = Plan.read(recipes.load(options.recipe))
    model, template = plan.asking.open(plan.recipe.model)
    asked = [row for of in plan.roles.benchmarks.values() for row in of]
    rows = asked[:24] if options.quick else asked
    prompts = [template.prompt_ids(row, NEW) for row in rows]
    config = greedy(model.eval(), template.ends, template.tokenizer.pad_token_id, NEW)
    engines: dict[str, Callable[[], Answers]] = {
        "plain generate": partial(plain, model, prompts, config),
        **{
            name: partial(engine, model, prompts, config, BATCH) for name, engine in ENGINES.items()
        },
    }
    reference, *_ = [engine() for engine in engines.values()]  # all warm now
    turns = [
        {name: timed(engine) for name, engine in engines.items()}
        for _ in range(2 if options.quick else TURNS)
    ]
    told: dict[str, dict[str, Any]] = {}
    for name in engines:
        ratio = Spread.of([turn[name][0] / turn["plain generate"][0] for turn in turns])
        told[name] = {
            "tokens a second": median(turn[name][0] for turn in turns),
            "over plain generate": asdict(ratio),
            "other answers": max(count_other(turn[name][1], reference) for turn in turns),
        }
        print(
            f"{name}: {told[name]['tokens a second']:.0f} tokens a second, {ratio.median:.2f} "
            f"({ratio.q1:.2f}-{ratio.q3:.2f}) times plain generate, "
            f"{told[name]['other answers']} of {len(prompts)} answers are others"
        )
    met = told["transformers"]["over plain generate"]["median"] >= BAR
    print(f"titer's default is {'at least' if met else 'below'} {BAR} times plain generate")
    content = {
        "environment": environment(accelerator_for()),
        "quick": options.quick,
        "recipe": options.recipe,
        "prompts": len(prompts),
        "engines": told,
    }
    write(options.out, "generate", content)
    return 0 if options.quick or met else 1


if __name__ == "__main__":
    sys.exit(main())
