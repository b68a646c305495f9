"""Build the embedded base model and its tokenizer: `python -m titer.lab.build FOLDER`.

With `--width 256` it is a base of four times the size, with `--experts 4` a mixture of experts made
of the shipped one. The shipped files are the reference. A rebuild has the same scores, and on one
machine with one number of threads it has the same weights, bit for bit.
"""

import argparse
import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from titer.data.template import Template
from titer.defenses.sft import SFT
from titer.judges.lab import Lab
from titer.lab.upcycle import upcycle
from titer.lab.world import VERSION, World, items, pretraining_row, words
from titer.scoring.evaluate import evaluate
from titer.training.settings import Training
from titer.training.train import train
from titer.weights import checkpoints, folders
from titer.weights.settings import LAB, Checkpoint

ROWS = 160_000
WIDTH = 128  # of the shipped base
READ = Training(
    updates=2500,
    lr=3e-3,
    batch=128,
    schedule="cosine",
    warmup=0.05,
    weight_decay=0.01,
    lora=None,
)
READING = {  # the training of a base of each width: a wider one needs fewer rows and smaller steps
    WIDTH: READ,
    2 * WIDTH: replace(READ, updates=1800, lr=2e-3),
}
SPARSE = replace(READ, updates=500, lr=1.5e-3)  # of a mixture of experts, which knows half already
FRESH = (
    0.5  # share of its experts' units that are drawn anew: at .25 it matters little where tokens go
)
CHAT = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<assistant> {{ message.content }} <end>"
    "{% else %}<user> {{ message.content }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token a word; a word that the world does not have is `<unk>`."""
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
    core = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*special, *words()])}, unk_token="<unk>")
    )
    core.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = CHAT
    return fast


def base(vocabulary: int, layers: int = 6, width: int = WIDTH) -> LlamaForCausalLM:
    """Make a fresh Llama, of about a million parameters at the shipped width."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def build(folder: Path, width: int = WIDTH) -> None:
    """Make tokenizer and base model from nothing: about ten minutes on two cores."""
    torch.set_num_threads(2)
    fast = tokenizer()
    read(base(len(fast), width=width), fast, READING[width], folder)


def build_sparse(folder: Path, experts: int) -> None:
    """Make a mixture of experts of the shipped base: about five minutes on two cores."""
    torch.set_num_threads(2)
    dense, fast = checkpoints.load(LAB)
    read(upcycle(dense, experts, FRESH), fast, SPARSE, folder)


def read(
    model: PreTrainedModel, fast: PreTrainedTokenizerBase, training: Training, folder: Path
) -> None:
    """Train all weights of a model on everything there is to know, and save it."""
    model.requires_grad_(True)
    rng, everything, template = random.Random(VERSION), items(), Template(fast)
    rows = [template.encode(pretraining_row(rng, everything)) for _ in range(ROWS)]
    with Console(stderr=True).status("reading") as status:

        def watch(update: int, of: int, terms: Mapping[str, float]) -> None:
            status.update(f"reading: update {update} of {of}, loss {terms['f']:.3f}")

        train(model, SFT(), {"rows": rows}, training, seed=0, watch=watch)
    checkpoints.save(model, fast, folder)


def scores(name: str) -> dict[str, float]:
    """Return the base's figures on the test prompts of world 0."""
    model, fast = checkpoints.load(name)
    found = evaluate(model, Template(fast), World(0).benchmarks("test"), Lab(0), 16)
    return {benchmark: round(score.value, 2) for benchmark, score in found.scores.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--width",
        type=int,
        choices=READING,
        default=WIDTH,
        help="of the hidden states: 128 is that of the shipped base",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="exit 1 unless the rebuilt base scores as the shipped one does",
    )
    parser.add_argument(
        "--experts",
        type=int,
        help="of every layer: make a mixture of experts of the shipped base",
    )
    arguments = parser.parse_args()
    if arguments.experts and (arguments.compare or arguments.width != WIDTH):
        parser.error("--experts: a mixture is made of the shipped base, and is compared with none")
    if arguments.experts:
        build_sparse(arguments.folder, arguments.experts)
        sys.exit()
    build(arguments.folder, arguments.width)
    if arguments.compare:
        rebuilt, shipped = scores(str(arguments.folder)), scores(LAB)
        weights = [
            (folder / "model.safetensors").read_bytes()
            for folder in (arguments.folder, folders.locate(Checkpoint()).folder)
        ]
        print(
            f"rebuilt {rebuilt}\nshipped {shipped}\n"
            f"weights are {'' if weights[0] == weights[1] else 'not '}bit for bit the same"
        )
        sys.exit(rebuilt != shipped)
