"""Method "exclude": tensors that the study names are never sent; it hides nothing else and claims nothing.

They are trained within a round and forgotten with it. Zeros are sent in their place, as NVFlare's `ExcludeVars` does,
so that not one byte is saved: `[training] trainable` leaves tensors out of the training, too.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.sharing.method import Method, Place, Sharing


class Exclude(Method):
    """See the module."""

    name = "exclude"
    uses = ("leave_out",)

    def unfit(self, tensors: Sequence[str], sharing: Sharing) -> str:
        """A pattern that matches no tensor."""
        for pattern in sharing.leave_out:
            if not any(fnmatchcase(name, pattern) for name in tensors):
                return f"leave_out: '{pattern}' matches no tensor of the network, such as {', '.join(tensors[:4])}"
        return ""

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """0 at the tensors that are left out."""
        kept, start = update.copy(), 0
        for name, size in place.tensors:
            if any(fnmatchcase(name, pattern) for pattern in sharing.leave_out):
                kept[start : start + size] = 0
            start += size
        return kept

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """As they are."""
        return values
