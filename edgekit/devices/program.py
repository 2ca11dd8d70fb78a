"""The runner program as one file, to be started here or brought to a device. Device layer."""

import atexit
import contextlib
import functools
import io
import zipfile
from pathlib import Path

import edgekit.runner
from edgekit.folders import scratch_folder, writing

NAME = "runner.pyz"
_FOLDER = "runner"
_MAIN = f"import sys\nfrom {_FOLDER}.program import main\nsys.exit(main(sys.argv[1:]))\n"
# The earliest date that a zip archive can hold; the same sources make the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def runner_bytes() -> bytes:
    """Returns the runner program: a zip archive that Python 3.9 and newer runs as it is."""
    sources = Path(edgekit.runner.__file__).parent
    parts = {"__main__.py": _MAIN.encode()}
    parts |= {f"{_FOLDER}/{path.name}": path.read_bytes() for path in sorted(sources.glob("*.py"))}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in parts.items():
            opened.writestr(zipfile.ZipInfo(name, _DATE), content)
    return archive.getvalue()


@functools.cache
def runner_file() -> Path:
    """Returns where the runner program lies on this machine, until this process ends."""
    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    path = kept.enter_context(scratch_folder()) / NAME
    with writing(path):
        path.write_bytes(runner_bytes())
    return path
