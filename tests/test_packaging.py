"""Bundles of a finished run: what was judged is what ships, and every change is found."""

import io
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageOps

pytest.importorskip("tensorflow")

import crafted_bundles
from other_pictures import draw_other
from small_run import edgekit, run, write_recipe

from edgekit.cli import execute
from edgekit.demo.pictures import make_pictures
from edgekit.demo.recipe import WEIGHTS
from edgekit.errors import IntegrityError, SpecError
from edgekit.package.archive import read_folder
from edgekit.package.manifest import read_manifest
from edgekit.package.templates import verify as verify_script
from edgekit.package.verification import verify
from edgekit.packaging import Packaged, Wanted, package
from edgekit.records import RunReport
from edgekit.store import file_digest
from edgekit.target import load_target, target_text

KINDS = {"host-litert": "linux", "host-onnxruntime": "linux", "pixel-8": "android",
         "cortex-m7": "micro"}  # fmt: skip


# Who took the pictures and where, in their files and in the name of the folder.
SECRET = "ada-lovelace"


def told(picture: Path) -> None:
    """Writes EXIF with a place and an owner into a JPEG, and a comment."""
    exif = Image.Exif()
    exif[0x013B] = SECRET  # artist
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 28.0, 38.0)})  # GPS
    content, block, comment = picture.read_bytes(), exif.tobytes(), SECRET.encode()
    parts = [(0xE1, block), (0xFE, comment)]
    segments = [struct.pack(">BBH", 0xFF, m, len(data) + 2) + data for m, data in parts]
    picture.write_bytes(content[:2] + b"".join(segments) + content[2:])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(SECRET)
    make_pictures(
        folder / "pictures", train_per_class=20, validation_per_class=8, test_per_class=20,
        size_px=64, workers=1,
    )  # fmt: skip
    draw_other(folder / "other", 80)
    for picture in (*(folder / "pictures").rglob("*.jpg"), *(folder / "other").rglob("*.jpg")):
        told(picture)
    recipe = write_recipe(folder / "recipe.toml", folder / "pictures", qat_epochs=0)
    (folder / "board.toml").write_text(target_text("host-litert").replace("host-litert", "board"))
    recipe.write_text(recipe.read_text().replace("targets = [", 'targets = ["board.toml", '))
    other = ("--other", str(folder / "other"))
    done = run(recipe, folder / "out", "--latency-budget-ms", "5000", *other)
    assert done.returncode in (0, 4, 5), done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def made(finished: Path) -> dict[str, Packaged]:
    return {target: package(Wanted(finished, target, allow_miss=True), print) for target in KINDS}


def test_every_bundle_is_the_judged_file_with_its_proof(
    finished: Path, made: dict[str, Packaged]
) -> None:
    report = json.loads((finished / "report.json").read_text())
    judged = {v["target"]: v for v in report["validation"]["verdicts"]}
    for target, kind in KINDS.items():
        bundle = made[target]
        manifest = bundle.manifest
        assert manifest.kind == kind
        assert manifest.judged_sha256 == judged[target]["artifact_sha256"]
        assert manifest.verdict.model_dump(mode="json") == judged[target]
        found = verify(bundle.archive)
        assert found.manifest == verify(bundle.folder).manifest == manifest
        assert "level_a PASS" in found.goldens
        assert "level_b PASS" in found.goldens
        for name in ("MODEL_CARD.md", "sbom.cdx.json", "provenance.json", "verify.py",
                     "goldens/goldens.json", "labels.txt"):  # fmt: skip
            assert name in manifest.files
        dependencies = json.loads((bundle.folder / "provenance.json").read_text())["predicate"][
            "buildDefinition"
        ]["resolvedDependencies"]
        digests = {item["name"]: item.get("digest") for item in dependencies}
        assert digests["weights"] == {"sha256": file_digest(WEIGHTS)}
        goldens = json.loads((bundle.folder / "goldens" / "goldens.json").read_text())["goldens"]
        assert sum(item["picture"] is not None for item in goldens) >= 16
        assert {"all_zero", "all_255", "gradient"} <= {item["name"] for item in goldens}


def test_a_bundle_does_not_tell_who_made_it_nor_where(
    finished: Path, made: dict[str, Packaged]
) -> None:
    done = edgekit("package", str(finished), "--for", "pixel-8", "--allow-miss")
    assert done.returncode == 0, done.stderr
    own = (finished / "report.json").read_text()
    private = [SECRET, str(finished), str(WEIGHTS.parent)]
    assert all(word in own for word in private)  # the twin: the user's own report tells
    for bundle in made.values():
        with zipfile.ZipFile(bundle.archive) as opened:
            content = {info.filename: opened.read(info) for info in opened.infolist()}
        for word in (*private, f"{platform.release()}, {platform.node()}"):
            found = [path for path, data in content.items() if word.encode() in data]
            assert found == [], word
        assert f"{platform.machine()}, {platform.system()} {platform.release()}" in (
            content["MODEL_CARD.md"].decode().replace("\\", "")
        )
        pictures = [path for path in content if path.startswith("goldens/images/")]
        assert len(pictures) >= 16
        for path in pictures:
            exif = Image.open(io.BytesIO(content[path])).getexif()
            assert dict(exif) == ({0x0112: 6} if "turned" in path else {})
        originals = {path.read_bytes() for path in (finished.parent / "pictures").rglob("*.jpg")}
        assert all(SECRET.encode() in data and b"Exif" in data for data in originals)
        assert not originals & {content[path] for path in pictures}


def test_the_same_run_makes_the_same_bytes_anywhere(
    finished: Path, made: dict[str, Packaged], tmp_path: Path
) -> None:
    code = "import os, sys; os.umask(0o077); from edgekit.__main__ import main; sys.exit(main())"
    command = [
        sys.executable, "-c", code, "package", str(finished), "--for", "host-litert", "--out",
        str(tmp_path / "elsewhere"), "--allow-miss",
    ]  # fmt: skip
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    other = tmp_path / "elsewhere" / "host-litert.zip"
    # By digest: pytest would explain a difference of megabytes for minutes.
    assert file_digest(other) == made["host-litert"].sha256
    # The twin: without pictures it is another bundle.
    fewer = package(Wanted(finished, "host-litert", tmp_path, with_images=False, allow_miss=True),
                    print)  # fmt: skip
    assert fewer.sha256 != made["host-litert"].sha256
    assert not (fewer.folder / "goldens" / "images").exists()
    assert "level_a PASS" in verify(fewer.folder).goldens


def test_a_bundle_without_pictures_left_says_so(finished: Path, tmp_path: Path) -> None:
    pictures, away = finished.parent / "pictures", finished.parent / "away"
    pictures.rename(away)
    said: list[str] = []
    try:
        made = package(Wanted(finished, "host-litert", tmp_path, allow_miss=True), said.append)
    finally:
        away.rename(pictures)
    assert any(line.startswith("host-litert: 0 golden pictures, where 16") for line in said)
    assert "level_a PASS" in verify(made.folder).goldens
    # The twin: with the pictures there is nothing to say.
    said.clear()
    package(Wanted(finished, "host-litert", tmp_path, allow_miss=True), said.append)
    assert not said


def flip(folder: Path, path: str) -> None:
    content = bytearray((folder / path).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / path).write_bytes(bytes(content))


def relist(folder: Path) -> None:
    """Writes the digests of the files as they are now, as somebody would who forges a bundle."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for path, content in crafted_bundles.sealed(files).items():
        (folder / path).write_bytes(content)


def swap_labels(folder: Path) -> None:
    names = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("\n".join([names[1], names[0], *names[2:]]) + "\n")
    relist(folder)


def swap_goldens(folder: Path) -> None:
    content = (folder / "goldens" / "outputs.bin").read_bytes()
    (folder / "goldens" / "outputs.bin").write_bytes(content[::-1])
    relist(folder)


CHANGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda folder: flip(folder, "model.tflite"), r"model\.tflite: SHA-256"),
    (lambda folder: flip(folder, "labels.txt"), r"labels\.txt: SHA-256"),
    (lambda folder: flip(folder, "verify.py"), r"verify\.py: SHA-256"),
    (lambda folder: (folder / "MODEL_CARD.md").unlink(), r"MODEL_CARD\.md is missing"),
    (lambda folder: (folder / "more.txt").write_text("x"), r"more\.txt is not listed"),
    (lambda folder: (folder / "manifest.json").unlink(), r"without manifest\.json"),
    (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json, "),
    (swap_labels, "labels"),
    (swap_goldens, "level_a"),
)


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_every_change_is_found(
    made: dict[str, Packaged], tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(made["host-litert"].folder, folder)
    verify(folder)
    change(folder)
    with pytest.raises(IntegrityError, match=said):
        verify(folder)


def unpacked(content: bytes, folder: Path) -> Path:
    """Writes the files of a zip file into a folder, as its user would."""
    for path, data in crafted_bundles.unpacked(content).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def executed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs the command line in this process; returns its exit code and all that it printed."""
    code = execute(arguments)
    said = capsys.readouterr()
    assert not set(said.out + said.err) & {"\x1b", "\x07"}
    return code, said.out + said.err


def test_the_twin_what_the_alterations_start_from_passes(
    made: dict[str, Packaged], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = made["host-litert"].archive.read_bytes()
    files = crafted_bundles.unpacked(content)
    assert crafted_bundles.zipped(crafted_bundles.sealed(files)) == content
    for bundle in (made["host-litert"].archive, unpacked(content, tmp_path / "bundle")):
        code, said = executed(capsys, "verify", str(bundle))
        assert code == 0
        assert "claims PASS" in said
        assert "signature: none, and nothing else protects the manifest itself" in said
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bundle" / "verify.py")],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "claims    PASS" in done.stdout


@pytest.mark.timeout(60, func_only=True)  # it took minutes
@pytest.mark.parametrize(("name", "change"), crafted_bundles.FILE_ALTERATIONS)
def test_altered_files_are_refused_by_the_bundles_own_program(
    made: dict[str, Packaged], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str,
    change: crafted_bundles.Alteration,
) -> None:  # fmt: skip
    content = change(made["host-litert"].archive.read_bytes())
    folder = unpacked(content, tmp_path / "bundle")
    code = verify_script.main([str(folder)])
    assert "\x1b" not in capfd.readouterr().out
    assert code == 6 or name in crafted_bundles.ONLY_EDGEKIT


QUICK = {*crafted_bundles.ONLY_EDGEKIT, "goldens: none, and nothing in their files",
         "goldens: 20,000 times the same", "goldens: a tolerance of 1e9 steps",
         "manifest: another target", "manifest: another title", "manifest: another class",
         "manifest: another kind", "model: a bit of a weight"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *crafted_bundles.ZIP_ALTERATIONS,
        *(
            pytest.param(name, change, marks=[] if name in QUICK else pytest.mark.slow)
            for name, change in crafted_bundles.FILE_ALTERATIONS
        ),
    ],
)
def test_an_altered_bundle_is_refused(
    made: dict[str, Packaged], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str,
    change: crafted_bundles.Alteration,
) -> None:  # fmt: skip
    (tmp_path / "a.zip").write_bytes(change(made["host-litert"].archive.read_bytes()))
    code, said = executed(capsys, "verify", str(tmp_path / "a.zip"))
    assert (code, "error:" in said) == (6, True), name


ONNX = [
    (("class_names", 0, "nothing"), "edgekit.labels"),
    (("preprocess", "crop", "center"), "edgekit.preprocess"),
    (("output", "name", "other"), "another output"),
]


@pytest.mark.parametrize(("keys", "said"), ONNX)
def test_what_an_onnx_file_says_is_held_too(
    made: dict[str, Packaged], tmp_path: Path, keys: tuple[str, ...], said: str
) -> None:
    files = crafted_bundles.unpacked(made["host-onnxruntime"].archive.read_bytes())
    crafted_bundles.edit(files, "manifest.json", crafted_bundles.put(*keys))
    (tmp_path / "a.zip").write_bytes(crafted_bundles.zipped(files))
    with pytest.raises(IntegrityError, match=said):
        verify(tmp_path / "a.zip")


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_of_a_zip_file_are_refused(
    made: dict[str, Packaged], tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    content = made["cortex-m7"].archive.read_bytes()
    for _ in range(30):
        changed, place = bytearray(content), random.randrange(len(content))
        changed[place] ^= random.randrange(1, 256)
        (tmp_path / "a.zip").write_bytes(changed)
        with pytest.raises(IntegrityError):
            verify(tmp_path / "a.zip")


def test_a_signature_that_nobody_checked_is_said_to_be_that(
    made: dict[str, Packaged], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = crafted_bundles.unpacked(made["host-litert"].archive.read_bytes())
    files["model.sig"] = b"garbage"
    archive = tmp_path / "a.zip"
    archive.write_bytes(crafted_bundles.zipped(files))
    code, said = executed(capsys, "verify", str(archive))
    assert code == 0
    assert "signature: not checked; give the key of whoever made the bundle" in said
    assert json.loads(executed(capsys, "verify", str(archive), "--json")[1])["signature"] == (
        "not checked"
    )
    key = tmp_path / "key.pub"
    key.write_text("no key")
    code, said = executed(capsys, "verify", str(archive), "--public-key", str(key))
    assert code == 6
    assert "model.sig is damaged or no signature" in said


def test_a_signed_bundle_says_by_which_key(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("model_signing")
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make keys")
    key = tmp_path / "key.pem"
    for command in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)],
        ["ec", "-in", str(key), "-pubout", "-out", str(tmp_path / "key.pub")],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60)
    signed = package(
        Wanted(finished, "host-litert", tmp_path, allow_miss=True, private_key=key), print
    )
    capsys.readouterr()
    public = str(tmp_path / "key.pub")
    code, said = executed(capsys, "verify", str(signed.archive), "--public-key", public)
    assert code == 0
    assert f"signature by {public}: verified" in said
    # The twin: a claim that all files agree on, but not the signature.
    files = crafted_bundles.unpacked(signed.archive.read_bytes())
    crafted_bundles.edit(files, "manifest.json", crafted_bundles.put("images", False))
    altered = tmp_path / "altered.zip"
    altered.write_bytes(crafted_bundles.zipped(files))
    code, said = executed(capsys, "verify", str(altered), "--public-key", public)
    assert code == 6
    assert "changed: manifest.json" in said


def test_a_file_that_was_not_judged_is_not_packaged(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    flip(out / "artifacts", "model_int8_uint8_io.tflite")
    with pytest.raises(IntegrityError):
        package(Wanted(out, "host-litert", allow_miss=True), print)
    with pytest.raises(SpecError, match="--for pixel-9"):
        package(Wanted(finished, "pixel-9"), print)
    with pytest.raises(SpecError, match="--name"):
        package(Wanted(finished, "host-litert", name="No Name", allow_miss=True), print)


def test_the_target_is_packaged_as_it_was_judged(finished: Path, tmp_path: Path) -> None:
    board = finished.parent / "board.toml"
    text = board.read_text()
    assert load_target(str(board)).runtime.threads == 1
    board.write_text(text.replace("threads = 1", "threads = 4"))
    try:
        assert load_target(str(board)).runtime.threads == 4  # and so it would be judged from now on
        made = package(Wanted(finished, "board", tmp_path, allow_miss=True), print)
        board.unlink()
        again = package(Wanted(finished, "board", tmp_path / "gone", allow_miss=True), print)
    finally:
        board.write_text(text)
    assert again.sha256 == made.sha256
    contract = (made.folder / "linux" / "cpp" / "contract.h").read_text()
    assert "kThreads = 1;" in contract
    assert "at most 5000 ms" in (made.folder / "MODEL_CARD.md").read_text()  # of the option


def damage_labels(stage: Path) -> None:
    labels = np.load(stage / "test.labels.npy")
    np.save(stage / "test.labels.npy", labels[::-1])


STORE_DAMAGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (damage_labels, "test.labels.npy has sha256"),
    (lambda stage: (stage / "record.json").write_bytes(b""), "record.json cannot be read"),
    (lambda stage: (stage / "record.json").write_bytes(b"[]"), "record.json cannot be read"),
    (lambda stage: (stage / "test.files.json").unlink(), "test.files.json is missing"),
    (lambda stage: fifo(stage / "record.json"), "record.json is not a regular file"),
    (lambda stage: link(stage / "test.labels.npy"), "test.labels.npy cannot be read"),
)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(("damage", "said"), STORE_DAMAGES)
def test_pictures_and_labels_of_goldens_are_verified(
    finished: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (stage,) = (out / ".store" / "data").iterdir()
    damage(stage)
    with pytest.raises(IntegrityError) as caught:
        package(Wanted(out, "host-litert", allow_miss=True), print)
    assert said in caught.value.received


def test_a_damaged_store_is_a_sentence_on_the_command_line(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (stage,) = (out / ".store" / "data").iterdir()
    damage_labels(stage)
    done = edgekit("package", str(out), "--for", "host-litert", "--allow-miss")
    assert done.returncode == 6
    assert "test.labels.npy has sha256" in done.stderr
    assert "run again; what is damaged is made again" in " ".join(done.stderr.split())
    shutil.rmtree(out / ".store")
    done = edgekit("package", str(out), "--for", "host-litert", "--allow-miss")
    assert done.returncode == 2
    assert "the data stage of its report is not in .store" in " ".join(done.stderr.split())


def test_a_picture_that_changed_since_is_no_golden(finished: Path, tmp_path: Path) -> None:
    pictures, away = finished.parent / "pictures", finished.parent / "away"
    shutil.copytree(pictures, away)
    said: list[str] = []
    try:
        for path in filter(Path.is_file, pictures.rglob("*")):
            with Image.open(path) as opened:
                ImageOps.invert(opened.convert("RGB")).save(path)
        package(Wanted(finished, "host-litert", tmp_path, allow_miss=True), said.append)
    finally:
        shutil.rmtree(pictures)
        away.rename(pictures)
    assert any(line.startswith("host-litert: 0 golden pictures, where 16") for line in said)


def test_what_missed_its_budget_is_packaged_only_if_asked(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    report = json.loads((out / "report.json").read_text())
    for verdict in report["validation"]["verdicts"]:
        if verdict["target"] == "pixel-8":
            verdict["status"] = "MISS"
            verdict["checks"][-1]["status"] = "MISS"
    (out / "report.json").write_text(json.dumps(report))
    with pytest.raises(SpecError, match="misses"):
        package(Wanted(out, "pixel-8"), print)
    made = package(Wanted(out, "pixel-8", tmp_path / "b", allow_miss=True), print)
    assert "MISS" in (made.folder / "MODEL_CARD.md").read_text()


PACKAGING = """
import sys
from pathlib import Path
from edgekit.packaging import Wanted, package
run, out = map(Path, sys.argv[1:])
while True:
    package(Wanted(run, "host-litert", out=out, allow_miss=True), lambda line: None)
    print("made", flush=True)
"""


@pytest.mark.slow
def test_a_bundle_is_whole_after_every_kill(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    wanted = Wanted(finished, "host-litert", out=out, allow_miss=True)
    first = package(wanted, print)
    command = [sys.executable, "-c", PACKAGING, str(finished), str(out)]
    random = np.random.default_rng(4)
    for _ in range(30):
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            begun = time.monotonic()  # the first one took longer
            assert process.stdout.readline() == "made\n"
            time.sleep(random.uniform(0, time.monotonic() - begun))
            process.kill()
        assert read_manifest(read_folder(first.folder)) == first.manifest
    subprocess.run(
        [sys.executable, "-m", "edgekit", "package", str(finished), "--for", "host-litert",
         "--out", str(out), "--allow-miss"],
        check=True, capture_output=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert list(temporary.iterdir()) == []
    left = {path.name for path in out.iterdir() if not path.name.startswith(".host-litert.zip.")}
    assert left == {"host-litert", "host-litert.zip"}


def test_answers_count_as_they_did_when_the_file_was_judged(
    finished: Path, made: dict[str, Packaged]
) -> None:
    report = RunReport.model_validate_json((finished / "report.json").read_bytes())
    found = report.validation.other
    assert found is not None
    verdict = next(v for v in report.validation.verdicts if v.target == "host-litert")
    file = found.by_digest[str(verdict.artifact_sha256)]
    pictures = {
        "test": finished.parent / "pictures" / "test",
        "other": finished.parent / "other",
    }
    counts = {}
    for name, folder in pictures.items():
        of_run = edgekit("predict", str(finished), str(folder), "--file", verdict.artifact_path)
        # A file of a package says it by itself.
        packed = edgekit("predict", str(made["host-litert"].folder / "model.tflite"), str(folder))
        assert of_run.stdout == packed.stdout
        counts[name] = [line.split("\t")[3] for line in of_run.stdout.splitlines()]
    assert {*counts["test"]} == {*counts["other"]} | {"accepted"} == {"accepted", "of no class"}
    assert counts["test"].count("accepted") == file.accepted
    assert counts["other"].count("accepted") == file.false_accepts  # too few decide: none of them
    said = found.in_words(next(a for a in report.export.artifacts if a.sha256 in found.by_digest
                               and a.path == verdict.artifact_path))  # fmt: skip
    assert said in (made["host-litert"].folder / "MODEL_CARD.md").read_text().replace("\\", "")


@pytest.mark.slow
def test_another_rate_trains_nothing_anew(finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out", symlinks=True))
    text = (finished.parent / "recipe.toml").read_text()
    recipe = finished.parent / "higher-rate.toml"
    recipe.write_text(text.replace("[data]", "[data]\nfalse_accept_rate = 0.5"))
    done = run(recipe, out, "--other", str(finished.parent / "other"))
    assert done.returncode in (4, 5), done.stderr
    for stage in ("data", "other", "train", "quantize", "export"):
        assert f"{stage}: unchanged, reused" in done.stderr
    assert "validate: done in" in done.stderr
    assert "cannot show" not in done.stderr
    assert re.search(r"no class: .* at most 50.0% was asked", done.stdout.replace("\n", " "))
    assert "## Pictures of no class" in (out / "report.md").read_text()


def test_the_command_line_tells_what_it_made(finished: Path, made: dict[str, Packaged]) -> None:
    archive = str(made["cortex-m7"].archive)
    done = edgekit("verify", archive)
    assert done.returncode == 0, done.stderr
    assert "micro package for cortex-m7" in done.stdout
    assert edgekit("verify", archive, "--require-signature").returncode == 2
    assert edgekit("verify", str(finished / "nothing.zip")).returncode == 2
    shown = json.loads(edgekit("metadata", str(made["host-litert"].folder / "model.tflite")).stdout)
    assert shown["metadata"]["min_parser_version"]
    with zipfile.ZipFile(archive) as opened:
        assert {info.date_time[:3] for info in opened.infolist()} == {(1980, 1, 1)}
