"""Run the command line with `python -m recurra`."""

import sys

from recurra.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
