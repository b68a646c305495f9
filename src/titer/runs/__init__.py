"""From a recipe to records: the rows of every role, the stages of a plan, the store that shares them, sweeps."""
