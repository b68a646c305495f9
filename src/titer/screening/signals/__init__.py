"""The signals of a screen, one a file. `catalog.py` has their order."""
