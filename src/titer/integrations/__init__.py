"""titer's methods inside other libraries' own loops: TRL's SFTTrainer and transformers' Trainer.

    Trainer = defended(SFTTrainer, Lisa(k1=100, k2=900), rows={"alignment": refusals})
    Trainer(model=model, args=SFTConfig(...), train_dataset=dataset).train()

docs/python.md says what it means for rows, epochs and checkpoints.
"""

from titer.integrations.trainer import defended

__all__ = ["defended"]
