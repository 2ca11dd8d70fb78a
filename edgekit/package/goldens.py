"""Inputs with the answers that the judged file gives to them here. Package layer."""

import json

import numpy as np
import numpy.typing as npt

from edgekit.package.contents import (
    TOLERANCE_SHARE,
    TOLERANCE_SHARE_INTEGER,
    TOLERANCE_STEPS,
    Contents,
)

SCHEMA_VERSION = 1
FOLDER = "goldens"


def golden_files(contents: Contents) -> dict[str, bytes]:
    """Returns the goldens as every bundle carries them.

    `inputs.bin` and `outputs.bin` hold the tensors one behind the other, little-endian;
    `goldens.json` says where each begins and what is expected.
    """
    inputs = outputs = b""
    entries: list[dict[str, object]] = []
    pictures = {}
    for golden in contents.goldens:
        tensor, answer = _little(golden.input), _little(golden.output)
        entries.append(
            {
                "name": golden.name,
                "picture": golden.picture_name or None,
                "label": golden.label,
                "answer": golden.answer,
                "accepted": golden.accepted,
                "input_offset": len(inputs),
                "input_bytes": len(tensor),
                "output_offset": len(outputs),
                "output_bytes": len(answer),
            }
        )
        inputs += tensor
        outputs += answer
        if golden.picture is not None:
            pictures[f"{FOLDER}/images/{golden.picture_name}"] = golden.picture
    return {
        f"{FOLDER}/goldens.json": goldens_json(contents, entries),
        f"{FOLDER}/inputs.bin": inputs,
        f"{FOLDER}/outputs.bin": outputs,
        **pictures,
    }


def goldens_json(contents: Contents, entries: list[dict[str, object]]) -> bytes:
    """Returns the description of the goldens.

    Args:
        contents: What the package is made from.
        entries: One for each golden.
    """
    model_input, output = contents.input, contents.output
    value = {
        "schema_version": SCHEMA_VERSION,
        "input": model_input.model_dump(mode="json", exclude={"name"}),
        "output": {
            "dtype": output.dtype,
            "classes": output.shape[-1],
            "scale": output.scale,
            "zero_point": output.zero_point,
        },
        "score_threshold": contents.score_threshold,
        "tolerance_steps": TOLERANCE_STEPS,
        "tolerance_share": tolerance_share(contents),
        "preprocess": contents.preprocess.model_dump(mode="json"),
        "labels": list(contents.class_names),
        "goldens": entries,
    }
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def tolerance_share(contents: Contents) -> float:
    """Returns how far a float32 output may lie apart, as a share of the largest output."""
    floats = contents.artifact.variant in ("float32", "float16")
    return TOLERANCE_SHARE if floats else TOLERANCE_SHARE_INTEGER


def _little(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
