"""A value in b bits: rounded at random to one of 2^b levels, right on average, and many values in one word of a sum.

A word of W bits holds as many values as their sums fit: n sites with levels 0 to 2^b - 1 add up to n (2^b - 1) at most,
so that k values are the digits of one number to the base n (2^b - 1) + 1. No digit is ever carried into the next, and
the sum of words is the word of sums. A value so costs log2(n (2^b - 1) + 1) bits: what the sum needs, and no less.

Source: Konečný et al. 2016, section 3 (probabilistic quantisation). There each client rounds between its own least and
largest value; under a secure sum the ends are public and the same for all: `[secagg] clip_range`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.prg import Stream


@dataclass(frozen=True)
class Levels:
    """How values become words.

    Attributes:
        bits: b, of one site's value.
        sites: n, that a sum has at most.
        word: W, bits of a word.
        clip_range: values are clipped to [-clip_range, clip_range], which is level 0 to the last.

    Raises:
        ValueError: not one value fits into a word.
    """

    bits: int
    sites: int
    word: int
    clip_range: float

    def __post_init__(self) -> None:
        if self.each < 1:
            raise ValueError(f"a word of {self.word} bits holds no sum of {self.sites} values of {self.bits} bits")

    @property
    def last(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def base(self) -> int:
        """One more than a sum of levels can be."""
        return self.sites * self.last + 1

    @property
    def each(self) -> int:
        """How many values a word holds."""
        count = 0
        while self.base ** (count + 1) <= 1 << self.word:
            count += 1
        return count

    def words(self, values: int) -> int:
        """How many words hold so many values."""
        return -(-values // self.each)

    def levels(self, values: NDArray[np.float64], stream: Stream) -> NDArray[np.int64]:
        """(m,) values to their levels, rounded at random; `stream` is used here only."""
        scaled = (np.clip(values, -self.clip_range, self.clip_range) / self.clip_range + 1) * (self.last / 2)
        low = np.floor(scaled)
        rounded = np.minimum(low + (stream.uniform(len(values)) < scaled - low), self.last)
        return np.asarray(rounded, dtype=np.int64)

    def packed(self, levels: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) levels to words; each is below 2^W."""
        digits = np.zeros(self.words(len(levels)) * self.each, np.int64)
        digits[: len(levels)] = levels
        words = np.zeros(len(digits) // self.each, np.int64)
        for column in digits.reshape(-1, self.each).T[::-1]:
            words = words * self.base + column
        return words

    def unpacked(self, words: NDArray[np.int64], values: int) -> NDArray[np.int64]:
        """The sums of levels, (m,), that a sum of words holds; taken modulo 2^W."""
        rest = words & np.int64((1 << self.word) - 1)
        digits = np.empty((len(words), self.each), np.int64)
        for place in range(self.each):
            rest, digits[:, place] = np.divmod(rest, self.base)
        return digits.reshape(-1)[:values]

    def values(self, sums: NDArray[np.int64], sites: int) -> NDArray[np.float64]:
        """What the sums of so many sites' levels stand for."""
        return np.asarray((2 * sums - sites * self.last) * (self.clip_range / self.last), dtype=np.float64)
