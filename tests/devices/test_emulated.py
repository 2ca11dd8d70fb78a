"""Real arm64 kernels in a real emulator answer as this machine's do; an altered file does not.

The arm64 folder is prepared once for each machine, in the cache folder a user would have.
"""

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_models import SIZE, colour_images, digest, mean_tflite, quantized_onnx
from tiny_network import Exported, Untyped
from tiny_wheels import wheel

from edgekit.devices import emulated
from edgekit.devices.emulated import EmulatedPlace, find, prepare, reach
from edgekit.devices.exchange import exchange
from edgekit.devices.measure import answer
from edgekit.devices.place import Place
from edgekit.devices.protocol import Done, Subject
from edgekit.errors import DeviceError, IntegrityError, SpecError
from edgekit.folders import cache_folder
from edgekit.records import Preprocess
from edgekit.runtimes import RuntimeName

pytestmark = pytest.mark.proves(
    "emulated: arm64 Linux", "emulation: the real arm64 wheels on qemu-user; answers only"
)

IMAGES = 120
LIMIT_BYTES = 10_000_000
Codes = npt.NDArray[np.generic]

# Answers every image of a job, as the runner does, and says so in its last line.
ANSWERER = """\
import json, sys
import numpy as np

job = json.load(open(sys.argv[1]))
content = open(job["model"], "rb").read()
if job["runtime"] == "litert":
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(model_content=content, num_threads=job["threads"])
    model.allocate_tensors()
    entry, end = model.get_input_details()[0], model.get_output_details()[0]["index"]
    dtype = np.dtype(entry["dtype"])

    def run(tensor):
        model.set_tensor(entry["index"], tensor)
        model.invoke()
        return model.get_tensor(end).reshape(-1)
else:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 3
    model = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    entry = model.get_inputs()[0]
    names = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}
    dtype = np.dtype(names[entry.type])

    def run(tensor):
        return model.run(None, {entry.name: tensor})[0].reshape(-1)

images = np.load(job["images"])
if dtype == np.float32:
    tensors = images.astype(np.float32) / 128 - 1
else:
    tensors = (images.astype(np.int16) - (128 if dtype == np.int8 else 0)).astype(dtype)
answers = np.stack([run(tensor[None]) for tensor in tensors])
np.save(job["results"], answers)
print(json.dumps({"kind": "done", "runtime": "any", "count": len(answers)}))
"""


def lacking(reason: str) -> None:
    """Skips a test, but fails in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def root() -> Path:
    for program in ("apt-get", "dpkg-deb", emulated.EMULATOR):
        if shutil.which(program) is None:
            lacking(f"needs {program}")
    try:
        return prepare(cache_folder(), lambda _line: None)
    except DeviceError as err:
        lacking(f"arm64 Linux could not be prepared: {err}")
        raise


@pytest.fixture
def place(root: Path) -> Iterator[EmulatedPlace]:
    with reach(root) as reached:
        yield reached


def run(place: Place, folder: Path, program: str, job: object = None, seconds: float = 60) -> Done:
    """Runs a program's text in the place with a job."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = place.command(place.put(folder / "program.py"), place.put(folder / "job.json"))
    return exchange(command, "a test", seconds, environment=place.environment())


def saying(expression: str, before: str = "") -> str:
    """Returns a program that answers with the value of an expression, as text."""
    return (
        f"import json, sys\n{before}\n"
        f"said = str({expression})\n"
        "print(json.dumps({'kind': 'done', 'runtime': said, 'count': 0}))\n"
    )


def answers_there(
    place: Place, folder: Path, model: Path, runtime: RuntimeName, images: Path, threads: int = 1
) -> Codes:
    results = place.path("answers.npy")
    job = {
        "model": place.put(model),
        "images": place.put(images),
        "runtime": runtime,
        "threads": threads,
        "results": results,
    }
    done = run(place, folder, ANSWERER, job, 250)
    place.get(results, folder / "answers.npy", LIMIT_BYTES)
    assert not Path(results).exists()
    answers: Codes = np.load(folder / "answers.npy")
    assert done.count == len(answers)
    return answers


def answers_here(
    model: Path, runtime: RuntimeName, images: Path, pixels: Preprocess | None = None
) -> Codes:
    subject = Subject(
        model=model,
        sha256=digest(model),
        runtime=runtime,
        images=images,
        preprocess=pixels or Preprocess(height_px=SIZE, width_px=SIZE),
    )
    return answer(subject, 120).raw


def units_apart(left: Codes, right: Codes) -> int:
    """Returns the largest distance in units of the last place of the codes."""
    return int(np.abs(left.astype(np.int64) - right.astype(np.int64)).max())


def altered(model: Path, old: bytes, new: bytes) -> Path:
    """Returns a copy of a model with one occurrence of some bytes replaced."""
    content = model.read_bytes()
    assert old in content
    copy = model.with_name(f"altered{model.suffix}")
    copy.write_bytes(content.replace(old, new, 1))
    return copy


def test_what_is_prepared_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is downloaded, nor even looked for."""
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    assert prepare(cache_folder(), said.append) == root
    assert said == []
    names = (root / "contents.txt").read_text(encoding="utf-8")
    assert "libc6_" in names
    assert "onnxruntime-" in names


def copied(root: Path, folder: Path) -> Path:
    """Returns a copy of the prepared folder, its files being the same; alter none in place."""
    copy = folder / root.name
    shutil.copytree(root, copy, symlinks=True, copy_function=link)
    return copy


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def changed(copy: Path) -> str:
    found = max(copy.glob("wheels/ai_edge_litert/*.so"))
    content = bytearray(found.read_bytes())
    content[len(content) // 2] ^= 1
    found.unlink()
    found.write_bytes(content)
    return f"{found.relative_to(copy)} was changed"


def added(copy: Path) -> str:
    (copy / "wheels" / "sitecustomize.py").write_text("import os")
    return "wheels/sitecustomize.py was added"


def removed(copy: Path) -> str:
    (copy / "wheels" / "numpy" / "version.py").unlink()
    return "wheels/numpy/version.py is missing"


def led_elsewhere(copy: Path) -> str:
    found = copy / "usr/lib/aarch64-linux-gnu/libstdc++.so.6"
    found.unlink()
    found.symlink_to("/tmp/libstdc++.so.6")
    return f"{found.relative_to(copy)} was changed"


def unsealed(copy: Path) -> str:
    (copy / emulated.SEAL).unlink()
    return "No such file"


@pytest.mark.slow
@pytest.mark.parametrize("alter", [changed, added, removed, led_elsewhere, unsealed])
def test_a_folder_that_is_not_as_it_was_prepared_is_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alter: Callable[[Path], str]
) -> None:
    """Making it again is begun; without programs it gets no further."""
    monkeypatch.setenv("PATH", "")
    copy = copied(root, tmp_path)
    lines: list[str] = []
    assert prepare(tmp_path, lines.append) == copy  # the twin: the unaltered copy is taken
    assert lines == []
    wrong = alter(copy)
    with pytest.raises(DeviceError, match="no program 'apt-get'"):
        prepare(tmp_path, lines.append)
    (line,) = lines
    assert f"{copy} is not as it was prepared: " in line
    assert wrong in line
    assert list(tmp_path.iterdir()) == []


def test_only_wheels_of_the_listed_content_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip is real, its packages are empty ones; apt brings nothing, so no Python is found."""
    if shutil.which(emulated.EMULATOR) is None:
        lacking(f"needs {emulated.EMULATOR}")
    wheels, cache, programs = tmp_path / "wheels", tmp_path / "cache", tmp_path / "programs"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    lines = [
        f"{name}==1 --hash=sha256:{wheel(wheels, name)}"
        for name in ("numpy", "ai_edge_litert", "onnxruntime")
    ]
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("EDGEKIT_WHEELS", str(tmp_path / "own.txt"))
    (tmp_path / "own.txt").write_text("\n".join(lines))
    with pytest.raises(SpecError, match="no arm64 Python"):
        prepare(cache, lambda _line: None)
    with (wheels / "numpy-1-py3-none-any.whl").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(DeviceError, match=r"Expected sha256 .* Got") as caught:
        prepare(cache, lambda _line: None)
    assert "index serves the published files" in caught.value.remedy
    assert list(cache.iterdir()) == []


def test_without_packages_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("apt-get", "dpkg-deb", emulated.EMULATOR):
        if shutil.which(program) is None:
            lacking(f"needs {program}")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(DeviceError, match="apt-get ended with code 100") as caught:
        prepare(tmp_path, lambda _line: None)
    assert "network" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["apt-get", "qemu-aarch64-static"])
def test_a_missing_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}"
    )
    with pytest.raises(DeviceError, match=f"no program '{program}'") as caught:
        prepare(tmp_path, lambda _line: None)
    assert "install" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_find_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    (usable,) = find()
    assert usable.problem == ""
    assert "cortex-a72" in usable.words
    assert "not prepared" in find(tmp_path)[0].problem
    assert find(emulator="no-such-emulator")[0].problem


def test_the_machine_is_another_and_not_real(place: EmulatedPlace, tmp_path: Path) -> None:
    assert not place.machine.real
    assert place.machine.words.startswith("emulated arm64 (qemu-user ")
    assert ", cortex-a72) on " in place.machine.words
    before = "import os, platform\npart = [l for l in open('/proc/cpuinfo') if 'part' in l]"
    said = run(place, tmp_path, saying("[platform.machine(), os.cpu_count(), part]", before))
    assert said.runtime == "['aarch64', 1, ['CPU part\\t: 0xd08\\n']]"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32"])
def test_litert_answers_as_here_bit_for_bit(
    place: EmulatedPlace, tmp_path: Path, dtype: str
) -> None:
    colour_images(tmp_path / "i.npy", IMAGES)
    model = mean_tflite(tmp_path / "m.tflite", dtype, relu=dtype != "float32")
    there = answers_there(place, tmp_path, model, "litert", tmp_path / "i.npy")
    here = answers_here(model, "litert", tmp_path / "i.npy")
    assert there.shape == (IMAGES, 3)
    np.testing.assert_array_equal(there, here)


def test_litert_with_an_altered_scale_answers_otherwise(
    place: EmulatedPlace, tmp_path: Path
) -> None:
    colour_images(tmp_path / "i.npy", IMAGES)
    model = mean_tflite(tmp_path / "m.tflite")
    other = altered(model, struct.pack("<f", 1 / 128), struct.pack("<f", 1 / 64))
    there = answers_there(place, tmp_path, other, "litert", tmp_path / "i.npy")
    here = answers_here(model, "litert", tmp_path / "i.npy")
    assert units_apart(there, here) > 0


def test_onnxruntime_answers_as_here_bit_for_bit(place: EmulatedPlace, tmp_path: Path) -> None:
    colour_images(tmp_path / "i.npy", IMAGES)
    model = quantized_onnx(tmp_path / "m.onnx")
    here = answers_here(model, "onnxruntime", tmp_path / "i.npy")
    there = answers_there(place, tmp_path, model, "onnxruntime", tmp_path / "i.npy", threads=2)
    assert there.dtype == np.uint8
    np.testing.assert_array_equal(there, here)
    kernel = np.eye(3, dtype=np.int8)[::-1].tobytes()
    other = altered(model, kernel, kernel[:-1] + b"\1")
    there = answers_there(place, tmp_path, other, "onnxruntime", tmp_path / "i.npy")
    assert units_apart(there, here) > 0


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_other_processors_answer_the_same(root: Path, tmp_path: Path, cpu: str) -> None:
    colour_images(tmp_path / "i.npy", 12)
    model = mean_tflite(tmp_path / "m.tflite")
    with reach(root, cpu=cpu) as place:
        assert cpu in place.machine.words
        there = answers_there(place, tmp_path, model, "litert", tmp_path / "i.npy")
    np.testing.assert_array_equal(there, answers_here(model, "litert", tmp_path / "i.npy"))


@pytest.fixture
def many(pictures: Untyped, tmp_path: Path) -> Path:
    """Returns images of the exported network's size: its pictures, then noise."""
    seen = np.array(pictures[0].images[:48])
    size = (IMAGES - len(seen), *seen.shape[1:])
    noise = np.random.default_rng(5).integers(0, 256, size, dtype=np.uint8)
    np.save(tmp_path / "many.npy", np.concatenate([seen, noise]))
    return tmp_path / "many.npy"


@pytest.mark.slow
def test_an_exported_network_on_litert_answers_as_here_bit_for_bit(
    place: EmulatedPlace, tmp_path: Path, exported: Exported, many: Path, contract: Preprocess
) -> None:
    model = tmp_path / "m.tflite"
    content = bytearray((exported.folder / "model_int8_int8_io.tflite").read_bytes())
    model.write_bytes(content)
    here = answers_here(model, "litert", many, contract)
    there = answers_there(place, tmp_path, model, "litert", many)
    assert there.shape[0] == IMAGES
    np.testing.assert_array_equal(there, here)
    content[len(content) // 2] ^= 0x40  # a weight: they fill most of the file
    model.write_bytes(content)
    assert (answers_there(place, tmp_path, model, "litert", many) != here).any()


@pytest.mark.slow
def test_an_exported_network_on_onnxruntime_differs_by_rare_roundings(
    place: EmulatedPlace, tmp_path: Path, exported: Exported, many: Path, contract: Preprocess
) -> None:
    """Its QLinearAdd rounds in fixed point on arm64 and in float32 on x86-64."""
    model = tmp_path / "m.onnx"
    content = bytearray((exported.folder / "model_int8.onnx").read_bytes())
    model.write_bytes(content)
    here = answers_here(model, "onnxruntime", many, contract)
    there = answers_there(place, tmp_path, model, "onnxruntime", many)
    assert there.shape[0] == IMAGES
    step = np.diff(np.unique(here.round(4))).min()  # of the last quantized tensor
    assert np.abs(there - here).max() < 3.5 * step  # 2 were seen
    assert (there == here).mean() > 0.9
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0x40 for byte in content[middle : middle + 64])
    model.write_bytes(content)
    there = answers_there(place, tmp_path, model, "onnxruntime", many)
    assert np.abs(there - here).max() > 3.5 * step
    assert (there == here).mean() < 0.9


def test_a_crash_is_the_models_and_leaves_no_core(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with reach(root) as place, pytest.raises(IntegrityError, match="SIGSEGV"):
            run(place, tmp_path, "import ctypes\nctypes.string_at(8)")
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert list(Path.cwd().iterdir()) == []


def test_an_alarm_ends_a_program_that_hangs_in_native_code(
    place: EmulatedPlace, tmp_path: Path
) -> None:
    program = "import ctypes, signal\nsignal.alarm(1)\nctypes.CDLL(None).sleep(60)"
    with pytest.raises(DeviceError, match="SIGALRM"):
        run(place, tmp_path, program, seconds=120)


def test_memory_is_limited_from_outside(root: Path, tmp_path: Path) -> None:
    """A program's own RLIMIT_AS is accepted and ignored by qemu."""
    asking = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
try:
    said = len(bytearray(2**30))
except MemoryError:
    said = "refused"
"""
    with reach(root, memory_limit_bytes=2**29) as place:
        assert run(place, tmp_path, saying("said", asking)).runtime == "refused"
    with reach(root) as place:
        assert run(place, tmp_path, saying("said", asking)).runtime == str(2**30)


def test_nothing_of_this_process_reaches_the_program(
    place: EmulatedPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "QEMU_STRACE", "ELSEWHERE"):
        monkeypatch.setenv(name, "anything")
    said = run(place, tmp_path, saying("sorted(os.environ)", "import os")).runtime
    assert "PYTHONHOME" in said
    for name in ("STARTUP", "LD_", "QEMU", "ELSEWHERE"):
        assert name not in said


def test_a_file_is_read_from_this_machine_and_not_from_the_prepared_folder(
    root: Path, tmp_path: Path
) -> None:
    """Here is a file of the prepared folder whose path exists on this machine too."""
    decoy = tmp_path / "root"
    decoy.mkdir()
    (decoy / "lib").symlink_to(root / "lib")
    (decoy / "wheels").symlink_to(root / "wheels")
    (decoy / "usr/bin").mkdir(parents=True)
    for shown in ("usr/lib", "usr/bin/python3.11"):
        (decoy / shown).symlink_to(root / shown)
    file = Path("/usr/bin/env")
    (decoy / "usr/bin/env").write_text("of the prepared folder")
    with reach(decoy) as place:
        there = place.put(file)
        read = "import hashlib\nof = lambda p: hashlib.sha256(open(p, 'rb').read()).hexdigest()"
        assert run(place, tmp_path, saying(f"of({there!r})", read)).runtime == digest(file)
        said = run(place, tmp_path, saying(f"of({str(file)!r})", read)).runtime
        assert said == digest(decoy / "usr/bin/env")


def test_nothing_stays_behind(root: Path, tmp_path: Path) -> None:
    before = sorted(path for path in root.rglob("*") if path.is_file())
    folders: list[Path] = []

    def interrupted() -> None:
        with reach(root) as place:
            folders.append(place.folder)
            run(place, tmp_path, saying("0", "import colorsys"))  # has no bytecode so far
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not folders[0].exists()
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before


def test_get_takes_only_a_file_within_the_limit(place: EmulatedPlace, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no result file"):
        place.get(place.path("nothing"), tmp_path / "x", 10)
    Path(place.path("large")).write_bytes(bytes(11))
    with pytest.raises(DeviceError, match="11 bytes"):
        place.get(place.path("large"), tmp_path / "x", 10)
    Path(place.path("link")).symlink_to("/etc/passwd")
    with pytest.raises(DeviceError, match="no result file"):
        place.get(place.path("link"), tmp_path / "x", 10**9)
    assert not (tmp_path / "x").exists()
    place.get(place.path("large"), tmp_path / "x", 11)
    assert (tmp_path / "x").read_bytes() == bytes(11)


def test_put_of_a_missing_file(place: EmulatedPlace, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no such file"):
        place.put(tmp_path / "nothing")


def test_what_cannot_be_reached_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'max'"), reach(root, cpu="max"):
        pass
    with pytest.raises(SpecError, match="no arm64 Python"), reach(tmp_path):
        pass
    with pytest.raises(DeviceError, match="no program"), reach(root, emulator="no-such-emulator"):
        pass
    with pytest.raises(DeviceError, match="--version says"), reach(root, emulator="env"):
        pass
