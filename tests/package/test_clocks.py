"""Every package's self-check bridges coarse clocks by the rule of the runner."""

import re
from importlib import resources

import pytest

from edgekit.runner.clock import LONGEST_SAMPLE_SECONDS, SAMPLE_STEPS, TRIES

# Of each self-check: its path, and how it writes the steps of a sample, the longest sample with its
# unit in seconds, and the batches of which the shortest decides.
RULES = {
    "linux/python/selfcheck.py": (
        r"SAMPLE_STEPS = (\d+)", r"LONGEST_SAMPLE_SECONDS = ([\d.]+)", 1, r"BATCH_TRIES = (\d+)"
    ),
    "linux/cpp/selfcheck.cpp": (
        r"kSampleSteps = (\d+)", r"kLongestSampleSeconds = ([\d.]+)", 1, r"kBatchTries = (\d+)"
    ),
    "android/SelfCheck.kt": (
        r"SAMPLE_STEPS = (\d+)", r"LONGEST_SAMPLE_NANOSECONDS = ([\d_]+)L", 1e-9, r"1\.\.(\d+)\)"
    ),
    "ios/SelfCheck.swift": (
        r"sampleSteps: UInt64 = (\d+)", r"longestSampleNanoseconds: UInt64 = ([\d_]+)", 1e-9,
        r"0\.\.<(\d+) \{ shortest",
    ),
    "web/checks.js": (
        r"SAMPLE_STEPS = (\d+)", r"LONGEST_SAMPLE_MS = (\d+)", 1e-3, r"BATCH_TRIES = (\d+)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(RULES))
def test_the_rule_is_that_of_the_runner(name: str) -> None:
    steps, longest, unit, tries = RULES[name]
    text = (resources.files("edgekit.package") / "templates" / name).read_text("utf-8")

    def number(pattern: str) -> float:
        (found,) = re.findall(pattern, text)
        return float(found)

    assert number(steps) == SAMPLE_STEPS
    assert number(longest) * unit == pytest.approx(LONGEST_SAMPLE_SECONDS)
    assert number(tries) == TRIES
