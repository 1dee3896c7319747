"""Entry point of `python -m dev.demo`."""

import sys

from dev.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
