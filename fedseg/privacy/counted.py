"""Sums over all of a site's patients of whole numbers of bounded norm, before training, with or without noise.

Each patient has one summary, which nobody else changes, and its norm is looked at on the numbers themselves. So one
patient more adds one vector of L2 norm at most the sensitivity, and nothing else moves. A `Counted` is made here and
nowhere else, and says whether it holds noise.
"""

from collections.abc import Callable, Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

from fedseg.privacy.dpsgd import Unsent


class _Made:
    """Proof that an object was made in this file."""


_MADE_HERE = _Made()


@final
class Counted(Unsent):
    """A site's sum of its patients' summaries; `counted` alone makes one.

    Attributes:
        values: (k,) int64.
        noised: whether it has its share of the noise.
    """

    __slots__ = ("noised", "values")

    def __init__(self, values: NDArray[np.int64], noised: bool, made: _Made) -> None:
        if made is not _MADE_HERE:
            raise TypeError("a Counted comes from counted only, which bounds each patient and adds the noise")
        self.values, self.noised = values, noised


def counted(
    summaries: Iterable[NDArray[np.int64]],
    length: int,
    sensitivity: int,
    noise: Callable[[int], NDArray[np.int64]] | None,
) -> Counted:
    """The sum of patients' summaries, and the site's noise.

    A summary that is longer than the sensitivity adds nothing: stopping would tell that such a patient is there.

    Args:
        summaries: (length,) of each patient, who may be nobody.
        length: k, whole numbers of a summary.
        sensitivity: L2 norm that one patient's may have.
        noise: so many fresh integers; None for an exact sum, which protects nobody.
    """
    total = np.zeros(length, np.int64) if noise is None else noise(length)
    for summary in summaries:
        if int(np.dot(summary, summary)) <= sensitivity**2:
            total = total + summary
    return Counted(total, noise is not None, _MADE_HERE)
