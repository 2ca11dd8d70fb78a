"""What edgekit brings to other machines has one version and known files, or is not brought."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edgekit.devices.wheels import LIST, VARIABLE, requirements
from edgekit.errors import DeviceError

RUNTIMES = ("ai_edge_litert", "onnxruntime")


@pytest.fixture(autouse=True)
def _no_own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def upgraded(folder: Path) -> Path:
    """Returns a folder that makes a Python that finds it first believe it has LiteRT 2.99."""
    about = folder / "ai_edge_litert-2.99.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ai-edge-litert\nVersion: 2.99.0")
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_version_that_judges_here_is_the_one_that_is_brought(runtime: str) -> None:
    lines = requirements(("numpy", runtime))
    pins = re.findall(r"^(\S+)==(\S+)", lines, re.MULTILINE)
    name = runtime.replace("_", "-")
    assert pins == [("numpy", dict(pins)["numpy"]), (name, version(name))]
    for block in re.split(r"\n(?=\S)", lines):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)


def test_another_version_here_is_refused_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "devices"]
    usual = subprocess.run(command, capture_output=True, text=True, check=True)
    there = {**os.environ, "PYTHONPATH": str(upgraded(tmp_path))}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=there)
    remedy = f"run pip install ai-edge-litert=={version('ai-edge-litert')} here"
    assert remedy in " ".join(said.stdout.split())
    assert remedy not in " ".join(usual.stdout.split())


def test_another_version_is_brought_from_the_users_own_list_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(upgraded(tmp_path)))
    with pytest.raises(DeviceError, match=r"ai-edge-litert 2\.99\.0 judges here") as caught:
        requirements(("numpy", "ai_edge_litert"))
    assert VARIABLE in caught.value.remedy
    digest = "--hash=sha256:" + "0" * 64
    own = tmp_path / "own.txt"
    own.write_text(f"# mine\nnumpy==1.0 {digest}\nAI_Edge.LiteRT==2.99.0 \\\n    {digest}\n")
    monkeypatch.setenv(VARIABLE, str(own))
    assert requirements(("numpy", "ai_edge_litert")) == (
        f"numpy==1.0 {digest}\nAI_Edge.LiteRT==2.99.0 \\\n    {digest}\n"
    )
    with pytest.raises(DeviceError, match=r"own\.txt has no onnxruntime"):
        requirements(("numpy", "onnxruntime"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(DeviceError, match="No such file"):
        requirements(("numpy",))


def test_the_list_is_the_part_of_what_is_tested() -> None:
    tested = Path(__file__).parents[2] / ".constraints" / "tested.txt"
    head, _, blocks = LIST.read_text(encoding="utf-8").partition("\n")
    assert ".constraints/update" in head
    text = tested.read_text(encoding="utf-8")
    found = re.findall(r"^\S[^\n]*\\\n(?:    [^\n]*\n)+", blocks, re.MULTILINE)
    assert "".join(found) == blocks
    names = [block.partition("==")[0] for block in found]
    assert names == ["ai-edge-litert", "numpy", "onnxruntime"]
    for block in found:
        assert f"\n{block}" in text
        assert f"\n{block.replace('sha256:', 'sha256:0', 1)}" not in text
