"""A browser on this machine as a device: the same tasks, done by a page. Device layer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.devices import browser
from edgekit.devices.browser_page.packages import prepare
from edgekit.devices.exchange import ReportProgress
from edgekit.devices.local import this_machine
from edgekit.devices.measure import Task
from edgekit.devices.place import Machine
from edgekit.devices.protocol import Done, Surroundings
from edgekit.errors import DeviceError, SpecError
from edgekit.folders import cache_folder, scratch_folder
from edgekit.runner import surroundings
from edgekit.runtimes.base import RuntimeName
from edgekit.runtimes.ends import feed_of

RUNTIMES: dict[RuntimeName, browser.Runtime] = {
    "litert": "litert-js",
    "onnxruntime": "onnxruntime-web",
}


@contextmanager
def reach(program: str | None, say: browser.Say) -> Iterator["BrowserDevice"]:
    """Yields a browser; the packages that its pages need are fetched once.

    Args:
        program: As in `browser.opened`.
        say: Takes lines for the user.

    Raises:
        DeviceError: If there is no browser, or npm or its registry cannot be had the first time.
    """
    with browser.opened(prepare(cache_folder(), say), browser=program, say=say) as window:
        yield BrowserDevice(window)


@dataclass(frozen=True)
class BrowserDevice:
    """A browser that does tasks, each in a fresh page; see `measure.Device`.

    Args:
        window: From `browser.opened`.
    """

    window: browser.Window

    @property
    def machine(self) -> Machine:
        """The browser's program and what it runs on."""
        name = "the browser that was opened" if self.window.program is None else "a browser"
        return Machine(f"{name} on {this_machine()}", None)

    def disturbances(self) -> tuple[str, ...]:
        """Returns that a page which is only loaded again shares its browser with earlier ones."""
        return ("no fresh browser for each session",) if self.window.program is None else ()

    def run(
        self, task: Task, progress: ReportProgress | None
    ) -> tuple[Done, npt.NDArray[np.generic]]:
        """Does one task in a fresh page; see `measure.Device.run`.

        Raises:
            SpecError: If the file does not have float32 input and output.
        """
        subject = task.subject
        if (task.input.dtype, task.output.dtype) != ("float32", "float32"):
            raise SpecError(
                f"{subject.model}: {task.input.dtype} input and {task.output.dtype} output for a "
                "browser",
                "float32 input and output",
                'set artifact.io = "float32" in the target',
            )
        with scratch_folder() as folder:
            codes = folder / "codes.npy"
            np.save(codes, task.codes)
            job = browser.BrowserJob(
                model=subject.model,
                sha256=subject.sha256,
                runtime=RUNTIMES[subject.runtime],
                threads=subject.threads,
                images=subject.images,
                codes=codes,
                mode=task.mode,
                layout=feed_of(task.input).layout,
                output=subject.readout.output,
                warmup_seconds=task.pace.warmup_seconds,
                min_queries=task.pace.min_queries,
                min_seconds=task.pace.min_seconds,
            )
            before = surroundings.look()
            # Only answers are told one by one; a page says nothing while it warms up.
            silence = task.waiting.first_seconds if task.mode == "accuracy" else math.inf
            found = self.window.run(job, task.timeout_seconds, progress, silence)
            after = surroundings.look()
        if task.mode == "latency" and not found.visible:
            raise DeviceError(
                "the page was hidden while it was timed, and browsers slow hidden pages down",
                "a page in front",
                "keep its window and its tab in front, and run it again",
            )
        # Seen from here: a page cannot, and the browser's own work is among what keeps cores busy.
        seen = surroundings.compare(before, after, 0, found.warmup_runs)
        clock = {"clock_step_ms": found.clock_step_ms, "calls_per_sample": found.calls_per_sample}
        timed = task.mode == "latency"
        words = f"{found.runtime}, {found.user_agent}"
        done = Done(
            runtime=words[:200],
            count=len(found.array),
            surroundings=Surroundings.model_validate({**seen, **clock}) if timed else None,
        )
        return done, found.array
