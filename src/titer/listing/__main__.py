"""Write the generated pages of docs/ again: `python -m titer.listing docs`."""

import sys
from pathlib import Path

from titer.listing import pages

if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("give the folder to write into: python -m titer.listing docs")
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
