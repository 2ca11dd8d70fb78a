"""Children end with their parent, however that one ends; several of them compute for it."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import alive, eventually
from work_apart import kill_itself, refuse_odd, square

from edgekit.errors import DataError, DeviceError
from edgekit.processes import apart, end, run, start

SLEEP = "import time; time.sleep(600)"
# Starts a child, and lives until it is killed.
FAMILY = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, "
FAMILY += f"flush=True); {SLEEP}"


def descendants(root: int) -> list[int]:
    """Returns the living processes below a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return [pid for pid in found if alive(pid)]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_program_ends_as_it_ended() -> None:
    done = run(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"), 30)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        code = f"import os; os.kill(os.getpid(), {number.value})"
        assert run(python(code), 30).returncode == -number


def test_a_program_gets_its_folder_its_environment_and_the_usual_signals(tmp_path: Path) -> None:
    command = ("sh", "-c", "pwd; echo $MINE; grep SigIgn /proc/self/status; cat")
    environment = {"MINE": "a\nb", "PATH": os.environ["PATH"]}
    done = run(command, 30, folder=tmp_path, environment=environment)
    # Whoever starts the tests may have signals ignored.
    usual = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert done.stdout == usual.stdout
    assert done.stdout.decode().splitlines()[:2] == [str(tmp_path), "a b"]


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        start(("no-such-program",))
    assert missing.value.filename == "no-such-program"
    text = tmp_path / "text"
    text.write_text("no program")
    with pytest.raises(PermissionError):
        start((str(text),))
    text.chmod(0o755)
    done = run((str(text),), 30)
    assert (done.returncode, done.stderr) == (127, f"{text}: Exec format error\n".encode())


def test_too_long_a_program_is_ended_with_its_children() -> None:
    process = start(python(FAMILY))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert alive(child)
    end(process)
    assert not alive(process.pid)
    assert eventually(lambda: not alive(child))
    with pytest.raises(subprocess.TimeoutExpired):
        run(python(SLEEP), 0.3)
    assert descendants(os.getpid()) == []


PARENT = """
import subprocess, sys
from edgekit.processes import start
process = {start}
print(int(process.stdout.readline()), process.pid, flush=True)
sys.stdin.read()
"""


def orphans(starting: str) -> list[int]:
    """Kills a process that has started a family of two, and returns the two."""
    parent = subprocess.Popen(
        python(PARENT.format(start=starting.format(command=python(FAMILY)))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    family = [int(word) for word in parent.stdout.readline().split()]
    assert all(map(alive, family))
    parent.kill()
    parent.communicate()
    return family


def test_children_and_their_children_die_with_a_killed_parent() -> None:
    family = orphans("start({command})")
    assert eventually(lambda: not any(map(alive, family)), 5)


def test_the_twin_children_that_are_started_otherwise_live_on() -> None:
    family = orphans("subprocess.Popen({command}, stdout=subprocess.PIPE)")
    time.sleep(0.5)
    assert all(map(alive, family))
    for pid in family:
        os.kill(pid, signal.SIGKILL)


def test_results_come_in_the_order_of_the_values() -> None:
    before = descendants(os.getpid())
    with apart(square, range(20), 3) as squares:
        assert eventually(lambda: len(descendants(os.getpid())) == len(before) + 6)  # watched
        assert list(squares) == [value**2 for value in range(20)]
    assert descendants(os.getpid()) == before
    with apart(square, (), 3) as squares:
        assert list(squares) == []


def test_the_error_of_the_first_value_that_failed_is_raised() -> None:
    with apart(refuse_odd, [0, 2, 4, 5, 6, 7], 2) as values:
        assert [next(values) for _ in range(3)] == [0, 2, 4]
        with pytest.raises(DataError, match=r"^5\n") as caught:
            next(values)
    assert "refuse_odd" in caught.value.__notes__[0]
    assert caught.value.remedy == "double it"


def test_what_is_left_is_not_waited_for() -> None:
    started = time.monotonic()
    with apart(functools.partial(time.sleep), [0.0, 600.0, 600.0], 2) as sleeping:
        assert next(sleeping) is None
    assert time.monotonic() - started < 30
    assert descendants(os.getpid()) == []


def test_a_killed_worker_is_told() -> None:
    with apart(kill_itself, [1, 2], 2) as values, pytest.raises(DeviceError) as caught:
        next(values)
    assert caught.value.received == "a worker process of edgekit was ended from outside (SIGKILL)"
    assert "memory" in caught.value.remedy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of pictures, more than two workers take at once."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, level in (("dark", 0), ("light", 120)):
        (folder / name).mkdir()
        for number in range(110):
            noise = level + random.integers(0, 130, (160, 160, 3))
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{number}.jpg")
    return folder


def test_a_run_that_is_killed_while_it_decodes_leaves_no_process(
    pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    command = [
        *(sys.executable, "-m", "edgekit", "run", "--data", str(pictures), "--weights", "none"),
        *("--alpha", "0.35", "--input-size", "96", "--until", "data", "--out", str(tmp_path / "o")),
    ]
    below: list[int] = []

    def decoding() -> bool:
        below[:] = descendants(process.pid)
        return len(below) >= 2

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert eventually(decoding, 60)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, below)), 5)
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "o").iterdir()] == [".store"]


SCRIPT = """
from pathlib import Path
from edgekit.pipeline import Telling, run
from edgekit.recipe import default_recipe
print("started")
recipe = default_recipe(Path({pictures!r}))
recipe = recipe.model_copy(
    update={{"model": recipe.model.model_copy(update={{"weights": "none", "input_size_px": 32}})}}
)
telling = Telling(print, lambda what, done, total: None)
run(recipe, (), Path({out!r}), command=("script",), until="data", telling=telling)
"""


def test_a_script_needs_no_guard_around_what_it_does(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(pictures=str(pictures), out=str(tmp_path / "out")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("started") == 1
    assert "data: 2 classes" in done.stdout
