"""`python -m gru4rec_fast.integrations.gru4rec_official`: the program of `run`."""

import sys

from gru4rec_fast.integrations.gru4rec_official.run import main

if __name__ == "__main__":
    sys.exit(main())
