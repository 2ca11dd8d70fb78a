"""Entry point of the `edgekit` command: turns every outcome into an exit code."""

import signal
import sys
import threading


def keep_interrupts() -> None:
    """Sees to it that Ctrl-C ends the command where Python would only report it, too.

    What is raised in a finalizer is told and dropped, Ctrl-C included; TensorFlow has many. It is
    raised again when the finalizer is over.
    """
    report = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            report(dropped)
            return
        main_thread = threading.main_thread().ident
        if main_thread is not None:
            # Later, as in here it would be dropped as well; a real signal also ends a wait.
            again = (main_thread, signal.SIGINT)
            threading.Timer(0.01, signal.pthread_kill, again).start()

    sys.unraisablehook = hook


def main() -> None:
    """Runs the command line and exits with the codes of the command line's documentation."""
    try:
        from edgekit.cli import execute
        from edgekit.folders import use_own_temporary_folder

        keep_interrupts()
        use_own_temporary_folder()
    except KeyboardInterrupt:  # nothing was begun that could be continued
        sys.exit(128 + signal.SIGINT)
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
