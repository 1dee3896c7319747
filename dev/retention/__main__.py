"""Entry point of ``python -m dev.retention``."""

import sys

from dev.retention.page import main

if __name__ == "__main__":
    sys.exit(main())
