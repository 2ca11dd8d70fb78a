"""Signatures of bundles by OpenSSF Model Signing, in a process of their own; extra "sign".

Package layer. The signature lists every file of the folder with its digest, so it tells who made
the bundle and that nothing was changed, added or removed; manifest.json alone cannot tell who.
Keys are elliptic-curve keys in PEM files: `openssl ecparam -name prime256v1 -genkey -noout`.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from edgekit import limits
from edgekit.errors import IntegrityError, SpecError
from edgekit.processes import run
from edgekit.runtimes.base import printable

SIGNATURE_NAME = "model.sig"
TIMEOUT_SECONDS = 300
_MODULE = "model_signing"
_INSTALL = "install it: pip install 'edgekit[sign]'"
# Without this it would neither sign nor notice files called .git, .github and .gitignore.
_EVERY_FILE = "--no-ignore-git-paths"
_KEY_HELP = (
    "make one with: openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem, and its public "
    "half with: openssl ec -in KEY.pem -pubout -out KEY.pub"
)
# What model-signing 1.1.1 says of each file that is not as it was signed.
_DIFFERENCES = (
    ("changed", re.compile(r"Hash mismatch for \\?'(.*?)\\?':")),
    ("added", re.compile(r"Extra files found in model [^:]*: (.*?)[\"']\]?(?:,|$)")),
    ("missing", re.compile(r"Missing files in model [^:]*: (.*?)[\"']\]?(?:,|$)")),
)


def sign(folder: Path, private_key: Path) -> Path:
    """Signs every file of a folder and returns the signature file in it.

    A signature that is there already is replaced. Two signatures of the same files differ, since
    elliptic-curve signatures are drawn at random.

    Args:
        folder: The bundle.
        private_key: Elliptic-curve private key, PEM, without a password.

    Raises:
        SpecError: If the extra "sign" is not installed or the key cannot be used.
        IntegrityError: If the folder holds anything but plain files, or signing fails.
    """
    _check_key(private_key, "private")
    signature = folder / SIGNATURE_NAME
    if signature.is_symlink():
        raise IntegrityError(
            f"{_said(signature)} is a symbolic link", "a bundle of plain files", "remove the link"
        )
    said = _run("sign", folder, signature, "--private_key", private_key)
    if said is None:
        return signature
    if "password" in said.lower():
        raise SpecError(
            f"{_said(private_key)} is protected by a password",
            "a private key without one, in a file that only you can read",
            "take the password off with: openssl ec -in KEY.pem -out OTHER.pem",
        )
    if any(words in said for words in ("PEM", "private key", "curve", "deserialize")):
        raise SpecError(
            f"{_said(private_key)} cannot be used to sign ({said})",
            "an elliptic-curve private key in PEM",
            _KEY_HELP,
        )
    raise IntegrityError(
        f"{_said(folder)} cannot be signed ({said})",
        "a folder of plain files that can be read",
        "make the bundle again and sign it where it was made",
    )


def check_signature(folder: Path, public_key: Path) -> None:
    """Checks that the holder of a key signed exactly the files of a folder.

    Args:
        folder: The bundle, with its signature in `model.sig`.
        public_key: Elliptic-curve public key, PEM.

    Raises:
        SpecError: If the extra "sign" is not installed or the key cannot be used.
        IntegrityError: If there is no signature or it is none, another key made it, or a file was
            changed, added, removed or is no plain file.
    """
    _check_key(public_key, "public")
    signature = folder / SIGNATURE_NAME
    _check_form(signature)
    said = _run("verify", folder, signature, "--public_key", public_key)
    if said is None:
        return
    remedy = "get the bundle again from where it was made; do not use this one"
    if "Key mismatch" in said:
        raise IntegrityError(
            f"{_said(signature)} was made with another key than {_said(public_key)}",
            "a signature by the key that you trust",
            "give the public key of whoever made the bundle, if you trust that key; otherwise "
            "do not use the bundle",
        )
    if "PEM" in said or "public key" in said or "curve" in said:
        raise SpecError(
            f"{_said(public_key)} cannot be used to check a signature ({said})",
            "an elliptic-curve public key in PEM",
            _KEY_HELP,
        )
    if "symlink" in said:
        raise IntegrityError(
            f"{_said(folder)} holds a symbolic link ({said})", "a bundle of plain files", remedy
        )
    if "Signature mismatch" in said:
        found = [
            f"{how}: {printable(', '.join(pattern.findall(said)))}"
            for how, pattern in _DIFFERENCES
            if pattern.search(said)
        ]
        raise IntegrityError(
            f"{_said(folder)} is not what was signed ({'; '.join(found) or said})",
            "exactly the files that were signed",
            remedy,
        )
    raise IntegrityError(
        f"{_said(signature)} is not a valid signature by {_said(public_key)}"
        + (f" ({said})" if said else ""),
        "a signature by the key that you trust, unaltered",
        remedy,
    )


def _check_form(signature: Path) -> None:
    """Refuses what is no signature before anybody tries to check it."""
    what, remedy = f"a signature in {SIGNATURE_NAME}", "sign the bundle where it was made"
    if signature.is_symlink() or not signature.is_file():
        raise IntegrityError(f"{_said(signature.parent)} is not signed", what, remedy)
    try:
        with signature.open("rb") as stream:
            content = stream.read(limits.SIGNATURE_BYTES + 1)
        form = json.loads(content.decode()) if len(content) <= limits.SIGNATURE_BYTES else None
        parts = {"verificationMaterial", "dsseEnvelope"}
        is_signature = isinstance(form, dict) and form.keys() >= parts
    except (OSError, ValueError, RecursionError):
        is_signature = False
    if not is_signature:
        raise IntegrityError(f"{_said(signature)} is damaged or no signature", what, remedy)


def _check_key(key: Path, kind: str) -> None:
    if not key.is_file():
        raise SpecError(
            f"{_said(key)}: there is no such key file", f"a {kind} key in PEM", _KEY_HELP
        )


def _run(action: str, folder: Path, signature: Path, key_option: str, key: Path) -> str | None:
    """Runs model-signing; returns None if it succeeded, else what it said, in one line."""
    command = [
        *_program(), action, "key", _EVERY_FILE,
        "--signature", str(signature.absolute()), key_option, str(key.absolute()),
        "--", str(folder.absolute()),
    ]  # fmt: skip
    try:
        done = run(command, TIMEOUT_SECONDS)  # it has no input, so it never gets to ask
    except subprocess.TimeoutExpired:
        raise IntegrityError(
            f"model-signing did not finish within {TIMEOUT_SECONDS} s",
            "an answer",
            "check the folder with the program model_signing itself",
        ) from None
    if done.returncode == 0:
        return None
    out, said = (stream.decode("utf-8", "replace").strip() for stream in (done.stdout, done.stderr))
    if "No module named" in said:
        # model-signing 1.1.1 does not declare that it needs pyOpenSSL.
        raise SpecError(
            f"model-signing does not start ({printable(said[-200:])})",
            "model-signing and pyOpenSSL",
            _INSTALL,
        )
    last = (said or out).rpartition("failed with error:")[2]
    return " ".join("".join(c if c.isprintable() else " " for c in last).split())


def _program() -> list[str]:
    """Returns how to start model-signing: this Python's own, or the program on the path."""
    if importlib.util.find_spec(_MODULE) is not None:
        # -P: the working folder may be the bundle, and no Python in it may run.
        return [sys.executable, "-P", "-m", _MODULE]
    program = shutil.which(_MODULE)
    if program is None:
        raise SpecError(
            "signatures need model-signing, which is not installed", "the extra 'sign'", _INSTALL
        )
    return [program]


def _said(path: Path) -> str:
    return printable(str(path))
