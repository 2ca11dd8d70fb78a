"""What a model file says about itself, as it is read for judging. Stage layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.devices.inspection import Inspection, inspect_apart
from edgekit.errors import EdgekitError
from edgekit.runtimes.ends import classifier_io, feed_of
from edgekit.validate.contracts import described_contract, stored_contract
from edgekit.validate.labels import stored_labels
from edgekit.validate.outputs import OutputOptions, chosen_readout


def describe(path: Path) -> dict[str, Any]:
    """Returns what a .tflite, .onnx or .ort file says about itself, all texts safe to print.

    Args:
        path: The file; its suffix says the format. It is read in a process of its own.

    Returns:
        What `edgekit.runtimes.base.ModelFacts` has but names of tensors inside the network, with
        "sha256" and "size_bytes"; "metadata", for .tflite the fields of `Metadata` or None, for the
        others the text entries by key, and "metadata_unread", why they could not be read; "labels"
        and "preprocess" that it carries, or None; "feed" and "readout", how it would be judged, or
        "not_judged", why not.

    Raises:
        SpecError: If the file cannot be read or its suffix is none of the three.
        IntegrityError: If it is damaged or untrusted.
        DeviceError: If reading it does not end.
    """
    found = inspect_apart(path)
    # Names of tensors inside grow with the network, and say nothing that operators do not.
    inner = {"metadata", "float_tensors", "wide_tensors"}
    facts = found.facts.model_dump(mode="json", exclude=inner)
    if found.facts.format != "tflite":
        said: Any = found.facts.metadata
    else:
        said = None if found.said is None else found.said.model_dump(mode="json")
    everything = {
        "file": path.name,
        "sha256": found.sha256,
        "size_bytes": found.size_bytes,
        **facts,
        "metadata": said,
        "metadata_unread": found.unsaid_because or None,
        **_use(found, str(path)),
    }
    safe: dict[str, Any] = _printable(everything)
    return safe


def _use(found: Inspection, path: str) -> dict[str, Any]:
    """Returns how a file would be fed and read, or why it would not."""
    labels = None if found.said is None else found.said.labels
    try:
        own = stored_labels(found.facts.metadata)
        labels = labels if own is None else own
        count = None if labels is None else len(labels)
        readout, words = chosen_readout(found.facts, path, OutputOptions(), count)
        model_input, _ = classifier_io(found.facts, path, readout.output)
        feed = feed_of(model_input)
        contract = stored_contract(found.facts.metadata)
        contract = contract or described_contract(found.said, model_input)
    except EdgekitError as err:
        because = f"{err.received}; expected: {err.expected}"
        unused = dict.fromkeys(("preprocess", "feed", "readout"))
        return {"labels": labels, **unused, "not_judged": because}
    return {
        "labels": labels,
        "preprocess": None if contract is None else contract.model_dump(mode="json"),
        "feed": {**feed.model_dump(mode="json"), "words": list(feed.words)},
        "readout": {**readout.model_dump(mode="json"), "words": list(words)},
        "not_judged": None,
    }


def _printable(value: Any) -> Any:
    """Returns the value with every character that could steer a terminal escaped."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_printable(item) for item in value]
    return value
