"""Whether a bundle is what it says, and does here what it did when it was made. Package layer."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgekit.devices import child
from edgekit.errors import DeviceError, IntegrityError, SpecError
from edgekit.package.archive import read_folder, read_zip, write_folder
from edgekit.package.manifest import Manifest, read_manifest
from edgekit.package.signing import check_signature
from edgekit.records import Record
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable

SCRIPT = Path(__file__).parent / "templates" / "verify.py"
TIMEOUT_SECONDS = 600.0
_MODULE = "edgekit.package.templates.verify"


class Verified(Record):
    """What `edgekit verify` found; a bundle that fails is an error instead.

    Args:
        manifest: The manifest.
        signed: Whether a signature was checked.
        goldens: What the runtime that is installed here answers, in words.
    """

    manifest: Manifest
    signed: bool
    goldens: str


def verify(
    bundle: Path, public_key: Path | None = None, require_signature: bool = False
) -> Verified:
    """Checks a bundle: archive, manifest, digests, signature and goldens.

    Args:
        bundle: A folder or a .zip.
        public_key: Key that its signature must be of. Defaults to None: not checked.
        require_signature: Whether a bundle without one is refused. Defaults to False.

    Raises:
        SpecError: If there is no such bundle, or a signature is required without a key.
        IntegrityError: If anything in it is not as the manifest says, the signature is missing or
            wrong, or a golden fails.
        DeviceError: If the runtime hangs.
    """
    if require_signature and public_key is None:
        raise SpecError(
            "--require-signature without --public-key",
            "the key that the signature must be of",
            "give it with --public-key FILE",
        )
    if not bundle.exists():
        raise SpecError(f"{bundle}: no such bundle", "a folder or a .zip", "check the path")
    files = read_folder(bundle) if bundle.is_dir() else read_zip(bundle)
    manifest = read_manifest(files)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        folder = Path(scratch) / "bundle"
        write_folder(files, folder)
        if public_key is not None:
            check_signature(folder, public_key)
        return Verified(
            manifest=manifest, signed=public_key is not None, goldens=_goldens(folder, bundle)
        )


def _goldens(folder: Path, bundle: Path) -> str:
    """Runs edgekit's own copy of the bundle's script on it, in a process with limits."""
    command = child.command(_MODULE, str(folder), "--json", timeout_seconds=TIMEOUT_SECONDS)
    try:
        done = subprocess.run(  # noqa: S603 - an argument list, no shell
            command,
            capture_output=True,
            env=child.environment(),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise DeviceError(
            f"{bundle}: its goldens did not end within {TIMEOUT_SECONDS:g} s",
            "a model that answers",
            "do not use it",
        ) from err
    if done.returncode < 0:
        raise IntegrityError(
            f"{bundle}: its model crashed the runtime (signal {-done.returncode})",
            "a model that its runtime can run",
            "do not use it",
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as err:
        said = printable(done.stderr.decode("utf-8", "replace")[-SHOWN_CHARACTERS:])
        raise DeviceError(f"{bundle}: {said}", "the result of verify.py", "report it") from err
    parts = {
        name: part for name, part in found.items() if isinstance(part, dict) and "status" in part
    }
    failed = [f"{name}: {_told(part)}" for name, part in parts.items() if part["status"] == "FAIL"]
    if failed or done.returncode != 0:
        raise IntegrityError(
            f"{bundle}: {'; '.join(failed) or 'its check failed'}",
            "the answers that it was made with",
            "do not use it; the text above says where to look",
        )
    return "; ".join(f"{name} {part['status']}: {_told(part)}" for name, part in parts.items())


def _told(part: dict[str, Any]) -> str:
    """Returns the words of one part of the check, printable."""
    problems = [str(problem.get("text", "")) for problem in part.get("problems", ())]
    return printable("; ".join([str(part.get("text", "")), *problems]))
