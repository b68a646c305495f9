"""titer measures how well a language model's safety alignment survives fine-tuning, and makes it survive."""

__version__ = "0.1.0"
