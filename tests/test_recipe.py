"""The recipe: defaults, ranges, paths and its commented TOML."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import SpecError
from edgekit.recipe import (
    AugmentSpec,
    DataSpec,
    ModelSpec,
    Recipe,
    TrainSpec,
    default_recipe,
    load_recipe,
    recipe_toml,
)
from edgekit.spec import Spec, parse

DATA = "[data]\npath = 'images'\n"


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text, Recipe, "recipe.toml")
    return caught.value


def test_the_smallest_recipe_has_the_documented_defaults() -> None:
    recipe = parse(DATA, Recipe, "recipe.toml")
    assert recipe == default_recipe(Path("images"))
    assert recipe.targets == ("host-litert", "host-onnxruntime")
    assert (recipe.model.alpha, recipe.model.input_size_px, recipe.model.weights) == (
        1.0,
        160,
        "imagenet",
    )
    assert (recipe.train.strategy, recipe.train.granularity) == ("auto", "stage")
    assert (recipe.train.epochs, recipe.train.min_steps) == (12, 1000)
    assert recipe.train.unfreeze_from is None
    assert recipe.train.unfreeze_until is None
    assert recipe.train.activations_budget_bytes == 4_000_000_000
    assert recipe.quantize.qat_epochs == 6
    assert recipe.validation.sessions == 5


# One value below and above the range of each field; None where there is no such side.
RANGES: list[tuple[str, Any, Any]] = [
    ("seed", -1, 2**31),
    ("data.validation_fraction", 0, 1),
    ("data.test_fraction", 0, 1),
    ("data.min_images_per_class", 0, 1_000_001),
    ("data.max_bad_fraction", -0.1, 1.1),
    ("data.max_conflicting_fraction", -0.1, 1.1),
    ("data.false_accept_rate", 0.0009, 0.51),
    ("data.fill", -1, 256),
    ("model.alpha", 0.34, 1.41),
    ("model.input_size_px", 31, 1025),
    ("model.dropout", -0.1, 1),
    ("train.batch_size", 0, 4097),
    ("data.max_megapixels", 0, 2001),
    ("train.head_epochs", 0, 1001),
    ("train.head_learning_rate", 0, 1.1),
    ("train.trial_epochs", 0, 1001),
    ("train.epochs", 0, 1001),
    ("train.min_steps", -1, 1_000_001),
    ("train.learning_rate", 0, 1.1),
    ("train.warmup_steps", 0, 1_000_001),
    ("train.unfreeze_from", -1, None),
    ("train.unfreeze_until", -1, None),
    ("train.patience", 0, 1001),
    ("train.label_smoothing", -0.1, 1),
    ("train.views", 0, 1001),
    ("train.activations_budget_bytes", -1, None),
    ("train.augment.shift", -0.1, 0.6),
    ("train.augment.zoom", -0.1, 1),
    ("train.augment.brightness", -0.1, 1.1),
    ("train.augment.contrast", -0.1, 1.1),
    ("quantize.qat_epochs", -1, 1001),
    ("quantize.qat_learning_rate", 0, 1.1),
    ("quantize.qat_patience", 0, 1001),
    ("quantize.temperature", 0, 101),
    ("quantize.calibration_images", 0, 100_001),
    ("quantize.max_drop", -0.1, 100),
    ("validation.sessions", 2, 60),
    ("validation.min_queries", 0, 1_000_001),
    ("validation.min_seconds", -1, 3601),
    ("validation.warmup_seconds", -1, 3601),
    ("validation.session_timeout_seconds", 0, 86_401),
]
TEXTS = [
    "data.crop",
    "data.resize",
    "model.channels",
    "model.weights",
    "quantize.calibration",
    "quantize.granularity",
    "train.granularity",
    "train.strategy",
]
SWITCHES = ["data.check_labels", "data.follow_links", "train.augment.enabled", "train.augment.flip"]


COLUMNS = ("path_column", "label_column", "split_column")


def fields(spec: Spec, path: str = "") -> list[str]:
    names = []
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        names += fields(value, f"{path}{name}.") if isinstance(value, Spec) else [path + name]
    return names


def test_the_table_of_ranges_covers_every_field() -> None:
    listed = {key for key, _, _ in RANGES} | set(TEXTS) | set(SWITCHES)
    listed |= {"schema_version", "targets", "data.path", "quantize.keep_float"}
    listed |= {"train.class_weights"}
    listed |= {f"data.{key}" for key in ("table", "corrections", "other", "ignore", *COLUMNS)}
    assert listed == set(fields(default_recipe(Path("images"))))


def wrong(key: str, value: str) -> str:
    """Returns the smallest recipe with one value replaced, in dotted form."""
    return f"data.path = 'images'\n{key} = {value}\n"


@pytest.mark.parametrize(("key", "below", "above"), RANGES)
def test_out_of_range_not_a_number_and_wrong_type_are_refused(
    key: str, below: float, above: float | None
) -> None:
    for value in (below, above, "nan", "inf", "[]", "true"):
        if value is None:
            continue
        error = refused(wrong(key, str(value)))
        assert error.received.startswith(f"recipe.toml, line 2: {key}: received {value}")
        assert error.expected.startswith(f"{key}: ")


@pytest.mark.parametrize("key", TEXTS + SWITCHES)
def test_choices_and_switches_refuse_other_values(key: str) -> None:
    for value in ("'other'", "1", "nan"):
        error = refused(wrong(key, value))
        assert f"line 2: {key}: received" in error.received
        accepted = "true or false" if key in SWITCHES else '"'
        assert accepted in error.expected


def test_weights_of_classes_are_numbers_above_zero() -> None:
    key = "train.class_weights"
    for value in ("'other'", "1", "{ cat = 0 }", "{ cat = 'x' }", "[1.0]"):
        error = refused(wrong(key, value))
        assert f"line 2: {key}: received" in error.received
        assert '"auto", "none" or a table of numbers above 0 by class' in error.expected


@pytest.mark.parametrize("key", [key for key, _, _ in RANGES] + TEXTS + SWITCHES)
def test_every_misspelled_key_is_led_back(key: str) -> None:
    error = refused(wrong(key + "s_", "1"))
    assert f"line 2: {key}s_: unknown key" in error.received
    assert error.remedy == f"{key}s_: did you mean {key.rpartition('.')[2]}?"


def test_keys_of_an_older_habit_are_led_to_their_table() -> None:
    assert refused("batch_size = 8\n" + DATA).remedy == "batch_size: move it to [train]"


def test_a_newer_format_says_so() -> None:
    error = refused("schema_version = 2\n" + DATA)
    assert "schema_version: received 2" in error.received
    assert "update edgekit" in error.remedy


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_published_widths_are_accepted(alpha: float) -> None:
    assert ModelSpec(alpha=alpha).alpha == alpha


def test_between_published_widths_is_refused_with_the_list() -> None:
    error = refused(wrong("model.alpha", "0.6"))
    assert "one of 0.35, 0.5, 0.75, 1.0, 1.3, 1.4 (default 1.0)" in error.expected


@pytest.mark.parametrize("start", ["0", "154", "'head'", "'all'", "'block_13_expand'"])
def test_a_fixed_cut_may_be_an_index_or_a_name(start: str) -> None:
    train = parse(wrong("train.unfreeze_from", start), Recipe, "r").train
    assert train.unfreeze_from is not None
    assert train.strategy == "fixed"
    # Where a search ends at the latest is no fixed cut.
    assert parse(wrong("train.unfreeze_until", start), Recipe, "r").train.strategy == "auto"


def test_where_a_search_ends_is_refused_without_a_search() -> None:
    limit = "unfreeze_until = 'block_11_expand'\n"
    for table in ("strategy = 'head'\n", "strategy = 'fixed'\nunfreeze_from = 'all'\n"):
        error = refused(f"{DATA}[train]\n{table}{limit}")
        assert "unfreeze_until 'block_11_expand' with strategy" in error.received
        assert 'strategy "auto" or "progressive"' in error.expected
    for strategy in ("auto", "progressive"):
        text = f"{DATA}[train]\nstrategy = '{strategy}'\n{limit}"
        assert parse(text, Recipe, "r").train.unfreeze_until == "block_11_expand"


@pytest.mark.parametrize("strategy", ["auto", "head", "progressive"])
@pytest.mark.parametrize("start", ["0", "'head'", "'block_13_expand'"])
def test_a_cut_with_a_strategy_that_finds_its_own_is_refused(strategy: str, start: str) -> None:
    table = f"[train]\nstrategy = '{strategy}'\n"
    error = refused(f"{DATA}{table}unfreeze_from = {start}\n")
    assert error.received == (
        f'recipe.toml, line 3: train: unfreeze_from {start} with strategy "{strategy}"'
    )
    assert error.expected == 'train: strategy "fixed", or no unfreeze_from'
    assert error.exit_code == 2
    assert parse(DATA + table, Recipe, "r").train.strategy == strategy


def test_fixed_without_a_cut_is_refused() -> None:
    table = "[train]\nstrategy = 'fixed'\n"
    error = refused(DATA + table)
    assert error.received == 'recipe.toml, line 3: train: strategy "fixed" without unfreeze_from'
    assert error.expected == "train: unfreeze_from, or another strategy"
    assert parse(DATA + table + "unfreeze_from = 'all'\n", Recipe, "r").train.strategy == "fixed"


def test_fractions_must_leave_something_to_train_on() -> None:
    error = refused(DATA + "validation_fraction = 0.5\ntest_fraction = 0.5\n")
    assert "validation_fraction 0.5 and test_fraction 0.5" in error.received
    assert error.expected == "data: a sum below 1"
    parse(DATA + "validation_fraction = 0.5\ntest_fraction = 0.4\n", Recipe, "r")


def test_a_timeout_below_the_measuring_time_is_refused() -> None:
    error = refused(DATA + "[validation]\nmin_seconds = 300\n")
    assert "session_timeout_seconds 300.0 is over before" in error.received


@pytest.mark.parametrize("targets", ["[]", "['']", "['a', 'a']", "'a'", "[1]"])
def test_targets_must_be_a_list_of_different_names(targets: str) -> None:
    assert "targets" in refused(f"targets = {targets}\n{DATA}").received


def test_no_path_means_no_default_folder() -> None:
    assert "data.path: received the text ''" in refused("[data]\npath = ''").received
    assert "data.path: nothing" in refused("[data]\n").received
    assert "data: nothing" in refused("").received


def test_paths_start_at_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "recipe.toml"
    file.parent.mkdir()
    file.write_text(
        "targets = ['pixel-8', 'mine.toml']\n[data]\npath = '../images'\n"
        "[model]\nweights = 'w.h5'\n"
    )
    recipe = load_recipe(file)
    assert recipe.data.path == tmp_path / "images"
    assert recipe.model.weights == str(tmp_path / "sub" / "w.h5")
    assert recipe.targets == ("pixel-8", str(tmp_path / "sub" / "mine.toml"))


def test_paths_may_be_absolute_or_start_at_home(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    for path, expected in (("/data/x", Path("/data/x")), ("~/x", Path.home() / "x")):
        file.write_text(f"[data]\npath = '{path}'\n")
        recipe = load_recipe(file)
        assert recipe.data.path == expected.resolve()
        assert recipe.model.weights == "imagenet"


@pytest.mark.parametrize("path", ["a\\u0000b", "~no-such-user-here/x", "loop"])
def test_paths_that_cannot_be_followed_are_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    file = tmp_path / "recipe.toml"
    file.write_text(f'[data]\npath = "{path}"\n')
    with pytest.raises(SpecError, match="a path that can be followed"):
        load_recipe(file)


TRAININGS = (
    TrainSpec(unfreeze_from="block_13_expand"),
    TrainSpec(strategy="fixed", unfreeze_from="all", views=1000),
    TrainSpec(strategy="head", views=1, activations_budget_bytes=0),
    TrainSpec(
        strategy="progressive",
        granularity="layer",
        trial_epochs=1,
        min_steps=0,
        unfreeze_until="block_11_expand",
        activations_budget_bytes=10**15,
    ),
)


def test_an_input_is_square_or_height_and_width() -> None:
    for size, sides in (("96", (96, 96)), ("[48, 1024]", (48, 1024)), ("[64, 64]", (64, 64))):
        text = wrong("model.input_size_px", size)
        assert parse(text, Recipe, "recipe.toml").model.size_px == sides
    for size in ("[48]", "[48, 64, 3]", "[31, 64]", "[64, 1025]", "96.0", "'96x96'"):
        error = refused(wrong("model.input_size_px", size))
        assert "a list of two: height and width" in error.expected


def test_a_fill_is_one_level_or_three_and_of_a_letterbox_only() -> None:
    boxed = "data.path = 'images'\ndata.crop = 'letterbox'\n"
    for fill, colour in (("7", (7, 7, 7)), ("[1, 2, 255]", (1, 2, 255)), (None, (114,) * 3)):
        text = boxed if fill is None else f"{boxed}data.fill = {fill}\n"
        assert parse(text, Recipe, "recipe.toml").data.fill_rgb == colour
    for fill in ("[1, 2]", "[1, 2, 256]", "7.0"):
        error = refused(f"{boxed}data.fill = {fill}\n")
        assert "data.fill: a whole number from 0 to 255, or a list of three" in error.expected
    error = refused("data.path = 'images'\ndata.fill = 7\n")
    assert 'fill with crop "none"' in error.received


def test_the_commented_recipe_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for recipe in (
        default_recipe(images),
        Recipe(
            seed=7,
            targets=("pixel-8",),
            data=DataSpec(path=images, crop="letterbox", fill=(0, 10, 255)),
            model=ModelSpec(alpha=0.35, weights="none"),
            train=TrainSpec(unfreeze_from=154, augment=AugmentSpec(flip=False, shift=0.0)),
        ),
        *(Recipe(data=DataSpec(path=images), train=train) for train in TRAININGS),
    ):
        file = tmp_path / "recipe.toml"
        file.write_text(recipe_toml(recipe), encoding="utf-8")
        assert load_recipe(file) == recipe


def test_the_commented_recipe_writes_every_key_below_a_comment() -> None:
    recipe = default_recipe(Path("images"))
    lines = recipe_toml(recipe).split("\n")
    keys = [number for number, line in enumerate(lines) if " = " in line and line[0] != "#"]
    # Those that are None stay comments.
    absent = ["table", "path_column", "label_column", "split_column", "corrections", "other",
              "unfreeze_from", "unfreeze_until", "max_drop"]  # fmt: skip
    assert len(keys) == len(fields(recipe)) - len(absent)
    assert all(any(line.startswith(f"# {key} = ") for line in lines) for key in absent)
    assert all(lines[number - 1].startswith("# ") for number in keys)
    assert '# unfreeze_from = "block_13_expand"' in lines
    assert '# unfreeze_until = "block_11_expand"' in lines
    assert 'strategy = "auto"' in lines
    assert 'granularity = "stage"' in lines
    assert "activations_budget_bytes = 4000000000" in lines
    assert tomllib.loads("\n".join(lines))["train"]["augment"]["zoom"] == 0.12


def test_every_field_is_described() -> None:
    schema = Recipe.model_json_schema()
    for table in (schema, *schema["$defs"].values()):
        assert all(field.get("description") for field in table["properties"].values())
