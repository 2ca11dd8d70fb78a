"""Reaches the device that a target names, whatever the transport. Device layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgekit.devices import adb, browser, browser_device, emulated, local, ssh
from edgekit.devices.measure import Device, RunnerDevice
from edgekit.devices.place import Found, cache_folder
from edgekit.errors import DeviceError
from edgekit.target import DeviceSpec, RuntimeName

Say = Callable[[str], None]
# What the runner program imports there, by the runtime.
PACKAGES: dict[RuntimeName, tuple[str, ...]] = {
    "litert": ("numpy", "ai_edge_litert"),
    "onnxruntime": ("numpy", "onnxruntime"),
}


@contextmanager
def open_device(spec: DeviceSpec, runtime: RuntimeName, say: Say) -> Iterator[Device]:
    """Yields the device of a target; nothing of edgekit is left on it afterwards.

    Args:
        spec: The device; `spec.missing` must be empty.
        runtime: Who will run files there.
        say: Called with one line worth keeping.

    Raises:
        DeviceError: If it cannot be reached, or lacks Python or the runtime.
        SpecError: If its name is none that the transport takes.
    """
    if spec.missing:
        raise DeviceError(spec.missing, "a device that edgekit can reach", "correct [device]")
    packages = PACKAGES.get(runtime, ())
    if spec.transport == "adb":
        with adb.reach(
            serial=spec.serial, model=spec.model, python=spec.python, packages=packages, say=say
        ) as phone:
            yield RunnerDevice(phone)
        return
    if spec.transport == "ssh" and spec.host is not None:
        with ssh.reach(
            spec.host,
            port=spec.port,
            python=spec.python or "python3",
            packages=packages,
            install=spec.install,
            say=say,
        ) as board:
            yield RunnerDevice(board)
        return
    if spec.transport == "browser":
        with browser_device.reach(spec.program, say) as page:
            yield page
        return
    if spec.transport == "emulated":
        with emulated.reach(emulated.prepare(cache_folder(), say)) as machine:
            yield RunnerDevice(machine)
        return
    with local.reach() as place:
        yield RunnerDevice(place)


def find_devices() -> list[Found]:
    """Returns what is there now, transport by transport, and why the rest cannot be used."""
    none = {
        "ssh": "no host is named in ~/.ssh/config; name one with --device TARGET=USER@HOST",
        "adb": "no device is attached; switch on USB debugging and attach one",
    }
    found = {
        "local": local.find(),
        "ssh": ssh.find(),
        "adb": adb.find(),
        "browser": browser.find(),
        "emulated": emulated.find(),
    }
    return [
        item
        for transport, items in found.items()
        for item in items or [Found(transport, "", "", none[transport])]
    ]
