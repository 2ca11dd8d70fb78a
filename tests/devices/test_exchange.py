"""Runners that misbehave in every way, as real processes."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest
from processes import eventually

from edgekit.devices.exchange import LINE_LIMIT_BYTES, OUTPUT_LIMIT_BYTES, exchange
from edgekit.errors import DeviceError, EdgekitError, IntegrityError
from edgekit.runtimes.base import printable

GOOD = '{"kind":"done","runtime":"r 1","count":1}'


def runner(script: str) -> list[str]:
    """Returns a command whose process runs `script`; GOOD is a valid last line."""
    head = f"import os, signal, sys, time\nGOOD = {GOOD!r}\nsay = lambda t: print(t, flush=True)\n"
    return [sys.executable, "-c", head + script]


def test_a_good_runner_is_heard() -> None:
    heard: list[float] = []
    script = 'say(\'{"kind":"progress","progress":0.25}\'); say(GOOD)'
    done = exchange(runner(script), "m", 30, heard.append)
    assert (done.runtime, done.count, heard) == ("r 1", 1, [0.25])


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL"])
def test_crash(name: str) -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"say(GOOD); os.kill(os.getpid(), signal.{name})"
    )
    with pytest.raises(IntegrityError, match=rf"runtime crashed \({name}\)") as caught:
        exchange(runner(script), "m", 30)
    assert caught.value.exit_code == 6


def test_killed_from_outside_is_no_crash_of_the_model() -> None:
    with pytest.raises(DeviceError, match="SIGKILL"):
        exchange(runner("os.kill(os.getpid(), signal.SIGKILL)"), "m", 30)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("say('hello')", "said 'hello'"),
        ("say('\\x1b[31mred')", r"said '\[31mred'"),
        ('say(\'{"kind":"progress","progress":NaN}\')', "runner said"),
        ('say(\'{"kind":"progress","progress":-1}\')', "runner said"),
        ('say(\'{"kind":"progress","progress":"1"}\')', "runner said"),
        ("say(GOOD.replace(':1}', ':-1}'))", "runner said"),
        ("say(GOOD.replace('kind', 'sort'))", "runner said"),
        ("say(GOOD[:-1] + ',\"more\":1}')", "runner said"),
        ("say(GOOD); say(GOOD)", "went on after its last line"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "runner said"),
        ("pass", "ended with code 0 and no result"),
        ("sys.stdout.write(GOOD)", "ended with code 0 and no result"),
        ("say(GOOD); sys.exit(3)", "ended with code 3"),
        ("raise RuntimeError('no \\x1b[2J space left')", r"RuntimeError: no \[2J space left"),
    ],
)
def test_garbage(script: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        exchange(runner(script), "m", 30)


def test_endless_output_is_cut_off() -> None:
    with pytest.raises(DeviceError, match=f"lines up to {LINE_LIMIT_BYTES} bytes"):
        exchange(runner("while True: sys.stdout.write('x' * 4096)"), "m", 60)
    line = '{"kind":"progress","progress":0.5}'
    with pytest.raises(DeviceError, match=f"{OUTPUT_LIMIT_BYTES} in all"):
        exchange(runner(f"while True: sys.stdout.write({line!r} + '\\n')"), "m", 60)


def test_a_flood_of_messages_on_stderr_is_no_trouble() -> None:
    script = "sys.stderr.write('x' * 3_000_000); say(GOOD)"
    assert exchange(runner(script), "m", 60).count == 1


@pytest.mark.parametrize("script", ["time.sleep(600)", "say(GOOD); os.close(1); time.sleep(600)"])
def test_hang(script: str) -> None:
    with pytest.raises(DeviceError, match="no answer after 1 s"):
        exchange(runner(script), "m", 1)


def test_interrupt_ends_the_runner_and_its_children(tmp_path: Path) -> None:
    """Both hold a lock on one file; it becomes free only when the last of them is gone."""
    lock = tmp_path / "lock"
    script = (
        "import fcntl, subprocess\n"
        f"lock = open({str(lock)!r}, 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "subprocess.Popen(\n"
        "    [sys.executable, '-c', 'import time; time.sleep(600)'], pass_fds=[lock.fileno()]\n"
        ")\n"
        'say(\'{"kind":"progress","progress":0}\')\n'
        "time.sleep(600)"
    )

    def interrupt(fraction: float) -> None:
        assert not _free(lock)
        raise KeyboardInterrupt(fraction)

    with pytest.raises(KeyboardInterrupt):
        exchange(runner(script), "m", 60, interrupt)
    assert eventually(lambda: _free(lock))


def _free(lock: Path) -> bool:
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("kind", ["IntegrityError", "DeviceError", "SpecError", "DataError"])
def test_reported_errors_keep_their_kind_and_lose_their_escapes(kind: str) -> None:
    line = (
        f'{{"kind":"failure","error":"{kind}","received":"bad\\\\u001b[2J",'
        '"expected":"good","remedy":"fix"}'
    )
    with pytest.raises(EdgekitError) as caught:
        exchange(runner(f"say('{line}')"), "m", 30)
    assert type(caught.value).__name__ == kind
    assert caught.value.received == "bad [2J"


def test_printable_keeps_one_short_line() -> None:
    assert printable("a\x1b[31m\nb\u202e\x00c") == "a [31m b c"
    assert printable("x" * 300) == "x" * 300
    long = printable(f"first{'x' * 10_000}No space left on device")
    assert len(long) <= 300
    assert long.startswith("first")
    assert long.endswith("No space left on device")


def test_signals_reach_no_further_than_the_runner() -> None:
    """A runner that signals its own group must not take edgekit with it."""
    reached: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: reached.append(number))
    try:
        with pytest.raises(DeviceError, match="SIGTERM"):
            exchange(runner("os.killpg(os.getpgrp(), signal.SIGTERM)"), "m", 30)
        assert reached == []
        os.kill(os.getpid(), signal.SIGTERM)  # the twin
        assert reached == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
