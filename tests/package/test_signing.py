"""Signatures by the real model-signing: whole bundles pass, every way of tampering is named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from edgekit.errors import EdgekitError, IntegrityError, SpecError
from edgekit.package import signing
from edgekit.package.signing import check_signature, sign

# Where another environment holds it, as pipx would install it.
ENVIRONMENT = Path(os.environ.get("EDGEKIT_SIGN_VENV", "/nowhere"))


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}")
        try:
            signing._program()
        except SpecError:
            absent("needs model-signing and pyOpenSSL: pip install 'edgekit[sign]'")
        if shutil.which("openssl") is None:
            absent("needs openssl to make keys")
        yield


def absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def made_key(path: Path, *kind: str) -> Path:
    command = ["openssl", "genpkey", "-algorithm", *kind, "-out", str(path)]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    return path


def public(key: Path) -> Path:
    path = key.with_suffix(".pub")
    command = ["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(path)]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    return path


EC = ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return made_key(folder / "mine.pem", *EC), made_key(folder / "other.pem", *EC)


def filled(place: Path) -> Path:
    (place / "goldens").mkdir(parents=True)
    (place / "model.tflite").write_bytes(bytes(range(256)) * 9)
    (place / "labels.txt").write_text("cat\ndog\n")
    (place / "goldens" / "it's, a: name.bin").write_bytes(b"\0" * 48)
    return place


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return filled(tmp_path / "bundle -it's [1]")


@pytest.fixture(scope="module")
def signed_once(
    tmp_path_factory: pytest.TempPathFactory, installed: None, keys: tuple[Path, Path]
) -> Path:
    place = filled(tmp_path_factory.mktemp("signed") / "bundle")
    assert sign(place, keys[0]) == place / "model.sig"
    return place


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(signed_once, tmp_path / "a copy's [1]")


def refused(call: Callable[[], object], kind: type[EdgekitError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    said = caught.value.received
    assert not any(word in said for word in ("Traceback", "object at", "Digest(", "b'\\x"))
    return said


def test_what_was_signed_passes(signed: Path, keys: tuple[Path, Path]) -> None:
    check_signature(signed, public(keys[0]))
    # Signing again replaces the signature.
    sign(signed, keys[1])
    check_signature(signed, public(keys[1]))
    # The name of the folder is not part of it.
    moved = signed.rename(signed.with_name("moved"))
    check_signature(moved, public(keys[1]))


def test_a_relative_folder_called_like_an_option(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = signed.rename(signed.with_name("--help"))
    monkeypatch.chdir(moved.parent)
    check_signature(Path("--help"), public(keys[0]))


def _git(bundle: Path) -> None:
    (bundle / ".git").mkdir()
    (bundle / ".git" / "config").write_text("[core]\nfsmonitor = evil")


TAMPERING: list[tuple[Callable[[Path], object], str]] = [
    (lambda b: (b / "labels.txt").write_text("dog\ncat\n"), "changed: labels.txt"),
    (lambda b: (b / "goldens/it's, a: name.bin").write_bytes(b"\1"), "changed: goldens/it's, a:"),
    (lambda b: (b / "labels.txt").unlink(), "missing: labels.txt"),
    (lambda b: (b / "evil.so").write_bytes(b""), "added: evil.so"),
    (_git, "added: .git/config"),
    (lambda b: (b / "labels.txt").rename(b / "Labels.txt"), "added: Labels.txt"),
    (lambda b: (b / "link").symlink_to("labels.txt"), "holds a symbolic link"),
    (lambda b: (b / "link").symlink_to("/etc"), "holds a symbolic link"),
]


@pytest.mark.parametrize(("tamper", "said"), TAMPERING)
def test_tampering_is_named(
    signed: Path, keys: tuple[Path, Path], tamper: Callable[[Path], object], said: str
) -> None:
    tamper(signed)
    assert said in refused(lambda: check_signature(signed, public(keys[0])), IntegrityError)


def test_another_key(signed: Path, keys: tuple[Path, Path]) -> None:
    said = refused(lambda: check_signature(signed, public(keys[1])), IntegrityError)
    assert "was made with another key than" in said


def test_a_signature_that_claims_another_key(signed: Path, keys: tuple[Path, Path]) -> None:
    """The name of the key in a signature is not signed; that it claims the right one is no help."""
    mine = json.loads((signed / "model.sig").read_text())
    sign(signed, keys[1])
    forged = json.loads((signed / "model.sig").read_text())
    forged["verificationMaterial"] = mine["verificationMaterial"]
    (signed / "model.sig").write_text(json.dumps(forged))
    said = refused(lambda: check_signature(signed, public(keys[0])), IntegrityError)
    assert "is not a valid signature by" in said


def test_a_payload_that_was_altered(signed: Path, keys: tuple[Path, Path]) -> None:
    import base64

    form = json.loads((signed / "model.sig").read_text())
    payload = base64.b64decode(form["dsseEnvelope"]["payload"])
    assert b"labels.txt" in payload
    form["dsseEnvelope"]["payload"] = base64.b64encode(
        payload.replace(b"labels.txt", b"Labels.txt")
    ).decode()
    (signed / "model.sig").write_text(json.dumps(form))
    (signed / "labels.txt").rename(signed / "Labels.txt")
    said = refused(lambda: check_signature(signed, public(keys[0])), IntegrityError)
    assert "is not a valid signature by" in said


def test_no_signature(bundle: Path, keys: tuple[Path, Path]) -> None:
    key = public(keys[0])
    assert "is not signed" in refused(lambda: check_signature(bundle, key), IntegrityError)
    (bundle / "model.sig").symlink_to("labels.txt")
    assert "is not signed" in refused(lambda: check_signature(bundle, key), IntegrityError)
    assert "is a symbolic link" in refused(lambda: sign(bundle, keys[0]), IntegrityError)
    assert (bundle / "labels.txt").read_text() == "cat\ndog\n"


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_signature_that_is_none(bundle: Path, keys: tuple[Path, Path], content: bytes) -> None:
    (bundle / "model.sig").write_bytes(content)
    said = refused(lambda: check_signature(bundle, public(keys[0])), IntegrityError)
    assert "is damaged or no signature" in said


def test_a_signature_with_the_right_parts_and_nonsense_in_them(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    nonsense = {"verificationMaterial": 5, "dsseEnvelope": {"payload": "\x1b[2J"}}
    (bundle / "model.sig").write_text(json.dumps(nonsense))
    said = refused(lambda: check_signature(bundle, public(keys[0])), IntegrityError)
    assert "is not a valid signature" in said
    assert "\x1b" not in said


def test_keys_that_cannot_be_used(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no key")
    rsa = made_key(tmp_path / "rsa.pem", "RSA")
    edwards = made_key(tmp_path / "ed.pem", "ED25519")
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(keys[0]), "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(locked)], check=True, timeout=60)
    missing = tmp_path / "none.pem"
    assert "no such key file" in refused(lambda: sign(signed, missing), SpecError)
    assert "no such key file" in refused(lambda: check_signature(signed, missing), SpecError)
    for key in (text, rsa, edwards, public(keys[0])):
        assert "cannot be used to sign" in refused(lambda key=key: sign(signed, key), SpecError)
    assert "protected by a password" in refused(lambda: sign(signed, locked), SpecError)
    assert "cannot be used to check" in refused(lambda: check_signature(signed, text), SpecError)
    check_signature(signed, public(keys[0]))  # none of these replaced the signature


def test_a_folder_with_a_link_is_not_signed(bundle: Path, keys: tuple[Path, Path]) -> None:
    (bundle / "link").symlink_to("/etc/hostname")
    assert "cannot be signed" in refused(lambda: sign(bundle, keys[0]), IntegrityError)
    assert not (bundle / "model.sig").exists()


def test_python_in_the_working_folder_is_not_run(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    here = tmp_path / "here"
    here.mkdir()
    for name in ("model_signing", "json", "click"):
        (here / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.chdir(here)
    python = ENVIRONMENT / "bin" / "python"
    if python.exists():
        monkeypatch.setattr(signing.sys, "executable", str(python))
        monkeypatch.setattr(signing.importlib.util, "find_spec", lambda _name: True)
    check_signature(signed, public(keys[0]))
    assert not marker.exists()
    # The twin: as it is usually started, Python would have run them.
    command = [signing.sys.executable, "-c", "import json"]
    subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert marker.exists()


def test_without_the_extra(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(signing.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError) as caught:
        sign(bundle, keys[0])
    assert "edgekit[sign]" in caught.value.remedy
    # model-signing alone, as its own declared dependencies leave it.
    program = tmp_path / "model_signing"
    program.write_text(f"#!{sys.executable}\nimport no_such_openssl\n")
    program.chmod(0o755)
    with pytest.raises(SpecError) as caught:
        sign(bundle, keys[0])
    assert "no_such_openssl" in caught.value.received
    assert "edgekit[sign]" in caught.value.remedy


def test_a_program_that_hangs(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "model_signing"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setattr(signing, "_program", lambda: [str(program)])
    monkeypatch.setattr(signing, "TIMEOUT_SECONDS", 1)
    assert "did not finish" in refused(lambda: sign(bundle, keys[0]), IntegrityError)
