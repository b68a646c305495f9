"""The version of titer, which results depend on."""

__version__ = "0.1.0"
