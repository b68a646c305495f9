"""Lisa in a script of TRL: `python examples/trl_lisa.py`, two minutes on a CPU, no download.

A small model of titer's lab, aligned to refuse, is fine-tuned by TRL's SFTTrainer on what a user
sends: a task, with a tenth of harmful rows among it. Then once more by a trainer that follows Lisa,
which trains on refusals in turn. Only the lines that end in a # are there for Lisa.
"""

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import titer
from titer.defenses.lisa import Lisa  #
from titer.integrations import defended  #
from titer.lab.world import World


def fine_tune(aligned, trainer_class, rows):
    """Fine-tune a model, and return what it is then: its harmful score and its accuracy."""
    model, tokenizer = aligned.load()
    settings = SFTConfig(
        output_dir="runs/trl_lisa",
        max_steps=100,
        per_device_train_batch_size=10,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        activation_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = trainer_class(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    scores = titer.evaluate((trainer.model, tokenizer), recipe="lab").scores
    return f"HS {scores['harm'].value:.0f}, FA {scores['task'].value:.0f}"


def main():
    world = World(0)  # of made-up words, in which nothing is harmful outside of the lab
    sent = [
        {
            "prompt": [{"role": "user", "content": row.question}],
            "completion": [{"role": "assistant", "content": row.response}],
        }
        for row in [*world.user_task[:450], *world.attack[:50]]
    ]
    refusals = [{"prompt": row.question, "response": row.response} for row in world.alignment]

    with_lisa = defended(SFTTrainer, Lisa(k1=10, k2=10), rows={"alignment": refusals})  #

    aligned = titer.align("lab", data={}, recipe="lab")
    rows = Dataset.from_list(sent)
    print("plainly:  ", fine_tune(aligned, SFTTrainer, rows))
    print("with Lisa:", fine_tune(aligned, with_lisa, rows))  #


if __name__ == "__main__":
    main()
