"""edgekit's clock against others, and how far its verdicts can be relied on.

    python tests/benchmarks/timing.py --tflite FILE --onnx FILE
    python tests/benchmarks/timing.py --tflite FILE --onnx FILE --verdicts 20

The first compares, in turns and with the same threads: the median of edgekit's sessions, of
`litert-benchmark` (from the LiteRT wheel, JSON result) and of a bare loop over onnxruntime's
`InferenceSession.run`, and prints ratios. What edgekit adds to each query is timed with a runtime
that does nothing.

The second judges the TFLite file again and again against budgets 30 % and 10 % above and below its
true value, on the machine as it is and with processes that keep every core busy, and counts PASS,
MISS and INCONCLUSIVE. The true value is the median over the idle sessions of the percentile that
decides.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from edgekit.devices.measure import Pace, Timing, time_sessions
from edgekit.devices.protocol import Subject
from edgekit.records import Preprocess, Status
from edgekit.runner.model import Model
from edgekit.runner.onnx_runtime import exact_arithmetic
from edgekit.runner.program import sample
from edgekit.runtimes.base import RUNTIME_OF_FORMAT
from edgekit.runtimes.inspect import inspect_model, model_format
from edgekit.store import file_digest
from edgekit.validate.latency import summarize
from edgekit.validate.verdict import check_latency

PERCENTILE = 90
BUDGETS = (1.3, 1.1, 0.9, 0.7)
BARE_LOOP = """
import sys, time
import numpy as np
import onnxruntime as ort
path, threads, seconds, *option = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = int(threads)
options.inter_op_num_threads = 1
options.add_session_config_entry(*option)
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
asked = session.get_inputs()[0]
picture = np.random.default_rng(1).random([1, *asked.shape[1:]], np.float32)
for _ in range(50):
    session.run(None, {asked.name: picture})
samples, end = [], time.perf_counter() + float(seconds)
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    session.run(None, {asked.name: picture})
    samples.append(time.perf_counter_ns() - start)
print(np.median(samples) / 1e6)
"""


def main() -> None:
    """Runs one of the two comparisons and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tflite", type=Path, required=True, help="a TFLite classifier")
    parser.add_argument("--onnx", type=Path, required=True, help="an ONNX one with float32 input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=10, help="how often each takes its turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed part of each turn")
    parser.add_argument("--verdicts", type=int, metavar="N", help="judge N times instead")
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="busy processes beside")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subjects = {
            file_format: subject(path, Path(scratch), options.threads)
            for file_format, path in (("tflite", options.tflite), ("onnx", options.onnx))
        }
        if options.verdicts:
            count_verdicts(subjects["tflite"], options)
        else:
            compare_medians(subjects, options, Path(scratch))


def subject(path: Path, scratch: Path, threads: int) -> Subject:
    """Returns a file with noise as its pictures; times do not depend on what they show."""
    height, width = inspect_model(path).inputs[0].shape[1:3]
    images = scratch / f"{path.name}.npy"
    np.save(images, np.random.default_rng(1).integers(0, 256, (8, height, width, 3), np.uint8))
    return Subject(
        model=path,
        sha256=file_digest(path),
        runtime=RUNTIME_OF_FORMAT[model_format(path)],
        threads=threads,
        images=images,
        preprocess=Preprocess(height_px=height, width_px=width),
    )


def compare_medians(
    subjects: dict[str, Subject], options: argparse.Namespace, scratch: Path
) -> None:
    """Prints medians taken in turns, their ratios, and what edgekit adds to a query."""
    pace = Pace(0.5, 50, options.seconds)
    ours: dict[str, list[float]] = {file_format: [] for file_format in subjects}
    theirs: dict[str, list[float]] = {file_format: [] for file_format in subjects}
    caveats: dict[str, set[str]] = {file_format: set() for file_format in subjects}
    for turn in range(options.turns):
        for file_format, asked in subjects.items():

            def own(file_format: str = file_format, asked: Subject = asked) -> None:
                (timing,) = time_sessions([asked], 1, pace)
                ours[file_format].append(float(np.median(timing.sessions[0].samples_ms)))
                caveats[file_format].add(summarize(timing.sessions, 50, "", "").caveat)

            def other(file_format: str = file_format, asked: Subject = asked) -> None:
                taken = (
                    litert_benchmark(asked, options, scratch, ours[file_format][0])
                    if file_format == "tflite"
                    else bare_loop(asked, options)
                )
                theirs[file_format].append(taken)

            # Who goes first alternates, or a machine that gets slower would favour one of them.
            for step in (own, other) if turn % 2 == 0 else (other, own):
                step()
    names = {"tflite": "litert-benchmark", "onnx": "a bare loop over onnxruntime"}
    for file_format, name in names.items():
        mine, other_times = np.array(ours[file_format]), np.array(theirs[file_format])
        ratios = mine / other_times
        print(
            f"{file_format}: edgekit {np.median(mine):.4f} ms, {name} {np.median(other_times):.4f} "
            f"ms; ratio of the medians {np.median(mine) / np.median(other_times):.3f}, turn by "
            f"turn {ratios.min():.3f} to {ratios.max():.3f}, {options.threads} threads, "
            f"{options.turns} turns"
        )
        for caveat in sorted(caveats[file_format] - {""}):
            print(f"  a turn of edgekit's: {caveat}")
    print(f"edgekit adds {1000 * overhead_ms():.2f} microseconds to a query")


def litert_benchmark(
    asked: Subject, options: argparse.Namespace, scratch: Path, call_ms: float
) -> float:
    """Returns the median of one run of LiteRT's own benchmark, in milliseconds.

    It takes a number of calls, not of seconds; `call_ms` says about how long one lasts.
    """
    result = scratch / "litert.json"
    result.unlink(missing_ok=True)
    program = Path(sys.executable).with_name("litert-benchmark")
    runs = max(50, round(1000 * options.seconds / call_ms))
    command = [
        program, f"--model={asked.model}", f"--num_threads={options.threads}",
        f"--num_runs={runs}", "--warmup_runs=50", f"--result_json={result}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads(result.read_text())["latency"]["median_ms"])


def bare_loop(asked: Subject, options: argparse.Namespace) -> float:
    """Returns the median of a plain loop in a fresh process, in milliseconds."""
    command = [
        sys.executable, "-c", BARE_LOOP, asked.model, str(options.threads), str(options.seconds),
        *exact_arithmetic(),
    ]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def overhead_ms() -> float:
    """Returns the median time of a query that does nothing, in milliseconds."""
    nothing = np.zeros(10, np.float32)
    model = Model("float32", (1, 8, 8, 3), "float32", 10, "nothing", lambda picture: nothing)
    job = {"min_queries": 20_000, "min_seconds": 0.0}
    samples = sample(model, [np.zeros((1, 8, 8, 3), np.float32)], job, lambda fraction: None)
    return float(np.median(samples)) / 1e6


def count_verdicts(asked: Subject, options: argparse.Namespace) -> None:
    """Prints how often each budget was judged how, idle and loaded."""
    pace = Pace(0.5, 200, options.seconds)
    idle = [judge_once(asked, pace) for _ in range(options.verdicts)]
    quantiles = [
        value
        for timing in idle
        for value in summarize(timing.sessions, PERCENTILE, "", "").session_percentile_ms
    ]
    true_ms = float(np.median(quantiles))
    print(f"true value: p{PERCENTILE} {true_ms:.3f} ms, the median of {len(quantiles)} sessions")
    show("idle", idle, true_ms)
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)
    ]
    try:
        time.sleep(1.0)
        loaded = [judge_once(asked, pace) for _ in range(options.verdicts)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    show(f"{options.load} busy processes beside it", loaded, true_ms)


def judge_once(asked: Subject, pace: Pace) -> Timing:
    """Returns five fresh sessions."""
    return time_sessions([asked], 5, pace)[0]


def show(state: str, timings: list[Timing], true_ms: float) -> None:
    """Prints one line for each budget."""
    for factor in BUDGETS:
        counts: Counter[Status] = Counter()
        for timing in timings:
            latency = summarize(timing.sessions, PERCENTILE, "here", timing.runtime)
            counts[check_latency(latency, factor * true_ms).status] += 1
        wrong = counts[Status.MISS if factor > 1 else Status.PASS]
        print(
            f"{state}: budget {factor:.1f} x the true value: {counts[Status.PASS]} PASS, "
            f"{counts[Status.MISS]} MISS, {counts[Status.INCONCLUSIVE]} INCONCLUSIVE; "
            f"{wrong} of {len(timings)} wrong"
        )


if __name__ == "__main__":
    main()
