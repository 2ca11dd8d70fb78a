"""Which output of a foreign file is read, and what is said about it. Stage layer."""

from collections.abc import Sequence

import numpy as np

from edgekit.errors import SpecError
from edgekit.records import Record
from edgekit.runtimes.base import ModelFacts, printable
from edgekit.runtimes.ends import Readout, gives_scores, readout_of, tensors_in_words


class OutputOptions(Record):
    """How the outputs of a foreign model are read, as far as the user says so.

    Args:
        name: Name of the output that has the scores, or its number from 0. Defaults to None: the
            only one, or the only one with as many scores as there are labels.
        threshold: Of a single score for two classes, above which it answers the second one.
            Defaults to None: see `edgekit.runtimes.ends.Readout`.
    """

    name: str | None = None
    threshold: float | None = None


def chosen_readout(
    facts: ModelFacts, path: str, options: OutputOptions, classes: int | None = None
) -> tuple[Readout, tuple[str, ...]]:
    """Returns how a file is read, and what of it is not as usual, in words.

    Args:
        facts: What the file says about itself.
        path: The file, for messages.
        options: What the user says.
        classes: How many labels there are. Defaults to None: unknown.

    Raises:
        SpecError: If the file has several outputs and none is named or has as many scores as there
            are labels; or the name is of none; or a threshold is given for several scores.
    """
    output, because = _position(facts, path, options.name, classes)
    if options.threshold is not None and not np.isfinite(options.threshold):
        raise SpecError(f"--threshold {options.threshold}", "a finite number", "correct it")
    found = facts.outputs[output]
    scores = found.shape[-1] if found.shape else 0
    if options.threshold is not None and scores != 1:
        raise SpecError(
            f"--threshold {options.threshold:g} with {scores} scores",
            "an output of one score for two classes",
            "leave out --threshold: the highest of several scores answers",
        )
    shown = printable(repr(found.name))
    said = (f"output {shown} is read, {because}",) if because else ()
    return readout_of(facts, output, options.threshold), said


def threshold_words(readout: Readout, threshold: float, names: Sequence[str]) -> str:
    """Says how a single score answers two classes.

    Args:
        readout: Of the output.
        threshold: The one in use.
        names: Of the two classes, by label order.
    """
    first, second = (printable(name) for name in names[:2])
    if readout.threshold is not None:
        why = ""
    elif threshold == 0:
        why = "; taken for a logit, --threshold 0.5 if it is a probability"
    else:
        why = "; taken for a probability: no answer lies outside 0 to 1"
    return (
        f"one score for two classes: above {threshold:g} it answers {second!r}, else {first!r}{why}"
    )


def _position(
    facts: ModelFacts, path: str, name: str | None, classes: int | None
) -> tuple[int, str]:
    """Returns the position of the output that is read, and why it is that one of several."""
    outputs = facts.outputs
    listed = f"{path}: {len(outputs)} outputs: {tensors_in_words(outputs)}"
    if name is not None:
        found = [number for number, info in enumerate(outputs) if info.name == name]
        if not found and name.isascii() and name.isdigit() and int(name) < len(outputs):
            found = [int(name)]
        if len(found) == 1:
            return found[0], "as --output says" if len(outputs) > 1 else ""
        how = "the name of several outputs" if found else "the name of none"
        raise SpecError(
            f"--output {name}: {how}; {listed}",
            "the name of the output that has the scores, or its number from 0",
            "choose one of them",
        )
    if len(outputs) == 1:
        return 0, ""
    wanted = [] if classes is None else [classes, *([1] if classes == 2 else [])]
    for count in wanted:
        fitting = [
            number
            for number, info in enumerate(outputs)
            if gives_scores(info) and info.shape[-1] == count
        ]
        if len(fitting) == 1:
            scores = "1 score" if count == 1 else f"{count} scores"
            return fitting[0], f"the only one of {len(outputs)} with {scores}"
    raise SpecError(
        listed,
        "one output, or the name of the one that has the scores",
        "give it with --output NAME (or its number from 0)",
    )
