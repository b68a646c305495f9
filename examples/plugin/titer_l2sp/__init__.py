"""Methods for titer, one in a file."""
