"""This machine. Device layer."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgekit.devices.place import Found, Machine, Place, check_size
from edgekit.errors import DeviceError
from edgekit.folders import scratch_folder

_CPUINFO = Path("/proc/cpuinfo")


@contextmanager
def reach() -> Iterator[Place]:
    """Yields this machine; every runner process runs in a folder that is gone afterwards."""
    with scratch_folder() as folder:
        yield _Here(folder)


def find() -> list[Found]:
    """Returns this machine."""
    return [Found("local", "local", this_machine())]


def this_machine() -> str:
    """Returns processor, cores, architecture and system of this machine, in words.

    Not its name, which is often its owner's: these words stand in reports and bundles.
    """
    system = f"{platform.machine()}, {platform.system()} {platform.release()}"
    return f"{processor()}, {os.cpu_count()} cores, {system}"


def processor() -> str:
    """Returns the processor of this machine, in words."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class _Here:
    """Files are where they are; the program is started by this Python."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.machine = Machine(this_machine(), os.cpu_count())

    def put(self, file: Path) -> str:
        return str(file.absolute())

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def command(self, program: str, job: str) -> tuple[str, ...]:
        # -P: a module in the current folder must not shadow one of the runner's.
        return (sys.executable, "-P", program, job)

    def environment(self) -> Mapping[str, str]:
        """Returns this process's own, without thread pools beside the runtime's.

        What a runtime leaves in the folder for temporary files is gone with the place.
        """
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **threads, "TMPDIR": str(self._folder)}

    def explain(self, code: int, said: str) -> DeviceError | None:  # noqa: ARG002
        """Returns nothing: no transport lies between."""
        return None

    def disturbances(self) -> tuple[str, ...]:
        """Returns nothing: the runner sees this machine as well as its parent does."""
        return ()

    def get(self, there: str, here: Path, limit_bytes: int) -> None:
        check_size(Path(there), limit_bytes)
        shutil.move(there, here)
