"""Entry point of `python -m campaign`."""

import sys

from campaign.runner import main

if __name__ == "__main__":
    sys.exit(main())
