"""Run the command line: `python -m titer`."""

from titer.cli import main

if __name__ == "__main__":
    main()
