"""The iOS kind of package: a Swift package with the model, its code and its goldens.

Package layer. Everything about the model is data in the resources (`preprocess.json`,
`labels.txt`); only its name and its number of threads stand in sources.
"""

from edgekit.package.android import (
    contract_json,
    labels_txt,
    markdown,
    refuse_other,
    rendered,
)
from edgekit.package.contents import DECODED_PIXELS_OF_A_PHONE, TOLERANCE_STEPS, Contents
from edgekit.package.goldens import golden_files, tolerance_share

FOLDER = "ios"
# The last two are 2.14 and 2.17: https://github.com/tensorflow/tensorflow/issues/71180 and
# https://github.com/tensorflow/flutter-tflite/pull/300 .
_TENSORFLOW_LITE = "~> 2.14"
# Source: https://swiftpackageindex.com/microsoft/onnxruntime-swift-package-manager
_ONNXRUNTIME = "1.24.2"


def files(contents: Contents) -> dict[str, bytes]:
    """Returns what the iOS package adds to the bundle, by path.

    Args:
        contents: What the package is made from.

    Returns:
        Files below `ios/`: a Swift package, and a pod for TFLite files, whose runtime comes as a
        pod only. The goldens are resources of its tests only, so no app carries them.

    Raises:
        SpecError: If the file was judged for something that is not on the CPU of a phone, or its
            tensors are none that the code can fill.
    """
    refuse_other(contents, "iOS")
    is_tflite = contents.artifact.format == "tflite"
    engine = "tflite" if is_tflite else "onnx"
    runs_xnnpack = is_tflite and contents.target.runtime.delegate != "none"
    target = target_name(contents.name)
    values = {
        "INSTALL": rendered(FOLDER, f"README_{engine}.md", {}),
        "TARGET": target,
        "NAME": contents.name,
        "MODEL": contents.model_name,
        "FOLDER": FOLDER,
        "VERSION": _TENSORFLOW_LITE if is_tflite else _ONNXRUNTIME,
        "MOST_PIXELS": str(min(contents.max_pixels, DECODED_PIXELS_OF_A_PHONE)),
        "THREADS": str(contents.target.runtime.threads),
        "MOST_STEPS": repr(float(TOLERANCE_STEPS)),
        "MOST_SHARE": repr(tolerance_share(contents)),
        "XNNPACK": str(runs_xnnpack).lower(),
        "DELEGATE": "XNNPACK" if runs_xnnpack else "none",
        "TITLE": markdown(contents.title),
    }
    main, tests = f"Sources/{target}", f"Tests/{target}Tests"
    sources = {
        "README.md": "README.md",
        "Package.swift": f"Package_{engine}.swift",
        f"{main}/Classifier.swift": "Classifier.swift",
        f"{main}/Contract.swift": "Contract.swift",
        f"{main}/Engine.swift": f"Engine_{engine}.swift",
        f"{main}/Picture.swift": "Picture.swift",
        f"{tests}/GoldensTests.swift": "GoldensTests.swift",
        f"{tests}/SelfCheck.swift": "SelfCheck.swift",
    }
    if is_tflite:
        sources[f"{target}.podspec"] = "package.podspec"
    found = {path: rendered(FOLDER, name, values).encode() for path, name in sources.items()}
    found |= {
        f"{main}/Resources/{contents.model_name}": contents.model,
        f"{main}/Resources/labels.txt": labels_txt(contents),
        f"{main}/Resources/preprocess.json": contract_json(contents),
        **{f"{tests}/Resources/{path}": data for path, data in golden_files(contents).items()},
    }
    return {f"{FOLDER}/{path}": content for path, content in found.items()}


def target_name(name: str) -> str:
    """Returns the name of the Swift module: `cat_dog` becomes `CatDogClassifier`."""
    return "".join(word.capitalize() for word in name.split("_")) + "Classifier"
