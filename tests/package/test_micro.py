"""The sources for microcontrollers, compiled and run here.

TensorFlow Lite Micro's sources are in no package registry; its compiled kernels are in the wheel
`tflite-micro`, whose library exports them. `HEADERS` declares by hand the few names that the
generated sources use, laid out as in that library, and golden_test is linked with it: the
kernels are real, the headers are not. The place where earlier releases have the names is only
compiled against.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from score_threshold import with_threshold
from tiny_models import CLASSES, SIZE, Untyped, mean_tflite
from tiny_network import SIZE_PX, Exported, coloured

from edgekit.errors import SpecError
from edgekit.package import micro
from edgekit.package.contents import Contents, Golden
from edgekit.records import Artifact, Preprocess, Status, Verdict, input_codes
from edgekit.runtimes import classifier_io
from edgekit.runtimes.inspect import inspect_content
from edgekit.target import load_target
from edgekit.validate.measurements import read_measurements

STRICT = ("-Wall", "-Wextra", "-Werror", "-Wconversion", "-pedantic")
C = ("gcc", "-std=c11", "-x", "c")
CPP = ("g++", "-std=c++17", "-x", "c++")
PIXELS = Preprocess(height_px=SIZE, width_px=SIZE)
HOSTILE = (
    'say "x"\\',
    "*/ int main(){} // /*",
    "what??/ ??= $(rm) `\\(x)",
    "été 🦊 \u202etxt",
    "<script>%s%n\\x41\\0",
    "@@NAME@@ 7",
)

# What golden_check.cc, op_resolver.h and the README's example use of TensorFlow Lite Micro. The
# layout is that of tflite-micro 0.dev20261023182759, read from the symbols and the code of its
# library: structures with TF_LITE_STATIC_MEMORY, MicroInterpreter of fewer than 4096 bytes.
HEADERS = """
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

@@C_OPEN@@
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType { kTfLiteFloat32 = 1, kTfLiteInt8 = 9 };
union TfLitePtrUnion { float *f; char *raw; int8_t *int8; void *data; };
struct TfLiteTensor {
  struct { int type; void *params; } quantization;
  struct { float scale; int32_t zero_point; } params;
  TfLitePtrUnion data;
  void *dims;
  size_t bytes;
  TfLiteType type;
  int allocation_type;
  bool is_variable;
};
struct TfLiteContext;
struct TfLiteNode;
@@C_CLOSE@@

namespace tflite {
struct Model;
struct Operator;
enum BuiltinOperator : int32_t { BuiltinOperator_CUSTOM = 32 };
inline const Model *GetModel(const void *bytes) {
  uint32_t offset;
  memcpy(&offset, bytes, sizeof(offset));
  return reinterpret_cast<const Model *>(static_cast<const char *>(bytes) + offset);
}
}

@@OPEN@@
class BuiltinDataAllocator;
struct TFLMRegistration {
  void *(*init)(TfLiteContext *, const char *, size_t);
  void (*free)(TfLiteContext *, void *);
  TfLiteStatus (*prepare)(TfLiteContext *, TfLiteNode *);
  TfLiteStatus (*invoke)(TfLiteContext *, TfLiteNode *);
  void (*reset)(TfLiteContext *, void *);
  int32_t builtin_code;
  const char *custom_name;
};
using Parse = TfLiteStatus (*)(const Operator *, BuiltinDataAllocator *, void **);
@@DECLARED@@

class MicroOpResolver {
 public:
  virtual const TFLMRegistration *FindOp(BuiltinOperator) const = 0;
  virtual const TFLMRegistration *FindOp(const char *) const = 0;
  virtual Parse GetOpDataParser(BuiltinOperator) const = 0;
  virtual ~MicroOpResolver() {}
};

template <unsigned int kCount>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
  const TFLMRegistration *FindOp(BuiltinOperator op) const override {
    const int found = Find(op);
    return found < 0 ? nullptr : &registrations_[found];
  }
  const TFLMRegistration *FindOp(const char *) const override { return nullptr; }
  Parse GetOpDataParser(BuiltinOperator op) const override {
    const int found = Find(op);
    return found < 0 ? nullptr : parsers_[found];
  }
@@METHODS@@

 private:
  TfLiteStatus AddBuiltin(int32_t code, TFLMRegistration registration, Parse parser) {
    if (count_ >= kCount) return kTfLiteError;
    registrations_[count_] = registration;
    registrations_[count_].builtin_code = code;
    parsers_[count_++] = parser;
    return kTfLiteOk;
  }
  int Find(BuiltinOperator op) const {
    for (unsigned int i = 0; i < count_; ++i) {
      if (registrations_[i].builtin_code == op) return static_cast<int>(i);
    }
    return -1;
  }
  TFLMRegistration registrations_[kCount];
  Parse parsers_[kCount];
  unsigned int count_ = 0;
};

class MicroAllocator { public: size_t used_bytes() const; };
class MicroResourceVariables;
class MicroProfilerInterface;
class MicroInterpreter {
 public:
  MicroInterpreter(const Model *, const MicroOpResolver &, uint8_t *, size_t,
                   MicroResourceVariables * = nullptr, MicroProfilerInterface * = nullptr,
                   bool = false);
  ~MicroInterpreter();
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor *input(size_t);
  TfLiteTensor *output(size_t);
  size_t arena_used_bytes() const { return allocator_->used_bytes(); }

 private:
  void *before_[3];
  MicroAllocator *allocator_;
  char after_[4096];
};
@@CLOSE@@
"""
# Parser of each operator that the tests' models have.
PARSERS = {
    "ADD": "ParseAdd",
    "CONV_2D": "ParseConv2D",
    "DEPTHWISE_CONV_2D": "ParseDepthwiseConv2D",
    "DEQUANTIZE": "ParseDequantize",
    "MEAN": "ParseReducer",
    "QUANTIZE": "ParseQuantize",
    "RELU": "ParseRelu",
    "RESHAPE": "ParseReshape",
}


def program(name: str) -> str:
    """Returns a program's path; skips where there is none, but fails in CI."""
    path = shutil.which(name)
    return path if path is not None else missing(name)


def missing(what: str) -> str:
    reason = f"needs {what}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def ran(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=250)


def done(*command: str | Path, cwd: Path) -> bytes:
    result = ran(*command, cwd=cwd)
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    return result.stdout


def contents_of(
    model: Path,
    preprocess: Preprocess = PIXELS,
    images: npt.NDArray[np.uint8] | None = None,
    names: tuple[str, ...] = CLASSES,
    arena_bytes: int | None = 16000,
) -> Contents:
    """Returns contents with goldens that LiteRT answered."""
    content = model.read_bytes()
    facts = inspect_content(content, "tflite", str(model))
    ends = classifier_io(facts, str(model))
    if images is None:
        images = np.random.default_rng(5).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
        images[0], images[1] = 0, np.array([200, 100, 20])
    channels = np.arange(preprocess.input_channels)
    codes = input_codes(preprocess, ends[0].dtype, ends[0].scale, ends[0].zero_point)
    artifact = Artifact(
        format="tflite",
        variant="float32" if "_float32.tflite" in model.name else "int8",
        io=ends[0].dtype,
        path=model.name,
        sha256="0" * 64,
        size_bytes=len(content),
        inputs=ends[:1],
        outputs=ends[1:],
        operators=facts.operators,
        float_tensors=(),
    )
    return Contents(
        name="colours",
        title="Colours",
        licence="Apache-2.0",
        model=content,
        model_name="model.tflite",
        artifact=artifact,
        input=ends[0],
        output=ends[1],
        preprocess=preprocess,
        class_names=names,
        goldens=tuple(
            Golden(f"golden_{i:02}", tensor, litert(content, tensor), None, None, "")
            for i, tensor in enumerate(
                codes[image[..., channels], channels][None] for image in images
            )
        ),
        target=load_target("cortex-m7"),
        verdict=Verdict(
            target="cortex-m7",
            artifact_path=model.name,
            artifact_sha256=None,
            checks=(),
            status=Status.PASS,
        ),
        arena_bytes=arena_bytes,
        facts={},
    )


def litert(content: bytes, tensor: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], tensor)
    interpreter.invoke()
    answer: npt.NDArray[np.generic] = interpreter.get_tensor(
        interpreter.get_output_details()[0]["index"]
    )
    return answer[0]


def written(contents: Contents, folder: Path) -> Path:
    """Writes the package and its goldens; returns the folder with the sources."""
    found = micro.files(contents)
    found["goldens/inputs.bin"] = b"".join(golden.input.tobytes() for golden in contents.goldens)
    for name, content in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "micro"


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    return mean_tflite(tmp_path / "int8.tflite", "int8", relu=True)


# --- preprocessing ---

FEED = """
#include <stdio.h>
#include <stdlib.h>
#include "preprocess.h"
int main(void) {
  static uint8_t pixels[3 * 256];
  static @@TYPE@@ input[3 * 256];
  if (fread(pixels, 1, sizeof(pixels), stdin) != sizeof(pixels)) return 2;
  colours_preprocess(pixels, input, 256);
  return fwrite(input, 1, sizeof(input), stdout) == sizeof(input) ? 0 : 2;
}
"""
FORMS = {
    "shift": (PIXELS, "int8"),
    "shift bgr": (PIXELS.model_copy(update={"channels": "bgr"}), "int8"),
    # Saturates at both ends, and rounds halves.
    "table": (
        PIXELS.model_copy(
            update={"scale": (1 / 100, 1 / 64, 1 / 255), "offset": (-1.4, -2.0, -0.3)}
        ),
        "int8",
    ),
    "table bgr": (
        PIXELS.model_copy(
            update={
                "channels": "bgr",
                "scale": (1 / 127.5, 1 / 57.1, 1 / 58.4),
                "offset": (-1.0, -2.1, -1.8),
            }
        ),
        "int8",
    ),
    "float32": (PIXELS, "float32"),
    "float32 bgr": (
        PIXELS.model_copy(
            update={
                "channels": "bgr",
                "scale": (1 / 58.395, 1 / 57.12, 1 / 57.375),
                "offset": (-2.1179, -2.0357, -1.8044),
            }
        ),
        "float32",
    ),
}


def fed(folder: Path, compiler: tuple[str, ...], dtype: str) -> npt.NDArray[np.generic]:
    """Returns what preprocess.c makes of every value of each channel, channels in the tensor's."""
    program(compiler[0])
    kind = {"int8": "int8_t", "float32": "float"}[dtype]
    (folder / "feed.c").write_text(FEED.replace("@@TYPE@@", kind))
    done(*compiler, *STRICT, "-I.", "feed.c", "preprocess.c", "-o", "feed", cwd=folder)
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], values * 7 + 3], axis=1)
    answer = subprocess.run(
        [folder / "feed"], input=pixels.tobytes(), capture_output=True, check=True, timeout=60
    )
    return np.frombuffer(answer.stdout, dtype).reshape(256, 3)


def expected(preprocess: Preprocess, contents: Contents) -> npt.NDArray[np.generic]:
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], values * 7 + 3], axis=1)
    if preprocess.channels == "bgr":
        pixels = pixels[:, ::-1]
    ends = contents.input
    codes = input_codes(preprocess, ends.dtype, ends.scale, ends.zero_point)
    return codes[pixels, np.arange(3)]


@pytest.mark.parametrize("compiler", [C, CPP], ids=["c", "c++"])
@pytest.mark.parametrize("form", FORMS)
def test_the_generated_preprocessing_equals_the_contract(
    tmp_path: Path, form: str, compiler: tuple[str, ...]
) -> None:
    preprocess, dtype = FORMS[form]
    contents = contents_of(mean_tflite(tmp_path / f"m_{dtype}.tflite", dtype), preprocess)
    folder = written(contents, tmp_path)
    text = (folder / "preprocess.c").read_text()
    assert ("codes[256][3]" in text) == (not form.startswith("shift"))
    assert dtype == "float32" or not re.search(r"float|double|\d\.\d", text)
    found = fed(folder, compiler, dtype)
    np.testing.assert_array_equal(found, expected(preprocess, contents))
    # The twin: the other order of channels is another tensor.
    swapped = text.replace("pixels[0]", "[9]").replace("pixels[2]", "pixels[0]")
    swapped = swapped.replace("[9]", "pixels[2]")
    (folder / "preprocess.c").write_text(swapped)
    assert not np.array_equal(fed(folder, compiler, dtype), found)


# --- model data and labels ---

DUMP = """
#include <stdint.h>
#include <stdio.h>
#include "labels.h"
#include "model_data.h"
int main(int argc, char **argv) {
  (void)argv;
  if ((uintptr_t)g_colours_model_data % 16 != 0) return 3;
  if (argc > 1) {
    for (int i = 0; i < @@CLASSES@@; ++i) printf("%s%c", g_colours_labels[i], 0);
    return 0;
  }
  return fwrite(g_colours_model_data, 1, g_colours_model_data_size, stdout) ==
         g_colours_model_data_size ? 0 : 2;
}
"""


def dumper(folder: Path, compiler: tuple[str, ...], classes: int) -> Path:
    program("g++")
    program(compiler[0])
    (folder / "dump.c").write_text(DUMP.replace("@@CLASSES@@", str(classes)))
    done("g++", "-std=c++17", *STRICT, "-c", "model_data.cc", cwd=folder)
    flags = (*STRICT, "-trigraphs", "-Wno-trigraphs", "-I.")
    for name in ("labels", "dump"):
        done(*compiler, *flags, "-c", f"{name}.c", "-o", f"{name}.o", cwd=folder)
    done("g++", "dump.o", "labels.o", "model_data.o", "-o", "dump", cwd=folder)
    return folder / "dump"


@pytest.mark.parametrize("compiler", [C, CPP], ids=["c", "c++"])
def test_hostile_labels_come_out_unharmed(
    tmp_path: Path, int8: Path, compiler: tuple[str, ...]
) -> None:
    contents = dataclasses.replace(contents_of(int8), class_names=HOSTILE[:3])
    for names in (HOSTILE[:3], HOSTILE[3:]):
        folder = written(dataclasses.replace(contents, class_names=names), tmp_path)
        printed = done(dumper(folder, compiler, 3), "labels", cwd=folder)
        assert printed.decode().split("\0") == [*names, ""]
        everything = b"".join(path.read_bytes() for path in folder.glob("**/*.[chmCM]*"))
        assert not any(name.encode() in everything for name in names)


def test_the_array_is_the_model_byte_for_byte_and_answers_like_it(
    tmp_path: Path, int8: Path
) -> None:
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    array = done(dumper(folder, C, 3), cwd=folder)
    assert array == int8.read_bytes()
    if importlib.util.find_spec("tflite_micro") is None:
        missing("the package tflite-micro (edgekit[micro])")
    outputs = np.frombuffer((folder / "golden_outputs.bin").read_bytes(), np.int8).reshape(-1, 3)
    assert_answers(array, contents, outputs)
    # The twin: one bit of the output's scale.
    place = array.rindex(np.float32(1 / 128).tobytes()) + 3
    flipped = array[:place] + bytes([array[place] ^ 1]) + array[place + 1 :]
    with pytest.raises(AssertionError, match="golden"):
        assert_answers(flipped, contents, outputs)


def assert_answers(model: bytes, contents: Contents, outputs: npt.NDArray[np.generic]) -> None:
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(model, arena_size=1024**2)
    for golden, output in zip(contents.goldens, outputs, strict=True):
        interpreter.set_input(golden.input, 0)
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_output(0).reshape(-1), output, golden.name)


# --- the self-check, with real kernels ---


def headers(folder: Path, contents: Contents, earlier: bool = False) -> Path:
    """Writes declarations of TensorFlow Lite Micro, new or where earlier releases have them."""
    from ai_edge_litert import schema_py_generated as schema

    declared, methods = [], []
    for name in contents.artifact.operators:
        parser = PARSERS[name]
        declared.append(f"TFLMRegistration Register_{name}();")
        declared.append(
            f"TfLiteStatus {parser}(const Operator *, BuiltinDataAllocator *, void **);"
        )
        code = getattr(schema.BuiltinOperator, name)
        methods.append(
            f"  TfLiteStatus {micro.ADD_METHODS[name]}() {{ "
            f"return AddBuiltin({code}, Register_{name}(), {parser}); }}"
        )
    open_, close = "namespace tflite { namespace micro {", "} }"
    values = {
        "C_OPEN": "" if earlier else open_,
        "C_CLOSE": "" if earlier else close,
        "OPEN": "namespace tflite {" if earlier else open_,
        "CLOSE": "}" if earlier else close,
        "DECLARED": "\n".join(declared),
        "METHODS": "\n".join(methods),
    }
    text = re.sub("@@([A-Z_]+)@@", lambda match: values[match[1]], HEADERS)
    root = folder / ("earlier" if earlier else "tflm") / "tensorflow" / "lite"
    for name in ("micro/micro_interpreter.h", "micro/micro_mutable_op_resolver.h"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('#include "tensorflow/lite/all.h"\n')
    (root / "schema").mkdir(exist_ok=True)
    (root / "schema" / "schema_generated.h").write_text('#include "tensorflow/lite/all.h"\n')
    (root / "all.h").write_text(text)
    return root.parents[1]


def kernels() -> tuple[str, ...]:
    """Returns the variables of `make` that link the library in the wheel, which needs Python's."""
    found = importlib.util.find_spec("tflite_micro")
    if found is None or found.origin is None:
        missing("the package tflite-micro (edgekit[micro])")
    assert found is not None
    assert found.origin is not None
    library = Path(found.origin).parent / "python" / "tflite_micro" / "_runtime.so"
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    python = str(sysconfig.get_config_var("LDLIBRARY"))
    if not python.endswith(".so") or not (folder / python).exists():
        missing("a Python with a shared library")
    return (f"TFLM_LIB={library}", f"LDLIBS=-L{folder} -l:{python} -Wl,-rpath,{folder}")


def built(folder: Path, contents: Contents) -> subprocess.CompletedProcess[bytes]:
    """Builds golden_test with the package's own Makefile and runs it."""
    program("make")
    program("g++")
    flags = " ".join(STRICT)
    command = ["make", "test", f"TFLM={headers(folder, contents)}", *kernels()]
    return ran(*command, f"CXXFLAGS=-O1 {flags}", f"CFLAGS=-O1 {flags}", cwd=folder)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_golden_test_passes_with_real_kernels(tmp_path: Path, dtype: str) -> None:
    model = mean_tflite(tmp_path / f"m_{dtype}.tflite", dtype, relu=True)
    contents = contents_of(model)
    folder = written(contents, tmp_path)
    result = built(folder, contents)
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    said = re.search(r"ok: 4 goldens, 4 of them from pixels; arena: (\d+) of 17600", str(result))
    assert said is not None
    assert 0 < int(said[1]) <= 17600


def flip_the_model(folder: Path) -> None:
    # A bit of the scale of a tensor, which is a whole octave: 1 / 128 ends in 0x3c.
    text = (folder / "model_data.cc").read_text()
    head, body = text.split("= {", 1)
    values = re.findall("0x..", body)
    place = bytes(int(value, 16) for value in values).rindex(np.float32(1 / 128).tobytes()) + 3
    values[place] = f"{int(values[place], 16) ^ 1:#04x}"
    rest = body[body.index("};") :]
    (folder / "model_data.cc").write_text(f"{head}= {{{','.join(values)}{rest}")


def compute_otherwise(folder: Path) -> None:
    """Stands for kernels that compute otherwise: another model with a fitting checksum."""
    text = (folder / "model_data.cc").read_text()
    before = zlib.crc32(bytes.fromhex("".join(re.findall("0x(..),", text))))
    flip_the_model(folder)
    text = (folder / "model_data.cc").read_text()
    after = zlib.crc32(bytes.fromhex("".join(re.findall("0x(..)", text.split("= {")[1]))))
    replaced(folder / "golden_check.cc", f"{before:#010x}", f"{after:#010x}")


def swap_two_labels(folder: Path) -> None:
    text = (folder / "labels.c").read_text()
    swapped = text.replace('"blue"', '"?"').replace('"red"', '"blue"').replace('"?"', '"red"')
    (folder / "labels.c").write_text(swapped)


def shift_the_table(folder: Path) -> None:
    replaced(folder / "preprocess.c", "pixel - 128", "pixel - 127")


def feed_bgr(folder: Path) -> None:
    replaced(folder / "preprocess.c", "pixels[0], 0", "pixels[2], 0")
    replaced(folder / "preprocess.c", "pixels[2], 2", "pixels[0], 2")


def shrink_the_arena(folder: Path) -> None:
    replaced(folder / "model_settings.h", "17600", "640")


def cut_the_goldens(folder: Path) -> None:
    path = folder.parent / "goldens" / "inputs.bin"
    path.write_bytes(path.read_bytes()[:-1])


def check_no_golden(folder: Path) -> None:
    replaced(folder / "golden_test.cc", "goldens.size()) == 0", "0) == 0")


def move_an_answer(folder: Path) -> None:
    path = folder / "golden_outputs.bin"
    answers = np.frombuffer(path.read_bytes(), np.int8).copy()
    answers[4] += 2
    path.write_bytes(answers.tobytes())


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]] = {
    "bit": (flip_the_model, ("FAIL model data:",), ("labels", "level")),
    "kernels": (
        compute_otherwise,
        ("(A): 3 of 4", "or its kernels"),
        ("FAIL model", "it is the pre"),
    ),
    "label": (swap_two_labels, ("FAIL labels:",), ("level",)),
    "table": (shift_the_table, ("pixel level (B): 4 of 4", "so it is the preprocessing"), ("(A)",)),
    "bgr": (feed_bgr, ("so it is the preprocessing: channel order",), ("(A)", "golden_00:")),
    "arena": (shrink_the_arena, ("an arena of 640 bytes is too small",), ("level",)),
    "file": (cut_the_goldens, ("../goldens/inputs.bin: not a file of 192 bytes",), ("FAIL",)),
    "none": (check_no_golden, ("FAIL goldens: none",), ("level", "ok:")),
    "answer": (move_an_answer, ("(A) golden_01: 1 of 3 outputs", "(A): 1 of 4"), ("(B)",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_golden_test_names_what_is_wrong(tmp_path: Path, int8: Path, fault: str) -> None:
    alter, said, unsaid = FAULTS[fault]
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    alter(folder)
    result = built(folder, contents)
    assert result.returncode != 0
    heard = (result.stdout + result.stderr).decode()
    text = "\n".join(line for line in heard.splitlines() if not line.startswith(("g++", "cc")))
    for words in said:
        assert words in text, text
    for words in unsaid:
        assert words not in text, text


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_network_that_sees_luma_takes_one_byte_a_pixel(tmp_path: Path, dtype: str) -> None:
    made = mean_tflite(tmp_path / f"{dtype}_{dtype}.tflite", dtype, relu=True, channels=1)
    grey = PIXELS.model_copy(update={"channels": "grey"})
    contents = contents_of(made, grey, names=("bright",))
    right = written(contents, tmp_path / "right")
    assert "one byte for each pixel, its luma" in (right / "preprocess.h").read_text()
    assert (right / "golden_pixels.bin").stat().st_size == 4 * SIZE * SIZE
    result = built(right, contents)
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    assert b"ok: 4 goldens, 4 of them from pixels" in result.stdout
    wrong = written(contents, tmp_path / "wrong")
    replaced(wrong / "preprocess.c", "pixels[0], 0", "255 - pixels[0], 0")
    assert b"pixel level (B): 4 of 4" in built(wrong, contents).stdout


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_another_score_threshold_is_told(tmp_path: Path, dtype: str) -> None:
    made = mean_tflite(tmp_path / f"{dtype}_{dtype}.tflite", dtype, relu=True)
    contents = with_threshold(contents_of(made))
    right = written(contents, tmp_path / "right")
    assert built(right, contents).returncode == 0
    folder = written(contents, tmp_path / "wrong")
    settings = folder / "model_settings.h"
    value = re.findall(r"SCORE_THRESHOLD (\S+)f\n", settings.read_text())[0]
    replaced(settings, f"{value}f", "1e9f")
    result = built(folder, contents)
    assert result.returncode != 0
    assert b"its answer does not count, but must: another threshold" in result.stdout


def test_the_readme_s_example_knows_no_class_below_the_threshold(
    tmp_path: Path, int8: Path
) -> None:
    contents = dataclasses.replace(contents_of(int8), score_threshold=99.0)
    folder = written(contents, tmp_path)
    example = re.findall("```cpp\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]
    main = EMBEDDED.replace("@@PIXELS@@", str(SIZE * SIZE)).replace(
        'printf("%s\\n", Classify(rgb))', 'printf("%d\\n", Classify(rgb) == nullptr)'
    )
    (folder / "golden_test.cc").write_text(f"#include <stdio.h>\n{example}\n{main}")
    result = built(folder, contents)
    assert result.returncode == 0, result.stderr.decode()
    assert b"\n1\nok: 2 goldens" in result.stdout


def test_one_step_is_tolerated(tmp_path: Path, int8: Path) -> None:
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    path = folder / "golden_outputs.bin"
    answers = np.frombuffer(path.read_bytes(), np.int8).copy()
    answers[4] += 1
    path.write_bytes(answers.tobytes())
    assert built(folder, contents).returncode == 0


EMBEDDED = """
#include "golden_check.h"
const char *Classify(const uint8_t *rgb);
int main() {
  unsigned char rgb[3 * @@PIXELS@@];
  for (size_t i = 0; i < sizeof(rgb); ++i) rgb[i] = i % 3 == 1 ? 250 : 5;
  printf("%s\\n", Classify(rgb));
  return colours_selfcheck();
}
"""


def test_the_readme_s_example_and_the_check_for_devices_run(tmp_path: Path, int8: Path) -> None:
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    readme = (folder / "README.md").read_text()
    assert "@@" not in readme
    example = re.findall("```cpp\n(.*?)```", readme, re.S)[0]
    main = EMBEDDED.replace("@@PIXELS@@", str(SIZE * SIZE))
    (folder / "golden_test.cc").write_text(f"#include <stdio.h>\n{example}\n{main}")
    result = built(folder, contents)
    assert result.returncode == 0, result.stderr.decode()
    assert b"\ngreen\nok: 2 goldens, 2 of them from pixels" in result.stdout


def test_names_where_earlier_releases_have_them_compile(tmp_path: Path, int8: Path) -> None:
    program("g++")
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    root = headers(folder, contents, earlier=True)
    check = ("g++", "-std=c++17", *STRICT, "-fsyntax-only", "-I.", "-isystem", root)
    done(*check, "golden_check.cc", "golden_data.cc", "golden_test.cc", cwd=folder)


@pytest.mark.parametrize("name", ["model_int8_int8_io.tflite", "model_float32.tflite"])
def test_a_real_network_passes_with_real_kernels(
    exported: Exported, tmp_path: Path, name: str
) -> None:
    preprocess = exported.record.preprocess
    images = coloured(6, 7)[0]
    contents = contents_of(exported.folder / name, preprocess, images, arena_bytes=None)
    assert preprocess.height_px == SIZE_PX
    folder = written(contents, tmp_path)
    replaced(folder / "model_settings.h", "524288", "4194304")
    result = built(folder, contents)
    assert result.returncode == 0, result.stderr.decode() + result.stdout.decode()
    assert b"ok: 6 goldens, 6 of them from pixels" in result.stdout
    dtype = contents.output.dtype
    outputs = np.frombuffer((folder / "golden_outputs.bin").read_bytes(), dtype).reshape(6, -1)
    assert_answers(contents.model, contents, outputs)


# --- building it in ---


def test_cmake_builds_the_library(tmp_path: Path, int8: Path) -> None:
    program("cmake")
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    root = headers(tmp_path, contents)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(app C CXX)\n"
        "add_library(tflm INTERFACE)\n"
        f'target_include_directories(tflm SYSTEM INTERFACE "{root}")\n'
        "set(TFLM_TARGET tflm)\nadd_subdirectory(micro)\n"
        'file(WRITE main.c [[#include "model_data.h"\n'
        "int main(void) { return g_colours_model_data_size > 100 ? 0 : 1; }]])\n"
        "add_executable(app main.c)\ntarget_link_libraries(app colours_model)\n"
    )
    done("cmake", "-S", ".", "-B", "build", cwd=tmp_path)
    done("cmake", "--build", "build", cwd=tmp_path)
    done(tmp_path / "build" / "app", cwd=tmp_path)
    assert (tmp_path / "build" / "micro" / "libcolours_golden.a").exists()
    assert (folder / "zephyr" / "prj.conf").read_text().count("\nCONFIG_") == 4


def test_the_fragments_for_esp_idf_and_zephyr_name_files_that_exist(
    tmp_path: Path, int8: Path
) -> None:
    """With stand-ins for what ESP-IDF and Zephyr define: neither is in a package registry."""
    program("cmake")
    contents = contents_of(int8)
    folder = written(contents, tmp_path)
    root = headers(tmp_path, contents)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(stand_in C CXX)\n"
        f'include_directories(SYSTEM "{root}")\n'
        "function(idf_component_register)\n"
        '  cmake_parse_arguments(A "" "" "SRCS;INCLUDE_DIRS" ${ARGN})\n'
        "  add_library(component STATIC ${A_SRCS})\n"
        "  target_include_directories(component PUBLIC ${A_INCLUDE_DIRS})\n"
        "endfunction()\nset(ESP_PLATFORM 1)\nadd_subdirectory(micro)\n"
        "file(WRITE main.c [[int main(void) { return 0; }]])\n"
        "add_library(app STATIC main.c)\ninclude(micro/zephyr/model.cmake)\n"
    )
    done("cmake", "-S", ".", "-B", "build", cwd=tmp_path)
    done("cmake", "--build", "build", cwd=tmp_path)
    assert (tmp_path / "build" / "micro" / "libcomponent.a").exists()
    assert "espressif/esp-tflite-micro:" in (folder / "idf_component.yml").read_text()


# --- what is generated ---


def test_the_same_contents_make_the_same_files_without_leftovers(int8: Path) -> None:
    found = micro.files(contents_of(int8))
    assert found == micro.files(contents_of(int8))
    for name, content in found.items():
        assert name.startswith("micro/")
        assert name.endswith(".bin") or b"@@" not in content, name


def test_only_the_operators_of_the_model_are_added(int8: Path) -> None:
    text = micro.files(contents_of(int8))["micro/op_resolver.h"].decode()
    assert re.findall(r"resolver\.(\w+)\(\)", text) == ["AddMean", "AddRelu"]
    assert "MicroMutableOpResolver<2>" in text


def test_every_known_operator_has_a_kernel() -> None:
    """The wheel's library has a kernel for each name, under TFLite's own names."""
    from ai_edge_litert import schema_py_generated as schema

    variable, _ = kernels()
    library = Path(variable.partition("=")[2]).read_bytes()
    for name in micro.ADD_METHODS:
        assert hasattr(schema.BuiltinOperator, name)
        assert f"Register_{name}Ev".encode() in library, name
    assert b"Register_CUMSUM_OF_NOTHINGEv" not in library


@pytest.mark.parametrize(
    ("arena_bytes", "number", "words"),
    [
        (1000, "1104", "1000 bytes, measured"),
        (16000, "17600", "16000 bytes, measured"),
        (None, "524288", "UNKNOWN, nobody measured it. This is the memory budget of the target"),
    ],
)
def test_the_arena_has_a_margin_and_an_origin(
    int8: Path, arena_bytes: int | None, number: str, words: str
) -> None:
    text = micro.files(contents_of(int8, arena_bytes=arena_bytes))["micro/model_settings.h"]
    assert f"#define COLOURS_ARENA_BYTES {number}\n" in text.decode()
    assert words in text.decode()


def test_what_the_readme_says_of_measurements_is_accepted(tmp_path: Path, int8: Path) -> None:
    readme = micro.files(contents_of(int8))["micro/README.md"].decode()
    text = re.findall("```json\n(.*?)```", readme, re.S)[0]
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(json.loads(text) | {"at": datetime.now(UTC).isoformat()}))
    assert read_measurements(path).memory_peak_bytes == 1


def with_artifact(contents: Contents, **changes: object) -> Contents:
    return dataclasses.replace(contents, artifact=contents.artifact.model_copy(update=changes))


def with_end(contents: Contents, end: str, **changes: object) -> Contents:
    changed: Untyped = {end: getattr(contents, end).model_copy(update=changes)}
    return dataclasses.replace(contents, **changed)


REFUSED: dict[str, tuple[Callable[[Contents], Contents], str]] = {
    "onnx": (lambda c: with_artifact(c, format="onnx"), "onnx, int8, in a package"),
    "float16": (lambda c: with_artifact(c, variant="float16"), "tflite, float16, in a package"),
    "int16x8": (lambda c: with_artifact(c, variant="int16x8"), "int16x8"),
    "uint8": (lambda c: with_end(c, "input", dtype="uint8"), "uint8 input and int8 output"),
    "batch": (lambda c: with_end(c, "input", shape=(-1, SIZE, SIZE, 3)), "input of shape (-1"),
    "classes": (lambda c: with_end(c, "output", shape=(1, 4)), "output of shape (1, 4)"),
    "operator": (
        lambda c: with_artifact(c, operators={"MEAN": 1, "HASHTABLE\x1b": 2}),
        "with the operator HASHTABLE",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_runtime_does_not_run_is_refused(int8: Path, reason: str) -> None:
    alter, said = REFUSED[reason]
    with pytest.raises(SpecError) as caught:
        micro.files(alter(contents_of(int8)))
    assert said in caught.value.received
    assert "\x1b" not in str(caught.value)
