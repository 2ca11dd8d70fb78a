"""The file of tested versions is complete, fits pyproject.toml and knows every file's digest."""

import re
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TESTED = ROOT / ".constraints" / "tested.txt"


def pinned(text: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Returns requirement and digests of each entry, by name."""
    found = {}
    for line in re.sub(
        r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    ).splitlines():
        words, *digests = line.split("--hash=")
        requirement = Requirement(words)
        found[canonicalize_name(requirement.name)] = (requirement, [d.strip() for d in digests])
    return found


def needed(found: dict[str, tuple[Requirement, list[str]]]) -> Iterator[Requirement]:
    """Yields what edgekit asks for, building it included, and what that asks for in turn.

    The latter is read from what is installed, where it has the version of the file.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(line for lines in project["project"]["optional-dependencies"].values() for line in lines),
    ]
    waiting = [Requirement(line) for line in asked]
    seen = set()
    while waiting:
        one = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        yield one
        name = canonicalize_name(one.name)
        for extra in ("", *sorted(one.extras)):
            if (name, extra) in seen or name not in found:
                continue
            seen.add((name, extra))
            try:
                installed = distribution(name)
            except PackageNotFoundError:
                continue
            if found[name][0].specifier.contains(installed.version, prereleases=True):
                more = [Requirement(line) for line in installed.requires or ()]
                waiting += [
                    Requirement(str(r).partition(";")[0])
                    for r in more
                    if r.marker is None or r.marker.evaluate({"extra": extra})
                ]


def faults(text: str) -> list[str]:
    """Returns what is wrong with a file of tested versions."""
    wrong = [f"{line}: an address or an option" for line in re.findall(r".*://.*|^-.*", text, re.M)]
    if wrong:
        return wrong
    found = pinned(text)
    for name, (requirement, digests) in found.items():
        if [s.operator for s in requirement.specifier] != ["=="]:
            wrong.append(f"{name}: not one version")
        if not digests or not all(re.fullmatch("sha256:[0-9a-f]{64}", d) for d in digests):
            wrong.append(f"{name}: no SHA-256")
    for one in needed(found):
        name = canonicalize_name(one.name)
        if name not in found:
            wrong.append(f"{one}: missing")
            continue
        requirement = found[name][0]
        version = str(next(iter(requirement.specifier)).version)
        if not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one}: {version} is not in its range")
        # pip's hash-checking mode takes an extra for another, unpinned requirement.
        if not one.extras <= requirement.extras:
            wrong.append(f"{one}: its extra is not named")
    return wrong


def test_every_package_that_is_needed_has_one_version_in_range_and_digests() -> None:
    assert faults(TESTED.read_text()) == []


def without(name: str, text: str) -> str:
    """Returns the file without one package."""
    return re.sub(rf"^{name}==.*\n(    .*\n)*", "", text, flags=re.MULTILINE)


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "a package left out": (lambda text: without("scipy", text), "missing"),
    "one that others need": (lambda text: without("protobuf", text), "missing"),
    "what builds it": (lambda text: without("setuptools", text), "missing"),
    "another version": (lambda text: re.sub("\nnumpy==[^ ]*", "\nnumpy==1.26.4", text), "range"),
    "a range": (lambda text: text.replace("\nnumpy==", "\nnumpy>="), "not one version"),
    "no digest": (lambda text: without("six", text) + "six==1.17.0\n", "six: no SHA-256"),
    "an extra left out": (lambda text: text.replace("pydantic[email]==", "pydantic=="), "extra"),
    "an address": (lambda text: f"--index-url https://example.org/\n{text}", "address"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_twin_each_fault_is_found(name: str) -> None:
    alter, said = BROKEN[name]
    text = TESTED.read_text()
    altered = alter(text)
    assert altered != text
    assert any(said in fault for fault in faults(altered))


@pytest.mark.parametrize("end", ["edgekit demo", "pytest"])
def test_the_command_lines_of_the_readme_install_these_files_and_no_others(end: str) -> None:
    line = re.search(rf"^python3\.11 -m venv .*{end}$", (ROOT / "README.md").read_text(), re.M)
    assert line is not None
    first, second = re.findall(r"pip install ([^&]*)", line[0])
    assert {"--require-hashes", "--only-binary", "-r"} <= set(first.split())
    assert first.split()[-1] == ".constraints/tested.txt"
    # Neither a dependency nor what builds edgekit comes from anywhere else.
    assert {"--no-deps", "--no-build-isolation"} <= set(second.split())
