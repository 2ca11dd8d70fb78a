"""arm64 Linux, emulated on this machine by qemu-user. Device layer.

The real arm64 kernels of the real aarch64 wheels run here, so accuracy and parity count; time does
not. No root, no container: `prepare` lays out a folder once, `reach` starts its Python from there.
Measured on int8 MobileNetV2: LiteRT answers as on x86-64 bit for bit; onnxruntime rounds a few of
its additions (QLinearAdd) to the other code, which moved up to 6 of 100 answers by up to 4 codes.

qemu redirects absolute paths that exist below its -L folder. That is how the arm64 Python finds its
libraries, and how the runtimes find an ARM-style `/proc/cpuinfo`: shown the one of an x86 machine,
both die of a segmentation fault while they choose their kernels.
"""

import contextlib
import hashlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import limits
from edgekit.devices.exchange import ReportProgress
from edgekit.devices.local import processor
from edgekit.devices.place import Found, Machine, check_size
from edgekit.devices.wheels import PIP_OPTIONS, requirements
from edgekit.errors import DeviceError, SpecError
from edgekit.folders import cache_folder, scratch_folder
from edgekit.processes import run
from edgekit.runtimes.base import printable

EMULATOR = "qemu-aarch64-static"
DEFAULT_CPU = "cortex-a72"

# What Python and the wheels need and no more: without any one of these, one of them does not load.
DEBIAN_PACKAGES = (
    "python3.11-minimal",  # the interpreter
    "libpython3.11-minimal",  # the modules it starts with
    "libpython3.11-stdlib",  # json, ctypes, ...
    "libc6",
    "zlib1g",  # linked into the interpreter
    "libexpat1",  # linked into the interpreter
    "libffi8",  # ctypes, which LiteRT's wheel imports
    "libstdc++6",  # both runtimes
    "libgcc-s1",  # both runtimes
)
MODULES = ("numpy", "ai_edge_litert", "onnxruntime")
PYTHON = "3.11"
# Debian 12 has glibc 2.36; these are the tags up to it that the wheels use (PEP 600).
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

# Loads all that a runner needs. Run once in a new folder, it shows that the folder works and leaves
# the bytecode there: that halves the time of every later start, which is seconds under emulation.
TRIAL = (
    "import hashlib, json, pathlib, resource, signal, tempfile, zipfile, importlib.metadata;"
    "import numpy, onnxruntime, ai_edge_litert.interpreter"
)

# In a prepared folder: what each of its files was when it was finished.
SEAL = "sealed.json"
# Changes the name of prepared folders; for changes that the names and versions above do not show.
LAYOUT = 2

STEP_SECONDS = 900.0
PAGE_BYTES = 65536  # largest page of an arm64 Linux; qemu wants whole pages

# The system's hooks serve the system's own package state, and this one has no other architecture.
APT_CONFIGURATION = """\
#clear APT::Architectures;
APT::Architectures { "arm64"; };
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cpu:
    """What an emulated processor says about itself, as qemu 7.2 emulates it.

    Args:
        part: Its part number. Source: Linux, arch/arm64/include/asm/cputype.h.
        features: Names of its AT_HWCAP bits. Source: Linux, arch/arm64/kernel/cpuinfo.c.
    """

    part: int
    features: str


_ARMV8_0 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
# Those of the Raspberry Pi 3, 4 and 5. qemu's "max" is not here: with qemu 7.2 LiteRT's answers on
# it are wrong, not rounded.
CPUS: Mapping[str, Cpu] = {
    "cortex-a53": Cpu(0xD03, _ARMV8_0),
    "cortex-a72": Cpu(0xD08, _ARMV8_0),
    "cortex-a76": Cpu(0xD0B, f"{_ARMV8_0} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
}


def prepare(folder: Path, say: Say, progress: ReportProgress | None = None) -> Path:
    """Returns a folder with arm64 Python and the runtimes, made there if it is not yet.

    The runtimes have the versions of the running edgekit, and their wheels the digests that
    `wheels.requirements` gives; apt checks the signatures of Debian's packages by the keys of this
    system. A folder that is not as it was prepared, to the last bit, is made again. What is
    unfinished is never left under the final name. Needs a network the first time: about 70 MB of
    downloads.

    Args:
        folder: Where it is kept, such as `cache_folder()`.
        say: Called with a line about what is done; not called if nothing is to do.
        progress: Called with fractions from 0 to 1. Defaults to None.

    Raises:
        DeviceError: If a program, Debian's packages or the wheels are not to be had, or the
            runtimes here have other versions than the wheels that are known.
    """
    wheels = requirements(MODULES)
    target = folder / _name(wheels)
    if target.is_dir():
        wrong = _problem(target)
        if wrong is None:
            return target
        say(f"{target} is not as it was prepared: {printable(wrong)}; it is removed and made again")
        _remove(target)
    apt, dpkg, emulator = _program("apt-get"), _program("dpkg-deb"), _program(EMULATOR)
    say(f"preparing arm64 Linux for the emulator in {target} (once)")
    with _scratch(folder) as scratch:
        root = scratch / "root"
        steps: tuple[Callable[[], None], ...] = (
            lambda: _fetch_packages(apt, scratch),
            lambda: _fetch_wheels(wheels, scratch),
            lambda: _unpack(dpkg, scratch, root),
            lambda: _try_out(emulator, root),
            lambda: _seal(root),
        )
        for done, step in enumerate(steps, start=1):
            step()
            if progress is not None:
                progress(done / len(steps))
        _keep(root, target)
    return target


@contextlib.contextmanager
def reach(
    root: Path,
    *,
    emulator: str = EMULATOR,
    cpu: str = DEFAULT_CPU,
    memory_limit_bytes: int = limits.PROCESS_MEMORY_BYTES,
) -> Iterator["EmulatedPlace"]:
    """Yields the emulated machine; its working folder is gone afterwards.

    Args:
        root: A folder that `prepare` returned.
        emulator: qemu-user for arm64, by name or path. Defaults to "qemu-aarch64-static".
        cpu: One of `CPUS`. Defaults to "cortex-a72".
        memory_limit_bytes: Address space of a program. qemu-user accepts RLIMIT_AS and ignores it,
            so a program cannot limit itself. Defaults to `limits.PROCESS_MEMORY_BYTES`.

    Raises:
        SpecError: If `root` is no prepared folder or `cpu` is not known.
        DeviceError: If the emulator is missing or does not start.
    """
    if cpu not in CPUS:
        raise SpecError(f"emulated processor {cpu!r}", f"one of {', '.join(CPUS)}", "correct it")
    if not _python(root).is_file():
        found = f"{root}: no arm64 Python there"
        raise SpecError(found, "a folder prepared for emulation", "prepare it again")
    program = _program(emulator)
    words = f"emulated arm64 (qemu-user {_version(program)}, {cpu}) on {processor()}"
    with scratch_folder() as named, _no_core_dumps():
        folder = named.resolve()
        for part in ("files", "results", "tmp"):
            (folder / part).mkdir()
        yield EmulatedPlace(
            machine=Machine(words=printable(words), cores=1, real=False),
            folder=folder,
            start=_start(program, root.resolve(), folder / "system", cpu, memory_limit_bytes),
            root=root.resolve(),
        )


def find(folder: Path | None = None, emulator: str = EMULATOR) -> list[Found]:
    """Returns the emulated machine and what is missing before it can be used.

    Args:
        folder: Where prepared folders lie. Defaults to None: `cache_folder()`.
        emulator: As in `reach`.
    """
    words, problem = f"emulated arm64 ({', '.join(CPUS)}) on {processor()}; accuracy only", ""
    try:
        _version(_program(emulator))
        if not ((folder or cache_folder()) / _name(requirements(MODULES))).is_dir():
            problem = "not prepared yet: the first use downloads about 70 MB"
    except DeviceError as err:
        problem = err.remedy
    return [Found("emulated", DEFAULT_CPU, printable(words), problem)]


@dataclass(frozen=True)
class EmulatedPlace:
    """A `Place` on this machine's own files.

    Args:
        machine: What runs.
        folder: Working folder.
        start: Arguments that start Python in the emulator.
        root: The prepared folder.
    """

    machine: Machine
    folder: Path
    start: Sequence[str]
    root: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def put(self, file: Path) -> str:
        """Links a file into the working folder and returns its path there.

        Under its own path qemu would take another file, where the prepared folder has that path.
        """
        source = file.resolve()
        if not source.is_file():
            raise DeviceError(f"{file}: no such file", "a file of this machine", "check its path")
        there = self.folder / "files" / f"{next(self._numbers)}-{source.name}"
        there.symlink_to(source)
        return str(there)

    def path(self, name: str) -> str:
        """Returns the path of a file that does not exist yet, named `name`."""
        return str(self.folder / "results" / name)

    def command(self, program: str, job: str) -> Sequence[str]:
        """Returns arguments that run a Python program with one argument in the emulator."""
        return (*self.start, program, job)

    def environment(self) -> Mapping[str, str]:
        """Returns the whole environment: what this process has would reach qemu and Python."""
        return {
            "HOME": str(self.folder / "tmp"),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",  # the prepared folder stays as it is
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": str(self.root / "wheels"),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    def explain(self, code: int, said: str) -> DeviceError | None:  # noqa: ARG002
        """Returns nothing: what the program says is all there is."""
        return None

    def disturbances(self) -> tuple[str, ...]:
        """Returns nothing: time does not count here."""
        return ()

    def get(self, there: str, here: Path, limit_bytes: int) -> None:
        """Moves a file from the working folder here.

        Raises:
            DeviceError: If there is no such file or it is larger than `limit_bytes`.
        """
        check_size(Path(there), limit_bytes)
        shutil.move(there, here)


def _name(wheels: str) -> str:
    """Returns the name of the prepared folder: whatever goes into it makes it another one."""
    content = (LAYOUT, DEBIAN_PACKAGES, wheels, PYTHON, PLATFORMS, TRIAL)
    return f"arm64-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def _program(name: str) -> str:
    """Returns the path of a program of this machine."""
    path = shutil.which(name)
    if path is None:
        packages = {EMULATOR: "qemu-user-static", "apt-get": "apt", "dpkg-deb": "dpkg"}
        remedy = "correct the emulator's path"
        if name in packages:
            remedy = f"install Debian's package {packages[name]}; other systems: use a container"
        raise DeviceError(f"no program {name!r} on this machine", "that program", remedy)
    return path


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder on the same file system, so that a result can be renamed."""
    try:
        with scratch_folder(folder) as named:
            yield named.resolve()
    except OSError as err:
        found = f"{folder}: {err.strerror or err}"
        raise DeviceError(
            found, "a folder with 500 MB to spare", "free space or its rights"
        ) from err


def _fetch_packages(apt: str, scratch: Path) -> None:
    """Downloads Debian's packages by the system's sources, beside the system's package state."""
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (scratch / part).mkdir(parents=True)
    (scratch / "status").touch()
    configuration = scratch / "apt.conf"
    configuration.write_text(APT_CONFIGURATION, encoding="ascii")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Sandbox::User": "root",  # apt's own user may not enter a user's cache folder
        # Signatures are checked whatever the system's configuration leaves out.
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
        "Dir::State": str(scratch / "state"),
        "Dir::State::status": str(scratch / "status"),
        "Dir::Cache": str(scratch / "cache"),
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    command = (apt, "-q", "-c", str(configuration), *options)
    expected = f"Debian 12's arm64 packages ({', '.join(DEBIAN_PACKAGES)}) in the apt sources"
    remedy = "check the network and that this is Debian 12, or prepare it in such a container"
    _run((*command, "update"), expected, remedy)
    _run((*command, "download", *DEBIAN_PACKAGES), expected, remedy, scratch / "packages")


def _fetch_wheels(wheels: str, scratch: Path) -> None:
    """Downloads the aarch64 wheels; pip refuses a file whose digest is not listed."""
    listed = scratch / "wheels.txt"
    listed.write_text(wheels, encoding="utf-8")
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    _run(
        (
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input"),
            *("--disable-pip-version-check", *PIP_OPTIONS),
            *("--implementation", "cp", "--python-version", PYTHON, *platforms),
            *("--dest", str(scratch / "wheels"), "-r", str(listed)),
        ),
        f"aarch64 wheels of {', '.join(MODULES)} with the listed digests",
        "check the network, and that pip's index serves the published files",
    )


def _unpack(dpkg: str, scratch: Path, root: Path) -> None:
    """Lays out packages and wheels and notes what they were."""
    packages, wheels = (sorted((scratch / part).iterdir()) for part in ("packages", "wheels"))
    root.mkdir()
    for package in packages:
        _run((dpkg, "--extract", str(package), str(root)), "a Debian package", "run it again")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "wheels")
    names = "".join(f"{file.name}\n" for file in (*packages, *wheels))
    (root / "contents.txt").write_text(names, encoding="utf-8")


def _try_out(emulator: str, root: Path) -> None:
    """Starts the new folder's Python once, see `TRIAL`."""
    with reach(root, emulator=emulator) as place:
        writing = {**place.environment(), "PYTHONDONTWRITEBYTECODE": ""}
        expected = "a Python that loads numpy and both runtimes"
        remedy = "report the message above with the version of the emulator"
        _run((*place.start, "-c", TRIAL), expected, remedy, environment=writing)


def _seal(root: Path) -> None:
    """Writes down what every file of a finished folder is, for `_problem`."""
    (root / SEAL).write_text(json.dumps(_state(root), indent=0), encoding="utf-8")


def _problem(root: Path) -> str | None:
    """Returns what a prepared folder has that it had not when it was sealed; None if nothing.

    What runs there is believed to be the runtimes of the wheels. This finds damage, half a removal
    and what another program left there, not somebody who writes the seal, too: the folder is as
    safe as the user's account.
    """
    try:
        sealed = json.loads((root / SEAL).read_bytes())
        now = _state(root)
    except (OSError, ValueError) as err:
        return f"{SEAL}: {err}"
    if sealed == now:
        return None
    if not isinstance(sealed, dict):
        return f"{SEAL}: not what was written there"
    name = min(name for name in {*sealed, *now} if sealed.get(name) != now.get(name))
    how = "is missing" if name not in now else "was added" if name not in sealed else "was changed"
    return f"{name} {how}"


def _state(root: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder but the seal, and where links lead."""
    state = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            within = str(path.relative_to(root))
            if path.is_symlink():
                state[within] = f"link to {path.readlink()}"
            elif path.is_file() and within != SEAL:
                with path.open("rb") as stream:
                    state[within] = hashlib.file_digest(stream, "sha256").hexdigest()
            elif not path.is_dir() and within != SEAL:
                state[within] = "neither file nor folder"
    return state


def _remove(target: Path) -> None:
    """Removes a folder, out of the way of others first.

    Raises:
        DeviceError: If it cannot be removed.
    """
    try:
        with scratch_folder(target.parent) as scratch:
            target.rename(scratch / "root")
    except OSError as err:
        found = f"{target}: {err.strerror or err}"
        raise DeviceError(found, "a folder of this user", "remove it") from err


def _keep(root: Path, target: Path) -> None:
    """Gives a finished folder its name, unless another process was faster."""
    try:
        root.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _run(
    command: Sequence[str],
    expected: str,
    remedy: str,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a program of this machine to its end and returns what it printed.

    Raises:
        DeviceError: If it fails or does not end.
    """
    name = Path(command[0]).name
    try:
        done = run(
            command,
            STEP_SECONDS,
            folder=folder,
            environment={**os.environ, "LC_ALL": "C"} if environment is None else environment,
        )
    except subprocess.TimeoutExpired as err:
        found = f"{name}: no end after {STEP_SECONDS:g} s"
        raise DeviceError(found, expected, remedy) from err
    except OSError as err:
        raise DeviceError(f"{name}: {err.strerror}", expected, remedy) from err
    if done.returncode != 0:
        said = printable(done.stderr.decode("utf-8", "replace").strip()[-300:])
        raise DeviceError(f"{name} ended with code {done.returncode} ({said})", expected, remedy)
    return done.stdout.decode("utf-8", "replace")


def _python(root: Path) -> Path:
    return root / "usr" / "bin" / f"python{PYTHON}"


def _start(
    program: str, root: Path, system: Path, cpu: str, memory_limit_bytes: int
) -> tuple[str, ...]:
    """Makes the folder that qemu redirects to and returns the arguments that start Python."""
    system.mkdir()
    for entry in ("lib", "usr"):
        (system / entry).symlink_to(root / entry)
    for name, text in _facts(cpu).items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    limit = memory_limit_bytes // PAGE_BYTES * PAGE_BYTES
    emulator = (program, "-R", str(limit), "-cpu", cpu, "-L", str(system))
    return (*emulator, str(_python(root)))


def _facts(cpu: str) -> dict[str, str]:
    """Returns the system files that tell the runtimes about the processor."""
    facts = CPUS[cpu]
    about = (
        "processor\t: 0\n"
        f"Features\t: {facts.features}\n"
        "CPU implementer\t: 0x41\n"  # Arm
        "CPU architecture: 8\n"
        "CPU variant\t: 0x0\n"
        f"CPU part\t: {facts.part:#05x}\n"
        "CPU revision\t: 0\n\n"
    )
    cores = {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")}
    return {"proc/cpuinfo": about, **cores}


@contextlib.contextmanager
def _no_core_dumps() -> Iterator[None]:
    """Keeps qemu from leaving the memory of a crashed program, gigabytes, in the current folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def _version(program: str) -> str:
    """Returns the version of qemu: the word behind "version" in its first line."""
    expected = "qemu-user for arm64"
    said = _run((program, "--version"), expected, "install Debian's package qemu-user-static")
    words = said.split()
    if not said.startswith("qemu-aarch64") or "version" not in words[:-1]:
        found = f"{program} --version says {printable(said)!r}"
        raise DeviceError(found, expected, "correct the emulator's path")
    return words[words.index("version") + 1]
