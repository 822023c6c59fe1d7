"""How well outlines agree, per structure and case, and bootstrap intervals over patients.

A structure that neither truth nor prediction has is undefined and skipped, so every mean comes with its n; nothing
is ever an average of nothing. No measure is covered by epsilon. Sources: Taha and Hanbury 2015 (Hausdorff distance,
volume similarity), Nikolov and others 2018 (surface Dice).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import compute_dice
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, find_objects

from fedseg.records import Interval
from secagg.prg import Stream

DRAWS = 2000


class Measure(NamedTuple):
    """What a model is judged by.

    Attributes:
        name: such as "Dice".
        unit: of its values, such as "mm"; empty for shares of 1.
        tolerance: millimetres that a surface may be off, where the measure has such.
    """

    name: str
    unit: str = ""
    tolerance: float | None = None


def overlaps(
    predicted: NDArray[np.bool_], true: NDArray[np.bool_], spacing: tuple[float, ...], tolerance: float
) -> NDArray[np.float64]:
    """How well the outlines of one structure agree: Dice, HD95, NSD and volume similarity.

    Args:
        predicted: (*spatial) bool.
        true: the same shape.
        spacing: millimetres per axis.
        tolerance: millimetres within which two surfaces agree.

    The distances are those of MONAI's `compute_hausdorff_distance` and `compute_surface_dice`, from one pair of maps in
    place of two, and without their tensors: a tenth of the time on small cases.

    Returns:
        (4,) float64: Dice; the larger of the two 95th percentiles of distances between the surfaces, in millimetres;
        the share of both surfaces that is within the tolerance of the other; and 1 less the difference of the volumes
        over their sum. All NaN where both lack the structure. Where one does, all are 0, and HD95 is NaN: there is no
        other surface to have a distance from.
    """
    volumes = int(predicted.sum()), int(true.sum())
    if not any(volumes):
        return np.full(4, np.nan)
    if not all(volumes):
        return np.array([0.0, np.nan, 0.0, 0.0])
    box = find_objects((predicted | true).astype(np.uint8))[0]  # far from both there is nothing to measure
    one, other = (_surface(mask[box]) for mask in (predicted, true))
    apart = [distance_transform_edt(~there, sampling=spacing)[here] for here, there in ((one, other), (other, one))]
    far = max(float(np.percentile(distances, 95)) for distances in apart)
    near = sum(int((distances <= tolerance).sum()) for distances in apart) / sum(map(len, apart))
    common = 2 * int((predicted & true).sum()) / sum(volumes)
    return np.array([common, far, near, 1 - abs(volumes[0] - volumes[1]) / sum(volumes)])


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels that have a face to the outside; the sides of the box are outside."""
    return np.asarray(mask & ~binary_erosion(mask), dtype=np.bool_)


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
