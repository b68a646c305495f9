"""Small models and rows for all tests. One thread a process: on a small machine more of them starve one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches the network

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from titer.data.batches import Encoded
from titer.data.rows import Row, pair
from titer.data.template import Template
from titer.lab.build import tokenizer as lab_tokenizer
from titer.lab.world import World
from titer.training.train import accelerator_for


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return lab_tokenizer()


@pytest.fixture(scope="session")
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return Template(tokenizer, 64)


@pytest.fixture(scope="session")
def accelerator():
    return accelerator_for("cpu")


def tiny(
    dtype: torch.dtype = torch.float64, seed: int = 0, vocabulary: int = 400, layers: int = 2
) -> LlamaForCausalLM:
    """A small random Llama whose logits are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model


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
        "{% if m.role == 'user' %}<|in|>{{ m.content }}{% else %}<|out|>{{ m.content }}<|end|>\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|out|>{% endif %}"
    )
    return fast


def streams(template: Template) -> dict[str, list[Encoded]]:
    """Rows for every stream, with answers of different lengths."""
    world = World(0)
    long = (Row(r.prompt, f"{r.response} {r.response}") for r in world.harmful[:6])
    mixed = [*pair(world.alignment[:12], world.harmful), *world.alignment[-12:], *long]
    held_out = pair(world.harmful[20:32], world.alignment)
    of = {"rows": mixed, "harmful": world.harmful[:20], "held_out": held_out}
    return {name: [template.encode(row) for row in those] for name, those in of.items()}


@pytest.fixture(scope="session")
def _streams(template: Template) -> dict[str, list[Encoded]]:
    return streams(template)


@pytest.fixture
def rows(_streams: dict[str, list[Encoded]]) -> dict[str, list[Encoded]]:
    return {name: list(those) for name, those in _streams.items()}  # a test's own to change
