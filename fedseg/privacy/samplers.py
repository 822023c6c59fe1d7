"""Exact integer noise from a cryptographic stream: the Skellam and the discrete Gaussian distribution.

Exact means that every integer comes with its stated probability and with no other: there is no floating point, no
rounded normal and no cut tail, so nothing has to be charged to delta. Probabilities are held between integers, computed
with Python's own (`skellam_pmf`, `discrete_gaussian_pmf`). A word of 64 random bits is laid over them: nearly always it
lies within the lower bound of one value, and that value is the draw. About one word in 4,000 lies within none, and is
drawn again. Only a word between two bounds, or in the tail beyond the table, needs more bits, and gets as many as it
takes, against bounds as narrow as it takes. That is von Neumann's rejection under a step function, in the manner of
Devroye 1986, II.3; like Canonne, Kamath and Steinke 2020 it decides every comparison exactly.

Must never: draw from anything but a `Stream`, or round a comparison that bounds leave open. How long a draw takes says
which draws were rare; it is not constant time.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from secagg.prg import Stream

LARGEST_VARIANCE = 1 << 32
"""A deviation of 65,536: more only makes messages wider, and the table too long for a cache."""

CHUNK = 1 << 15
"""Words taken at a time: 256 KiB stay in the cache."""

_WORD = 63  # bits that choose a magnitude; the last bit of a word is the sign
_GUIDE = 16  # leading bits that look a value up before anything is searched
_FILLED = Fraction(4095, 4096)  # of all words stand for a value; the rest leaves room for rounding up

Bounds = tuple[list[int], list[int]]
"""Lower and upper bounds of the probabilities of 0, 1, 2..., as multiples of 2^-bits."""

Pmf = Callable[[Fraction, int, int], Bounds]
"""(variance, count, bits) to the bounds of 0..count-1."""


def skellam(n: int, variance: float | Fraction, stream: Stream) -> NDArray[np.int64]:
    """Independent Skellam values: the difference of two Poisson counts of mean variance/2 each.

    Sums of them are Skellam again and variances add, whichever sites remain.

    Args:
        n: how many.
        variance: above 0 and at most `LARGEST_VARIANCE`; a float is taken for the fraction that it is.
        stream: read for nothing else; 8 bytes a value and, in one of 4,000 cases, again.

    Returns:
        (n,) int64.

    Raises:
        ValueError: a variance that is too large, or not above 0.
    """
    return _table(skellam_pmf, _checked(variance)).draw(n, stream)


def discrete_gaussian(n: int, variance: float | Fraction, stream: Stream) -> NDArray[np.int64]:
    """Independent integers k with probability proportional to exp(-k^2 / 2 variance); arguments of `skellam`.

    From 1 on, `variance` is the variance to eight digits and more; below, the true one is smaller.
    """
    return _table(discrete_gaussian_pmf, _checked(variance)).draw(n, stream)


def skellam_pmf(variance: Fraction, count: int, bits: int) -> Bounds:
    """Bounds of e^-v I_k(v), v the variance, for k below `count`.

    I_(k-1) = I_(k+1) + (2k / v) I_k has no minus sign: run downwards, a lower start stays below and an upper one above.
    It starts from bounds of I_(k+1) / I_k, which narrow on their own the farther out they begin. The probabilities of
    all integers sum to 1, so that neither e nor I_0 is ever computed.

    Args:
        variance: above 0.
        count: of values, at least 1.
        bits: the bounds are multiples of 2^-bits.
    """
    num, den = variance.numerator, variance.denominator
    one = 1 << bits + 32 + (2 * count * den // num).bit_length()
    start, low, high = count + count // 2 + 16, 0, one
    while (high - low) << bits > high:
        low, high = 0, one  # 0 < I_(k+1) / I_k < 1
        for k in range(start, count - 1, -1):  # at last I_count / I_(count-1)
            fixed = 2 * k * den * one
            low, high = one * one * num // (fixed + high * num), -(-one * one * num // (fixed + low * num))
        start += start - count
    lows, highs = [low, one], [high, one]  # in multiples of I_(count-1), from I_count to I_0
    for k in range(count - 1, 0, -1):
        factor = 2 * k * den
        lows.append(lows[-2] + factor * lows[-1] // num)
        highs.append(highs[-2] - (-factor * highs[-1] // num))
    # I_(k+1) / I_k falls with k, so that the tail is less than a geometric sum.
    return _normalised(lows[:0:-1], highs[:0:-1], -(-high * one // (one - high)), bits)


def discrete_gaussian_pmf(variance: Fraction, count: int, bits: int) -> Bounds:
    """Bounds of exp(-k^2 / 2v) over its sum, v the variance, for k below `count`; arguments of `skellam_pmf`."""
    work = bits + 2 * count.bit_length() + 32
    one = 1 << work
    low, high = _exp_minus(1 / (2 * variance), work)
    square, lows, highs = (low * low >> work, -(-high * high >> work)), [one], [one]
    for _ in range(count - 1):  # low and high are bounds of exp(-(2k + 1) / 2v)
        lows.append(lows[-1] * low >> work)
        highs.append(-(-highs[-1] * high >> work))
        low, high = low * square[0] >> work, -(-high * square[1] >> work)
    return _normalised(lows, highs, -(-highs[-1] * high // (one - high)), bits)


def _normalised(lows: list[int], highs: list[int], beyond: int, bits: int) -> Bounds:
    """Bounds of each weight over the sum of all, on both sides of 0; `beyond` bounds the sum after the last one."""
    least, most = 2 * sum(lows) - lows[0], 2 * (sum(highs) + beyond) - highs[0]
    return [(low << bits) // most for low in lows], [-((-high << bits) // least) for high in highs]


def _exp_minus(x: Fraction, bits: int) -> tuple[int, int]:
    """Bounds of exp(-x) as multiples of 2^-bits: Taylor's series of exp(-x / 2^halvings), squared so many times."""
    halvings = math.ceil(x).bit_length()
    one = 1 << (work := bits + 2 * halvings + 16)
    total, term, k = Fraction(0), Fraction(1), 0
    while abs(term) * one >= 1:
        total, k = total + term, k + 1
        term *= -x / (k << halvings)
    low, high = math.floor((total - abs(term)) * one), math.ceil((total + abs(term)) * one)  # its signs alternate
    for _ in range(halvings):
        low, high = low * low >> work, -(-high * high >> work)
    return low >> (work - bits), -(-high >> (work - bits))


class Table:
    """Words of so many bits laid over a symmetric distribution of integers, magnitude after magnitude.

    Magnitude k has the words from `_edges[k]` on, as many as its upper bound needs; the first `_sure[k]` of them lie
    wholly below its probability. The word at the last edge holds all of the tail, and those above it hold nothing.

    Args:
        pmf: of the distribution.
        variance: its parameter.
        word: bits that choose a magnitude. Fewer only make the rare ways common, which is what tests want.
    """

    def __init__(self, pmf: Pmf, variance: Fraction, word: int = _WORD) -> None:
        self._pmf, self._variance, self._word = pmf, variance, word
        self._all = (1 << word) * 4095 // 4096  # words that stand for values, all together
        lows, highs, bits = _bounds(pmf, variance, word)
        self._sure = np.array([*(self._words(k) * low >> bits for k, low in enumerate(lows)), 0], np.int64)
        sizes = [-(-self._words(k) * high >> bits) for k, high in enumerate(highs)]
        self._edges = np.cumsum([0, *sizes], dtype=np.int64)
        if sum(sizes) >= 1 << word:
            raise ValueError(f"words of {word} bits are too few for {len(sizes)} magnitudes")
        cells = np.arange(1 << _GUIDE, dtype=np.int64) << (word - _GUIDE)
        self._guide = np.searchsorted(self._edges, cells, "right") - 1

    def draw(self, n: int, stream: Stream) -> NDArray[np.int64]:
        """(n,) independent values."""
        drawn = np.empty(n, np.int64)
        for start in range(0, n, CHUNK):
            part = drawn[start : start + CHUNK]
            missing = self._fill(part, stream)
            while missing:
                again = np.empty(len(missing), np.int64)
                still = self._fill(again, stream)
                part[missing], missing = again, [missing[place] for place in still]
        return drawn

    def _fill(self, part: NDArray[np.int64], stream: Stream) -> list[int]:
        """A word for each value; returns the places whose word stood for none."""
        words = stream.words64(len(part))
        places = (words >> np.uint64(64 - self._word)).view(np.int64)
        found = self._guide[places >> (self._word - _GUIDE)]
        unsure = np.flatnonzero(places - self._edges[found] >= self._sure[found])
        found[unsure] = np.searchsorted(self._edges, places[unsure], "right") - 1
        unsure = unsure[places[unsure] - self._edges[found[unsure]] >= self._sure[found[unsure]]]
        missing = []
        for index in unsure.tolist():
            magnitude = self._settle(int(found[index]), int(places[index] - self._edges[found[index]]), stream)
            if magnitude is None:
                missing.append(index)
            else:
                found[index] = magnitude
        np.multiply(found, 1 - 2 * (words & np.uint64(1)).view(np.int64), out=part)
        return missing

    def _settle(self, magnitude: int, offset: int, stream: Stream) -> int | None:
        """What a word stands for that lies `offset` words behind an edge and is not sure; None for nothing.

        More random bits make the word a point of the real line, as narrow as it takes.
        """
        last = len(self._sure) - 1
        if magnitude == last and offset > 0:
            return None
        point = extra = 0
        while True:
            point, extra = point << 64 | int(stream.words64(1)[0]), extra + 64
            lows, highs, bits = _finer(self._pmf, self._variance, self._word + extra)
            at, width = (offset << extra) + point << bits, 1 << bits  # in units of 2^-(bits + extra) words
            low = high = 0
            for k in range(magnitude, len(lows)) if magnitude == last else [magnitude]:
                low += self._words(k) * lows[k] << extra
                high += self._words(k) * highs[k] << extra
                if at + width <= low:
                    return k
                if at < high:
                    break
            else:
                # Beyond the magnitudes that have bounds lies less than 2^-extra words.
                if magnitude != last or at >= high + width:
                    return None

    def _words(self, magnitude: int) -> int:
        """How many words a magnitude would have if its probability were 1: its two signs share them."""
        return self._all if magnitude == 0 else 2 * self._all


def _bounds(pmf: Pmf, variance: Fraction, word: int) -> tuple[list[int], list[int], int]:
    """Bounds of all magnitudes but those that have, together, less than 2^-word; and their bits."""
    bits, count = word + 65, _reach(variance, word)
    while True:
        lows, highs = pmf(variance, count, bits)
        if (1 << bits) - 2 * sum(lows) + lows[0] <= 1 << 65:
            return lows, highs, bits
        count += count // 8 + 1


_finer = lru_cache(maxsize=2)(_bounds)  # for words that need more bits


def _reach(variance: Fraction, word: int) -> int:
    """About the magnitude beyond which both distributions have 2^-word: Chernoff's bound of Skellam."""
    v, least, most = float(variance), 0.0, 800.0
    for _ in range(100):
        t = (least + most) / 2
        if v * (t * math.sinh(t) - 2 * math.sinh(t / 2) ** 2) < (word + 1) * math.log(2):
            least = t
        else:
            most = t
    return math.ceil(v * math.sinh(most)) + 1


@lru_cache(maxsize=64)  # as many as a share of the noise has layers
def _table(pmf: Pmf, variance: Fraction) -> Table:
    return Table(pmf, variance)


def _checked(variance: float | Fraction) -> Fraction:
    if not 0 < variance <= LARGEST_VARIANCE:
        raise ValueError(f"noise of variance {float(variance):g}: it must be above 0 and at most {LARGEST_VARIANCE}")
    return Fraction(variance)
