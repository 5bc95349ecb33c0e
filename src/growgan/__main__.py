"""Lets ``python -m growgan`` run the command ``growgan``."""

import sys

from growgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
