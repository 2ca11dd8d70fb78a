"""The demo's recipe: generated pictures, shipped weights, settings that fit into five minutes."""

from collections.abc import Callable
from pathlib import Path

from edgekit.demo.pictures import make_pictures
from edgekit.errors import SpecError
from edgekit.folders import scratch_folder
from edgekit.recipe import Recipe
from edgekit.spec import build

WEIGHTS = Path(__file__).with_name("weights.npz")
_PICTURES = "pictures"
_MARKER = ".edgekit-demo"
# Raise it when the generator draws something else.
_VERSION = "1"


def demo_recipe(out: Path, say: Callable[[str], None]) -> Recipe:
    """Draws the pictures where they are not there yet and returns the recipe that uses them.

    Args:
        out: Run folder; the pictures lie in it, in `pictures/`.
        say: Called with one line when pictures are drawn.

    Raises:
        SpecError: If `pictures/` holds something else than this version's pictures.
    """
    pictures = out.absolute() / _PICTURES
    if not pictures.is_dir():
        say(f"drawing pictures into {pictures}")
        with scratch_folder(pictures.parent) as scratch:
            draft = scratch / _PICTURES
            make_pictures(draft)
            (draft / _MARKER).write_text(_VERSION)
            draft.rename(pictures)
    marker = pictures / _MARKER
    if not marker.is_file() or marker.read_text() != _VERSION:
        raise SpecError(
            f"{pictures} was not drawn by this version of edgekit demo",
            "a folder that only the demo uses",
            "give another folder with --out, or delete this one",
        )
    values = {
        # Drawn labels are right, and two classes of each pair are meant to look alike.
        "data": {"path": str(pictures), "check_labels": False},
        "model": {"alpha": 0.35, "input_size_px": 96, "weights": str(WEIGHTS)},
        "train": {"head_epochs": 6, "epochs": 8},
        "quantize": {"qat_epochs": 3},
        "validation": {"min_seconds": 0.3, "warmup_seconds": 0.3},
    }
    return build(values, Recipe, "demo")
