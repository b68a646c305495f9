"""The kinds of stages, one file each: what determines a stage, and how it is computed.

A stage is a value: it holds all that it is made of, so its key follows from itself. The modules
here import what they compute with and nothing of plans, stores and reports, because their import
closure is the code that a stage's key stands for.
"""
