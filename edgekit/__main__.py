"""Entry point of the `edgekit` command: turns every outcome into an exit code."""

import signal
import sys


def main() -> None:
    """Runs the command line and exits with the codes of the command line's documentation."""
    try:
        from edgekit.cli import execute
        from edgekit.folders import use_own_temporary_folder

        use_own_temporary_folder()
    except KeyboardInterrupt:  # nothing was begun that could be continued
        sys.exit(128 + signal.SIGINT)
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
