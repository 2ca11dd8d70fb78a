"""The quantize stage: what is trained, what is calibrated and why, and which candidate ships."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tiny_network import ALPHA, Quantized, Trained, Untyped, arrays_in

from edgekit.network.graph import INPUT, fold, mobilenet_v2, weighted

pytest.importorskip("tensorflow")

from edgekit.fitting.loop import compiled, cross_entropy
from edgekit.network.forward import logits_function
from edgekit.quantize.candidates import cosine

NODES = mobilenet_v2(ALPHA)
WEIGHTED = [node.name for node in weighted(NODES)]


def test_the_unfrozen_layers_are_trained_and_the_others_calibrated(
    quantized: Quantized, trained: Trained
) -> None:
    ptq, qat = quantized.record.candidates
    assert (ptq.name, qat.name) == ("ptq", "qat")
    for candidate in (ptq, qat):
        assert [layer.layer for layer in candidate.layers] == WEIGHTED
    by_training = [layer.layer for layer in qat.layers if layer.how == "qat"]
    assert by_training == list(trained.record.unfrozen_layers) == WEIGHTED[-3:]
    assert {layer.how for layer in ptq.layers} == {"calibrated"}
    for layer in (*ptq.layers, *qat.layers):
        expected = {
            ("qat", True): "unfrozen from block_16_project on",
            (
                "qat",
                False,
            ): "frozen in fine-tuning: ranges from 48 class-balanced training pictures",
            ("ptq", False): "post-training: ranges from 48 class-balanced training pictures",
        }
        name = "qat" if layer in qat.layers else "ptq"
        assert layer.reason == expected[name, layer.how == "qat"]


def test_only_the_unfrozen_layers_differ_from_the_float_ones(
    quantized: Quantized, trained: Trained
) -> None:
    folded = arrays_in(quantized.folder / "float.weights.npz")
    expected = fold(NODES, trained.arrays)
    assert set(folded) == set(expected)
    assert all(np.array_equal(folded[name], expected[name]) for name in expected)
    ptq, qat = quantized.weights("ptq"), quantized.weights("qat")
    assert all(np.array_equal(ptq[name], folded[name]) for name in folded)
    moved = {name for name in folded if not np.array_equal(qat[name], folded[name])}
    assert moved == {f"{n}/{part}" for n in WEIGHTED[-3:] for part in ("kernel", "bias")}


def test_only_the_tail_has_trained_ranges(quantized: Quantized) -> None:
    ptq, qat = quantized.ranges("ptq"), quantized.ranges("qat")
    names = [node.name for node in NODES]
    assert list(ptq) == list(qat) == [INPUT, *names]
    tail = names[names.index("block_16_project") :]
    assert {name for name, span in qat.items() if span.source == "trained"} == set(tail)
    assert all(qat[name] == ptq[name] for name in qat if name not in tail)
    assert any(qat[name] != ptq[name] for name in tail)


@pytest.mark.parametrize("name", ["ptq", "qat"])
def test_the_record_is_of_what_was_written(
    quantized: Quantized, pictures: Untyped, name: str
) -> None:
    (record,) = (c for c in quantized.record.candidates if c.name == name)
    validation = pictures[1]
    function = logits_function(NODES, quantized.weights(name), quantized.ranges(name))
    logits = compiled(function, validation)()
    # The same graph of the same numbers.
    assert record.validation_loss == pytest.approx(cross_entropy(logits, validation.labels), 1e-6)
    assert record.validation_accuracy == (logits.argmax(1) == validation.labels).mean()
    reference = compiled(
        logits_function(NODES, arrays_in(quantized.folder / "float.weights.npz")), validation
    )()
    assert record.agreement_with_float == (logits.argmax(1) == reference.argmax(1)).mean()
    # Twin: the other candidate's weights.
    other = {"ptq": "qat", "qat": "ptq"}[name]
    function = logits_function(NODES, quantized.weights(other), quantized.ranges(other))
    wrong = cross_entropy(compiled(function, validation)(), validation.labels)
    assert record.validation_loss != pytest.approx(wrong, rel=1e-6)


def test_the_lower_validation_loss_ships(quantized: Quantized) -> None:
    losses = {c.name: c.validation_loss for c in quantized.record.candidates}
    assert quantized.record.shipped == min(losses, key=lambda name: losses[name])
    assert len(set(losses.values())) == 2
    assert quantized.record.reason.startswith(quantized.record.shipped)
    for candidate in quantized.record.candidates:
        assert f"{candidate.name}: loss {candidate.validation_loss:.4f}" in quantized.record.reason


def test_training_that_did_harm_does_not_ship(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped
) -> None:
    spoiled = quantize_it(replace(quantize_plan, qat_epochs=1, qat_learning_rate=1.0))
    ptq, qat = spoiled.record.candidates
    assert qat.validation_loss > ptq.validation_loss
    assert spoiled.record.shipped == "ptq"
    assert spoiled.record.reason.startswith("ptq has the lower loss")


def test_without_epochs_there_is_one_candidate(
    quantize_it: Callable[[Untyped], Quantized], quantize_plan: Untyped, quantized: Quantized
) -> None:
    only = quantize_it(replace(quantize_plan, qat_epochs=0))
    assert [candidate.name for candidate in only.record.candidates] == ["ptq"]
    assert only.record.shipped == "ptq"
    assert "qat_epochs = 0" in only.record.reason
    assert {file.name for file in only.folder.iterdir()} == {
        "float.weights.npz",
        "ptq.weights.npz",
        "ptq.ranges.json",
    }
    # The post-training candidate does not depend on what else is tried.
    assert only.record.candidates[0] == quantized.record.candidates[0]
    assert only.ranges("ptq") == quantized.ranges("ptq")


def test_the_learning_rate_falls_along_a_cosine() -> None:
    assert cosine(0.2, 1) == [0.2]
    assert cosine(0.2, 4) == pytest.approx([0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)])
