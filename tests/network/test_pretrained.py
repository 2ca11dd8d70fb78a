"""Finding starting weights: by path, in Keras's cache, and offline with a message that helps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.errors import SpecError
from edgekit.network.pretrained import weight_file

ROOT = Path(__file__).resolve().parents[2]
NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
# Port 9 is "discard"; nothing listens there, so every download is refused at once.
NOWHERE = "http://127.0.0.1:9"
PROGRAM = """
import sys
from edgekit.errors import SpecError
from edgekit.network.pretrained import weight_file
try:
    print(weight_file("imagenet", 0.35, {size}))
except SpecError as error:
    print(error)
    print("exit", error.exit_code)
print("tensorflow" in sys.modules, "tf_keras" in sys.modules)
"""


def run(environment: dict[str, str], size: tuple[int, int] = (64, 64)) -> list[str]:
    kept = {key: value for key, value in os.environ.items() if key != "KERAS_HOME"}
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(size=size)],
        env={**kept, **offline, "no_proxy": "", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return finished.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HOME", "KERAS_HOME"])
def test_offline_it_says_which_file_to_put_where(tmp_path: Path, variable: str) -> None:
    pytest.importorskip("tf_keras")
    folder = tmp_path / (".keras/models" if variable == "HOME" else "models")
    said = "\n".join(run({variable: str(tmp_path)}))
    assert f"{NAME} is not in {folder} and could not be downloaded" in said
    origin = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
    assert f"download {origin}{NAME} on a connected machine and put it into {folder}" in said
    assert "\nexit 2\n" in said
    # Nothing that looks like weights is left behind for the next run to load.
    assert list(tmp_path.rglob("*.h5")) == []


@pytest.mark.parametrize("variable", ["HOME", "KERAS_HOME"])
@pytest.mark.parametrize(
    ("size", "published"), [((64, 64), 224), ((224, 224), 224), ((96, 96), 96), ((96, 160), 224)]
)
def test_a_cached_file_is_found_without_tensorflow(
    tmp_path: Path, variable: str, size: tuple[int, int], published: int
) -> None:
    folder = tmp_path / (".keras/models" if variable == "HOME" else "models")
    folder.mkdir(parents=True)
    path = folder / NAME.replace("_224_", f"_{published}_")
    path.write_bytes(b"weights")
    assert run({variable: str(tmp_path)}, size) == [str(path), "False False"]


def test_a_path_is_used_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(b"weights")
    assert weight_file(str(path), 1.0, (160, 160)) == path


def test_none_needs_no_file() -> None:
    assert weight_file("none", 1.0, (160, 160)) is None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absent.h5"
    with pytest.raises(SpecError, match="there is no such file") as caught:
        weight_file(str(path), 1.0, (160, 160))
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.received
