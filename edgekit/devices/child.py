"""Runs one Python module in a process of its own that ends itself. Device layer, Unix only.

Native compilers and interpreters crash, hang and fill memory; here they take only themselves down.
"""

import importlib.util
import math
import os
import resource
import runpy
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from edgekit import limits
from edgekit.errors import DeviceError
from edgekit.runner.program import limit

# The process ends itself a little after its parent should have ended it.
GRACE_SECONDS = 10


def require(module: str, package: str) -> None:
    """Refuses to go on without an optional package.

    Args:
        module: Top-level module that it brings.
        package: Its name in the package index.

    Raises:
        DeviceError: If it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise DeviceError(
            f"the package {package} is not installed",
            "the extra that estimates for microcontrollers need",
            "pip install 'edgekit[micro]'",
        )


def command(
    module: str,
    *arguments: str,
    timeout_seconds: float,
    memory_limit_bytes: int = limits.PROCESS_MEMORY_BYTES,
) -> list[str]:
    """Returns the command that runs a module as a program.

    Args:
        module: Its full name.
        *arguments: What the program is given.
        timeout_seconds: Wall time that the parent allows it, until it calls `still_working`.
        memory_limit_bytes: Limit of the address space. Defaults to
            `limits.PROCESS_MEMORY_BYTES`.
    """
    alarm = math.ceil(timeout_seconds) + GRACE_SECONDS
    # -P: a module in the current folder must not shadow one of the program's.
    start = (sys.executable, "-P", "-m", "edgekit.devices.child")
    return [*start, str(alarm), str(memory_limit_bytes), module, *arguments]


def environment() -> Mapping[str, str]:
    """Returns the environment of the process: this edgekit, and no threads beside the program's."""
    package_parent = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def still_working(timeout_seconds: float) -> None:
    """Gives this process that much time again; called in it, by the program that it became.

    Args:
        timeout_seconds: Wall time that the parent allows until the next call.
    """
    signal.alarm(math.ceil(timeout_seconds) + GRACE_SECONDS)


def unwritable(error: OSError) -> DeviceError:
    """Returns the error for a result that such a program cannot write for its parent.

    Args:
        error: With its path, as `edgekit.folders.writing` gives it.
    """
    return DeviceError(
        f"{error.filename}: {error.strerror}",
        "a folder for temporary files with space",
        "make room there, or name a folder on another disk by TMPDIR",
    )


def main(arguments: list[str]) -> None:
    """Sets the limits, then becomes the program.

    Args:
        arguments: Seconds, bytes of address space, module, arguments of the module.
    """
    seconds, memory_limit_bytes, module, *rest = arguments
    # When the parent is killed, nobody else ends native code that hangs.
    signal.alarm(int(seconds))
    limit(resource.RLIMIT_AS, int(memory_limit_bytes))
    limit(resource.RLIMIT_CORE, 0)  # a crash is a result; it leaves no file
    limit(resource.RLIMIT_FSIZE, limits.PROCESS_FILE_BYTES)
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
