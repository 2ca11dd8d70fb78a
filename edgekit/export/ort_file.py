"""Files in onnxruntime's own format, for builds of it that hold a model's operators only.

Such a file belongs to the onnxruntime version that wrote it and to later ones; the .ort is made
from the .onnx file, which stays the source.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flatbuffers
import onnxruntime
import onnxruntime.tools.ort_format_model  # makes the next imports possible
from ort_flatbuffers_py.fbs import (
    ArgTypeAndIndex,
    InferenceSession,
    KernelTypeStrArgsEntry,
    KernelTypeStrResolver,
    OpIdKernelTypeStrArgsEntry,
)

from edgekit.folders import scratch_folder
from edgekit.runner.onnx_runtime import ERRORS_ONLY, EXACT
from edgekit.runtimes.ort_file import IDENTIFIER

# Classes of the generated schema carry no type hints.
Untyped: TypeAlias = Any

# The largest alignment that flatbuffers use.
_ALIGNMENT = 16


def convert(content: bytes) -> bytes:
    """Returns an ONNX model in onnxruntime's format.

    The graph is optimized as far as no processor is preferred ("extended": int8 is fused, nothing
    is laid out for one kind of vector unit), so the file fits phones too. onnxruntime optimizes it
    no further when it loads it, and what it stores are the kernels of the processor it runs on: on
    x86 uint8, exact everywhere; on Arm int8, which x86 without VNNI would multiply wrongly. The
    latter follows from `avx2_precision_mode` in onnxruntime's graph_transformer_utils.cc; it was
    not run there.

    Args:
        content: The ONNX file.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry(*EXACT)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = ERRORS_ONLY
    with scratch_folder() as scratch:
        made = scratch / "model.ort"
        options.optimized_model_filepath = str(made)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return _in_order(made.read_bytes())


def _in_order(content: bytes) -> bytes:
    """Returns the file with its table of kernel types in the order of the operators' names.

    onnxruntime writes that table in the order of a hash table, another one in every run. A
    flatbuffer is built from its end: the model, which is finished first, is kept byte for byte as
    the end of the new file, and only what lies before it is built again.
    """
    session = InferenceSession.InferenceSession.GetRootAs(bytearray(content), 0)
    table = session.Model()._tab.Pos
    fields = table - struct.unpack_from("<i", content, table)[0]
    kept = content[min(table, fields) :]
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head, builder.minalign = bytearray(kept), 0, _ALIGNMENT
    version = builder.CreateString(session.OrtVersion())
    resolver = _resolver(builder, session.KernelTypeStrResolver())
    InferenceSession.Start(builder)
    InferenceSession.AddOrtVersion(builder, version)
    InferenceSession.AddModel(builder, len(content) - table)
    InferenceSession.AddKernelTypeStrResolver(builder, resolver)
    builder.Finish(InferenceSession.End(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _resolver(builder: Untyped, resolver: Untyped) -> int:
    entries = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    made = []
    for entry in sorted(entries, key=lambda entry: entry.OpId()):
        kinds = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
        kinds.sort(key=lambda kind: kind.KernelTypeStr())
        args = _vector(
            builder,
            OpIdKernelTypeStrArgsEntry.StartKernelTypeStrArgsVector,
            [_kind(builder, kind) for kind in kinds],
        )
        name = builder.CreateString(entry.OpId())
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, args)
        made.append(OpIdKernelTypeStrArgsEntry.End(builder))
    vector = _vector(builder, KernelTypeStrResolver.StartOpKernelTypeStrArgsVector, made)
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, vector)
    return int(KernelTypeStrResolver.End(builder))


def _kind(builder: Untyped, kind: Untyped) -> int:
    places = []
    for place in (kind.Args(i) for i in range(kind.ArgsLength())):
        ArgTypeAndIndex.Start(builder)
        ArgTypeAndIndex.AddArgType(builder, place.ArgType())
        ArgTypeAndIndex.AddIndex(builder, place.Index())
        places.append(ArgTypeAndIndex.End(builder))
    args = _vector(builder, KernelTypeStrArgsEntry.StartArgsVector, places)
    name = builder.CreateString(kind.KernelTypeStr())
    KernelTypeStrArgsEntry.Start(builder)
    KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
    KernelTypeStrArgsEntry.AddArgs(builder, args)
    return int(KernelTypeStrArgsEntry.End(builder))


def _vector(
    builder: Untyped, start: Callable[[Untyped, int], object], offsets: Sequence[int]
) -> int:
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
