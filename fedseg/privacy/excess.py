"""Noise in layers, so that a sum of more sites than the fewest loses what it does not need (Jiang, Wang, Chen 2024).

Shares of the noise are planned for the fewest sites of a sum. Here a site draws its share as a sum of layers: the first
has what the largest sum needs of a site, and each further one what a sum of one site less needs more. Every further
layer comes from a seed of its own. Once the sites in the sum are agreed on, each discloses the seeds of the layers that
this sum does not need, and everybody takes those off the sum. Whoever discloses nothing leaves more noise in it.

What stays is enough whoever tells what: a site with at most c liars beside it in a sum of s sites keeps 1/(s - c) of
the planned variance, and s is what a quorum has signed, an honest site of which signs one set (C-17). A layer that was
not disclosed is independent of those that were.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedseg.privacy.shared_noise import SMALLEST_DEVIATION, SharedNoise
from secagg.prg import KEY_BYTES, Stream


@dataclass(frozen=True)
class Layers:
    """The layers of each site's share of the noise.

    Attributes:
        noise: a share as it is planned, for the fewest sites.
        sites: in a sum at most.
        fewest: sites in a sum at least.
        corrupt: sites in a sum at most whose noise does not count; below `fewest`.
    """

    noise: SharedNoise
    sites: int
    fewest: int
    corrupt: int

    @cached_property
    def needed(self) -> Mapping[int, int]:
        """By how many sites are in a sum, from most to fewest, the variance of the share that each has to keep.

        A layer has some variance, and one of discrete Gaussians enough to be accounted for; rounding is upwards. The
        largest sum's is rounded first, and the others follow it: no smaller sum keeps less than it does in all.
        """
        honest, least = self.sites - self.corrupt, 1 if self.noise.kind == "skellam" else SMALLEST_DEVIATION**2
        first = max(-(-(self.fewest - self.corrupt) * self.noise.variance // honest), least)
        found = {self.sites: first}
        for sites in range(self.sites - 1, self.fewest - 1, -1):
            found[sites] = max(-(-first * honest // (sites - self.corrupt)), found[sites + 1] + least)
        return found

    def kept(self, sites: int) -> SharedNoise:
        """A site's share in a sum of so many, once everything else was taken off."""
        return replace(self.noise, variance=self.needed[sites])

    def draw(self, n: int, stream: Stream, seeds: Sequence[bytes]) -> NDArray[np.int64]:
        """One site's whole share, (n,) int64.

        Args:
            n: integers of a step.
            stream: of the first layer; this step's, read here only.
            seeds: of the further layers, `sites - fewest` fresh ones.
        """
        return self.kept(self.sites).draw(n, stream) + self._further(n, seeds, self.sites)

    def excess(self, n: int, disclosed: Mapping[str, bytes], sites: int) -> NDArray[np.int64]:
        """What sites disclosed of the noise in a sum of so many, (n,) int64.

        Args:
            n: integers of a step.
            disclosed: by site, the seeds of its last `sites - fewest` layers, one behind the other. Seeds of any other
                number are no seeds of this sum: that site's noise stays.
            sites: in the sum.
        """
        total = np.zeros(n, np.int64)
        for seeds in disclosed.values():
            if len(seeds) == KEY_BYTES * (sites - self.fewest):
                each = [seeds[at : at + KEY_BYTES] for at in range(0, len(seeds), KEY_BYTES)]
                total += self._further(n, each, sites)
        return total

    def left(self, disclosed: Mapping[str, bytes], sites: int) -> int:
        """Variance of all noise in a sum of so many once the excess was taken off."""
        told = sum(len(seeds) == KEY_BYTES * (sites - self.fewest) for seeds in disclosed.values())
        return told * self.needed[sites] + (sites - told) * self.needed[self.fewest]

    def gain(self, sites: int) -> float:
        """Deviation of the noise in a sum of so many without the excess, over that with it."""
        return math.sqrt(self.needed[sites] / self.needed[self.fewest])

    def _further(self, n: int, seeds: Sequence[bytes], above: int) -> NDArray[np.int64]:
        """The layers that sums of fewer sites than `above` need more."""
        total = np.zeros(n, np.int64)
        for sites, seed in zip(range(above - 1, self.fewest - 1, -1), seeds, strict=True):
            layer = replace(self.noise, variance=self.needed[sites] - self.needed[sites + 1])
            total += layer.draw(n, Stream(seed))
        return total
