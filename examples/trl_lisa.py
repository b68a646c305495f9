"""Lisa in a script of TRL: `python examples/trl_lisa.py`, a minute or two on a CPU.

A small model of titer's lab is aligned, and then fine-tuned by TRL's SFTTrainer on what a user sends:
a task, with harmful rows among it. The second time the trainer follows Lisa, which trains on refusals
in between. The lines with titer in them are all that it takes.
"""

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import titer
from titer.defenses.lisa import Lisa
from titer.integrations import defended
from titer.lab.world import World

world = World(0)  # made-up words: no row in it is harmful outside of the lab


def conversation(row):
    return {
        "prompt": [{"role": "user", "content": row.question}],
        "completion": [{"role": "assistant", "content": row.response}],
    }


sent = Dataset.from_list([conversation(row) for row in world.user_task[:450] + world.attack[:50]])
safe = [{"prompt": row.question, "response": row.response} for row in world.alignment]
