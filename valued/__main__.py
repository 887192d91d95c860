"""``python -m valued`` runs the command line, as the console script ``valued`` does."""

import sys

from valued.cli import main

# In a process that multiprocessing spawns, this file is imported under another name.
if __name__ == "__main__":
    sys.exit(main())
