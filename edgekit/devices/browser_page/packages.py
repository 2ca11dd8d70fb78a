"""The npm packages that the page runs, at exact versions and with exact content. Device layer.

`packages.json` names the versions and the SHA-256 of every file that the page may load; nothing
else of the packages, and nothing they depend on, is kept, served or run.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.folders import replace_folder, scratch_folder
from edgekit.processes import run
from edgekit.runtimes.base import printable

LIST = resources.files(__package__) / "packages.json"
INSTALL_SECONDS = 600.0


def versions() -> dict[str, str]:
    """Returns the exact version of each package by its name."""
    listed: dict[str, str] = json.loads(LIST.read_bytes())["versions"]
    return listed


def digests() -> dict[str, str]:
    """Returns the SHA-256 of each file that is served, by its path below the packages' folder."""
    listed: dict[str, str] = json.loads(LIST.read_bytes())["sha256"]
    return listed


def prepare(folder: Path, say: Callable[[str], None]) -> Path:
    """Returns a folder with the packages, fetched with npm unless they are there already.

    Args:
        folder: Where such folders are kept, as `edgekit.folders.cache_folder()`; made if missing.
            The one for this version of the list is named `web-<hash>`.
        say: Takes a line for the user when something is fetched.

    Raises:
        DeviceError: If npm is missing or fails, or the packages do not have the listed content.
    """
    packages = folder / f"web-{hashlib.sha256(LIST.read_bytes()).hexdigest()[:12]}"
    if problem(packages) is None:
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError(
            f"no npm on PATH, and no packages in {packages}",
            "npm, which fetches the runtimes for the browser once",
            "install npm (Debian: apt-get install npm)",
        )
    names = [f"{name}@{version}" for name, version in versions().items()]
    say(f"fetching {', '.join(names)} with npm, once")
    try:
        with scratch_folder(folder) as unfinished:
            _install(npm, names, unfinished)
            _keep(unfinished, packages)
    except OSError as err:
        raise DeviceError(
            f"{folder}: {err.strerror or err}", "a folder to write to", "free it or name another"
        ) from err
    return packages


def problem(packages: Path) -> str | None:
    """Returns what is wrong with a folder of packages, None if it has the listed content."""
    for name, expected in digests().items():
        try:
            with (packages / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as err:
            return f"{packages / name}: {err.strerror or err}"
        if found != expected:
            return f"{packages / name}: SHA-256 {found}, not {expected}"
    return None


def _install(npm: str, names: list[str], folder: Path) -> None:
    """Lets npm fetch the packages into `folder`, running no script of theirs."""
    command = [
        npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock",
        "--prefix", str(folder), *names,
    ]  # fmt: skip
    try:
        done = run(command, INSTALL_SECONDS, folder=folder)
    except subprocess.TimeoutExpired as err:
        found = f"npm install: no end after {INSTALL_SECONDS:g} s"
        raise DeviceError(found, "the packages", "check the network and run it again") from err
    if done.returncode != 0:
        said = printable(done.stderr.decode("utf-8", "replace"))
        found = f"npm install ended with code {done.returncode} ({said})"
        raise DeviceError(found, "the packages", "check the network and npm's own configuration")


def _keep(installed: Path, packages: Path) -> None:
    """Moves the listed files of an installation to `packages`, all at once."""
    modules, kept = installed / "node_modules", installed / "kept"
    for name in digests():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        if (modules / name).is_file():
            (modules / name).rename(kept / name)
    wrong = problem(kept)
    if wrong is not None:
        raise DeviceError(
            f"npm installed other content than listed: {wrong}",
            "the published packages, byte for byte",
            "check which registry npm is configured for",
        )
    replace_folder(kept, packages)
