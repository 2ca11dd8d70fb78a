"""Whether a bundle is what it says, and does here what it did when it was made. Package layer."""

import json
import subprocess
from pathlib import Path
from typing import Any, Literal

from edgekit import limits
from edgekit.devices import child
from edgekit.errors import DeviceError, IntegrityError, SpecError
from edgekit.folders import scratch_folder
from edgekit.package.archive import read_folder, read_zip, write_folder
from edgekit.package.claims import check_model_claims
from edgekit.package.manifest import Manifest, read_manifest
from edgekit.package.signing import SIGNATURE_NAME, check_signature
from edgekit.processes import run
from edgekit.records import Record
from edgekit.runtimes.base import SHOWN_CHARACTERS, printable

SCRIPT = Path(__file__).parent / "templates" / "verify.py"
_SHOWN_PROBLEMS = 2
_MODULE = "edgekit.package.templates.verify"


class Verified(Record):
    """What `edgekit verify` found; a bundle that fails is an error instead.

    Args:
        manifest: The manifest.
        signature: "verified" with the given key, "not checked" for want of one, or "absent".
        goldens: What the runtime that is installed here answers, in words.
    """

    manifest: Manifest
    signature: Literal["verified", "not checked", "absent"]
    goldens: str


def verify(
    bundle: Path, public_key: Path | None = None, require_signature: bool = False
) -> Verified:
    """Checks a bundle: archive, manifest, digests, claims, signature and goldens.

    Claims are what the manifest says; they are held against the other files and what the model file
    says about itself. Nothing but a signature protects the manifest: whoever alters every file that
    tells of the same thing alike is not found out.

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
    check_model_claims(manifest, files)
    with scratch_folder() as scratch:
        folder = scratch / "bundle"
        write_folder(files, folder)
        if public_key is not None:
            check_signature(folder, public_key)
        absent: Literal["not checked", "absent"] = (
            "not checked" if SIGNATURE_NAME in files else "absent"
        )
        return Verified(
            manifest=manifest,
            signature=absent if public_key is None else "verified",
            goldens=_goldens(folder, bundle),
        )


def _goldens(folder: Path, bundle: Path) -> str:
    """Runs edgekit's own copy of the bundle's script on it, in a process with limits."""
    command = child.command(_MODULE, str(folder), "--json", timeout_seconds=limits.VERIFY_SECONDS)
    try:
        done = run(command, limits.VERIFY_SECONDS, environment=child.environment())
    except subprocess.TimeoutExpired as err:
        raise DeviceError(
            f"{bundle}: its goldens did not end within {limits.VERIFY_SECONDS:g} s",
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
        name: part
        for name, part in found.items()
        if name != "signature" and isinstance(part, dict) and "status" in part
    }
    failed = [f"{name}: {_told(part)}" for name, part in parts.items() if part["status"] == "FAIL"]
    if failed or done.returncode != 0:
        raise IntegrityError(
            f"{bundle}: {'; '.join(failed) or 'its check failed'}",
            "files that agree with one another, and the answers that they were packed with",
            "do not use it; the text above says where to look",
        )
    return "; ".join(f"{name} {part['status']}: {_told(part)}" for name, part in parts.items())


def _told(part: dict[str, Any]) -> str:
    """Returns the words of one part of the check, printable."""
    problems = [str(problem.get("text", "")) for problem in part.get("problems", ())]
    # So few that none is cut in its middle; the bundle's own verify.py tells all.
    return printable("; ".join([str(part.get("text", "")), *problems[:_SHOWN_PROBLEMS]]))
