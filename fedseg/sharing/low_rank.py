"""Method "low-rank": in each round the update is a product H = AB of which A is public; only B is trained and sent.

An update is laid out as a matrix H of about as many rows as columns, n of them, a power of two. A has `rank` columns:
functions of Walsh, drawn by the round's seed, each with the same signs in front. They are orthogonal and of length 1,
so that A^T H is the best B there is, and one patient's B is not longer than the patient's gradient. Nothing is rounded
otherwise on another machine, as in a product of matrices it might be.

Source: Konečný et al. 2016, section 2 (structured updates), where A is drawn anew by each client and layers are
factored one by one. Under a secure sum A is that of all sites, and whole updates are laid out: A knows no layer.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.rotation import hadamard, signs
from fedseg.sharing.method import Method, Place, Sharing, drawn
from secagg.encoding import digest


class LowRank(Method):
    """See the module."""

    name = "low-rank"
    uses = ("rank", "bits")
    within = True

    def length(self, parameters: int, sharing: Sharing) -> int:
        """See `Method.length`: rank times the columns of H."""
        rows = _rows(parameters)
        return -(-parameters // rows) * min(sharing.rank, rows)

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """B = A^T H."""
        rows = _rows(place.parameters)
        columns = np.zeros(-(-place.parameters // rows) * rows)
        columns[: place.parameters] = update
        turned = hadamard((columns.reshape(-1, rows) * _signs(place)).reshape(-1), rows).reshape(-1, rows)
        return (turned[:, _drawn(sharing, place)] / math.sqrt(rows)).reshape(-1)

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """H = AB."""
        rows = _rows(place.parameters)
        kept = _drawn(sharing, place)
        columns = np.zeros((-(-place.parameters // rows), rows))
        columns[:, kept] = values.reshape(-1, len(kept))
        turned = hadamard(columns.reshape(-1), rows).reshape(-1, rows) * _signs(place)
        return turned.reshape(-1)[: place.parameters] / math.sqrt(rows)


def _rows(parameters: int) -> int:
    """n: the power of two next above the root."""
    return 1 << (math.isqrt(parameters - 1)).bit_length() if parameters > 1 else 1


def _drawn(sharing: Sharing, place: Place) -> NDArray[np.int64]:
    rows = _rows(place.parameters)
    return drawn(rows, min(sharing.rank, rows), digest("columns", place.seed))


def _signs(place: Place) -> NDArray[np.int64]:
    return signs(digest("signs", place.seed), _rows(place.parameters))
