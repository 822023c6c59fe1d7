"""Intensities of different scanners made alike."""

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import CaseError

BRIGHTEST = 1.5


def normalised(image: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Per channel, the 1st and 99th percentile of the non-zero voxels become 0 and 1; background stays 0.

    Raises:
        CaseError: every voxel has the same value.
    """
    result = np.zeros(image.shape, dtype=np.float32)
    for channel, values in enumerate(image):
        if values.min() == values.max():
            raise CaseError(name, f"channel {channel} is the same everywhere; export the image again")
        inside = values != 0
        low, high = np.percentile(values[inside], (1, 99))
        np.clip((values - low) / max(high - low, 1e-6), 0, BRIGHTEST, out=result[channel], where=inside)
    return result
