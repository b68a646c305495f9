"""From a recipe to records: the rows of every role, a plan's stages and their store, sweeps."""
