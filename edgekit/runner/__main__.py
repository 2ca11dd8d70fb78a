"""`python -m edgekit.runner JOB.json`."""

import sys

from .program import main

sys.exit(main(sys.argv[1:]))
