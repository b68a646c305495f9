"""titer's methods inside other libraries' own loops.

    from titer.integrations import defended

    Trainer = defended(SFTTrainer, Lisa(k1=100, k2=900), rows={"alignment": refusals})
    Trainer(model=..., args=SFTConfig(...), train_dataset=...).train()
"""

from titer.integrations.trainer import defended

__all__ = ["defended"]
