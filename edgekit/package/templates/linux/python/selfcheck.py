"""Proves on this board that the package answers as it did where it was judged, and measures it.

    python3 selfcheck.py                  goldens: takes seconds
    python3 selfcheck.py --data DIR       and accuracy on DIR/<class>/* or DIR/test/<class>/*
    python3 selfcheck.py --latency        and time, in five fresh processes: takes a minute
    python3 selfcheck.py --latency --data DIR --by NAME --json OUT
                                          and writes what `edgekit validate --measurements` reads

There are two levels. On the tensor level the exact input bytes of each golden go in and the raw
output must come out: model, runtime and its kernels. On the picture level the source picture goes
through this package's own preprocessing: decoding, EXIF rotation, crop, resize, channel order and
normalization. Exit code 0: all passed; 1: something failed; 2: asked for what cannot be done.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import classifier as package
import numpy as np
from classifier import CONTRACT, Array, Classifier, PackageError, PictureError
from PIL import Image

SESSIONS = 5
WARMUP_SECONDS = 0.5
MIN_WARMUP_RUNS = 5
MIN_SAMPLES = 200
MAX_SAMPLES = 20_000
# A sample is wrong by up to one step of the clock, here by at most half a percent; calls that are
# shorter are timed in batches. None takes longer than this, whatever the clock.
SAMPLE_STEPS = 200
LONGEST_SAMPLE_SECONDS = 0.25
BATCH_TRIES = 5
# Cores that others may use before a board counts as overloaded.
LOAD_ALLOWANCE = 0.25
# Mean distance of a preprocessed picture from its golden, in steps of 8-bit pixels. Another JPEG
# decoder differs by some tenths; another resize filter or channel order by more than this.
MAX_DISTANCE = 1.0
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
PERCENTILES = (50, 90, 95, 99)
_CPU = Path("/sys/devices/system/cpu")
_ORIENTATION = 0x0112


class Goldens:
    """The goldens of the bundle.

    Raises:
        PackageError: If they are missing, cut short or of another model.
    """

    def __init__(self, labels: list[str]) -> None:
        file = package.find("goldens/goldens.json")
        try:
            self.facts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self.entries: list[dict[str, Any]] = self.facts["goldens"]
            names = self.facts["labels"]
            inputs = (file.parent / "inputs.bin").read_bytes()
            outputs = (file.parent / "outputs.bin").read_bytes()
            shape = (1, *(CONTRACT[key] for key in ("height_px", "width_px", "input_channels")))
            self.inputs = [
                _part(inputs, e["input_offset"], e["input_bytes"], CONTRACT["input_dtype"], shape)
                for e in self.entries
            ]
            self.outputs = [
                _part(outputs, e["output_offset"], e["output_bytes"], CONTRACT["output_dtype"], -1)
                for e in self.entries
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PackageError(
                f"the goldens in {file.parent} cannot be used ({_plain(error)}). Copy the folder "
                "from the bundle again."
            ) from error
        if len(self.entries) != CONTRACT["goldens"]:
            raise PackageError(
                f"{len(self.entries)} goldens are in {file.parent}, {CONTRACT['goldens']} belong "
                "to this package: what they show is not what it was packed with. Copy the folder "
                "from the bundle again."
            )
        if names != labels:
            raise PackageError(
                "labels.txt and goldens.json name other classes or in another order: the files are "
                "of different packages, or one was changed. Copy both from one bundle again."
            )
        self.pictures = file.parent / "images"


def _plain(text: object) -> str:
    """Returns text of a file without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _part(content: bytes, offset: int, size: int, dtype: str, shape: Any) -> Array:
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(content[offset : offset + size], little).astype(dtype).reshape(shape)


def check_tensors(classifier: Classifier, goldens: Goldens) -> list[str]:
    """Returns what failed on the tensor level: exact inputs against raw outputs."""
    exact = np.issubdtype(np.dtype(CONTRACT["output_dtype"]), np.integer)
    failures = []
    worst = 0.0
    for entry, tensor, wanted in zip(goldens.entries, goldens.inputs, goldens.outputs):
        raw = classifier.run(tensor)
        apart = np.abs(raw.astype(np.float64) - wanted.astype(np.float64)).max()
        steps = CONTRACT["tolerance_steps"]
        share = CONTRACT["tolerance_share"] * np.abs(wanted.astype(np.float64)).max()
        allowed = float(steps if exact else share)
        worst = max(worst, float(apart))
        if not apart <= allowed:
            failures.append(f"{entry['name']}: an output is {apart:g} off, {allowed:g} allowed")
        if int(wanted.argmax()) != entry["answer"]:
            failures.append(f"{entry['name']}: its answer is not the highest of its outputs")
        if entry["accepted"] not in (None, classifier.accepts(raw)):
            said = "does not count, but must" if entry["accepted"] else "counts, but must not"
            failures.append(f"{entry['name']}: its answer {said}")
    if not failures:
        count = len(goldens.entries)
        print(f"ok    tensor level: {count} goldens, largest difference of an output {worst:g}")
    return failures


def check_pictures(classifier: Classifier, goldens: Goldens) -> list[str]:
    """Returns what failed on the picture level: source pictures through our preprocessing."""
    failures: list[str] = []
    worst, checked, turned = 0.0, 0, False
    scale = np.abs(np.array(CONTRACT["scale"][: CONTRACT["input_channels"]]))
    unit = (CONTRACT["input_scale"] or 1.0) / scale
    for entry, wanted in zip(goldens.entries, goldens.inputs):
        if entry["picture"] is None:
            continue
        name, checked = entry["name"], checked + 1
        try:
            content = package.read(goldens.pictures / entry["picture"])
            tensor = classifier.preprocess(content)
            turned = turned or _check_turn(content, name, failures)
        except PictureError as error:
            failures.append(f"{name}: {error}")
            continue
        apart = float((np.abs(tensor.astype(np.float64) - wanted) * unit).mean())
        answer = int(classifier.run(tensor).argmax())
        worst = max(worst, apart)
        if answer != entry["answer"]:
            failures.append(
                f"{name}: answered {classifier.labels[answer]!r}, not "
                f"{classifier.labels[entry['answer']]!r}; pixels are {apart:.2f} of 255 off"
            )
        elif not apart <= MAX_DISTANCE:
            failures.append(f"{name}: pixels are {apart:.2f} of 255 off, {MAX_DISTANCE} allowed")
    if not checked:
        print("--    picture level: not checked, the bundle holds no pictures")
    elif not failures:
        print(f"ok    picture level: {checked} pictures, at most {worst:.2f} of 255 off on average")
    return failures


def _check_turn(content: bytes, name: str, failures: list[str]) -> bool:
    """Checks one upright JPEG as if a camera had been turned; returns False for other pictures."""
    original = Image.open(io.BytesIO(content))
    if original.format != "JPEG" or "exif" in original.info:
        return False
    # TIFF header, one directory of one entry: orientation, SHORT, one value, 6.
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, 6, 0, 0)
    segment = b"Exif\0\0" + tiff
    marked = content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    upright = package.decode(content).transpose(Image.Transpose.ROTATE_270)
    if package.decode(marked).tobytes() != upright.tobytes():
        failures.append(f"{name}: marked as taken with a turned camera, it is not turned upright")
    return True


def check(classifier: Classifier, goldens: Goldens) -> bool:
    """Prints the outcome of both levels; returns whether they passed."""
    tensors = check_tensors(classifier, goldens)
    _explain(
        "tensor level",
        tensors,
        f"The exact input bytes went in, so no picture handling is involved. Look at the runtime "
        f"({classifier.runtime} {classifier.runtime_version}) and its kernels, and whether "
        "goldens/ belongs to this model: verify.py at the top of the bundle tells.",
    )
    pictures = check_pictures(classifier, goldens)
    _explain(
        "picture level",
        pictures,
        "Correct the tensor level first: its fault shows here, too."
        if tensors
        else "The tensor level passed, so model and runtime are right. Look at the preprocessing "
        "in classifier.py: resize, crop, channel order (RGB or BGR), EXIF rotation, normalization.",
    )
    return not tensors and not pictures


def _explain(level: str, failures: list[str], advice: str) -> None:
    if failures:
        print(f"FAIL  {level}: {len(failures)} failures")
        for failure in failures[:5]:
            print(f"      {_plain(failure)}")
        print(f"      {advice}")


def answer_folder(classifier: Classifier, root: Path) -> list[dict[str, Any]]:
    """Answers every picture of a folder with one folder per class and prints the accuracy.

    Raises:
        PackageError: If there is no picture of any class of the model.
    """
    split = (root / "train").is_dir() and (root / "test").is_dir()
    known = {unicodedata.normalize("NFC", label): label for label in classifier.labels}
    answers, correct = [], 0
    for folder in sorted(path for path in (root / "test" if split else root).glob("*")):
        label = known.get(unicodedata.normalize("NFC", folder.name))
        if label is None or not folder.is_dir():
            continue
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            try:
                content = package.read(path)
                raw = classifier.run(classifier.preprocess(content))
            except PictureError as error:
                print(f"--    {_plain(path)}: left out, {_plain(error)}")
                continue
            best = int(raw.argmax())
            correct += classifier.labels[best] == label
            answers.append(
                {
                    "file": path.relative_to(root).as_posix(),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "answer": classifier.labels[best],
                    "score": float(classifier.scores(raw)[best]),
                }
            )
    if not answers:
        raise PackageError(
            f"{root} holds no usable picture of any class of the model: lay it out as "
            "DIR/<class>/picture.jpg, with the names in labels.txt"
        )
    print(f"ok    accuracy: {100 * correct / len(answers):.1f} % of {len(answers)} pictures")
    return answers


def time_sessions(threads: int, seconds: float) -> tuple[list[dict[str, Any]], int | None]:
    """Times the model in fresh processes; returns the sessions and the most memory, in bytes.

    Raises:
        PackageError: If one of them fails.
    """
    sessions, memory = [], []
    command = [sys.executable, str(Path(__file__).resolve()), "--session", str(seconds)]
    for _ in range(SESSIONS):
        try:
            done = subprocess.run(  # noqa: S603 - this very program
                [*command, "--threads", str(threads)],
                stdout=subprocess.PIPE,
                timeout=20 * seconds + 300,
                check=True,
            )
            found = json.loads(done.stdout.decode().splitlines()[-1])
        except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
            raise PackageError(f"a process that measures time failed: {error}") from error
        memory.append(found.pop("memory_bytes"))
        sessions.append(found)
    samples = np.concatenate([session["samples_ms"] for session in sessions])
    shown = ", ".join(f"p{p} {np.percentile(samples, p):.3g}" for p in PERCENTILES)
    said = [f"{len(samples)} samples in {SESSIONS} fresh processes"]
    most = max(session["calls_per_sample"] for session in sessions)
    if most > 1:
        said.append(f"each the mean of up to {most} calls, in which single slow ones do not show")
    cores = os.cpu_count() or 1
    load = max(session["load"] or 0.0 for session in sessions)
    if load > cores + LOAD_ALLOWANCE:
        said.append(f"disturbed: load {load:.1f} on {cores} cores")
    print(f"ok    latency: {shown} ms; {'; '.join(said)}")
    return sessions, None if None in memory else max(memory)


def session(threads: int, seconds: float) -> dict[str, Any]:
    """Returns one session: times of calls and what the board did meanwhile."""
    before_memory = _reset_peak_memory()
    classifier = Classifier(threads)
    tensors = Goldens(classifier.labels).inputs
    start, warmup = time.perf_counter(), 0
    while warmup < MIN_WARMUP_RUNS or time.perf_counter() - start < WARMUP_SECONDS:
        classifier.run(tensors[warmup % len(tensors)])
        warmup += 1
    gc.collect()
    gc.disable()  # a collection inside a sample would be Python's time
    clock, run = time.perf_counter_ns, classifier.run

    def timed_ns(first: int, count: int) -> int:
        inputs = [tensors[number % len(tensors)] for number in range(first, first + count)]
        started = clock()
        for tensor in inputs:
            run(tensor)
        return clock() - started

    step = _clock_step_ns()
    calls, made = _calls_per_sample(timed_ns, step)
    before = _look()
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < MAX_SAMPLES:
        if len(samples) >= MIN_SAMPLES and time.perf_counter() - begin >= seconds:
            break
        samples.append(timed_ns(len(samples) * calls, calls) / (1e6 * calls))
    after = _look()
    peak = _memory("VmHWM")
    grown = None if before_memory is None or peak is None else peak - before_memory
    return {
        "samples_ms": samples,
        "fresh_process": True,
        "warmup_runs": warmup + made,
        "clock_step_ms": step / 1e6,
        "calls_per_sample": calls,
        "load": _load(before, after, threads),
        "context_switches": after["switches"] - before["switches"],
        "governor": _text(_CPU / "cpu0" / "cpufreq" / "scaling_governor"),
        "frequency_before_khz": before["frequency"],
        "frequency_after_khz": after["frequency"],
        "temperature_before_c": before["temperature"],
        "temperature_after_c": after["temperature"],
        "memory_bytes": grown if grown is not None and grown > 0 else None,
    }


def _clock_step_ns() -> int:
    """Returns the least by which the clock moves from one reading to the next.

    Raises:
        PackageError: If it does not.
    """
    readings = [time.perf_counter_ns() for _ in range(1000)]
    end = time.monotonic() + 10
    while readings[0] == readings[-1] and time.monotonic() < end:
        readings.append(time.perf_counter_ns())
    steps = [after - before for before, after in zip(readings, readings[1:]) if after > before]
    if not steps:
        raise PackageError("the clock of this board stands still: check the board")
    return min(steps)


def _calls_per_sample(timed_ns: Callable[[int, int], int], step: int) -> tuple[int, int]:
    """Returns how many calls span enough steps of the clock, and how many were made to find out."""
    calls, made = 1, 0
    while True:
        # The shortest decides: one that is interrupted must not end the search.
        shortest = min(timed_ns(made + calls * number, calls) for number in range(BATCH_TRIES))
        made += BATCH_TRIES * calls
        if shortest >= SAMPLE_STEPS * step or 2 * shortest > 1e9 * LONGEST_SAMPLE_SECONDS:
            return calls, made
        calls *= 2


def _look() -> dict[str, Any]:
    """Returns what the kernel says right now; None for what it does not."""
    own = os.times()
    heat = _numbers(Path("/sys/class/thermal"), "thermal_zone*/temp")
    return {
        "wall": time.monotonic(),
        "own": own.user + own.system,
        "busy": _busy_seconds(),
        "switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        "frequency": max(_numbers(_CPU, "cpu[0-9]*/cpufreq/scaling_cur_freq"), default=None),
        "temperature": max((t / 1000 for t in heat if -50_000 < t < 200_000), default=None),
    }


def _load(before: dict[str, Any], after: dict[str, Any], threads: int) -> float | None:
    """Returns the cores in demand: own threads and the cores that others kept busy."""
    if before["busy"] is None or after["busy"] is None:
        return None
    others = (after["busy"] - before["busy"]) - (after["own"] - before["own"])
    return float(threads + max(0.0, others) / max(after["wall"] - before["wall"], 1e-9))


def _busy_seconds() -> float | None:
    # Columns of the first line, proc(5): cpu user nice system idle iowait irq softirq steal ...
    fields = (_text(Path("/proc/stat")) or "").split("\n")[0].split()[1:9]
    if len(fields) < 8:
        return None
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _numbers(folder: Path, pattern: str) -> list[int]:
    texts = [_text(path) or "" for path in folder.glob(pattern)]
    return [int(text) for text in texts if text.removeprefix("-").isdecimal()]


def _reset_peak_memory() -> int | None:
    """Starts a new peak of this process's memory: proc(5), /proc/pid/clear_refs."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(field: str) -> int | None:
    for line in (_text(Path("/proc/self/status")) or "").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return None


def _device() -> str:
    words = _text(Path("/proc/device-tree/model"))
    if not words:
        lines = (_text(Path("/proc/cpuinfo")) or "").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        words = names[0] if names else "Linux board"
    return f"{words}, {platform.machine()}"[:200]


def _system() -> str:
    lines = (_text(Path("/etc/os-release")) or "").splitlines()
    names = [line[12:].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return f"{names[0] if names else 'Linux'}, kernel {platform.release()}"[:200]


def measurements(
    classifier: Classifier, by: str, emulated: bool, found: dict[str, Any]
) -> dict[str, Any]:
    """Returns what `edgekit validate --measurements` reads."""
    own_kernels = classifier.runtime == "LiteRT" and CONTRACT["delegate"] != "none"
    return {
        "edgekit_measurements": 1,
        "sha256": CONTRACT["sha256"],
        "by": by,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": _device(),
        "os": _system(),
        "cores": os.cpu_count() or 1,
        "runtime": classifier.runtime,
        "runtime_version": classifier.runtime_version,
        "threads": classifier.threads,
        "delegate": "XNNPACK" if own_kernels else None,
        "emulated": emulated,
        **found,
    }


def write_ppm(goldens: Goldens, folder: Path) -> None:
    """Writes the golden pictures, decoded as in training, as the program in C++ reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in goldens.entries:
        if entry["picture"] is not None:
            content = package.read(goldens.pictures / entry["picture"])
            decoded = package.decode(content, package.least_px())
            decoded.save(folder / f"{entry['name']}.ppm")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Proves and measures the package on this board.")
    parser.add_argument("--data", type=Path, metavar="DIR", help="pictures as DIR/<class>/*")
    parser.add_argument("--latency", action="store_true", help="measure time")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="a process (10)")
    parser.add_argument("--threads", type=int, default=CONTRACT["threads"], metavar="N")
    parser.add_argument("--emulated", action="store_true", help="this is an emulator")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was measured")
    parser.add_argument("--by", metavar="NAME", help="who measured; with --json")
    parser.add_argument("--write-ppm", type=Path, metavar="DIR", help="golden pictures for cpp/")
    parser.add_argument("--session", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.json and not (asked.by and (asked.latency or asked.data)):
        parser.error("--json needs --by NAME and something to write: --latency, --data DIR or both")
    return asked


def main() -> int:
    """Checks, measures and writes what was asked for; returns the exit code."""
    asked = _arguments()
    for stream in (sys.stdout, sys.stderr):  # labels and paths can hold what a terminal cannot
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if asked.session is not None:
            print(json.dumps(session(asked.threads, asked.session)))
            return 0
        classifier = Classifier(asked.threads)
        goldens = Goldens(classifier.labels)
        print(f"ok    files: {CONTRACT['model']} is the judged one, labels.txt belongs to it")
        if asked.write_ppm:
            write_ppm(goldens, asked.write_ppm)
        if not check(classifier, goldens):
            return 1
        found: dict[str, Any] = {}
        if asked.data:
            found["accuracy"] = answer_folder(classifier, asked.data)
        if asked.latency:
            found["latency"], found["memory_peak_bytes"] = time_sessions(
                asked.threads, asked.seconds
            )
        if asked.json:
            written = measurements(classifier, asked.by, asked.emulated, found)
            asked.json.write_text(json.dumps(written), encoding="utf-8")
            print(f"ok    written: {asked.json}")
    except (PackageError, OSError) as error:
        print(f"FAIL  {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
