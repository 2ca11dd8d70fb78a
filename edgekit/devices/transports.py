"""Reaches the device that a target names, whatever the transport. Device layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edgekit.devices import adb, browser, browser_device, emulated, local, ssh
from edgekit.devices.measure import Device, RunnerDevice
from edgekit.devices.place import Found, Machine
from edgekit.devices.wheels import requirements
from edgekit.errors import DeviceError
from edgekit.folders import cache_folder
from edgekit.target import DeviceSpec, RuntimeName, Target

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
        DeviceError: If it cannot be reached, is another device than the target names, or lacks
            Python or the runtime.
        SpecError: If its name is none that the transport takes.
    """
    if spec.missing:
        raise DeviceError(spec.missing, "a device that edgekit can reach", "correct [device]")
    with _reach(spec, runtime, say) as device:
        _check_machine(spec, device.machine)
        yield device


def reached(targets: Sequence[Target], say: Say) -> dict[str, str]:
    """Reaches every device but this machine once; returns what each is, in words, by target.

    Args:
        targets: The asked targets.
        say: Called with one line about each.

    Raises:
        EdgekitError: As `open_device`.
    """
    found = {}
    for target in targets:
        if target.is_measured and not target.is_here:
            with open_device(target.device, target.runtime.name, say) as device:
                found[target.name] = device.machine.words
                say(f"{target.name}: reached {device.machine.words}")
    return found


@contextmanager
def _reach(spec: DeviceSpec, runtime: RuntimeName, say: Say) -> Iterator[Device]:
    packages = PACKAGES.get(runtime, ())
    if spec.transport == "adb":
        with adb.reach(
            serial=spec.serial, model=spec.model, python=spec.python, packages=packages, say=say
        ) as phone:
            yield RunnerDevice(phone)
    elif spec.transport == "ssh" and spec.host is not None:
        with ssh.reach(
            spec.host,
            port=spec.port,
            python=spec.python or "python3",
            packages=packages,
            wheels=requirements(packages) if spec.install else None,
            say=say,
        ) as board:
            yield RunnerDevice(board)
    elif spec.transport == "browser":
        with browser_device.reach(spec.program, say) as page:
            yield page
    elif spec.transport == "emulated":
        with emulated.reach(emulated.prepare(cache_folder(), say)) as machine:
            yield RunnerDevice(machine)
    else:
        with local.reach() as place:
            yield RunnerDevice(place)


def _check_machine(spec: DeviceSpec, machine: Machine) -> None:
    """Refuses a device that is not the one a target is about.

    Raises:
        DeviceError: If it calls itself otherwise or has another number of cores.
    """
    wrong = []
    if spec.model is not None and spec.model not in machine.words:
        wrong.append(f"does not call itself {spec.model}")
    if None not in (spec.cores, machine.cores) and spec.cores != machine.cores:
        wrong.append(f"has {machine.cores} cores, not {spec.cores}")
    if wrong:
        raise DeviceError(
            f"{machine.words}: it {' and '.join(wrong)}",
            f"the device that the target names: {spec.description}",
            "reach that device, or judge by a target of this one",
        )


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
