"""Listings of methods, recipes and the hub, and all that is known of one method.

Behind `titer list`, which reads sources and imports no method; `titer show`, which imports the one;
`titer list --assume`, which imports all of them; and docs/methods.md and docs/choose.md, which
`python -m titer.listing docs` writes again.
"""

from titer.listing.choose import Choosable, choice_documents, choice_lines, choose, traits
from titer.listing.list import Listing, entries, kinds, lines
from titer.listing.read import read_about
from titer.listing.show import Facts, Hyperparameter, describe_method, document, find, page
from titer.listing.write import pages

__all__ = [
    "Choosable",
    "Facts",
    "Hyperparameter",
    "Listing",
    "choice_documents",
    "choice_lines",
    "choose",
    "describe_method",
    "document",
    "entries",
    "find",
    "kinds",
    "lines",
    "page",
    "pages",
    "read_about",
    "traits",
]
