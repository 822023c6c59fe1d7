"""Label values as a site's files have them, and as a study counts them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import CaseError

ROUNDED = 1e-3


def whole_numbers(label: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values within a thousandth of a whole number become it: a scale in a header leaves 1.00002 of a 1."""
    nearest = np.round(label)
    return np.where(np.abs(label - nearest) < ROUNDED, nearest, label)  # NaN stays, and is refused as a value


def translated(label: NDArray[np.float32], values: Sequence[Sequence[int]], name: str) -> NDArray[np.float32]:
    """A site's label values as the study's 1, 2, ...: of the structures that a value belongs to the last one.

    Args:
        label: (X, Y, Z), as the file has it.
        values: of each structure in the study's order, those of the file; empty where they are the study's own.
        name: what errors call it.

    Raises:
        CaseError: a value that belongs to no structure.
    """
    if not values:
        return label
    result, known = np.zeros_like(label), [0, *(value for those in values for value in those)]
    if unknown := np.setdiff1d(label, known).tolist():
        raise CaseError(
            name,
            f"has label value {unknown[0]:g}, and [data] labels lists {', '.join(map(str, sorted(set(known))))}; "
            "correct the label map or the list",
        )
    for number, those in enumerate(values, 1):
        result[np.isin(label, those)] = number
    return result
