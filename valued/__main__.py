"""``python -m valued`` is the console script ``valued``."""

import sys

from valued.cli import main

# A process that multiprocessing spawns imports this file under another name.
if __name__ == "__main__":
    sys.exit(main())
