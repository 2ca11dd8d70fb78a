"""How closely an exported file follows what it was made from, and whether rounding explains it.

No file repeats its source to the bit: runtimes add in another order and round ties otherwise, and
what one layer changes grows through the next 52, differently in every network. So nothing here is a
tolerance that some networks were seen to keep. What rounding may change is measured on the network
itself, on the same pictures: by a neighbour that rounds more than the file may, or not at all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ConversionError
from edgekit.records import Artifact, Candidate, Parity, Status, Variant

Logits = npt.NDArray[np.float32]
# A file that is what it should be is found to be further away, or to answer worse, with at most
# this chance; as everywhere in edgekit.
_SIGNIFICANT = 0.05
# Power of a file's distance from the simulation over that of the simulation's rounding, where both
# round all values independently: x and y of one distribution give E(x - y)^2 = 2 E y^2. Right files
# round alike nearly everywhere and stay far below: 0.01 to 0.3 of it.
INT8_SHARE = 2.0
# LiteRT scales a sum of int16x8 by a multiplier of 16 bits, which may be off by 2^-15: one step of
# a value at full scale, beside half a step of rounding. 1.5 steps where the simulation is off by
# half of one: 3^2 + 1. Source: MultiplyByQuantizedMultiplier of an int64 in TensorFlow's
# lite/kernels/internal/common.h.
INT16_SHARE = 10.0
# Rounding a weight to float16 moves its product by up to 2^-11; rounding the sum of n products in
# float32 by 2^-24 each time, in all sqrt(n) 2^-24, as the roundings are independent: of the power
# n 2^-26. Source: Wilkinson's rule of thumb; Higham and Mary, 2019, doi:10.1137/18M1226312.
FLOAT_SHARE_PER_PRODUCT = 2.0**-26
_UNSIMULATED = (
    "its activations are quantized picture by picture, which nothing simulates; its accuracy on "
    "the test pictures judges it"
)


@dataclass(frozen=True)
class Reference:
    """What a file should answer, and how much of that rounding may change.

    Args:
        source: What the file is made from, in words.
        scores: Its logits, float32 (images, classes).
        neighbour: Logits of the same network with other rounding, float32 (images, classes); None
            where there is none. Defaults to None.
        share: Power that the file may be off by, as a share of that of the neighbour's distance.
            Defaults to 0.
    """

    source: str
    scores: Logits
    neighbour: Logits | None = None
    share: float = 0.0


# By variant and, of the integer ones, candidate.
References = Mapping[tuple[Variant, Candidate | None], Reference]


def compare(artifact: Artifact, answers: Logits, known: References) -> Parity:
    """Returns how closely a file follows its source, and whether rounding explains the distance.

    A picture is beyond rounding where the power of the file's distance, the sum of (answers -
    scores)^2, is more than `share` times that of the neighbour's. If file and source rounded
    independently, that would happen in half of the pictures. And if they only round otherwise, the
    file answers as the neighbour does as often as its source does: the pictures where just one of
    the two does divide evenly. So, where all pictures together are beyond rounding, two exact
    binomial tests decide, each one-sided at 5 %:

    - MISS if the file answers significantly more pictures otherwise than the neighbour;
    - INCONCLUSIVE if only its scores are beyond rounding in significantly more than half;
    - PASS else; UNMEASURED without a neighbour.

    The SQNR is 10 log10(sum of scores^2 / sum of (answers - scores)^2), in decibels.

    Args:
        artifact: The file.
        answers: Its logits, float32 (images, classes).
        known: What it should answer on the same images.

    Raises:
        ConversionError: If a score is not finite.
    """
    reference = known[artifact.variant, artifact.candidate]
    others = (reference.scores, reference.neighbour)
    for told, scores in ((artifact.path, answers), *((reference.source, s) for s in others)):
        if scores is not None and not np.isfinite(scores).all():
            broken = int((~np.isfinite(scores)).any(axis=1).sum())
            raise ConversionError(
                f"{artifact.path}: {told} answers {broken} of {len(scores)} pictures with NaN or "
                "infinity",
                "finite scores",
                "report this with the recipe; the converted graph is not the trained one",
            )
    status, reason = Status.UNMEASURED, _UNSIMULATED
    power, apart = _power(reference.scores), _power(answers, reference.scores)
    allowed = None
    if reference.neighbour is not None:
        allowed = reference.share * _power(reference.scores, reference.neighbour)
        answered = (
            scores.argmax(1) == reference.neighbour.argmax(1)
            for scores in (answers, reference.scores)
        )
        status, reason = _judged(apart, allowed, *answered)
    return Parity(
        artifact_sha256=artifact.sha256,
        source=reference.source,
        images=len(answers),
        same_answers=int((answers.argmax(1) == reference.scores.argmax(1)).sum()),
        sqnr_db=_decibels(power, apart),
        explained_db=None if allowed is None else _decibels(power, allowed),
        status=status,
        reason=reason,
    )


def _judged(
    apart: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.float64],
    ours: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
) -> tuple[Status, str]:
    """Returns the status and the reason; `ours` and `theirs` tell who answers as the neighbour."""
    if not apart.any():
        return Status.PASS, "equal to the bit"
    if apart.sum() <= allowed.sum():
        return Status.PASS, "no further from it than rounding explains"
    worse, better = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    chance = _at_least(worse, worse + better)
    if chance < _SIGNIFICANT:
        return Status.MISS, f"more answers differ than rounding explains (exact p {chance:.1e})"
    beyond = int((apart > allowed).sum())
    chance = _at_least(beyond, len(apart))
    scores = f"the scores of {beyond} of {len(apart)} pictures are further from it than rounding"
    if chance < _SIGNIFICANT:
        return Status.INCONCLUSIVE, f"{scores} explains (exact p {chance:.1e}); no answer shows it"
    return Status.PASS, f"{scores} explains, no more than by chance (exact p {chance:.2f})"


def _at_least(count: int, of: int) -> float:
    """Returns the exact chance of so many or more heads among tosses of a fair coin."""
    return float(sum(math.comb(of, heads) for heads in range(count, of + 1)) / 2**of)


def _power(values: Logits, other: Logits | float = 0.0) -> npt.NDArray[np.float64]:
    """Returns the power of each picture's scores, or of their difference, float64 (images,)."""
    power: npt.NDArray[np.float64] = np.square(values.astype(np.float64) - other).sum(axis=1)
    return power


def _decibels(power: npt.NDArray[np.float64], noise: npt.NDArray[np.float64]) -> float | None:
    """Returns the ratio of two powers; None where there is no noise, or nothing else."""
    signal, disturbance = float(power.sum()), float(noise.sum())
    return 10 * math.log10(signal / disturbance) if signal and disturbance else None
