"""Greedy answers by the continuous batching of transformers.

All prompts are queued, and one that is answered makes room for the next at once, where a batch waits
for its longest answer. Keys and values lie in pages of a cache, which prompts that begin alike share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from titer.training.memory import halve_answers, is_out_of_memory
from titer.training.ranks import ALONE, Ranks
from titer.training.settings import Watch, unwatched

PAGE = 32  # tokens of a page of the cache
TOKENS = 2048  # of a pass, over all prompts: a mask of so many rows lies beside the cache
PATIENCE = 1.0  # seconds until a look whether the engine still runs


def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch: int = 128,
    say: Callable[[str], None] = lambda _: None,
    watch: Watch = unwatched,
    ranks: Ranks = ALONE,
) -> list[list[int]]:
    """Return the greedy tokens behind every prompt, in their order, as `generate.complete` does.

    The cache has room for `batch` prompts of the longest, with their answers. If that does not fit
    into memory, it is halved, and `say` is told. `watch` is told of every answer.

    Raises where the model is divided among ranks, or the engine fails.
    """
    if ranks.sharded:
        raise ValueError(
            "engine='continuous': it cannot answer with a model that is divided among ranks: set "
            "engine=transformers"
        )
    mine = ranks.share(range(len(prompts)))
    answers: dict[int, list[int]] = {}
    while len(answers) < len(mine):
        left = [i for i in mine if i not in answers]
        try:
            for at, tokens in _serve(model, [prompts[i] for i in left], config, batch):
                answers[left[at]] = tokens
                watch(len(answers), len(mine), {})
        except (RuntimeError, MemoryError) as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        else:
            break
        # not in the handler, where the failure still holds the tensors of its pass
        batch = halve_answers(batch, say)
    answers = ranks.join(answers)
    return [answers[i] for i in range(len(prompts))]


def _serve(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    batch: int,
) -> Iterator[tuple[int, list[int]]]:
    """Yield the place of a prompt and the tokens behind it, in the order in which they end."""
    longest = max(map(len, prompts)) + cast(int, config.max_new_tokens)
    manager: Any = cast(Any, model).init_continuous_batching(
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=batch * -(-longest // PAGE),
            max_batch_tokens=max(TOKENS, batch),
            max_requests_per_batch=batch,
            auto_switch_to_flash=False,  # it would look for kernels on the hub
        ),
    )
    try:
        manager.warmup()  # what does not fit into memory fails here, and not in a thread
        manager.start()
        names = manager.add_requests([list(prompt) for prompt in prompts], config.max_new_tokens)
        places = {name: at for at, name in enumerate(names)}
        while places:
            result = manager.get_result(timeout=PATIENCE)
            if result is None and not manager.is_running():
                raise RuntimeError(
                    f"continuous batching ended with {len(places)} prompts unanswered"
                )
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(result.error)
                yield places.pop(result.request_id), list(result.generated_tokens)
    finally:
        if manager.is_running():
            manager.stop(block=True, hard_stop=True)
        manager.destroy()
