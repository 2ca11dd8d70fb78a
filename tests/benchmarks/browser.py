"""Files of a finished run in a real browser against the same files on this machine.

    python tests/benchmarks/browser.py --run edgekit-demo
    python tests/benchmarks/browser.py --run edgekit-demo --images 200 --seconds 10 --threads 2

Every exported file with float32 input and output answers test pictures in Chromium (.onnx by ONNX
Runtime Web, .tflite by LiteRT.js) and here (onnxruntime, LiteRT). "agree" is the share of pictures
with the same top-1 class, "equal" the share of scores that are equal bit for bit, "largest" the
largest difference between scores over the largest score. The twin is the same comparison with red
and blue swapped in the browser; it must agree less. Times are medians of one fresh browser or
process each, in turns, one picture per call.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.devices import browser
from edgekit.devices.measure import Pace, answer, time_sessions
from edgekit.devices.protocol import subject_of
from edgekit.folders import cache_folder
from edgekit.records import Artifact, ExportRecord, input_codes
from edgekit.validate.latency import summarize

RUNTIMES: dict[str, browser.Runtime] = {"onnx": "onnxruntime-web", "tflite": "litert-js"}
HEAD = "{:27} {:>7} {:>6} {:>6} {:>8} {:>6} {:>8} {:>8} {:>6}"
ROW = "{:27} {:7d} {:6.1%} {:6.1%} {:8.1e} {:6.1%} {:8.2f} {:8.2f} {:6.2f}"


def main() -> None:
    """Prints one line per file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one timed session")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--browser", help='name or path; "manual" for your own')
    given = parser.parse_args()
    folder = given.run / "artifacts"
    record = ExportRecord.model_validate_json((folder / "artifacts.json").read_bytes())
    packages = browser.prepare(cache_folder(), print)
    pictures = max((given.run / ".store" / "data").glob("*/test.images.npy"))
    with (
        tempfile.TemporaryDirectory() as scratch,
        browser.opened(packages, browser=given.browser, say=print) as window,
    ):
        images, codes = Path(scratch) / "images.npy", Path(scratch) / "codes.npy"
        np.save(images, np.load(pictures, mmap_mode="r")[: given.images])
        np.save(codes, input_codes(record.preprocess, "float32"))
        print(
            HEAD.format(
                "file", "images", "agree", "equal", "largest", "twin", "browser", "here", "ratio"
            )
        )
        agent = ""
        for artifact in record.artifacts:
            if not _fits(artifact):
                continue
            subject = subject_of(artifact, folder, images, record.preprocess, given.threads)
            job = browser.BrowserJob(
                model=subject.model,
                sha256=subject.sha256,
                runtime=RUNTIMES[artifact.format],
                threads=given.threads,
                images=images,
                codes=codes,
                mode="accuracy",
                min_seconds=given.seconds,
            )
            there = window.run(job, 600)
            agent = there.user_agent
            here = answer(subject, 600).raw
            swapped = Path(scratch) / "swapped.npy"
            np.save(swapped, np.ascontiguousarray(np.load(images)[..., ::-1]))
            twin = window.run(replace(job, images=swapped), 600)
            timed = window.run(replace(job, mode="latency"), 600)
            local = time_sessions([subject], 1, Pace(0.5, 200, given.seconds))[0].sessions[0]
            top = here.argmax(axis=1)
            medians = float(np.median(timed.array)), float(np.median(local.samples_ms))
            caveat = summarize([local], 50, "", "").caveat
            print(
                ROW.format(
                    artifact.path,
                    len(here),
                    (there.array.argmax(axis=1) == top).mean(),
                    (there.array == here).mean(),
                    np.abs(there.array - here).max() / np.abs(here).max(),
                    (twin.array.argmax(axis=1) == top).mean(),
                    *medians,
                    medians[0] / medians[1],
                )
                + (f" (here {caveat})" if caveat else ""),
                flush=True,
            )
        print(agent)


def _fits(artifact: Artifact) -> bool:
    """Returns whether a browser runs such a file."""
    ends = (*artifact.inputs, *artifact.outputs)
    return artifact.format in RUNTIMES and all(end.dtype == "float32" for end in ends)


if __name__ == "__main__":
    main()
