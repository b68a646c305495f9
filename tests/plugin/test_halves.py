"""The contract of titer's methods, kept by those of this package."""

from titer_halves.half import Half
from titer_halves.shrink import Shrink

from titer.testing import contract

test_contract = contract(Half(), Half(share=0.25), Shrink())
