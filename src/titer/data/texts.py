"""Text templates as the field's repositories publish them, for models without a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Style = Literal["chat", "alpaca", "alpaca-original", "plain"]


_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. "
    "Write a response that appropriately completes the request."
)


# what stands before the answer: of a prompt alone, and of one with an input
TEXTS: Mapping[str, tuple[str, str]] = {
    # as trained and evaluated in the repositories of arXiv 2409.01586, 2408.09600 and 2410.09760
    "alpaca": (
        f"{_ALPACA}\n\n### Instruction:\n{{prompt}}\n\n### Response:\n",
        f"{_ALPACA_INPUT}\n\n### Instruction:\n{{prompt}}\n\n### Input:\n{{input}}\n\n### "
        "Response:\n",
    ),
    # without the last line break, as in those of 2402.01109 and 2405.18641
    "alpaca-original": (
        f"{_ALPACA}\n\n### Instruction:\n{{prompt}}\n\n### Response:",
        f"{_ALPACA_INPUT}\n\n### Instruction:\n{{prompt}}\n\n### Input:\n{{input}}\n\n### "
        "Response:",
    ),
    "plain": ("{prompt}\n", "{prompt}\n{input}\n"),
}
