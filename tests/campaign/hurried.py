"""The command line of edgekit with one short latency session, not five long ones.

Run as `python -P campaign/hurried.py validate MODEL --data DIR`.
"""

import sys
from dataclasses import replace

from edgekit import foreign
from edgekit.cli import execute
from edgekit.devices.measure import Pace


def main() -> int:
    """Runs a command line; everything but the number and length of the sessions is edgekit's."""
    # Fails where one of these is called otherwise by now.
    foreign._MEASURING = replace(foreign._MEASURING, sessions=1, pace=Pace(0.0, 20, 0.0))
    return execute(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
