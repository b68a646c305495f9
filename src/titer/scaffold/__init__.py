"""Write a method's file and its test to start from, and a package around it: `titer new`.

What is written is a whole method that passes its own test as it is, in the shape of titer's own. It
goes into a checkout of titer, or into a package that names it by an entry point.
"""

from titer.scaffold.method import write_method, write_new, write_plugin

__all__ = ["write_method", "write_new", "write_plugin"]
