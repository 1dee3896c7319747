"""Entry point of ``python -m dev.reference``."""

import sys

from dev.reference.pages import main

if __name__ == "__main__":
    sys.exit(main())
