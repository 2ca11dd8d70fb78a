"""The real adb program and its real server, against a phone that is a program of these tests."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from adb_device import Phone, Server, adb_server, installed
from processes import alive, eventually, stopped_at_its_limit

from edgekit.devices import adb
from edgekit.devices.adb import benchmark, find
from edgekit.devices.exchange import exchange
from edgekit.errors import DeviceError, SpecError

pytestmark = pytest.mark.proves(
    "adb: Android devices",
    "protocol only: the real adb client and server, a device made of software",
)

GOOD = '{"kind":"done","runtime":"r 1","count":1}'
# A stand-in for the runner: does what its job file says.
RUNNER = """
import json, os, signal, sys, time
job = json.load(open(sys.argv[1]))
exec(job["script"])
"""
# Lines as a current (percentiles) and an older program print them, with other numbers.
NEW_TEXT = """\
INFO: STARTING!
INFO: Initialized session in 5.5ms.
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate ...
INFO: count=9 first=9100 curr=6000 min=6000 max=9100 avg=6500.5 std=1 p5=6000 median=6001 p95=9100

INFO: Running benchmark for at least 200 iterations and at least 10 seconds but terminate ...
INFO: count=200 first=6100 curr=6000 min=5900 max=1200000 avg=1.25e+04 std=7 p5=5901 median=6002 \
p95=6900

INFO: Inference timings in us: Init: 5500, First inference: 9100, Warmup (avg): 6500.5, \
Inference (avg): 1.25e+04
INFO: Memory footprint delta from the start of the tool (MB): init=6.3 overall=109.8
"""
Reach = Callable[..., AbstractContextManager[adb.Phone]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with adb_server(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def plug(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Phone]]:
    """Returns a function that makes a phone and connects it; adb.FOLDER becomes its folder."""
    phones: list[Phone] = []

    def make(connect: bool = True, **wishes: Any) -> Phone:
        phone = Phone(tmp_path / f"phone{len(phones)}", **wishes)
        phones.append(phone)
        monkeypatch.setattr(adb, "FOLDER", str(phone.folder))
        if connect:
            server.connect(phone)
        return phone

    yield make
    for phone in phones:
        server.adb("disconnect", phone.serial)
        phone.unplug()


@pytest.fixture
def phone(plug: Callable[..., Phone]) -> Phone:
    return plug()


@pytest.fixture
def reach(server: Server) -> Reach:
    def start(**arguments: Any) -> AbstractContextManager[adb.Phone]:
        return adb.reach(server=server.address, **{"say": pytest.fail, **arguments})

    return start


def run(place: adb.Phone, folder: Path, script: str, **more: Any) -> Sequence[str]:
    """Returns the command of a stand-in for the runner, brought there with its job."""
    runner, job = folder / "runner.py", folder / "job.json"
    runner.write_text(RUNNER)
    job.write_text(json.dumps({"script": script, **more}))
    return place.command(place.put(runner), place.put(job))


def python_of(phone: Phone) -> str:
    return str(phone.bin / "python3")


def running(words: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if words.encode() in path.read_bytes():
                return True
    return False


@pytest.mark.parametrize("android", [False, True], ids=["host tools", "mksh and toybox"])
def test_files_there_a_run_and_its_result_back(
    android: bool, plug: Callable[..., Phone], reach: Reach, tmp_path: Path
) -> None:
    phone = plug(android=android)
    heard: list[float] = []
    model = tmp_path / "model.tflite"
    model.write_bytes(os.urandom(300_000))
    with reach(python=python_of(phone), packages=["numpy>=1.2", "ai-edge-litert"]) as place:
        assert place.machine.words == "Maker Edge 1, arm64-v8a, Android 14"
        assert place.machine.cores == len(os.sched_getaffinity(0))
        assert place.machine.real
        there = place.put(model)
        assert there.startswith(f"{phone.folder}/edgekit-")
        sent = [line for line in phone.heard if line.startswith("SEND")]
        assert place.put(shutil.copy(model, tmp_path / "copy.tflite") and model) == there
        assert [line for line in phone.heard if line.startswith("SEND")] == sent
        result = place.path("answers.npy")
        script = (
            'print(\'{"kind":"progress","progress":0.5}\', flush=True)\n'
            "print('chatter', file=sys.stderr)\n"
            "content = open(job['model'], 'rb').read()\n"
            "open(job['result'], 'wb').write(content[::-1])\n"
            f"print('{GOOD}')"
        )
        for _ in range(2):
            command = run(place, tmp_path, script, model=there, result=result)
            done = exchange(command, "m", 60, heard.append, place.environment())
            assert done.runtime == "r 1"
            place.get(result, tmp_path / "here.npy", model.stat().st_size)
            assert (tmp_path / "here.npy").read_bytes() == model.read_bytes()[::-1]
            assert not Path(result).exists()
        assert heard == [0.5, 0.5]
        assert phone.left() == [Path(there).parent.name]
    assert phone.left() == []


def test_an_error_inside_leaves_nothing_there(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content")

    def fail(error: type[BaseException]) -> None:
        with reach() as place:
            place.put(tmp_path / "f")
            assert len(phone.left()) == 1
            raise error

    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error):
            fail(error)
        assert phone.left() == []


def test_exit_code_and_streams_are_those_of_the_program(
    phone: Phone, reach: Reach, tmp_path: Path
) -> None:
    with reach(python=python_of(phone)) as place:
        script = "print('out'); print('err', file=sys.stderr); sys.exit(6)"
        command = run(place, tmp_path, script)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (6, "out\n", "err\n")
        failure = (
            '{"kind":"failure","error":"SpecError","received":"r","expected":"e","remedy":"d"}'
        )
        command = run(place, tmp_path, f"print('{failure}'); sys.exit(2)")
        with pytest.raises(SpecError, match="r"):
            exchange(command, "m", 60)
        with pytest.raises(DeviceError, match=r"runner said '\[31mgarbage'"):
            exchange(run(place, tmp_path, "print('\\x1b[31mgarbage')"), "m", 60)


def test_ending_the_process_here_ends_the_program(
    phone: Phone, reach: Reach, tmp_path: Path
) -> None:
    with reach(python=python_of(phone)) as place:
        note = place.path("pid")
        script = f"open({note!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        stopped_at_its_limit(run(place, tmp_path, script), Path(note))
        pid = int(Path(note).read_text())
        assert eventually(lambda: not alive(pid))


def test_a_program_that_will_not_end_is_killed(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    with reach(python=python_of(phone)) as place:
        note = place.path("pid")
        script = (
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            f"open({note!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        )
        stopped_at_its_limit(run(place, tmp_path, script), Path(note))
        pid = int(Path(note).read_text())
        assert alive(pid)
    assert eventually(lambda: not alive(pid))
    assert phone.left() == []


def test_unplugged_in_the_middle_of_a_run(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    said: list[str] = []
    script = """print('{"kind":"progress","progress":0}', flush=True); time.sleep(600)"""
    with reach(python=python_of(phone), say=said.append) as place:
        # The limit would be told otherwise.
        with pytest.raises(DeviceError, match="no result"):
            exchange(run(place, tmp_path, script), "m", 60, lambda _done: phone.unplug())
        with pytest.raises(DeviceError, match=r"offline|not found"):
            place.disturbances()
    (line,) = said
    assert f"adb -s {phone.serial} shell rm -rf {place.folder}" in line


def test_unplugged_while_a_command_of_its_own_runs(phone: Phone, reach: Reach) -> None:
    # adb ends such a command with code 0, so the code alone would not tell.
    phone.tool("settings", "sleep 30")
    said: list[str] = []
    with reach(say=said.append) as place:
        threading.Timer(1, phone.unplug).start()
        with pytest.raises(DeviceError, match=phone.serial):
            place.disturbances()
    assert len(said) == 1


def test_a_phone_that_does_not_answer(
    phone: Phone, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reach() as place:
        phone.tool("settings", "exec sleep 30")
        monkeypatch.setattr(adb, "SHELL_SECONDS", 1.0)
        with pytest.raises(DeviceError, match="no end after 1 s"):
            place._shell("settings", 1.0)


def test_endless_text_is_cut_off(phone: Phone, reach: Reach) -> None:
    with reach() as place:
        phone.tool("dumpsys", "while :; do echo 0123456789012345678901234567890123456789; done")
        with pytest.raises(DeviceError, match=f"more than {adb.OUTPUT_LIMIT_BYTES} bytes"):
            place.disturbances()


def test_full_phone(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    phone.free_bytes = 1000
    (tmp_path / "small").write_bytes(bytes(1000))
    (tmp_path / "large").write_bytes(bytes(1001))
    with reach() as place:
        place.put(tmp_path / "small")
        with pytest.raises(DeviceError, match="No space left on device") as caught:
            place.put(tmp_path / "large")
        assert "free space on the phone" in caught.value.remedy
    assert phone.left() == []


def test_a_file_damaged_on_its_way(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    with reach() as place:
        phone.damages = True
        with pytest.raises(DeviceError, match="f arrived with another content"):
            place.put(tmp_path / "f")
        phone.damages = False
        place.put(tmp_path / "f")


def test_a_phone_without_sha256sum(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    (phone.bin / "sha256sum").unlink()
    (tmp_path / "f").write_bytes(bytes(10))
    with reach() as place:
        Path(place.path("r")).write_bytes(Path(place.put(tmp_path / "f")).read_bytes())
        place.get(place.path("r"), tmp_path / "here", 10)
    assert (tmp_path / "here").read_bytes() == bytes(10)


def test_results_that_are_missing_or_too_large(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with reach() as place:
        with pytest.raises(DeviceError, match=r"answers\.npy: .*[Nn]o such file"):
            place.get(place.path("answers.npy"), here, 100)
        Path(place.path("r")).write_bytes(bytes(101))
        with pytest.raises(DeviceError, match="more than 100 bytes"):
            place.get(place.path("r"), here, 100)
        assert not [line for line in phone.heard if line.startswith("RECV")]
        assert not Path(place.path("r")).exists()
        Path(place.path("r")).write_bytes(bytes(100))
        phone.endless = True  # says 100 bytes and never stops
        with pytest.raises(DeviceError, match="more than 100 bytes"):
            place.get(place.path("r"), here, 100)
        assert not here.exists()
        phone.endless = False
        Path(place.path("r")).write_bytes(bytes(100))
        place.get(place.path("r"), here, 100)
        assert here.stat().st_size == 100


@pytest.mark.slow
def test_names_never_execute(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    names = ("a b", "'", '"', "$(touch MARK)", "`touch MARK`", "a;touch MARK", "-rf", "*", "a\\")
    with reach(python=python_of(phone)) as place:
        for name in (*names, "&", "ä"):
            here, there = tmp_path / name, place.path(name)
            here.write_text(name)
            assert Path(place.put(here)).read_text() == name
            run(place, tmp_path, "open(sys.argv[1] + 'x', 'w').write(sys.argv[1])")
            shutil.copy(tmp_path / "job.json", there)
            command = place.command(place.put(tmp_path / "runner.py"), there)
            assert subprocess.run(command, check=False).returncode == 0
            assert Path(there + "x").read_text() == there
            here.unlink()
            place.get(there, here, 100)
            assert json.loads(here.read_text())["script"]
            assert not Path(there).exists()
        marks = (tmp_path / "MARK", phone.folder.parent / "MARK", *phone.folder.rglob("MARK"))
        assert not [path for path in marks if path.exists()]
    assert phone.left() == []


def test_names_that_are_paths_are_refused(phone: Phone, reach: Reach) -> None:
    with reach() as place:
        for name in ("", ".", "..", "a/b", "../x", "a\nb", "a\0b", "/etc/passwd"):
            with pytest.raises(SpecError, match="file name"):
                place.path(name)


def test_two_phones(
    plug: Callable[..., Phone], reach: Reach, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = plug(), plug(model="Edge 2 (5G)")
    with pytest.raises(DeviceError, match="2 phones") as caught, reach():
        pass
    for one in (first, second):
        assert one.serial in caught.value.received
    for wish in ({"serial": second.serial}, {"model": "Edge 2 (5G)"}):
        with reach(**wish) as place:
            assert place.serial == second.serial
            assert (second.left(), first.left()) == ([Path(place.folder).name], [])
    with pytest.raises(DeviceError, match="no phone Edge 3 among"), reach(model="Edge 3"):
        pass
    found = {entry.name: (entry.words, entry.problem) for entry in find(server=server.address)}
    assert found[first.serial] == ("Edge 1", "")
    assert found[second.serial][1] == ""


def test_a_phone_that_did_not_accept_this_computer(
    plug: Callable[..., Phone], reach: Reach, server: Server
) -> None:
    phone = plug(connect=False)
    phone.authorized = False
    threading.Thread(target=server.connect, args=(phone,), daemon=True).start()
    assert eventually(lambda: "unauthorized" in server.adb("devices"))
    with pytest.raises(DeviceError, match=f"{phone.serial}: unauthorized") as caught, reach():
        pass
    assert "accept its question about USB debugging" in caught.value.remedy
    (found,) = find(server=server.address)
    assert (found.name, found.problem.partition(":")[0]) == (phone.serial, "unauthorized")


def test_a_phone_that_is_offline(phone: Phone, reach: Reach, server: Server) -> None:
    phone.unplug()
    assert eventually(lambda: "offline" in server.adb("devices"))
    with pytest.raises(DeviceError, match="offline") as caught, reach():
        pass
    assert "plug it in again" in caught.value.remedy
    (found,) = find(server=server.address)
    assert found.problem.startswith("offline: ")


def test_no_phone_and_no_adb(reach: Reach, server: Server) -> None:
    assert eventually(lambda: "\n127" not in server.adb("devices"))
    with pytest.raises(DeviceError, match="no phone is connected"), reach():
        pass
    assert find(server=server.address) == []
    with pytest.raises(DeviceError, match="no program 'no-adb'") as caught, reach(adb="no-adb"):
        pass
    assert "apt-get install adb" in caught.value.remedy
    (found,) = find(adb="no-adb")
    assert "apt-get install adb" in found.problem
    # A program that is not adb is found out as well.
    with pytest.raises(DeviceError, match="adb devices"), reach(adb=installed("true")):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        {"serial": "-x"},
        {"serial": "a b"},
        {"serial": "$(id)"},
        {"serial": ""},
        {"python": "python3"},
        {"python": "/a\nb"},
        {"server": ("-H", 5037)},
        {"server": ("localhost", 0)},
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    installed("adb")
    with pytest.raises(SpecError), adb.reach(**{"say": pytest.fail, **arguments}):
        pass


def test_phones_and_pythons_that_cannot_run_it(
    plug: Callable[..., Phone], reach: Reach, server: Server
) -> None:
    phone = plug()
    with pytest.raises(SpecError, match="no Python"), reach() as place:
        place.command("a", "b")
    without = reach(python="/no/python")
    with pytest.raises(DeviceError, match=r"not run there .*not found") as caught, without:
        pass
    assert "Termux" in caught.value.remedy
    lacking = reach(python=python_of(phone), packages=["numpy", "no-such-thing==1"])
    with pytest.raises(DeviceError, match=r"cannot import no_such_thing\n"), lacking:
        pass
    phone.tool("python3", "echo EDGEKIT 3 8")
    with pytest.raises(DeviceError, match=r"is Python 3\.8"), reach(python=python_of(phone)):
        pass
    assert phone.left() == []
    phone.folder.rmdir()
    phone.folder.write_text("in the way")
    with pytest.raises(DeviceError, match=r"edgekit-\w+ cannot be made"), reach():
        pass


def test_an_old_android(plug: Callable[..., Phone], reach: Reach, server: Server) -> None:
    phone = plug(connect=False)
    phone.features = "cmd"
    server.connect(phone)
    with pytest.raises(DeviceError, match="no shell_v2"), reach():
        pass


def test_only_one_folder_of_the_shell_user_is_touched(
    phone: Phone, reach: Reach, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    if Path(adb.FOLDER).exists():
        pytest.skip("this machine has a folder of that name")
    name = r"/data/local/tmp/edgekit-[0-9a-f]{16} cannot be made"
    with pytest.raises(DeviceError, match=name), reach():
        pass


def test_disturbances(phone: Phone, reach: Reach) -> None:
    with reach() as place:
        assert place.disturbances() == ()
        phone.tool("settings", '[ "$*" = "get global low_power" ] && echo 1')
        assert place.disturbances() == ("battery saver is on",)
        phone.tool("settings", "echo null")
        phone.dumpsys(level=24, health=3, thermal=3)
        assert place.disturbances() == (
            "battery at 24 %; below 25 % phones slow down",
            "battery is overheated",
            "slowed down by heat: thermal status severe",
        )
        phone.dumpsys(level=25)
        assert place.disturbances() == ()
        phone.tool("dumpsys", 'echo "Can\'t find service: $1"')
        assert place.disturbances() == ()


def test_what_a_phone_says_about_itself(phone: Phone, reach: Reach) -> None:
    phone.tool("getprop", r"printf '\033[31mX\007 %300s\n' y")
    with reach() as place:
        assert place.machine.words.isprintable()
        assert len(place.machine.words) < 300
    phone.tool("getprop", '[ "$1" = ro.boot.qemu ] && echo 1')
    with reach() as place:
        assert not place.machine.real
        assert place.machine.words == "unknown phone, unknown processor, Android ?, emulated"


def test_benchmark_program(phone: Phone, reach: Reach, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text(NEW_TEXT)
    binary, model = tmp_path / "benchmark_model", tmp_path / "my model.tflite"
    binary.write_text(f"#!/bin/sh\necho \"$@\" >&2\ncat '{tmp_path}/out.txt'\nexit $CODE\n")
    model.write_bytes(b"model")
    with reach() as place:
        ran = benchmark(place, binary, model, threads=4, runs=100, seconds=2)
        assert ran.exit_code == 0
        assert "Inference timings in us" in ran.text
        said = ran.text.splitlines()[-1]
        assert "--num_threads=4 --num_runs=100 --min_secs=2 --max_secs=200 --warmup_runs=5" in said
        assert f"--graph={place.put(model)}" in said
        binary.write_text(
            f"#!/bin/sh\nprintf '\\033[31m'\n{sys.executable} -c "
            f"\"print('x' * {2 * adb.KEPT_CHARACTERS})\"\nexit 3\n"
        )
        ran = benchmark(place, binary, model)
        assert (ran.exit_code, len(ran.text)) == (3, adb.KEPT_CHARACTERS)
        binary.write_text("#!/bin/sh\nsleep 60\n")
        there = place.put(binary)
        with pytest.raises(DeviceError, match="no end after 1 s"):
            benchmark(place, binary, model, timeout_seconds=1)
        assert eventually(lambda: not running(there))
    assert phone.left() == []
