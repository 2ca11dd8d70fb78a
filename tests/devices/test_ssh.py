"""The SSH transport against real OpenSSH servers on loopback."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import alive, eventually, stopped_at_its_limit
from ssh_server import Server, new_key, program, serving
from tiny_wheels import wheel

from edgekit.devices.exchange import exchange
from edgekit.devices.place import Place
from edgekit.devices.ssh import SshPlace, find, reach
from edgekit.errors import DeviceError, EdgekitError, SpecError

pytestmark = pytest.mark.proves(
    "ssh: Linux boards", "protocol: a real OpenSSH server on loopback, no board"
)

HOST = "127.0.0.1"
DONE = '{"kind":"done","runtime":"r 1","count":1}'
# A runner program: reads its job and does what that says.
RUNNER = f"""\
import json, os, signal, subprocess, sys, time
job = json.load(open(sys.argv[1]))
def say(line):
    print(line, flush=True)
say('{{"kind":"progress","progress":0.5}}')
DONE = {DONE!r}
exec(job["do"])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ssh") / "server") as running:
        yield running


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does to the common server, nothing is left there."""
    yield
    if "server" in request.fixturenames:
        assert gone(request.getfixturevalue("server"))


def gone(server: Server) -> bool:
    return eventually(lambda: server.left() == [])


@contextlib.contextmanager
def reached(server: Server, **changed: object) -> Iterator[SshPlace]:
    settings = {"port": server.port, "options": server.options, "python": sys.executable}
    said = settings.pop("said", None) or (lambda line: None)
    with reach(HOST, **{**settings, "say": said, **changed}) as place:  # type: ignore[arg-type]
        assert isinstance(place, SshPlace)
        yield place


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def started(place: Place, folder: Path, do: str, name: str = "job.json") -> list[str]:
    """Brings RUNNER and a job there; returns the command that runs them."""
    runner = place.put(written(folder / "runner.py", RUNNER))
    job = place.put(written(folder / name, json.dumps({"do": do})))
    return list(place.command(runner, job))


def failing(server: Server, **changed: object) -> EdgekitError:
    """Returns the error of a connection that must not work."""
    with pytest.raises(EdgekitError) as caught, reached(server, **changed):
        pytest.fail("connected")
    return caught.value


# --- what works


def test_files_go_there_a_program_runs_and_its_result_comes_back(
    server: Server, tmp_path: Path
) -> None:
    said: list[str] = []
    heard: list[float] = []
    with reached(server, packages=("numpy",), say=said.append) as place:
        assert place.machine.cores == len(os.sched_getaffinity(0))
        assert os.uname().machine in place.machine.words
        assert os.uname().release in place.machine.words
        assert said == [f"{HOST}: {place.machine.words}, {place.machine.cores} cores"]
        model = tmp_path / "model.tflite"
        model.write_bytes(os.urandom(3_000_000))
        there = place.put(model)
        assert there.endswith(".tflite")
        assert Path(there).read_bytes() == model.read_bytes()
        assert stat.S_IMODE(Path(there).parent.stat().st_mode) == 0o700
        result = place.path("answers.npy")
        do = f"open({result!r}, 'wb').write(open({there!r}, 'rb').read()[::-1]); say(DONE)"
        command = started(place, tmp_path, do)
        assert exchange(command, "m", 30, heard.append, place.environment()).runtime == "r 1"
        assert heard == [0.5]
        place.get(result, tmp_path / "got", 3_000_000)
        assert (tmp_path / "got").read_bytes() == model.read_bytes()[::-1]
        assert not Path(result).exists()
        (folder,) = server.left()
        assert there.startswith(str(server.temporary / folder))
        assert len(clients(server)) == 1
    assert server.left() == []
    assert clients(server) == []
    assert not place.client.socket.parent.exists()


def test_one_connection_serves_many_jobs(server: Server, tmp_path: Path) -> None:
    before = (server.folder / "log").read_text().count("Accepted publickey")
    with reached(server) as place:
        for _ in range(5):
            command = started(place, tmp_path, "say(DONE)")
            assert exchange(command, "m", 30).count == 1
    assert (server.folder / "log").read_text().count("Accepted publickey") == before + 1


def test_a_file_is_sent_once_for_each_content(server: Server, tmp_path: Path) -> None:
    with reached(server) as place:
        first = place.put(written(tmp_path / "a.bin", "content"))
        stamp = Path(first).stat().st_mtime_ns
        assert place.put(written(tmp_path / "b.bin", "content")) == first
        assert Path(first).stat().st_mtime_ns == stamp
        other = place.put(written(tmp_path / "a.bin", "other"))
        assert other != first
        assert (Path(first).read_text(), Path(other).read_text()) == ("content", "other")


def test_a_python_below_the_home_there(server: Server) -> None:
    """Under `~` nothing expands here, and the path may hold a space."""
    folder = server.home / "my python"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    with reached(server, python="~/my python/python") as place:
        assert place.python == str(folder / "python")


def test_exit_codes_are_the_programs(server: Server, tmp_path: Path) -> None:
    no_core = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
    ends = {
        "sys.exit(0)": 0,
        "sys.exit(6)": 6,
        "sys.exit(255)": 254,
        f"{no_core}os.abort()": 128 + 6,
        "os.kill(os.getpid(), signal.SIGKILL)": 128 + 9,
    }
    with reached(server) as place:
        for do, code in ends.items():
            command = started(place, tmp_path, f"print('to stderr', file=sys.stderr); {do}")
            ended = subprocess.run(command, capture_output=True, check=False, timeout=60)
            assert ended.returncode == code
            assert b"to stderr" in ended.stderr
            assert b"progress" in ended.stdout
            assert place.explain(ended.returncode, "to stderr") is None
        silent = place.explain(255, "")
        assert silent is not None
        assert "connection broke" in silent.received


# --- what ends


SLEEPER = (
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "open({pids!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}'); {more}time.sleep(600)"
)


def sleeper(pids: Path, more: str = "") -> str:
    return SLEEPER.format(pids=str(pids), more=more)


def both_alive(pids: Path) -> bool:
    numbers = pids.read_text().split() if pids.exists() else []
    return len(numbers) == 2 and all(alive(int(number)) for number in numbers)


def both_dead(pids: Path) -> bool:
    return not any(alive(int(number)) for number in pids.read_text().split())


@pytest.mark.parametrize("more", ["", "[os.close(number) for number in (0, 1, 2)]; "])
def test_at_the_time_limit_the_program_there_ends_with_its_children(
    server: Server, tmp_path: Path, more: str
) -> None:
    pids = tmp_path / "pids"
    with reached(server) as place:
        command = started(place, tmp_path, sleeper(pids, more))
        stopped_at_its_limit(command, pids)
        assert eventually(lambda: both_dead(pids))
        assert exchange(started(place, tmp_path, "say(DONE)", "b.json"), "m", 30).count == 1


def test_the_twin_without_an_end_the_program_there_goes_on(server: Server, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with reached(server) as place:
        command = started(place, tmp_path, sleeper(pids))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as here:
            assert eventually(lambda: both_alive(pids))
            time.sleep(1)
            assert both_alive(pids)
            here.kill()
        assert eventually(lambda: both_dead(pids))


def test_a_program_that_still_runs_at_the_end_ends_then(server: Server, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with reached(server) as place:
        command = started(place, tmp_path, sleeper(pids))
        here = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert eventually(lambda: both_alive(pids))
    assert eventually(lambda: both_dead(pids))
    assert here.wait(timeout=30) == 128 + 9


def clients(server: Server) -> list[int]:
    """Returns the ssh processes that were given the client configuration of a server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if str(server.config).encode() in words and b"supervisor.py" not in words:
                found.append(int(path.parent.name))
    return found


EDGEKIT = """\
import sys
from pathlib import Path
from edgekit.devices.exchange import exchange
from edgekit.devices.ssh import reach
port, config, runner, job = sys.argv[1:]
options = ("-F", config)
with reach("127.0.0.1", port=int(port), options=options, python=sys.executable, say=print) as place:
    exchange(place.command(place.put(Path(runner)), place.put(Path(job))), "m", 600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_edgekit_leaves_nothing_there(
    server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    runner = written(tmp_path / "runner.py", RUNNER)
    job = written(tmp_path / "job.json", json.dumps({"do": sleeper(pids)}))
    script = (sys.executable, "-c", EDGEKIT, str(server.port), str(server.config))
    here = subprocess.Popen(
        (*script, str(runner), str(job)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert eventually(lambda: both_alive(pids), 30)
    assert len(server.left()) == 1
    assert clients(server)
    here.send_signal(number)
    here.communicate(timeout=30)
    assert gone(server)
    assert eventually(lambda: not clients(server))
    assert eventually(lambda: both_dead(pids))


def test_a_lost_connection_is_named_and_the_device_cleans_up_itself(tmp_path: Path) -> None:
    pids, said = tmp_path / "pids", []
    with serving(tmp_path / "server") as server:
        with reached(server, say=said.append) as place:
            command = started(place, tmp_path, sleeper(pids))
            here = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert eventually(lambda: both_alive(pids))
            for line in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
                for session in line.read_text().split():
                    os.kill(int(session), signal.SIGKILL)
            _, stderr = here.communicate(timeout=30)
            assert gone(server)
            assert eventually(lambda: both_dead(pids))
            error = place.explain(here.returncode, stderr.decode())
            assert error is not None
            assert "connection broke" in error.received
            with pytest.raises(DeviceError, match="connection broke"):
                place.put(written(tmp_path / "later", "more"))
        assert "the connection was gone at the end" in said[-1]


# --- what cannot be reached


def test_unknown_host_key(server: Server) -> None:
    none = server.folder / "none"
    error = failing(server, options=server.client("unknown", UserKnownHostsFile=str(none)))
    assert error.exit_code == 7
    fingerprint = subprocess.run(
        [program("ssh-keygen"), "-lf", str(server.folder / "host.pub")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[1]
    assert f"its host key (ssh-ed25519 {fingerprint}) is not known here" in error.received
    assert f"-p {server.port} {HOST}` once" in error.remedy
    assert not none.exists()


def test_accepting_keys_cannot_be_switched_on(server: Server) -> None:
    none = server.folder / "none"
    changed = {"UserKnownHostsFile": str(none), "StrictHostKeyChecking": "no"}
    options = (*server.client("lax", **changed), "-o", "StrictHostKeyChecking=accept-new")
    assert "is not known here" in failing(server, options=options).received
    assert not none.exists()


def test_changed_host_key(server: Server, tmp_path: Path) -> None:
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    known = written(tmp_path / "known", f"[{HOST}]:{server.port} {other}")
    error = failing(server, options=server.client("changed", UserKnownHostsFile=str(known)))
    assert error.exit_code == 7
    assert "is not the one that is known here" in error.received
    assert f"ssh-keygen -R '[{HOST}]:{server.port}'" in error.remedy
    assert known.read_text() == f"[{HOST}]:{server.port} {other}"


def test_wrong_key(server: Server, tmp_path: Path) -> None:
    key = new_key(tmp_path / "stranger")
    error = failing(server, options=server.client("wrong", IdentityFile=str(key)))
    assert (error.exit_code, "it refused every key" in error.received) == (7, True)
    assert "ssh-copy-id" in error.remedy


def test_closed_port(server: Server) -> None:
    with socket.socket() as taken:  # nobody else can listen there meanwhile
        taken.bind((HOST, 0))
        error = failing(server, port=taken.getsockname()[1])
    assert (error.exit_code, "nothing listens on its SSH port" in error.received) == (7, True)


def test_a_host_that_accepts_and_says_nothing(server: Server) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        start = time.monotonic()
        error = failing(server, port=listener.getsockname()[1], connect_seconds=1)
    assert (error.exit_code, "does not answer" in error.received) == (7, True)
    assert time.monotonic() - start < 60  # without a limit it would be minutes


def test_a_host_that_is_no_ssh_server(server: Server) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        speak = "import socket, sys; s = socket.socket(fileno=0).accept()[0]; s.sendall(b'220 \\n')"
        with subprocess.Popen([sys.executable, "-c", speak], stdin=listener.fileno()):
            error = failing(server, port=port, connect_seconds=30)
    assert error.exit_code == 7
    assert "connection broke" in error.received


def test_settings_that_ssh_refuses(server: Server, tmp_path: Path) -> None:
    config = written(tmp_path / "config", "NoSuchSetting yes\n")
    error = failing(server, options=("-F", str(config)))
    assert (error.exit_code, "nosuchsetting" in error.received.lower()) == (7, True)


LOGINS = [
    ("exec sleep 600", "no answer after 4 s"),
    ('echo "Welcome to pi"; exec sh -c "$SSH_ORIGINAL_COMMAND"', "it printed 'Welcome to pi"),
    ('printf "no line"; exec sh -c "$SSH_ORIGINAL_COMMAND"', "it printed 'no line"),
    ("exec yes", "it printed 'y y y"),
    (r'printf "edgekit-folder /etc/passwd\\n"; sleep 600', "it printed 'edgekit-folder /etc"),
    (r'printf "\\033[2Jedgekit-folder\\n"', r"it printed '\[2Jedgekit-folder'"),
    ("echo 'no account' >&2; exit 1", r"ended with code 1 \(no account\)"),
    ("exit 0", r"ended with code 0 \(no message\)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("login", "words"), LOGINS)
def test_a_login_that_hangs_or_prints(tmp_path: Path, login: str, words: str) -> None:
    # What prints is given the time to do so.
    seconds = 2 if "no answer" in words else 8 if "sleep" in login else 30
    with serving(tmp_path / "server", f"ForceCommand {login}") as server:
        with (
            pytest.raises(DeviceError, match=words) as caught,
            reached(server, connect_seconds=seconds),
        ):
            pytest.fail("connected")
        assert caught.value.exit_code == 7
        assert gone(server)


def test_the_twin_a_quiet_login_works(tmp_path: Path) -> None:
    with serving(tmp_path / "s", 'ForceCommand exec sh -c "$SSH_ORIGINAL_COMMAND"') as server:
        with reached(server):
            pass
        assert server.left() == []


def test_a_server_that_allows_one_session(tmp_path: Path) -> None:
    with serving(tmp_path / "server", "MaxSessions 1") as server:
        error = failing(server)
        assert "MaxSessions" in error.remedy
        assert gone(server)


# --- what does not fit there


@pytest.fixture
def full(tmp_path: Path, small_disk: Path) -> Iterator[Server]:
    """A server whose sessions have one MiB for their files."""
    with serving(tmp_path / "server", temporary=small_disk) as running:
        yield running


def test_disk_full_there(full: Server, tmp_path: Path) -> None:
    big = tmp_path / "big.tflite"
    big.write_bytes(os.urandom(2_000_000))
    with reached(full) as place:
        with pytest.raises(DeviceError, match=r"big\.tflite, 2000000 bytes") as caught:
            place.put(big)
        assert caught.value.exit_code == 7
        assert "2000000 bytes free" in caught.value.expected
        # The half that fitted is gone: there is space for a smaller one.
        big.write_bytes(os.urandom(900_000))
        assert Path(place.put(big)).stat().st_size == 900_000
    assert full.left() == []


def test_no_space_at_all_there(full: Server) -> None:
    with (
        contextlib.suppress(OSError),
        (full.temporary / "filler").open("wb", buffering=0) as stream,
    ):
        while True:
            stream.write(bytes(4096))
    error = failing(full)
    assert (error.exit_code, "its disk is full" in error.received) == (7, True)
    assert gone_but(full, "filler")


def gone_but(server: Server, name: str) -> bool:
    return eventually(lambda: server.left() == [name])


def test_no_folder_there(tmp_path: Path) -> None:
    with serving(tmp_path / "server", temporary=tmp_path / "missing") as server:
        assert "no folder for temporary files" in failing(server).received


def test_a_result_that_is_missing_or_too_large(server: Server, tmp_path: Path) -> None:
    with reached(server) as place:
        file = written(tmp_path / "a", "x" * 1000)
        with pytest.raises(DeviceError, match="more than 999 bytes"):
            place.get(place.put(file), tmp_path / "got", 999)
        with pytest.raises(DeviceError, match="no such file"):
            place.get(place.path("nothing"), tmp_path / "got", 999)
        assert not (tmp_path / "got").exists()
        place.get(place.put(file), tmp_path / "got", 1000)
        assert (tmp_path / "got").stat().st_size == 1000


# --- Python there


def test_no_python_there(server: Server) -> None:
    error = failing(server, python="python-of-nobody")
    assert (error.exit_code, "no Python 'python-of-nobody' there" in error.received) == (7, True)


def script(path: Path, text: str) -> str:
    written(path, f"#!/bin/sh\n{text}\n").chmod(0o755)
    return str(path)


def test_an_old_python_there(server: Server, tmp_path: Path) -> None:
    old = (
        "import sys, runpy; sys.argv.pop(0); sys.version_info = (3, 8, 10); sys.version = '3.8.10'"
    )
    run = f'exec {sys.executable} -c "{old}; runpy.run_path(sys.argv[0])" "$@"'
    error = failing(server, python=script(tmp_path / "python", run))
    assert (error.exit_code, "is Python 3.8.10" in error.received) == (7, True)
    assert error.expected == "Python 3.9 or newer"


FACTS = {
    "version": "3.11.2",
    "executable": "/usr/bin/python3",
    "home": "/root",
    "system": "Linux 6",
    "architecture": "aarch64",
    "model": "Pi\x1b[31m",
    "cores": 4,
    "trouble": {},
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("nonsense \x1b[2J", r"answered 'nonsense \[2J'"),
        ({"cores": -1}, "greater than or equal to 1"),
        ({"cores": "4"}, "valid integer"),
        ({"executable": "python\n"}, "should match pattern"),
        ({"more": 1}, "Extra inputs"),
        ({"trouble": {"os": ""}}, "about other modules"),
        ("x" * 100_000, "answered 'xxxx"),
    ],
)
def test_nonsense_about_the_device(
    server: Server, tmp_path: Path, changed: object, words: str
) -> None:
    answer = json.dumps({**FACTS, **changed}) if isinstance(changed, dict) else str(changed)
    text = written(tmp_path / "answer", answer)
    with pytest.raises(DeviceError, match=words) as caught:  # noqa: SIM117 - both may raise
        with reached(server, python=script(tmp_path / "python", f"cat {text}")):
            pytest.fail("connected")
    assert "\x1b" not in str(caught.value)


def test_the_twin_facts_are_shown_without_their_escapes(server: Server, tmp_path: Path) -> None:
    text = written(tmp_path / "answer", json.dumps(FACTS))
    with reached(server, python=script(tmp_path / "python", f"cat {text}")) as place:
        assert place.machine.words == "Pi [31m, aarch64, Linux 6, Python 3.11.2"
        assert place.machine.cores == 4


@pytest.mark.slow
def test_missing_packages_are_installed_on_request_only(tmp_path: Path) -> None:
    """And only from a file of the listed content, which pip checks there."""
    wheels = tmp_path / "wheels"
    listed = f"tiny-runtime==1 --hash=sha256:{wheel(wheels, 'tiny_runtime')}\n"
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    with serving(tmp_path / "server", **pip) as server:
        error = failing(server, packages=("json", "tiny_runtime"))
        assert (error.exit_code, "cannot import tiny_runtime (" in error.received) == (7, True)
        assert "--install" in error.remedy
        assert list(server.home.iterdir()) == []

        said: list[str] = []
        wanted = {"packages": ("tiny_runtime",), "wheels": listed, "say": said.append}
        other = f"tiny-runtime==1 --hash=sha256:{'0' * 64}\n"
        error = failing(server, **{**wanted, "wheels": other})
        assert "000000 Got " in error.received
        assert "EDGEKIT_WHEELS" in error.remedy
        assert list((server.home / ".cache" / "edgekit").iterdir()) == []
        with reached(server, **wanted) as place:
            assert place.python.startswith(f"{server.home}/.cache/edgekit/venv-")
            assert "which stays" in said[0]
            command = started(place, tmp_path, "import tiny_runtime; say(DONE)")
            assert exchange(command, "m", 30).count == 1
        assert gone(server)
        stamp = Path(place.python).lstat().st_ctime_ns
        with reached(server, **wanted) as place:  # the second time it is there
            assert Path(place.python).lstat().st_ctime_ns == stamp
        assert gone(server)


def test_an_environment_that_cannot_be_made_is_removed(server: Server, tmp_path: Path) -> None:
    """As on Debian without python3-venv, which leaves half a folder behind."""
    python = tmp_path / "python"
    facts = {"executable": str(python), "home": str(server.home), "trouble": {"nobody": "no"}}
    text = written(tmp_path / "facts", json.dumps({**FACTS, **facts}))
    no_venv = 'mkdir -p "$5/half"; echo ensurepip is missing >&2; exit 1'
    script(python, f'case "$*" in *"-m venv"*) {no_venv};; *) cat {text};; esac')
    changed = {"python": str(python), "packages": ("nobody",), "wheels": "nobody==1"}
    error = failing(server, **changed)
    assert "ensurepip is missing" in error.received
    assert "python3-venv" in error.remedy
    assert list((server.home / ".cache" / "edgekit").iterdir()) == []


# --- what must never run


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch {mark}",
        "user@-oProxyCommand=touch {mark}",
        "-lroot@127.0.0.1",
        "a;touch {mark}",
        "$(touch {mark})",
        "a b",
        "a`id`",
        "a'b",
        "ssh://127.0.0.1",
        "a\nb",
        "a\n",
        "",
        "@host",
        "u@@host",
    ],
)
def test_a_host_is_a_host(tmp_path: Path, host: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(SpecError) as caught, reach(host.format(mark=mark), say=print):
        pytest.fail("connected")
    assert caught.value.exit_code == 2
    assert not mark.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"port": 0},
        {"port": 65536},
        {"python": "-c"},
        {"python": ""},
        {"python": "a\nb"},
        {"packages": ("os; import this",)},
        {"packages": ("-x",)},
    ],
)
def test_other_arguments_are_checked(changed: dict[str, object]) -> None:
    with pytest.raises(SpecError), reach(HOST, **changed, say=print):  # type: ignore[arg-type]
        pytest.fail("connected")


NAMES = ["$(touch mark)", "a'; touch mark; '", "`touch mark`", 'a" b;c', "-rf", "*", "a\\"]


def test_names_of_files_never_run(server: Server, tmp_path: Path) -> None:
    """Shells would make `mark` where they start: HOME, the working folder there, or here."""
    with reached(server) as place:
        for name in NAMES:
            there = place.put(written(tmp_path / name, RUNNER))
            result = f"{place.folder}/result {name}"
            do = f"open({result!r}, 'w').write('fine'); say(DONE)"
            # Paths that this side would never choose, with the name as it is:
            job = written(Path(place.folder) / name, json.dumps({"do": do}))
            assert exchange(place.command(there, str(job)), "m", 30).count == 1
            place.get(result, tmp_path / "got", 100)
            assert (tmp_path / "got").read_text() == "fine"
            assert not Path(result).exists()
        assert not list(Path(place.folder).rglob("mark*"))
    assert not [*server.home.rglob("mark*"), *tmp_path.glob("mark*"), *Path().glob("mark*")]


def test_the_twin_such_a_name_would_run_unquoted(tmp_path: Path) -> None:
    command = ["sh", "-c", f"echo {NAMES[0]}"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=30)
    assert (tmp_path / "mark").exists()


def test_a_name_of_a_result_is_a_name(server: Server) -> None:
    with reached(server) as place:
        for name in ("", "a/b", "../a", "a\nb", "a\0b", "x" * 101, *NAMES[:4], "a!b"):
            with pytest.raises(SpecError):
                place.path(name)
        assert place.path("answers.npy") != place.path("answers.npy")


def test_a_python_with_odd_words_is_only_a_name(server: Server) -> None:
    error = failing(server, python="x; touch $HOME/mark")
    assert "no Python" in error.received
    assert not (server.home / "mark").exists()


# --- what is there


def test_find_lists_the_hosts_of_the_configuration(tmp_path: Path) -> None:
    written(tmp_path / "more.conf", "Host inner\n")
    config = written(
        tmp_path / "config",
        "Include *.conf\n# Host no\nHost pi 'odd'  board # Host not\n  HostName 10.0.0.7\n"
        'host="quoted"\nHost *.example.org !x\nHost -oProxyCommand=x pi\nMatch host m\n',
    )
    found = find(config)
    assert [host.name for host in found] == ["inner", "pi", "board", "quoted"]
    assert {host.transport for host in found} == {"ssh"}
    assert all("not tried" in host.words for host in found)


def test_find_without_a_configuration(tmp_path: Path) -> None:
    assert find(tmp_path / "none") == []


def test_no_ssh_here(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "openssh-client" in failing(server).remedy
    written(tmp_path / "config", "Host pi\n")
    assert "openssh-client" in find(tmp_path / "config")[0].problem
