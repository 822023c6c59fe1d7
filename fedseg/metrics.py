"""Dice per structure and case, and bootstrap intervals over patients.

A structure that neither truth nor prediction has is undefined and skipped, so every mean comes with its n; nothing
is ever an average of nothing. Dice is not covered by epsilon.
"""

from collections.abc import Iterable

import numpy as np
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray

from fedseg.records import Interval
from secagg.prg import Stream

DRAWS = 2000


def dice(prediction: NDArray[np.uint8], truth: NDArray[np.uint8], structures: int) -> NDArray[np.float64]:
    """Dice of every structure of one case.

    Args:
        prediction: (*spatial) uint8 label values.
        truth: the same shape.
        structures: label values 1 to this.

    Returns:
        (structures,) float64 in 0..1; NaN where truth and prediction both lack the structure, 0 where one does.
    """
    values = torch.arange(1, structures + 1).reshape(1, -1, *(1,) * truth.ndim)
    predicted = (torch.from_numpy(prediction.astype(np.int64))[None, None] == values).float()
    true = (torch.from_numpy(truth.astype(np.int64))[None, None] == values).float()
    scores = compute_dice(predicted, true, include_background=True, ignore_empty=False)[0].double().numpy()
    absent = ~(predicted.flatten(2).any(2) | true.flatten(2).any(2))[0].numpy()
    return np.asarray(np.where(absent, np.nan, scores), dtype=np.float64)


def bootstrap(values: Iterable[float], seed: int) -> Interval | None:
    """Mean and 95 % percentile interval of one value per patient; NaN is skipped, None where nothing is left.

    Args:
        values: one score per patient, any number.
        seed: the resampling is reproducible.
    """
    scores = np.array([value for value in values if not np.isnan(value)], dtype=np.float64)
    n = len(scores)
    if n == 0:
        return None
    resampled = scores[Stream.seeded(seed, "bootstrap", n).integers(DRAWS * n, n).reshape(DRAWS, n)].mean(axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Interval(mean=float(scores.mean()), low=float(low), high=float(high), n=n)


def by_patient(patients: Iterable[str], scores: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average the cases of each patient, because patients are what we resample.

    Args:
        patients: the patient of each case.
        scores: (structures,) of each case, NaN where undefined.

    Returns:
        (patients, structures) float64 in sorted order of the patients; NaN where no case defines it.
    """
    collected: dict[str, list[NDArray[np.float64]]] = {}
    for patient, score in zip(patients, scores, strict=True):
        collected.setdefault(patient, []).append(score)
    means = []
    for patient in sorted(collected):
        table = np.stack(collected[patient])
        counts = np.count_nonzero(~np.isnan(table), axis=0)
        means.append(np.where(counts, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan))
    return np.array(means, dtype=np.float64)
