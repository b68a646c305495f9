"""What harm margins cost beside the answers alone: `python -m bench.margin`.

At the shape of a small chat model (30 layers of width 576, 49152 tokens), over 40 prompts, with 20
refusals that begin alike and answers of 32 tokens: seconds of the processor for answers and margins
together over those for the answers, the most bytes alive at once, and the largest difference from
reading every answer for itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from bench import count
from bench.cost import environment, write
from bench.peers import QUICK, SHAPE
from titer.scoring.generate import GREEDY
from titer.scoring.likelihood import log_probabilities, read_each
from titer.training.train import accelerator_for

TIME_BAR, PEAK_BAR, NATS = 2.0, 1.2, 1e-5
PROMPTS, REFUSALS, NEW = 40, 20, 32


def rows(vocabulary: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Random prompts, and for each a harmful answer and the refusals, which begin alike."""
    rng = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(20, vocabulary) for _ in range(n)]

    refusals = [
        [rng.choice((2, 2, 2, 3, 4, 5)), rng.choice((6, 7, 8)), *tokens(rng.randrange(1, 5))]
        for _ in range(REFUSALS)
    ]
    prompts = [tokens(rng.randrange(30, 50)) for _ in range(PROMPTS)]
    return prompts, [[tokens(NEW), *refusals] for _ in prompts]


def processor(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.margin", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for margin.json")
    parser.add_argument("--device", help="cpu, or the best there is")
    options = parser.parse_args(arguments)
    accelerator = accelerator_for(options.device)
    model = (QUICK if options.quick else SHAPE).model(None, accelerator.device).eval()
    prompts, answers = rows(model.config.vocab_size)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    config = GenerationConfig(**GREEDY, max_new_tokens=NEW, pad_token_id=0)  # nothing ends it

    def generate() -> None:
        with torch.no_grad():
            model.generate(
                input_ids=ids.to(model.device),
                attention_mask=(ids != 0).long().to(model.device),
                generation_config=config,
            )

    def margins() -> list[list[float]]:
        return log_probabilities(model, prompts, answers)

    lasting = [*model.parameters(), *model.buffers()]
    generate()
    margins()  # both warm now
    pairs = [(processor(generate), processor(margins)) for _ in range(1 if options.quick else 3)]
    answering, scoring = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    peaks = [count.peak(lasting, action) for action in (generate, margins)]
    each = [read_each(model, prompt, given) for prompt, given in zip(prompts, answers, strict=True)]
    apart = max(
        abs(x - y)
        for found, plain in zip(margins(), each, strict=True)
        for x, y in zip(found, plain, strict=True)
    )
    told = {
        "answers seconds": answering,
        "margins seconds": scoring,
        "time": (answering + scoring) / answering,
        "peak": peaks[1] / peaks[0],
        "largest difference in nats": apart,
    }
    met = told["time"] <= TIME_BAR and told["peak"] <= PEAK_BAR and apart <= NATS
    print(
        f"answers {answering:.1f} s, with margins {told['time']:.2f} times of {TIME_BAR}, peak "
        f"{told['peak']:.2f} of {PEAK_BAR}, {apart:.1e} nats of {NATS:.0e}: "
        f"{'met' if met else 'missed'}"
    )
    content = {"environment": environment(accelerator), "quick": options.quick, "margin": told}
    write(options.out, "margin", content)
    return 0 if options.quick or met else 1


if __name__ == "__main__":
    sys.exit(main())
