"""Targets: the shipped ones and their sources, and the rules between their fields."""

import re
from pathlib import Path

import pytest

from edgekit import target as target_module
from edgekit.errors import SpecError
from edgekit.spec import parse
from edgekit.target import (
    Target,
    explain,
    load_target,
    refuse_float_layers,
    refuse_granularity,
    refuse_same_names,
    shipped_targets,
    target_text,
    with_device,
    with_installing,
    with_latency_budget,
)

NAMES = (
    "coral-edgetpu",
    "cortex-m7",
    "ethos-u55-128",
    "host-litert",
    "host-onnxruntime",
    "iphone-13",
    "linux-arm64-emulated",
    "pixel-8",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "web-litert",
    "web-wasm",
)
NUMBER = re.compile(r"^\w+\s*=\s*[-+\d]")


def numbers_without_source(text: str) -> list[str]:
    """Returns the lines with a number whose own comment block names no source."""
    found = []
    block: list[str] = []
    for line in text.split("\n"):
        if line.startswith("#"):
            block.append(line)
            continue
        if NUMBER.match(line) and not any("# source: " in part for part in (*block, line)):
            found.append(line)
        block = []
    return found


def edited(name: str, *pairs: tuple[str, str]) -> str:
    text = target_text(name)
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text, Target, "mine.toml")
    assert caught.value.received.startswith("mine.toml")
    return caught.value


def test_the_shipped_targets_are_listed() -> None:
    assert shipped_targets() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_target_loads_and_has_its_budgets(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.budget.accuracy_drop_points == 2.0
    if name.startswith("host-"):
        assert target.device.transport == "local"
        assert target.budget.latency_ms is None
    elif name.endswith("-emulated"):
        assert target.device.transport == "emulated"
        assert target.budget.latency_ms is None
    else:
        assert target.device.transport != "local"
        assert target.budget.latency_ms is not None
        assert target.budget.size_bytes is not None
    assert (target.budget.memory_bytes is not None) == (
        target.runtime.name in ("tflite-micro", "ethos-u")
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_shipped_target_has_a_source(name: str) -> None:
    text = target_text(name)
    assert numbers_without_source(text) == []
    assert sum(bool(NUMBER.match(line)) for line in text.split("\n")) >= 2


def test_a_number_without_source_would_be_found() -> None:
    text = "# source: a\na = 1\nb = 2\n# remark\nc = 3\n\n# source: x\n\nd = 4\ne = 5 # source: y"
    assert numbers_without_source(text) == ["b = 2", "c = 3", "d = 4"]


@pytest.mark.parametrize("name", NAMES)
def test_every_web_source_is_a_full_address(name: str) -> None:
    for line in target_text(name).split("\n"):
        assert "www." not in line or "://www." in line
        assert "http://" not in line


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("pixel8", "pixel-8"), ("Host-LiteRT", "host-litert"), ("raspberry-pi5", "raspberry-pi-5")],
)
def test_an_unknown_name_gets_the_nearest_and_the_list(given: str, nearest: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_target(given)
    assert repr(given) in caught.value.received
    assert all(name in caught.value.expected for name in NAMES)
    assert caught.value.remedy == f"did you mean {nearest}?"


@pytest.mark.parametrize("given", ["", "..", "../host-litert", "zzzzzz", "\x1b[31m", "a\0b"])
def test_odd_names_are_refused_in_plain_words(given: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_target(given)
    assert "\x1b" not in str(caught.value)
    assert "host-litert" in caught.value.expected


def test_a_target_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(edited("pixel-8", ('"pixel-8"', '"mine"')))
    assert load_target(str(file)).name == "mine"
    with pytest.raises(SpecError, match="no such file"):
        load_target(str(tmp_path / "other.toml"))


@pytest.mark.parametrize("installed", [True, False])
def test_targets_are_found_in_a_wheel_and_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    package = tmp_path / "edgekit"
    folder = package / "_targets" if installed else tmp_path / "targets"
    folder.mkdir(parents=True)
    monkeypatch.setattr(target_module, "__file__", str(package / "target.py"))
    with pytest.raises(SpecError, match="without targets"):
        shipped_targets()
    (folder / "only.toml").write_text("")
    assert shipped_targets() == ("only",)


@pytest.mark.parametrize(
    ("line", "received", "accepted"),
    [
        ("latency_ms = 0", "latency_ms: received 0", "a number above 0 and at most 3600000"),
        ("latency_ms = -5", "latency_ms: received -5", "a number above 0"),
        ("latency_ms = nan", "latency_ms: received nan", "a number above 0"),
        ("latency_ms = '5 ms'", "received the text '5 ms'", "a number above 0"),
        ("latency_percentile = 0.999", "received 0.999", "from 50 to 99 (default 90)"),
        ("latency_percentile = 100", "received 100", "from 50 to 99 (default 90)"),
        ("size_bytes = 1.5", "received 1.5", "a whole number above 0"),
        ("memory_bytes = 0", "received 0", "a whole number above 0"),
        ("accuracy_drop_points = 0", "received 0", "a number above 0 and below 100"),
        ("accuracy_drop_points = 100", "received 100", "a number above 0 and below 100"),
        ("accuracy_min_percent = 100", "received 100", "a number above 0 and below 100"),
        ("latency = 5", "latency: unknown key", "latency_ms, latency_percentile"),
    ],
)
def test_a_wrong_budget_is_refused(line: str, received: str, accepted: str) -> None:
    head = target_text("host-litert").partition("[budget]")[0]
    error = refused(f"{head}[budget]\n{line}\n")
    number = head.count("\n") + 2
    assert f"mine.toml, line {number}: budget." in error.received
    assert received in error.received
    assert accepted in error.expected


def test_a_target_that_asks_nothing_is_refused() -> None:
    head = target_text("host-litert").partition("[budget]")[0]
    for budget in ("", "latency_percentile = 90\n"):
        error = refused(f"{head}[budget]\n{budget}")
        assert "budget: no budget at all" in error.received
        assert "accuracy_drop_points" in error.expected


INT8, FLOAT_IO, UINT8_IO = 'variant = "int8"', 'io = "float32"', 'io = "uint8"'


@pytest.mark.parametrize(
    ("name", "pairs", "key", "accepted"),
    [
        ("host-onnxruntime", [(INT8, 'variant = "float16"')], "artifact", 'io "float32"'),
        ("host-onnxruntime", [(INT8, 'variant = "dynamic"')], "artifact", '"float32" or "int8"'),
        ("host-onnxruntime", [(FLOAT_IO, 'io = "int8"')], "artifact", 'io "float32"'),
        ("host-litert", [(INT8, 'variant = "float32"')], "artifact", 'variant "int8"'),
        ("host-litert", [(INT8, f'{INT8}\nbatch = "any"')], "artifact", 'format "onnx"'),
        (
            "host-litert",
            [('format = "tflite"', 'format = "onnx"'), (UINT8_IO, FLOAT_IO)],
            "the file as a whole",
            'for "litert": format "tflite"',
        ),
        (
            "cortex-m7",
            [('io = "int8"', UINT8_IO)],
            "the file as a whole",
            'io "float32" or "int8"',
        ),
        (
            "coral-edgetpu",
            [(UINT8_IO, FLOAT_IO)],
            "the file as a whole",
            'io "uint8" or "int8"',
        ),
        (
            "cortex-m7",
            [('transport = "none"', 'transport = "local"')],
            "the file as a whole",
            'transport "none", or runtime "litert" or "onnxruntime"',
        ),
        ("iphone-13", [("threads = 2", "threads = 7")], "the file as a whole", "than cores"),
        (
            "web-wasm",
            [('name = "onnxruntime-web"', 'name = "onnxruntime"')],
            "the file as a whole",
            'runtime "onnxruntime-web" or "litert-js"',
        ),
        (
            "host-litert",
            [('transport = "local"', 'transport = "local"\nhost = "pi@board"')],
            "device",
            'host with transport "ssh"',
        ),
        (
            "raspberry-pi-5",
            [('transport = "ssh"', 'transport = "ssh"\nserial = "1"')],
            "device",
            'serial with transport "adb"',
        ),
        (
            "iphone-13",
            [('transport = "none"', 'transport = "none"\ninstall = true')],
            "device",
            'install with transport "ssh"',
        ),
        (
            "host-litert",
            [('name = "litert"', 'name = "litert"\ndelegate = "nnapi"')],
            "runtime",
            'for "litert": "default" or "none" or "xnnpack"',
        ),
        (
            "pixel-8",
            [("[budget]", "[expect]\nlatency_min_ms = 16.0\n\n[budget]")],
            "the file as a whole",
            "less than the budget",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    name: str, pairs: list[tuple[str, str]], key: str, accepted: str
) -> None:
    error = refused(edited(name, *pairs))
    assert f"{key}: " in error.received
    assert accepted in error.expected


def test_layers_in_float_are_refused_where_integers_are_needed_throughout() -> None:
    targets = [load_target(name) for name in ("host-litert", "cortex-m7", "coral-edgetpu")]
    with pytest.raises(SpecError) as caught:
        refuse_float_layers(["quantize.max_drop"], targets)
    assert caught.value.received.startswith("quantize.max_drop for cortex-m7, coral-edgetpu")
    # Nothing was asked, no such target, or a file that is float anyway.
    refuse_float_layers([], targets)
    refuse_float_layers(["quantize.max_drop"], targets[:1])
    text = edited("cortex-m7", (INT8, 'variant = "float32"'), ('io = "int8"', FLOAT_IO))
    refuse_float_layers(["quantize.max_drop"], [parse(text, Target, "mine.toml")])


@pytest.mark.parametrize("name", ["", "Pixel", "a b", "../x", "-a", "8x", "ü", "a" * 65])
def test_names_must_be_safe_in_file_names(name: str) -> None:
    error = refused(edited("host-litert", ('"host-litert"', f'"{name}"')))
    assert "line 1: name: received the text" in error.received
    assert "letters, digits and hyphens" in error.expected


def test_a_newer_format_says_so() -> None:
    error = refused("schema_version = 2\n" + target_text("host-litert"))
    assert "update edgekit" in error.remedy


def test_a_latency_budget_can_be_replaced() -> None:
    target = load_target("host-litert")
    changed = with_latency_budget(target, 25)
    assert changed.budget.latency_ms == 25.0
    assert changed.budget.accuracy_drop_points == target.budget.accuracy_drop_points
    assert target.budget.latency_ms is None


@pytest.mark.parametrize("latency_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_latency_budget_is_refused(latency_ms: float) -> None:
    with pytest.raises(SpecError, match="latency_ms: received"):
        with_latency_budget(load_target("host-litert"), latency_ms)


def test_a_device_can_be_named_on_the_command_line() -> None:
    board = with_device(load_target("raspberry-pi-5"), "pi@10.0.0.7:2222")
    assert (board.device.host, board.device.port) == ("pi@10.0.0.7", 2222)
    assert board.is_measured
    assert not load_target("raspberry-pi-5").is_measured
    assert with_device(load_target("raspberry-pi-5"), "pi@board").device.port is None
    assert with_device(load_target("pixel-8"), "0123").device.serial == "0123"
    assert with_device(load_target("web-wasm"), "/opt/chrome").device.program == "/opt/chrome"
    for name in ("host-litert", "iphone-13", "linux-arm64-emulated"):
        with pytest.raises(SpecError, match=f"--device {name}=x"):
            with_device(load_target(name), "x")


@pytest.mark.parametrize(
    ("where", "host", "port"),
    [
        ("root@[fe80::1%eth0]:22", "root@fe80::1%eth0", 22),
        ("[::1]", None, None),
        ("root@::1", None, None),
        ("pi@board:2222", "pi@board", 2222),
    ],
)
def test_addresses_are_told_from_ports(where: str, host: str | None, port: int | None) -> None:
    target = load_target("raspberry-pi-5")
    if host is None:  # an address that begins with a colon would not pass for a name
        with pytest.raises(SpecError, match="host"):
            with_device(target, where)
    else:
        device = with_device(target, where).device
        assert (device.host, device.port) == (host, port)


@pytest.mark.parametrize("where", ["-oProxyCommand=touch x", "a b", "$(id)", "a;b", "pi@-x", "x@"])
def test_a_host_that_a_program_could_misread_is_refused(where: str) -> None:
    with pytest.raises(SpecError, match="host"):
        with_device(load_target("raspberry-pi-5"), where)


def test_two_targets_of_one_name_are_refused() -> None:
    targets = [load_target("host-litert"), load_target("pixel-8")]
    refuse_same_names(targets)
    with pytest.raises(SpecError, match="two targets named pixel-8"):
        refuse_same_names([*targets, load_target("pixel-8")])


def test_only_a_board_reached_by_ssh_is_installed_on() -> None:
    board = with_device(load_target("raspberry-pi-5"), "pi@board")
    assert with_installing(board).device.install
    assert with_installing(load_target("host-litert")) == load_target("host-litert")


def test_kernels_of_another_granularity_are_refused_before_anything_runs() -> None:
    tensor = edited("host-litert", ('io = "uint8"', 'io = "uint8"\ngranularity = "tensor"'))
    asked = parse(tensor, Target, "mine.toml")
    with pytest.raises(SpecError) as caught:
        refuse_granularity("channel", [asked])
    assert 'quantize.granularity = "tensor"' in caught.value.remedy
    refuse_granularity("tensor", [asked])
    refuse_granularity("channel", [load_target("host-litert")])


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_explained_with_all_its_numbers(name: str) -> None:
    target = load_target(name)
    said = " ".join(explain(target))
    for value in (target.budget.latency_ms, target.budget.size_bytes, target.budget.memory_bytes):
        assert value is None or f"{value:,}" in said
    assert ("UNMEASURED" in said) == (not target.is_measured or name.endswith("-emulated"))


def test_an_explanation_names_what_else_is_asked() -> None:
    text = edited(
        "host-litert",
        ('name = "host-litert"', 'name = "mine"\nprotocol = "mlperf-mobile"'),
        ('io = "uint8"', 'io = "uint8"\noperators = ["CONV_2D"]'),
        ("[budget]", "[expect]\nlatency_min_ms = 0.1\naccuracy_max_percent = 99\n\n[budget]\n"
         "latency_ms = 3"),
    )  # fmt: skip
    said = explain(parse(text, Target, "mine.toml"))
    assert "The file may use only CONV_2D." in said
    assert "Less than 0.1 ms is flagged as too good to be true." in said
    assert "Top-1 above 99 % is flagged as too good to be true." in said
    assert "1024 calls and 60 s; MLPerf" in said[-1]


def test_an_accelerator_is_for_ethos_u_alone() -> None:
    line = 'name = "litert"\naccelerator = "ethos-u55-128"'
    error = refused(edited("host-litert", ('name = "litert"', line)))
    assert 'runtime "ethos-u"' in error.expected
    wrong = ('accelerator = "ethos-u55-128"', 'accelerator = "u5"')
    error = refused(edited("ethos-u55-128", wrong))
    assert '"ethos-u55-128"' in error.expected


def test_the_schema_for_editors_knows_every_key() -> None:
    schema = Target.model_json_schema()
    assert {"name", "device", "runtime", "artifact", "budget", "expect", "protocol"} <= set(
        schema["properties"]
    )
    assert schema["additionalProperties"] is False
