"""Real files through Arm's real compiler, each in a process of its own."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Untyped, digest, mean_onnx, mean_tflite, shared_file
from tiny_network import Exported

from edgekit.errors import DeviceError, IntegrityError, SpecError
from edgekit.estimate.ethos_u import NpuEstimate, compile_for, read_summary

pytestmark = pytest.mark.proves("ethos-u: Arm's NPUs", "estimate: Arm's compiler Vela")


@pytest.fixture(scope="module")
def vela() -> None:
    """Skips where the compiler is missing, but fails in CI."""
    if importlib.util.find_spec("ethosu") is None:
        reason = "needs the package ethos-u-vela (edgekit[micro])"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def compiled(model: Path, *settings: str, output: Path | None = None) -> NpuEstimate:
    return compile_for(model, digest(model), *settings, timeout_seconds=120, output=output)


def altered(model: Path, change: Callable[[Untyped], None]) -> Path:
    """Rewrites a file after a change of its unpacked flatbuffer."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    unpacked = schema.ModelT.InitFromPackedBuf(model.read_bytes(), 0)
    change(unpacked)
    builder = flatbuffers.Builder(1024)
    builder.Finish(unpacked.Pack(builder), b"TFL3")
    model.write_bytes(bytes(builder.Output()))
    return model


def operators_in(path: Path) -> list[str]:
    """Returns the operators of a file, custom ones by their own name."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    builtin = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    codes = [model.operatorCodes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]
    return [
        code.customCode.decode() if code.customCode else builtin[code.builtinCode] for code in codes
    ]


@pytest.mark.usefixtures("vela")
def test_a_real_network_runs_on_the_npu_alone(exported: Exported, tmp_path: Path) -> None:
    model = exported.folder / "model_int8_int8_io.tflite"
    found = compiled(model, output=tmp_path / "compiled.tflite")
    assert found.operators_on_npu == found.operators_in_all
    assert found.cpu_operators == ()
    assert found.operators_on_npu == found.operators_in_all == len(operators_in(model))
    assert operators_in(tmp_path / "compiled.tflite") == ["ethos-u"]
    assert found.compiled_bytes == (tmp_path / "compiled.tflite").stat().st_size
    # Weights are compressed a little; input and output of the widest layer lie in SRAM at once.
    assert 300_000 < found.flash_bytes < model.stat().st_size
    assert 24 * 24 * 48 < found.sram_bytes < 100_000
    assert found.dram_bytes == 0
    assert found.estimated_ms == pytest.approx(found.cycles / 500e6 * 1000)
    for word in ("estimated", "5.2.0", "ethos-u55-128", "500 MHz", "Shared_Sram", "not measured"):
        assert word in found.settings
    # The float file of the same network is the twin: the NPU takes nothing of it.
    floats = compiled(exported.folder / "model_float32.tflite")
    assert floats.operators_on_npu == 0
    assert len(floats.cpu_operators) == floats.operators_in_all == len(operators_in(model))
    assert floats.estimated_ms is None
    assert (floats.cycles, floats.sram_bytes, floats.flash_bytes) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("vela")
def test_the_settings_matter() -> None:
    model = shared_file("models", "tf2_mobilenet_v2_1.0_224_ptq.tflite")
    usual = compiled(model)
    assert usual == compiled(model)
    assert (usual.system_config, usual.memory_mode) == (
        "Ethos_U55_High_End_Embedded",
        "Shared_Sram",
    )
    assert usual.operators_on_npu == usual.operators_in_all
    assert 1_300_000 < usual.sram_bytes < 1_600_000
    smaller = compiled(model, "ethos-u55-32")
    assert smaller.accelerator == "ethos-u55-32"
    assert smaller.cycles > 2 * usual.cycles
    slow = compiled(model, "ethos-u55-128", "Ethos_U55_Deep_Embedded", "Sram_Only")
    assert (slow.clock_hz, slow.memory_mode) == (200e6, "Sram_Only")
    assert slow.estimated_ms is not None
    assert usual.estimated_ms is not None
    assert slow.estimated_ms > usual.estimated_ms
    # The weights are the same; only the commands differ.
    assert slow.flash_bytes == pytest.approx(usual.flash_bytes, rel=1e-3)
    tight = compile_for(model, digest(model), optimise="Size", timeout_seconds=120)
    assert tight.sram_bytes < usual.sram_bytes
    assert tight.cycles > usual.cycles
    assert "optimised for size" in tight.settings
    other = compiled(model, "ethos-u65-256", "Ethos_U65_High_End", "Dedicated_Sram")
    assert other.dram_bytes > usual.flash_bytes
    assert other.flash_bytes == 0


@pytest.mark.usefixtures("vela")
def test_what_stays_on_the_cpu_is_named(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8", relu=True, reduction="REDUCE_PROD")
    found = compiled(model, output=tmp_path / "c.tflite")
    assert found.cpu_operators == ("REDUCE_PROD means",)
    assert (found.operators_on_npu, found.operators_in_all) == (1, 2)
    assert operators_in(tmp_path / "c.tflite") == ["REDUCE_PROD", "ethos-u"]
    # The compiler does not know how long the CPU takes.
    assert found.cycles > 0
    assert found.estimated_ms is None
    whole = compiled(mean_tflite(tmp_path / "m.tflite", "int8", relu=True))
    assert whole.cpu_operators == ()
    assert whole.estimated_ms is not None


def far(model: Untyped) -> None:
    model.subgraphs[0].operators[0].inputs = [0, 4_000_000]


def axes_out_of_range(model: Untyped) -> None:
    model.buffers[1].data = np.frombuffer(np.array([2**30, 7], "<i4").tobytes(), np.uint8)


@pytest.mark.usefixtures("vela")
def test_refused_files(tmp_path: Path) -> None:
    model = altered(mean_tflite(tmp_path / "m.tflite", "int8"), axes_out_of_range)
    with pytest.raises(IntegrityError, match=r"m\.tflite: Vela crashed \(SIGSEGV\)"):
        compiled(model)
    model = altered(mean_tflite(tmp_path / "m.tflite", "int8"), far)
    with pytest.raises(IntegrityError, match=r"Vela refuses it .*Out of bounds"):
        compiled(model, output=tmp_path / "c.tflite")
    # An operator of another compiler, such as this one's own result.
    mean_tflite(tmp_path / "m.tflite", "int8", custom="ethos-u")
    with pytest.raises(IntegrityError, match="custom operator 'ethos-u'"):
        compiled(model)
    with pytest.raises(IntegrityError, match="SHA-256"):
        compile_for(model, "0" * 64)
    with pytest.raises(IntegrityError, match="not a TFLite file"):
        compiled(mean_onnx(tmp_path / "m.onnx"))
    with pytest.raises(SpecError, match="No such file"):
        compile_for(tmp_path / "none.tflite", "0" * 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.tflite"]


@pytest.mark.usefixtures("vela")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("ethos-u55-100",), "accelerator 'ethos-u55-100'"),
        (("ethos-u55-128", "--help"), "system-config '--help'"),
        (("ethos-u55-128", "Ethos_U65_High_End"), "a name that begins with Ethos_U55_"),
        (("ethos-u55-128", "Ethos_U55_Best"), "Section System_Config.Ethos_U55_Best not found"),
        (("ethos-u55-128", "Ethos_U55_Deep_Embedded", "Most"), "Memory_Mode.Most not found"),
        (("ethos-u55-128", "Ethos_U55_Deep_Embedded", "Dedicated_Sram"), "arena_mem_area"),
    ],
)
def test_refused_settings(tmp_path: Path, settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        compiled(mean_tflite(tmp_path / "m.tflite", "int8"), *settings)
    assert said in str(caught.value)


@pytest.mark.usefixtures("vela")
def test_a_time_limit_ends_it(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    with pytest.raises(DeviceError, match=r"Vela did not end after 0\.05 s"):
        compile_for(model, digest(model), timeout_seconds=0.05)


@pytest.mark.usefixtures("vela")
def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    model = mean_tflite(tmp_path / "m.tflite", "int8")
    with pytest.raises(SpecError, match=r"none/c\.tflite: No such file or directory"):
        compiled(model, output=tmp_path / "none" / "c.tflite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match="folder: Is a directory"):
        compiled(model, output=tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "m.tflite"]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ethosu", None)
    with pytest.raises(DeviceError, match=r"pip install 'edgekit\[micro\]'"):
        compile_for(tmp_path / "m.tflite", "0" * 64)


SUMMARY = {
    "accelerator_configuration": "Ethos_U55_128",
    "system_config": "Ethos_U55_High_End_Embedded",
    "memory_mode": "Shared_Sram",
    "core_clock": "500000000.0",
    "batch_size": "1",
    "inference_time": "0.001492646",
    "sram_memory_used": "145.859375",
    "dram_memory_used": "0.0",
    "on_chip_flash_memory_used": "2.0",
    "off_chip_flash_memory_used": "444.65625",
    "cycles_total": "746323",
}


def text_of(row: dict[str, str]) -> str:
    return f"{','.join(row)}\n{','.join(row.values())}\n"


def test_read_summary() -> None:
    assert read_summary(text_of(SUMMARY), "ethos-u55-128", "m") == {
        "system_config": "Ethos_U55_High_End_Embedded",
        "memory_mode": "Shared_Sram",
        "clock_hz": 500e6,
        "cycles": 746323,
        "sram_bytes": 149360,
        "dram_bytes": 0,
        "flash_bytes": 457376,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accelerator_configuration", "Ethos_U55_256"),
        ("system_config", "\x1b[2J"),
        ("core_clock", "0"),
        ("core_clock", "inf"),
        ("core_clock", "400000000.0"),
        ("batch_size", "2"),
        ("inference_time", "nan"),
        ("sram_memory_used", "-1"),
        ("sram_memory_used", "nan"),
        ("sram_memory_used", "inf"),
        ("off_chip_flash_memory_used", "0.0001"),
        ("cycles_total", "746323.5"),
        ("cycles_total", "-5"),
        ("cycles_total", "1,2"),
    ],
)
def test_the_twin_another_summary_is_refused(name: str, value: str) -> None:
    with pytest.raises(DeviceError, match="Vela's results: m: a summary"):
        read_summary(text_of({**SUMMARY, name: value}), "ethos-u55-128", "m")


@pytest.mark.parametrize("name", SUMMARY)
def test_a_summary_that_lacks_something_is_refused(name: str) -> None:
    row = {key: value for key, value in SUMMARY.items() if key != name}
    with pytest.raises(DeviceError, match="without a usable"):
        read_summary(text_of(row), "ethos-u55-128", "m")


@pytest.mark.parametrize("text", ["", "a,b\n", "a,a\n1,2\n", text_of(SUMMARY) * 2])
def test_no_table_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="a summary of"):
        read_summary(text, "ethos-u55-128", "m")
