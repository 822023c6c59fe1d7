"""How good a classifier is on a cohort: accuracy, AUC, MCC, calibration, with intervals over patients.

None of these is a mean of figures of single patients, so all of a cohort's answers are held together. Patients are
resampled, with all of their pictures; n is patients. None of it is covered by epsilon.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedseg.records import Classes, Interval, Reliability
from secagg.prg import Stream

DRAWS = 2000
SEED = 0
BINS = 10
"""Of confidence, equally wide: calibration is told by these."""
POINTS = 200
"""Of a ROC curve at most."""

Floats: TypeAlias = NDArray[np.float64]


def judged(patients: Sequence[str], labels: Sequence[int], probabilities: Floats, names: Sequence[str]) -> Classes:
    """Every measure of a cohort's answers.

    Args:
        patients: whose each picture is.
        labels: the number of its class.
        probabilities: (pictures, classes), what was said of it.
        names: of the classes.
    """
    truth, said = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64).reshape(-1, len(names))
    people, whose = np.unique(np.asarray(patients), return_inverse=True)
    weights = _drawn(len(people))[:, whose]
    answer = said.argmax(1) if len(said) else np.zeros(0, np.int64)
    confidence = said.max(1) if len(said) else np.zeros(0)
    found = {
        "accuracy": _accuracy(truth, answer, weights),
        "balanced accuracy": _balanced(_confusion(truth, answer, weights, len(names))),
    }
    areas = [_area(truth == number, said[:, number], weights) for number in range(len(names))]
    found["AUC"] = np.mean(areas, axis=0)
    found["MCC"] = _mcc(_confusion(truth, answer, weights, len(names)))
    found["ECE"] = _miscalibration(answer == truth, confidence, weights)
    return Classes(
        names=list(names),
        pictures=len(truth),
        measures={name: _interval(values, len(people)) for name, values in found.items()},
        auc={name: _interval(values, len(people)) for name, values in zip(names, areas, strict=True)},
        confusion=_confusion(truth, answer, np.ones((1, len(truth))), len(names))[0].astype(int).tolist(),
        roc={name: _roc(truth == number, said[:, number]) for number, name in enumerate(names)},
        reliability=_reliability(answer == truth, confidence),
    )


def _drawn(people: int) -> Floats:
    """(1 + DRAWS, people): how often each is in the cohort itself, and in each resampled one."""
    if not people:
        return np.ones((1, 0))
    drawn = Stream.seeded(SEED, "bootstrap", people).integers(DRAWS * people, people).reshape(DRAWS, people)
    rows = (np.arange(DRAWS)[:, None] * people + drawn).ravel()
    return np.concatenate(
        [np.ones((1, people)), np.bincount(rows.astype(np.int64), minlength=DRAWS * people).reshape(DRAWS, people)]
    )


def _interval(values: Floats, people: int) -> Interval | None:
    """The cohort's own value with the percentiles of the resampled ones; None where it is undefined."""
    if not people or np.isnan(values[0]):
        return None
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return Interval(mean=float(values[0]), low=float(low), high=float(high), n=people)


def _share(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where there is nothing to divide by."""
    quotient: Floats = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return quotient


def _accuracy(truth: NDArray[np.int64], answer: NDArray[np.int64], weights: Floats) -> Floats:
    return _share(weights @ (truth == answer).astype(np.float64), weights.sum(1))


def _confusion(truth: NDArray[np.int64], answer: NDArray[np.int64], weights: Floats, classes: int) -> Floats:
    """(rows of weights, true class, class that was said)."""
    cells = np.zeros((len(truth), classes * classes))
    cells[np.arange(len(truth)), truth * classes + answer] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def _balanced(confusion: Floats) -> Floats:
    """Mean over classes of the share that is found, of the classes that are there."""
    found = _share(np.diagonal(confusion, axis1=1, axis2=2).copy(), confusion.sum(2))
    there = ~np.isnan(found)
    return _share(np.nansum(found, axis=1), there.sum(1).astype(np.float64))


def _mcc(confusion: Floats) -> Floats:
    """Matthews' correlation of several classes (Gorodkin 2004); 0 where one class is said of everybody."""
    right, all_of_them = np.trace(confusion, axis1=1, axis2=2), confusion.sum((1, 2))
    true, said = confusion.sum(2), confusion.sum(1)
    top = right * all_of_them - (true * said).sum(1)
    bottom = (all_of_them**2 - (said**2).sum(1)) * (all_of_them**2 - (true**2).sum(1))
    one_class = all_of_them**2 - (true**2).sum(1) <= 0
    value = np.divide(top, np.sqrt(bottom), out=np.zeros_like(top), where=bottom > 0)
    return np.asarray(np.where(one_class, np.nan, value), np.float64)


def _area(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve: how often one of the class has a higher score than one of the others, ties a half."""
    _, place = np.unique(score, return_inverse=True)
    steps = int(place.max()) + 1 if len(place) else 0

    def some(rows: Floats) -> Floats:
        """Of these rows: shares of patients in each, as they were drawn."""
        at = np.arange(len(rows))[:, None] * steps + place[None]
        mine, theirs = (
            np.bincount(at.ravel(), (rows * part).ravel(), len(rows) * steps).reshape(len(rows), steps)
            for part in (positive, ~positive)
        )
        below = np.cumsum(theirs, axis=1) - theirs
        return _share((mine * (below + theirs / 2)).sum(1), mine.sum(1) * theirs.sum(1))

    return _in_parts(some, weights)


def _in_parts(function: Callable[[Floats], Floats], weights: Floats) -> Floats:
    """The same for all rows of weights, with the memory of a few."""
    if weights.shape[1] == 0:
        return np.full(len(weights), np.nan)
    return np.concatenate([function(weights[first : first + 100]) for first in range(0, len(weights), 100)])


def _bins(confidence: Floats) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _miscalibration(right: NDArray[np.bool_], confidence: Floats, weights: Floats) -> Floats:
    """Expected calibration error: mean distance of confidence and accuracy over bins, by pictures (Guo et al. 2017)."""
    apart = np.zeros((len(right), BINS))
    apart[np.arange(len(right)), _bins(confidence)] = confidence - right
    return _share(np.abs(weights @ apart).sum(axis=1), weights.sum(1))


def _reliability(right: NDArray[np.bool_], confidence: Floats) -> list[Reliability]:
    where = _bins(confidence)
    found = [(number, np.flatnonzero(where == number)) for number in range(BINS)]
    return [
        Reliability(
            low=number / BINS,
            high=(number + 1) / BINS,
            pictures=len(those),
            confidence=float(confidence[those].mean()),
            accuracy=float(right[those].mean()),
        )
        for number, those in found
        if len(those)
    ]


def _roc(positive: NDArray[np.bool_], score: Floats) -> list[tuple[float, float]]:
    """False and true positive rate at every threshold, from (0, 0) to (1, 1); none where a side has nobody."""
    if positive.all() or not positive.any():
        return []
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    true = np.cumsum(positive[order])[last] / positive.sum()
    false = np.cumsum(~positive[order])[last] / (~positive).sum()
    chosen = np.unique(np.linspace(0, len(last) - 1, POINTS).round().astype(int))
    return [(0.0, 0.0), *((float(false[place]), float(true[place])) for place in chosen)]
