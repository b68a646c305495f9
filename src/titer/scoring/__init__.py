"""From a model to its figures: answers, harm margin, intervals, differences."""
