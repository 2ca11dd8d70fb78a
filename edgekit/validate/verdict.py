"""Holds measurements against budgets. Stage layer; pure functions of records and numbers.

A check without a measurement is UNMEASURED and says why; nothing here turns a missing or disturbed
measurement into a PASS.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from edgekit.records import Accuracy, Check, Latency, PairedDrop, Parity, Status
from edgekit.validate import statistics

# All of five sessions on one side of the budget by luck, when the median session is on the other:
# 0.5^5 = 3.1 %; of four it would be 6.3 %.
SESSIONS_NEEDED = 5
NOT_MEASURED = "not measured"


def combine(checks: Sequence[Check]) -> Status:
    """Returns the status of a target: the worst of its checks.

    MISS before UNMEASURED before INCONCLUSIVE before PASS; no check at all is UNMEASURED.
    """
    statuses = {check.status for check in checks}
    for status in (Status.MISS, Status.UNMEASURED, Status.INCONCLUSIVE):
        if status in statuses:
            return status
    return Status.PASS if statuses else Status.UNMEASURED


def exit_code(statuses: Iterable[Status]) -> int:
    """Returns the exit code of a command: 0 all PASS, 4 any MISS, 5 otherwise (also for none)."""
    seen = set(statuses)
    if Status.MISS in seen:
        return 4
    return 0 if seen == {Status.PASS} else 5


def in_words(
    accuracy: Accuracy | None,
    drop: PairedDrop | None,
    latency: Latency | None,
    min_percent: float | None,
    latency_ms: float | None,
) -> str:
    """Returns what was measured and what was not asked for: what a bare status does not say.

    No times: they stand in the checks and tables, beside what disturbed them, and two runs of the
    same files say the same here.

    Args:
        accuracy: On the device; None where it was not measured.
        drop: Against the float model; None where there was nothing to compare with.
        latency: On the device; None where it was not measured.
        min_percent: The accuracy floor that was asked for, in percent; None for none.
        latency_ms: The latency budget that was asked for, in milliseconds; None for none.
    """
    if accuracy is None and latency is None:
        return "nothing was measured on the device"
    said = ["accuracy not measured"]
    if accuracy is not None:
        said = [f"{_percent(accuracy.top1)} right of {accuracy.images} pictures"]
        if drop is None:
            said.append("compared with no float model")
        else:
            # Where it gained, nobody wants to read of a negative loss.
            what = "gained" if drop.drop_points < 0 else "lost"
            said.append(f"{what} {abs(drop.drop_points):.1f} points against the float model")
        if min_percent is None:
            said.append("no accuracy floor asked")
    if latency is not None and latency_ms is None:
        said.append("no latency budget asked")
    return "; ".join(said)


def check_accuracy_drop(
    drop: PairedDrop | None,
    budget_points: float,
    reason: str = NOT_MEASURED,
    estimate: str | None = None,
    accuracy: Accuracy | None = None,
) -> Check:
    """Holds the accuracy lost against the reference to a budget.

    PASS when Tango's one-sided 95 % upper limit is within the budget, MISS when the lower limit is
    above it, else INCONCLUSIVE with the number of images that would decide. Where the accuracy was
    measured, but there is nothing to compare it with, it is INCONCLUSIVE, too: a reference, and no
    measurement on the device, is what would decide.

    Args:
        drop: The measurement; None when there is none.
        budget_points: Allowed drop in percentage points.
        reason: Why there is no measurement. Defaults to "not measured".
        estimate: What is known instead, in words; shown, and never a pass. Defaults to nothing.
        accuracy: The file's own accuracy on the device. Defaults to None: not measured.
    """
    name, budget = "accuracy_drop", f"at most {budget_points:g} points"
    if drop is None and accuracy is not None:
        measured = f"{_percent(accuracy.top1)} right, compared with nothing"
        return _check(name, Status.INCONCLUSIVE, measured, budget, reason)
    if drop is None:
        return _unmeasured(name, budget, reason, estimate)
    measured = (
        f"{drop.drop_points:.2f} points "
        f"({drop.lower_points:.2f} to {drop.upper_points:.2f}, one-sided 95 % each)"
    )
    counts = (
        f"{drop.images} images: {drop.reference_only} right only before, "
        f"{drop.model_only} right only now"
    )
    if drop.upper_points <= budget_points:
        detail = f"{counts}; even the upper limit is within the budget"
        return _check(name, Status.PASS, measured, budget, detail)
    if drop.lower_points > budget_points:
        detail = f"{counts}; even the lower limit is over the budget"
        return _check(name, Status.MISS, measured, budget, detail)
    detail = f"{counts}; {_images_wanted(drop, budget_points)}"
    return _check(name, Status.INCONCLUSIVE, measured, budget, detail)


def _images_wanted(drop: PairedDrop, budget_points: float) -> str:
    """Says how many images would decide about a drop."""
    number = statistics.images_to_decide(
        drop.reference_only, drop.model_only, drop.images, budget_points / 100
    )
    if number is None:
        return "the drop equals the budget, so no number of images decides; allow more"
    return f"about {number} images would decide if these rates stay"


def check_accuracy_floor(
    accuracy: Accuracy | None,
    min_percent: float,
    reason: str = NOT_MEASURED,
    estimate: str | None = None,
) -> Check:
    """Holds top-1 accuracy to a floor, by its two-sided 95 % Wilson interval.

    PASS when the whole interval is at or above the floor, MISS when it is below, else INCONCLUSIVE
    with the number of images that would decide.

    Args:
        accuracy: The measurement; None when there is none.
        min_percent: Lowest allowed top-1 accuracy in percent.
        reason: Why there is no measurement. Defaults to "not measured".
        estimate: As in `check_accuracy_drop`.
    """
    name, budget = "accuracy", f"at least {min_percent:g} %"
    if accuracy is None:
        return _unmeasured(name, budget, reason, estimate)
    low, high = 100 * accuracy.top1_low, 100 * accuracy.top1_high
    measured = f"{100 * accuracy.top1:.2f} % (95 %: {low:.2f} to {high:.2f})"
    counts = f"{accuracy.images} images"
    if low >= min_percent:
        detail = f"{counts}; the whole interval is above the floor"
        return _check(name, Status.PASS, measured, budget, detail)
    if high < min_percent:
        detail = f"{counts}; the whole interval is below the floor"
        return _check(name, Status.MISS, measured, budget, detail)
    number = statistics.images_to_decide_floor(
        round(accuracy.top1 * accuracy.images), accuracy.images, min_percent / 100
    )
    wanted = (
        f"about {number} images would decide if this rate stays"
        if number is not None
        else "the accuracy equals the floor, so no number of images decides; lower the floor"
    )
    return _check(name, Status.INCONCLUSIVE, measured, budget, f"{counts}; {wanted}")


def check_believable_accuracy(
    accuracy: Accuracy | None, most_percent: float, reason: str = NOT_MEASURED
) -> Check:
    """Flags an accuracy that is too good to be true: INCONCLUSIVE, with where to look.

    Args:
        accuracy: The measurement; None when there is none.
        most_percent: Highest top-1 accuracy to believe, in percent.
        reason: Why there is no measurement. Defaults to "not measured".
    """
    name, budget = "believable_accuracy", f"not above {most_percent:g} %"
    if accuracy is None:
        return _unmeasured(name, budget, reason)
    measured = f"{100 * accuracy.top1:.2f} %"
    if 100 * accuracy.top1 <= most_percent:
        return _check(name, Status.PASS, measured, budget, "no better than can be believed")
    detail = "better than was thought possible: check that no test picture was trained on"
    return _check(name, Status.INCONCLUSIVE, measured, budget, detail)


def check_believable_latency(
    latency: Latency | None,
    least_ms: float,
    reason: str = NOT_MEASURED,
    earlier: Sequence[Latency] = (),
) -> Check:
    """Flags a latency that is too low to be true: INCONCLUSIVE, with where to look.

    Args:
        latency: The measurement; None when there is none.
        least_ms: Lowest milliseconds to believe, at the latency's percentile.
        reason: Why there is no measurement. Defaults to "not measured".
        earlier: Measurements before it, which count as well. Defaults to none.
    """
    name = "believable_latency"
    if latency is None:
        return _unmeasured(name, f"not below {least_ms:g} ms", reason)
    budget = f"p{latency.percentile} not below {least_ms:g} ms"
    fastest = min(ms for look in (*earlier, latency) for ms in look.session_percentile_ms)
    measured = f"p{latency.percentile} {fastest:.3g} ms in the fastest session"
    if fastest >= least_ms:
        detail = "no faster than can be believed"
        detail += f" ({latency.caveat})" if latency.caveat else ""
        return _check(name, Status.PASS, measured, budget, detail)
    detail = "faster than was thought possible: check that this is the device that was named"
    return _check(name, Status.INCONCLUSIVE, measured, budget, detail)


def check_latency(
    latency: Latency | None,
    budget_ms: float,
    reason: str = NOT_MEASURED,
    estimate: str | None = None,
    earlier: Sequence[Latency] = (),
) -> Check:
    """Holds latency to a budget; fresh processes decide, not samples.

    With at least five sessions that nothing disturbed: PASS when the percentile of every session is
    within the budget, MISS when every session is over it. Else INCONCLUSIVE with the spread and
    what to do. A PASS claims that the median session meets the budget, and a MISS that it does not,
    with 96.9 % confidence for five sessions.

    Measured again, all sessions so far decide together, by a sign test whose level falls from look
    to look so that both claims hold with 95 % confidence however often somebody measures, also if
    that ends at the first PASS (see `statistics.sign_level`). A measurement that something
    disturbed is no look: it decides nothing, counts for nothing and spends nothing, whatever its
    times. What was decided without it stands.

    Args:
        latency: The measurement; None when there is none.
        budget_ms: Allowed milliseconds of wall time at the latency's percentile.
        reason: Why there is no measurement. Defaults to "not measured".
        estimate: As in `check_accuracy_drop`.
        earlier: All measurements of the same file before it, oldest first. Defaults to none.
    """
    name = "latency"
    if latency is None or not latency.session_percentile_ms:
        return _unmeasured(name, f"at most {budget_ms:g} ms", reason, estimate)
    budget = f"p{latency.percentile} at most {budget_ms:g} ms"
    looks = (*earlier, latency)
    counted = [look for look in looks if not look.disturbances]
    sessions = [ms for look in counted or looks for ms in look.session_percentile_ms]
    low, high = min(sessions), max(sessions)
    means = " and ".join(dict.fromkeys(look.means for look in counted or looks if look.means))
    quantile = f"p{latency.percentile} of {means}" if means else f"p{latency.percentile}"
    measured = f"{quantile} {low:.3g} to {high:.3g} ms over {len(sessions)} sessions"
    where = f"{latency.device}, {latency.runtime}, {latency.threads} threads"
    if means:
        where += "; one call is too short for the clock, and single slow calls do not show in means"
    over = sum(value > budget_ms for value in sessions)
    luck = statistics.sign_p(min(over, len(sessions) - over), len(sessions))
    allowed = _level(counted)
    decided = luck <= allowed
    said = _counted(over, len(sessions), decided)
    if 0 < over < len(sessions) and len(sessions) >= SESSIONS_NEEDED and len(counted) > 1:
        said.append(f"by luck in {luck:.2%} of cases, of {allowed:.2%} allowed now")
    said += _history(looks)
    if decided:
        status = Status.PASS if 2 * over < len(sessions) else Status.MISS
        return _check(name, status, measured, budget, "; ".join((where, *said)))
    todo = (
        "close other programs, let the device cool, and measure again: edgekit run "
        "--measure-again keeps these sessions and counts them, too"
    )
    return _check(name, Status.INCONCLUSIVE, measured, budget, "; ".join((where, *said, todo)))


def _level(counted: Sequence[Latency]) -> float:
    """Returns by how much luck the last of undisturbed measurements may decide; 0: by none yet."""
    totals = accumulate(len(look.session_percentile_ms) for look in counted)
    looks = [total for total in totals if total >= SESSIONS_NEEDED]
    return statistics.sign_level(len(looks), looks[0]) if looks else 0.0


def _counted(over: int, sessions: int, decided: bool) -> list[str]:
    """Returns on which side of the budget sessions lie, and whether they are too few, in words."""
    if over in (0, sessions) and decided:
        return [f"every session is {'over' if over else 'within'} the budget"]
    said = [f"{over} of {sessions} sessions are over the budget"] if 0 < over < sessions else []
    if sessions < SESSIONS_NEEDED:
        said.append(f"{sessions} sessions cannot decide; {SESSIONS_NEEDED} can")
    return said


def _history(looks: Sequence[Latency]) -> list[str]:
    """Returns how often was measured and what was disturbed, in words; nothing of a quiet one."""
    if len(looks) == 1:
        return [f"disturbed: {'; '.join(look.disturbances)}" for look in looks if look.disturbances]
    said = [f"measured {len(looks)} times, all sessions count but those of a disturbed measurement"]
    said += [
        f"measurement {number} was disturbed: {'; '.join(look.disturbances)}"
        for number, look in enumerate(looks, start=1)
        if look.disturbances
    ]
    return said


def check_size(size_bytes: int | None, budget_bytes: int, reason: str = NOT_MEASURED) -> Check:
    """Holds the size of the file to a budget; a fact, so it counts for absent devices too.

    Args:
        size_bytes: Size of the file; None when there is no file for the target.
        budget_bytes: Allowed size.
        reason: Why there is no file. Defaults to "not measured".
    """
    return _check_bytes("size", size_bytes, budget_bytes, reason, "size of the file that ships")


def check_memory(
    peak_bytes: int | None,
    budget_bytes: int,
    reason: str = NOT_MEASURED,
    estimate: str | None = None,
) -> Check:
    """Holds peak memory, as measured on the target itself, to a budget.

    Args:
        peak_bytes: The measurement; None when there is none, as for every absent device.
        budget_bytes: Allowed memory.
        reason: Why there is no measurement. Defaults to "not measured".
        estimate: As in `check_accuracy_drop`.
    """
    what = "peak while it ran"
    return _check_bytes("memory", peak_bytes, budget_bytes, reason, what, estimate)


def check_flash(budget_bytes: int, reason: str, estimate: str | None = None) -> Check:
    """Returns the check of the flash that a compiled model takes; only the device's build shows it.

    Args:
        budget_bytes: Allowed flash.
        reason: Why nothing was measured.
        estimate: As in `check_accuracy_drop`.
    """
    return _check_bytes("flash", None, budget_bytes, reason, "", estimate)


def check_granularity(wanted: str) -> Check:
    """Returns the check of the granularity of a foreign file's kernels, which is not read.

    Args:
        wanted: "channel" or "tensor".
    """
    reason = "edgekit reads it from no file that it did not make; ask for the file in a run"
    return _unmeasured("granularity", f"one scale for each {wanted} of a kernel", reason)


def check_operators(used: Collection[str], allowed: Collection[str]) -> Check:
    """Holds the operators of the file to those that the device has; a fact of the file.

    Args:
        used: Operators in the file.
        allowed: Operators of the device.
    """
    beyond = sorted(set(used) - set(allowed))
    budget = f"only {', '.join(sorted(allowed))}"
    if not beyond:
        detail = "every operator of the file that ships is among them"
        return _check("operators", Status.PASS, f"{len(set(used))} operators", budget, detail)
    detail = "the device has no such operator"
    return _check("operators", Status.MISS, ", ".join(beyond), budget, detail)


def check_device(reason: str) -> Check:
    """Returns the check that keeps a target from passing whose device nothing was measured on.

    Args:
        reason: Why nothing was.
    """
    return _unmeasured("device", "at least one measurement on it", reason)


def check_parity(parity: Parity) -> Check:
    """Returns the check that a file computes what it was made from, as the export found it.

    Args:
        parity: The finding.
    """
    measured = f"{parity.same_answers} of {parity.images} answers are those of {parity.source}"
    if parity.sqnr_db is not None:
        measured += f", SQNR {parity.sqnr_db:.1f} dB"
    budget = "what rounding explains"
    if parity.explained_db is not None:
        budget += f": SQNR {parity.explained_db:.1f} dB"
    detail = f"{parity.reason}; what was measured is this file, not its source"
    return _check("parity", parity.status, measured, budget, detail)


def check_plausible(
    confusion: npt.NDArray[np.int64],
    label_offset: int,
    class_names: Sequence[str],
    better: str | None,
    searched: str,
) -> Check:
    """Checks that a foreign model's answers depend on the labels the way they were matched.

    Args:
        confusion: Counts of shape `(classes, classes + 1)`, as in `Accuracy.confusion`.
        label_offset: The offset in use.
        class_names: Names of the classes.
        better: Another reading that fits surely better, in words; None if none was found.
        searched: What was searched for one, in words.

    Returns:
        INCONCLUSIVE when there is a better reading or the answers do not depend on the labels
        (`statistics.agreement_p` above 5 %); else PASS.
    """
    name, budget = "plausible", "answers that depend on the picture, read the best way"
    images = int(confusion.sum())
    measured = f"{_percent(np.trace(confusion) / images)} at --label-offset {label_offset}"
    if better is not None:
        return _check(name, Status.INCONCLUSIVE, measured, budget, better)
    p = statistics.agreement_p(confusion)
    if p > 1 - statistics.CONFIDENCE:
        detail = (
            f"{_ignorance(confusion, class_names, p)}; check the order of the labels, "
            "--label-offset, --input-scale, --input-offset and --channels, or give more pictures"
        )
        return _check(name, Status.INCONCLUSIVE, measured, budget, detail)
    detail = (
        f"{images} images; the answers depend on the labels (permutation test, p {p:.2g}; always "
        f"answering the largest class reaches {_percent(_largest(confusion))}); {searched}"
    )
    return _check(name, Status.PASS, measured, budget, detail)


def check_informative(accuracy: Accuracy, class_names: Sequence[str]) -> Check | None:
    """Returns the check that keeps a target from passing whose answers say nothing; else None.

    A dead float model and its dead int8 file lose nothing against each other.

    Args:
        accuracy: The measurement.
        class_names: Names of the classes.
    """
    confusion = np.array(accuracy.confusion, dtype=np.int64)
    p = statistics.agreement_p(confusion)
    if p <= 1 - statistics.CONFIDENCE:
        return None
    return _check(
        "informative",
        Status.INCONCLUSIVE,
        f"{_percent(accuracy.top1)}; always the largest class: {_percent(_largest(confusion))}",
        "answers that depend on the picture",
        f"{_ignorance(confusion, class_names, p)}; check the pictures and how they are prepared, "
        "train longer, or test on more pictures",
    )


def _ignorance(confusion: npt.NDArray[np.int64], class_names: Sequence[str], p: float) -> str:
    """Says that answers do not depend on labels: they, or the labels, are all the same, or luck."""
    chance = f"always answering the largest class reaches {_percent(_largest(confusion))}"
    images = int(confusion.sum())
    names = (*(class_names or map(str, range(len(confusion)))), "none of the classes")
    labels, answers = (np.flatnonzero(confusion.sum(axis=axis)) for axis in (1, 0))
    if len(answers) == 1:
        return f"all {images} answers are {names[answers[0]]!r} whatever the picture; {chance}"
    if len(labels) == 1:
        return (
            f"all {images} pictures are of {names[labels[0]]!r}, so no answer can be told from luck"
        )
    return f"the answers are no better than guessing (permutation test, p {p:.2g}); {chance}"


def _largest(confusion: npt.NDArray[np.int64]) -> float:
    """Returns the share of the largest class: what answers reach that look at no picture."""
    return float(confusion.sum(axis=1).max() / confusion.sum())


def _check_bytes(
    name: str,
    measured: int | None,
    budget_bytes: int,
    reason: str,
    what: str,
    estimate: str | None = None,
) -> Check:
    """Holds a number of bytes to a budget; it is exact, so it passes or misses."""
    budget = f"at most {budget_bytes} bytes"
    if measured is None:
        return _unmeasured(name, budget, reason, estimate)
    status = Status.PASS if measured <= budget_bytes else Status.MISS
    share = f"{100 * measured / budget_bytes:.0f} % of the budget" if budget_bytes else "no budget"
    return _check(name, status, f"{measured} bytes", budget, f"{what}, {share}")


def _unmeasured(name: str, budget: str, reason: str, estimate: str | None = None) -> Check:
    known = "none" if estimate is None else f"estimate: {estimate}"
    return _check(name, Status.UNMEASURED, known, budget, reason or NOT_MEASURED)


def _check(name: str, status: Status, measured: str, budget: str, detail: str) -> Check:
    return Check(name=name, status=status, measured=measured, budget=budget, detail=detail)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
