"""What a sum stands for that is not of whole updates (specification, "Runs": what is sent in place of one)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from audits.verifier.encoding import H
from audits.verifier.primitives import words


def signs(key: bytes, n: int) -> np.ndarray:
    """1 or -1 by each of the first n bits of a key's keystream: int64 (n,)."""
    octets = words(key, 4 * math.ceil(n / 32), 1).astype(np.uint8)
    return 1 - 2 * np.unpackbits(octets)[:n].astype(np.int64)


def draw(n: int, m: int, key: bytes) -> np.ndarray:
    """Of n places m, rising."""
    return np.sort(np.argsort(words(key, n, 4), kind="stable")[:m])


def turned(x: np.ndarray, block: int) -> np.ndarray:
    """T_block: sums and differences, block by block."""
    h = 1
    while h < block:
        a, b = np.moveaxis(x.reshape(-1, 2, h), 1, 0)
        x, h = np.stack([a + b, a - b], axis=1).reshape(-1), 2 * h
    return x


def block(n: int) -> int:
    """B(n)."""
    return min(4096, 1 << (n - 1).bit_length())


def filled(n: int) -> int:
    """P(n)."""
    return block(n) * math.ceil(n / block(n))


class Space:
    """How many numbers are sent of d values, and what a sum of them stands for.

    Args:
        sharing: the study's table.
        d: values of a whole update.
    """

    def __init__(self, sharing: dict[str, Any], d: int) -> None:
        self.about, self.d = sharing, d
        self.method: str = sharing.get("method", "full")
        self.rotated = self.method == "sketch" and sharing.get("rotation", False)
        self.spread = filled(d) if self.rotated else d
        part = max(1, math.ceil(d * sharing.get("share", 1.0) - 1e-9))
        if self.method == "low-rank":
            self.m = sum(kept for _, kept in self._columns())
        elif self.method == "sketch" and sharing.get("share", 1.0) == 1:
            self.m = self.spread
        else:
            self.m = part if self.method in ("random-mask", "sketch") else d

    def restored(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """From m numbers of a sum to d values, in the round that begins from these weights: float64."""
        key = H("sharing", weights.astype("<f4").tobytes())
        if self.method == "random-mask":
            whole = np.zeros(self.d)
            whole[draw(self.d, self.m, key)] = x
            return whole
        if self.method == "sketch":
            return self._from_sketch(x, key)
        return self._from_columns(x, key) if self.method == "low-rank" else x

    def _from_sketch(self, x: np.ndarray, key: bytes) -> np.ndarray:
        n, found = self.spread, np.zeros(self.spread)
        found[draw(n, self.m, H("sample", key))] = x if self.about.get("error_feedback") else x * (n / self.m)
        if not self.rotated:
            return found
        size = block(self.d)
        return np.asarray(turned(found, size) * signs(H("signs", key), n) / math.sqrt(size))[: self.d]

    def _columns(self) -> Iterator[tuple[int, int]]:
        """Length of each column, and how many numbers of it are sent."""
        rows = 1 << math.isqrt(self.d - 1).bit_length()
        left = self.d % rows
        lengths = [rows] * (self.d // rows) + [1 << b for b in reversed(range(rows.bit_length())) if left >> b & 1]
        return ((r, -(-min(self.about["rank"], rows) * r // rows)) for r in lengths)

    def _from_columns(self, x: np.ndarray, key: bytes) -> np.ndarray:
        found, at = [], 0
        for r, kept in self._columns():
            column = np.zeros(r)
            column[draw(r, kept, H("columns", key, r))] = x[at : at + kept]
            found.append(turned(column, r) * signs(H("signs", key, r), r) / math.sqrt(r))
            at += kept
        return np.concatenate(found)


def digits(total: np.ndarray, m: int, sites: int, included: int, about: dict[str, Any]) -> np.ndarray:
    """The m numbers of a sum of words that hold them in few bits each: float64.

    Args:
        total: int64, whole numbers as they were added.
        m: how many numbers they hold.
        sites: of the study.
        included: sites in the sum.
        about: the study.
    """
    last, word = 2 ** about["sharing"]["bits"] - 1, about["secagg"]["bits"]
    base, held = sites * last + 1, 1
    rest, found = total & np.int64(2**word - 1), []
    while (held := held * base) <= 2**word:
        rest, digit = np.divmod(rest, base)
        found.append(digit)
    level = np.stack(found, axis=1).reshape(-1)[:m]
    return np.asarray((2 * level - included * last) * (about["secagg"]["clip_range"] / last))
