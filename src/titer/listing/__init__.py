"""Listings of methods, recipes and the hub, and all that is known of one method.

Behind `titer list`, which reads sources and imports no method; `titer show`, which imports the one;
and docs/methods.md, which `python -m titer.listing docs/methods.md` writes again.
"""

from titer.listing.list import Listing, entries, kinds, lines
from titer.listing.read import read_about
from titer.listing.show import Facts, Hyperparameter, describe_method, document, find, page
from titer.listing.write import table

__all__ = [
    "Facts",
    "Hyperparameter",
    "Listing",
    "describe_method",
    "document",
    "entries",
    "find",
    "kinds",
    "lines",
    "page",
    "read_about",
    "table",
]
