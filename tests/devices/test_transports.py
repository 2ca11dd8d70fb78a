"""A target's device is the one it names, or none."""

import functools
import os
import sys
from pathlib import Path

import pytest
from ssh_server import serving

from edgekit.devices import ssh, transports
from edgekit.devices.transports import find_devices, open_device, reached
from edgekit.errors import DeviceError
from edgekit.target import DeviceSpec, load_target, with_device


def test_a_device_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "server") as server:
        reach = functools.partial(ssh.reach, options=server.options)
        monkeypatch.setattr(transports.ssh, "reach", reach)
        host = {"transport": "ssh", "description": "a board", "host": "127.0.0.1"}
        spec = DeviceSpec(**host, port=server.port, python=sys.executable)
        with open_device(spec, "litert", print) as device:
            words, cores = device.machine.words, device.machine.cores
        assert cores == len(os.sched_getaffinity(0))
        named = spec.model_copy(update={"model": words.split(",")[0], "cores": cores})
        with open_device(named, "litert", print):
            pass
        for wrong, said in (({"model": "Raspberry Pi 5"}, "call itself Raspberry"),
                            ({"cores": 64}, "cores, not 64")):  # fmt: skip
            other = spec.model_copy(update=wrong)
            with pytest.raises(DeviceError, match=said), open_device(other, "litert", print):
                pytest.fail("reached")
        assert server.left() == []


def test_devices_are_reached_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "server") as server:
        reach = functools.partial(ssh.reach, options=server.options)
        monkeypatch.setattr(transports.ssh, "reach", reach)
        board = with_device(load_target("raspberry-pi-5"), f"127.0.0.1:{server.port}")
        here = {"model": None, "cores": None, "python": sys.executable}
        board = board.model_copy(update={"device": board.device.model_copy(update=here)})
        said: list[str] = []
        found = reached([board, load_target("host-litert"), load_target("iphone-13")], said.append)
    assert list(found) == ["raspberry-pi-5"]
    assert any(line.startswith("raspberry-pi-5: reached ") for line in said)
    with pytest.raises(DeviceError):  # the server is gone
        reached([board], said.append)


def test_every_transport_has_a_line() -> None:
    found = find_devices()
    assert {item.transport for item in found} == {"local", "ssh", "adb", "browser", "emulated"}
    assert all(item.problem or item.words for item in found)
