"""Write docs/methods.md again: `python -m titer.listing docs/methods.md`."""

import sys
from pathlib import Path

from titer.listing import table

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the file to write: python -m titer.listing docs/methods.md")
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
