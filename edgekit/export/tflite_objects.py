"""A TFLite file as objects that can be changed, and back to a file."""

from typing import Any, TypeAlias

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from edgekit.runtimes.tflite_file import IDENTIFIER

# Classes of the generated schema carry no type hints.
Untyped: TypeAlias = Any

# Alignment of a buffer in the file, as schema.fbs demands it.
_ALIGNMENT = 16


def unpacked(content: bytes) -> Untyped:
    """Returns the `schema.ModelT` of a file."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def packed(model: Untyped) -> bytes:
    """Returns the file. Python's flatbuffers ignores the alignment that the schema demands."""
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.__class__ = _Aligned
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


class _Aligned(schema.BufferT):  # type: ignore[misc]
    """A buffer whose bytes start at a multiple of 16 in the file."""

    def Pack(self, builder: Untyped) -> int:  # noqa: N802 - the generated schema's name
        builder.StartVector(1, len(self.data), _ALIGNMENT)
        builder.head = int(builder.Head() - len(self.data))
        builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data.tobytes()
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))
