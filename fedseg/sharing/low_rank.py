"""Method "low-rank": in each round the update is a product H = AB of which A is public; only B is trained and sent.

An update is laid out as a matrix H of about as many rows as columns, n of them, a power of two; A has `rank` columns:
functions of Walsh, drawn by the round's seed, each with the same signs in front. They are orthogonal and of length 1,
so that A^T H is the best B there is, and one patient's B is not longer than the patient's gradient. Nothing is rounded
otherwise on another machine, as in a product of matrices it might be.

Source: Konečný et al. 2016, section 2 (structured updates), where A is drawn anew by each client and layers are
factored one by one. Under a secure sum A is that of all sites, and whole updates are laid out: A knows no layer.
"""

import math
from typing import Any, NamedTuple

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
        return sum(part.columns * part.kept(parameters, sharing) for part in _parts(parameters))

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """B = A^T H."""
        pieces = []
        for part in _parts(place.parameters):
            columns = update[part.start : part.stop].reshape(-1, part.rows) * part.signs(place)
            turned = hadamard(columns.reshape(-1), part.rows).reshape(-1, part.rows)
            pieces.append((turned[:, part.drawn(sharing, place)] / math.sqrt(part.rows)).reshape(-1))
        return np.concatenate(pieces)

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """H = AB."""
        pieces, start = [], 0
        for part in _parts(place.parameters):
            drawn = part.drawn(sharing, place)
            columns = np.zeros((part.columns, part.rows))
            columns[:, drawn] = values[start : start + columns[:, drawn].size].reshape(-1, len(drawn))
            turned = hadamard(columns.reshape(-1), part.rows).reshape(-1, part.rows) * part.signs(place)
            pieces.append(turned.reshape(-1) / math.sqrt(part.rows))
            start += part.columns * len(drawn)
        return np.concatenate(pieces)


class _Part(NamedTuple):
    """Values of an update that are laid out as columns of so many rows, a power of two."""

    start: int
    columns: int
    rows: int

    @property
    def stop(self) -> int:
        return self.start + self.columns * self.rows

    def kept(self, parameters: int, sharing: Sharing) -> int:
        """Columns of A: in a shorter column as many of its rows as in a whole one."""
        whole = _rows(parameters)
        return -(-min(sharing.rank, whole) * self.rows // whole)

    def drawn(self, sharing: Sharing, place: Place) -> NDArray[np.int64]:
        """Which functions of Walsh they are."""
        return drawn(self.rows, self.kept(place.parameters, sharing), digest("columns", place.seed, self.rows))

    def signs(self, place: Place) -> NDArray[np.int64]:
        """In front of each of them."""
        return signs(digest("signs", place.seed, self.rows), self.rows)


def _rows(parameters: int) -> int:
    """n: the power of two next above the root."""
    return 1 << (math.isqrt(parameters - 1)).bit_length() if parameters > 1 else 1


def _parts(parameters: int) -> list[_Part]:
    """H's whole columns, and what is left of the update as ever shorter ones: no column is filled up."""
    rows = _rows(parameters)
    parts, start = [_Part(0, parameters // rows, rows)], parameters // rows * rows
    while rows > 1:
        rows //= 2
        if (parameters - start) & rows:
            parts.append(_Part(start, 1, rows))
            start += rows
    return [part for part in parts if part.columns]
