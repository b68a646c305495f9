"""Run the command line: `python -m titer.cli`."""

from titer.cli import main

if __name__ == "__main__":
    main()
