"""Small models and rows for all tests.

One thread a process: on a small machine more of them starve one another.
"""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the network

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from titer.data.batches import Encoded
from titer.data.template import Template
from titer.lab.build import tokenizer as lab_tokenizer
from titer.testing import streams, tiny  # noqa: F401  the tests' own too
from titer.training.train import accelerator_for


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _plain_log() -> None:
    """What titer notes goes where pytest sees it, also behind a test of the command line."""
    log = logging.getLogger("titer")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return lab_tokenizer()


@pytest.fixture(scope="session")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return Template(tokenizer, 64)


@pytest.fixture(scope="session")
def accelerator():
    return accelerator_for("cpu")


def byte_level() -> PreTrainedTokenizerFast:
    """A token a byte, with a chat template of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        BPE(
            {
                token: i
                for i, token in enumerate(["<|pad|>", "<|end|>", "<|in|>", "<|out|>", *alphabet])
            },
            [],
        )
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|in|>", "<|out|>"],
    )
    fast.chat_template = (
        "{% for m in messages %}"
        "{% if m.role == 'user' %}<|in|>{{ m.content }}{% else %}<|out|>{{ m.content "
        "}}<|end|>\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|out|>{% endif %}"
    )
    return fast


@pytest.fixture(scope="session")
def _streams(template: Template) -> dict[str, list[Encoded]]:
    return streams(template)


@pytest.fixture
def rows(_streams: dict[str, list[Encoded]]) -> dict[str, list[Encoded]]:
    return {name: list(those) for name, those in _streams.items()}  # a test's own to change


@pytest.fixture
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()
