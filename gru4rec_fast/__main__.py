"""`python -m gru4rec_fast` is the command gru4rec-fast, e.g. for torchrun."""

import sys

from gru4rec_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
