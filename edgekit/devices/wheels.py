"""What runs files on other machines: one version of each package, with its files' digests.

Device layer. `wheels.txt` is the part of `.constraints/tested.txt` that goes to devices.
"""

import os
import re
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.runtimes.base import printable

LIST = resources.files(__package__) / "wheels.txt"
# Names a file of the same form to take instead: pip requirements, each with `==` and `--hash`.
VARIABLE = "EDGEKIT_WHEELS"
# pip's hash-checking mode, for which every package must stand in the file. Neither runtime imports
# its other dependencies to load a model and run it.
PIP_OPTIONS = ("--require-hashes", "--no-deps", "--only-binary=:all:")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?:[^\n]*\\\n)*[^\n]*\n?", re.MULTILINE)


def requirements(modules: Sequence[str]) -> str:
    """Returns what pip shall install for some modules, one version of each and only known files.

    A runtime has the version that judges here: answers and times of another one would be of another
    program. NumPy only carries arrays to it and has the version of the list.

    Args:
        modules: What shall be importable, such as "ai_edge_litert".

    Returns:
        Lines of a requirements file, with the SHA-256 of the files of every platform.

    Raises:
        DeviceError: If another version of a runtime judges here than the one whose files are known,
            or the user's own list, which decides alone if there is one, lacks a package.
    """
    own = os.environ.get(VARIABLE)
    listed = {
        _name(found[1]): (found[2], found[0].rstrip("\n"))
        for found in _REQUIREMENT.finditer(_text(own))
    }
    lines = []
    for name in map(_name, modules):
        if name not in listed:
            raise DeviceError(
                f"{own or 'the list of wheels'} has no {name}",
                f"a line {name}==VERSION --hash=sha256:DIGEST ...",
                f"add it, or unset {VARIABLE}" if own else "install it on the device by hand",
            )
        known, line = listed[name]
        if not own and name != "numpy" and version(name) != known:
            raise DeviceError(
                f"{name} {printable(version(name))} judges here, and edgekit knows the files of "
                f"{known} alone",
                "the same version on the device, each of its files known by its digest",
                f"run pip install {name}=={known} here; or name pip requirements with hashes, of "
                f"{', '.join(map(_name, modules))}, in the environment variable {VARIABLE}",
            )
        lines.append(f"{line}\n")
    return "".join(lines)


def _text(own: str | None) -> str:
    """Returns the list that counts."""
    if not own:
        return LIST.read_text(encoding="utf-8")
    try:
        return Path(own).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DeviceError(
            f"{VARIABLE}={printable(own)}: {printable(str(err))}",
            "a file of pip requirements with hashes",
            "correct the variable, or unset it",
        ) from err


def _name(name: str) -> str:
    """Returns the name of a package as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
