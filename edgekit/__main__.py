"""Entry point of the `edgekit` command: turns every outcome into an exit code."""

import sys


def main() -> None:
    """Runs the command line and exits with the codes of the command line's documentation."""
    from edgekit.cli import execute

    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
