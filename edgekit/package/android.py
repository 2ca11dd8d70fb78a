"""The Android kind of package: a library module with the model, its code and its goldens.

Package layer. Everything about the model is data in the assets (`preprocess.json`, `labels.txt`);
only its name and its number of threads stand in sources.
"""

import hashlib
import json
import string
from importlib import resources

from edgekit.errors import SpecError
from edgekit.package.contents import DECODED_PIXELS_OF_A_PHONE, TOLERANCE_STEPS, Contents
from edgekit.package.goldens import golden_files, tolerance_share
from edgekit.records import input_codes
from edgekit.target import RuntimeName

FOLDER = "android"
# Source: https://developers.google.com/edge/litert/android . 2.3.0 is what edgekit judges with; its
# libraries want Android 7 (https://skills.sh/android/skills/litert-runtime).
_LITERT = "com.google.ai.edge.litert:litert:2.3.0"
# Source: https://central.sonatype.com/artifact/com.microsoft.onnxruntime/onnxruntime-android
_ONNXRUNTIME = "com.microsoft.onnxruntime:onnxruntime-android:1.24.2"
RUNTIME_OF: dict[str, RuntimeName] = {
    "tflite": "litert",
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
}
_SOURCES = ("Classifier.kt", "Contract.kt", "Exif.kt", "Picture.kt")
_TEST_SOURCES = ("GoldensTest.kt", "SelfCheck.kt")


def files(contents: Contents) -> dict[str, bytes]:
    """Returns what the Android package adds to the bundle, by path.

    Args:
        contents: What the package is made from.

    Returns:
        Files below `android/`, a library module for Gradle. The goldens are assets of its tests
        only, so no app carries them.

    Raises:
        SpecError: If the file was judged for something that is not on Android's CPU, or its tensors
            are none that the code can fill.
    """
    refuse_other(contents, "Android")
    is_tflite = contents.artifact.format == "tflite"
    engine = "tflite" if is_tflite else "onnx"
    runs_xnnpack = is_tflite and contents.target.runtime.delegate != "none"
    # With the suffix, a name that is a word of Kotlin or Java is none any more.
    package = f"edgekit.{contents.name}_model"
    values = {
        "PACKAGE": package,
        "NAME": contents.name,
        "EXTENSION": contents.artifact.format,
        "DEPENDENCY": _LITERT if is_tflite else _ONNXRUNTIME,
        "MOST_PIXELS": str(contents.max_pixels),
        "MOST_DECODED": str(DECODED_PIXELS_OF_A_PHONE),
        "THREADS": str(contents.target.runtime.threads),
        "MOST_STEPS": repr(float(TOLERANCE_STEPS)),
        "MOST_SHARE": repr(tolerance_share(contents)),
        "XNNPACK": str(runs_xnnpack).lower(),
        "DELEGATE": "XNNPACK" if runs_xnnpack else "none",
        "TITLE": markdown(contents.title),
    }
    code = package.replace(".", "/")
    main, test = f"src/main/kotlin/{code}", f"src/androidTest/kotlin/{code}"
    assets = f"src/main/assets/{contents.name}"
    sources = {
        "README.md": "README.md",
        "build.gradle.kts": "build.gradle.kts",
        "consumer-rules.pro": f"consumer-rules_{engine}.pro",
        "src/main/AndroidManifest.xml": "AndroidManifest.xml",
        f"{main}/Engine.kt": f"Engine_{engine}.kt",
        **{f"{main}/{name}": name for name in _SOURCES},
        **{f"{test}/{name}": name for name in _TEST_SOURCES},
    }
    goldens = f"src/androidTest/assets/{contents.name}"
    found = {path: rendered(FOLDER, name, values).encode() for path, name in sources.items()}
    found |= {
        f"{assets}/{contents.model_name}": contents.model,
        f"{assets}/labels.txt": labels_txt(contents),
        f"{assets}/preprocess.json": contract_json(contents),
        **{f"{goldens}/{path}": content for path, content in golden_files(contents).items()},
    }
    return {f"{FOLDER}/{path}": content for path, content in found.items()}


def refuse_other(contents: Contents, system: str) -> None:
    """Refuses what the generated code of a phone cannot run as it was judged.

    Args:
        contents: What the package is made from.
        system: "Android" or "iOS".

    Raises:
        SpecError: If file and target are nothing for that system.
    """
    target, artifact = contents.target, contents.artifact
    wanted = RUNTIME_OF[artifact.format]
    if target.runtime.name != wanted:
        raise SpecError(
            f'{system} package of a .{artifact.format} file for runtime "{target.runtime.name}"',
            f'runtime "{wanted}", which runs such files on {system}',
            f"choose a target with that runtime, or another package than {system}",
        )
    if target.runtime.delegate not in ("default", "none", "xnnpack"):
        raise SpecError(
            f'{system} package with delegate "{target.runtime.delegate}"',
            'delegate "default", "none" or "xnnpack": the generated code runs on the CPU',
            "judge the file for the CPU, or call the delegate from an app of your own",
        )
    if artifact.format != "tflite" and target.runtime.delegate == "xnnpack":
        raise SpecError(
            f'{system} package of a .{artifact.format} file with delegate "xnnpack"',
            'delegate "default" or "none" for ONNX Runtime',
            "judge the file without it",
        )
    preprocess = contents.preprocess
    shape = (preprocess.height_px, preprocess.width_px, preprocess.input_channels)
    types = ("float32",) if artifact.format != "tflite" else ("float32", "uint8", "int8")
    for name, tensor in (("input", contents.input), ("output", contents.output)):
        if tensor.dtype not in types:
            raise SpecError(
                f"{system} package of a .{artifact.format} file with {tensor.dtype} {name}",
                f"{name} of {' or '.join(types)}",
                "choose another file",
            )
    if contents.input.shape[1:] != shape or contents.input.shape[0] not in (1, -1):
        raise SpecError(
            f"{system} package of a file with input shape {contents.input.shape}",
            f"(1, {', '.join(map(str, shape))}), as its preprocessing says",
            "choose a file with height, width and channels in this order",
        )


def contract_json(contents: Contents) -> bytes:
    """Returns what the app reads of the model: digest, tensors, preprocessing and code table."""
    asked = contents.input
    scale, zero_point = asked.scale, asked.zero_point
    if asked.dtype == "uint8" and scale is None:
        # Without a quantization its codes are the pixels.
        scale, zero_point = 1.0, 0
    output = {
        "dtype": contents.output.dtype,
        "classes": contents.output.shape[-1],
    }
    if contents.output.scale is not None:
        output |= {"scale": contents.output.scale, "zero_point": contents.output.zero_point}
    value = {
        "schema_version": 1,
        "model": contents.model_name,
        "sha256": hashlib.sha256(contents.model).hexdigest(),
        "outputs_are_probabilities": any(
            name.upper() == "SOFTMAX" for name in contents.artifact.operators
        ),
        "score_threshold": contents.score_threshold,
        # As the network sees it, which may see luma.
        "preprocess": contents.preprocess.model_dump(mode="json")
        | {"fill": contents.preprocess.ground},
        "output": output,
        "input": {
            "dtype": asked.dtype,
            "codes": input_codes(contents.preprocess, asked.dtype, scale, zero_point).tolist(),
        },
    }
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def labels_txt(contents: Contents) -> bytes:
    """Returns the names of the classes, one a line."""
    return "".join(f"{name}\n" for name in contents.class_names).encode()


def markdown(text: str) -> str:
    """Returns text as Markdown shows it unchanged, on one line."""
    line = " ".join(text.split())
    return "".join(f"\\{c}" if c in string.punctuation else c for c in line)


def rendered(kind: str, name: str, values: dict[str, str]) -> str:
    """Returns a template with its placeholders filled.

    Args:
        kind: Folder of templates.
        name: File in it.
        values: What stands for each `@@KEY@@`.
    """
    folder = resources.files(__package__) / "templates" / kind
    text = folder.joinpath(name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@@{key}@@", value)
    return text
