"""Checkpoints in memory and on disk, adapters, and edits of them one tensor at a time."""
