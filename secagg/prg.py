"""The mask generator and the random streams: AES-256 in counter mode, from the `cryptography` library.

Chunk i (2^18 bytes) of a keystream is AES-256-CTR from the counter block (i as 96 bits, big-endian) | 2: what
AES-256-GCM encrypts zeros to under nonce i (SP 800-38D keeps block 1 for the tag). So there are two ways to the same
bytes. OpenSSL is faster on one of them, by half or more: GCM where the processor has AVX-512, CTR elsewhere. Which one
is found out by trying. A seed makes one keystream, which is used once, and never serves real GCM.

Must never: fall back to a generator that is not cryptographic, or print, copy or pickle a key. Specification:
docs/spec.md, section "Primitives".
"""

import secrets
import time  # only to see which of two ways is the faster one here
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from inspect import signature
from itertools import repeat
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from numpy.typing import DTypeLike, NDArray

from secagg.arguments import must_have
from secagg.encoding import digest
from secagg.errors import ConfigError

KEY_BYTES = 32
CHUNK_BYTES = 1 << 18
PART_BYTES = 4 * CHUNK_BYTES  # what an executor takes at a time: milliseconds of work, and little memory in flight
BLOCK_BYTES = 16
_TAG_BYTES = 16
_NONCE_BYTES = 12
_FIRST_BLOCK = 2
_ZEROS = memoryview(bytes(CHUNK_BYTES))
_LINE_BYTES = 64


class Executor(Protocol):
    """What takes the parts of a mask expansion: any `concurrent.futures.Executor`, or a cluster's look-alike.

    Parts that it begins as soon as `map` is called are done while the server waits for messages.

    It sees seeds and the vector, so it is as trusted as this process.
    """

    def map(self, function: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterable[Any]:
        """The function's results over the zipped iterables, in their order."""


def check_executor(executor: object) -> None:
    """ConfigError, naming its type, for anything that is no `Executor`; None is none at all and passes.

    A `multiprocessing.Pool`, and Ray's of that name, has a `map` that takes one iterable and would read the second as a
    number: it is refused here, not in the middle of a round.
    """
    if executor is None:
        return
    must_have(executor, "map", "executor", _EXECUTORS)
    kind, map_of = type(executor), getattr(executor, "map")  # noqa: B009 - an object of any type
    try:
        signature(map_of).bind(mask_part, *[()] * _ITERABLES)
    except ValueError:  # nothing to read: its first call will say
        return
    except TypeError:
        raise ConfigError(
            f"executor is a {kind.__module__}.{kind.__qualname__}, whose map takes one iterable: {_EXECUTORS}"
        ) from None


_ITERABLES = 4  # of `mask_part`'s arguments
_EXECUTORS = "give a concurrent.futures.Executor, or an object whose map(function, *iterables) is like its"


WriteChunk: TypeAlias = Callable[[int, memoryview, memoryview], None]
"""Writes the beginning of the chunk of this number, as many bytes as the second argument has zeros, into the third one,
which has room for 16 more."""


def by_gcm(seed: bytes) -> WriteChunk:
    """A seed's chunks by AES-256-GCM. ValueError unless it has 32 bytes."""
    _check_seed(seed)
    gcm = AESGCM(seed)

    def write_chunk(index: int, plain: memoryview, target: memoryview) -> None:
        """See `WriteChunk`."""
        gcm.encrypt_into(index.to_bytes(_NONCE_BYTES, "big"), plain, None, target)

    return write_chunk


def by_ctr(seed: bytes) -> WriteChunk:
    """A seed's chunks by AES-256-CTR. ValueError unless it has 32 bytes."""
    _check_seed(seed)
    context = Cipher(AES256(seed), CTR(_counter(0))).encryptor()

    def write_chunk(index: int, plain: memoryview, target: memoryview) -> None:
        """See `WriteChunk`."""
        context.reset_nonce(_counter(index))
        context.update_into(plain, target)

    return write_chunk


@cache
def faster_way() -> Callable[[bytes], WriteChunk]:
    """The faster of the two on this machine: the best of a few chunks each, a millisecond once in a process."""
    target = memoryview(bytearray(CHUNK_BYTES + _TAG_BYTES))

    def shortest(way: Callable[[bytes], WriteChunk]) -> float:
        """Seconds of its fastest chunk of six."""
        write_chunk, taken = way(bytes(KEY_BYTES)), []
        for index in range(6):
            began = time.perf_counter()
            write_chunk(index, _ZEROS, target)
            taken.append(time.perf_counter() - began)
        return min(taken)

    return min((by_gcm, by_ctr), key=shortest)


class Masks:
    """The masks of many seeds, expanded chunk by chunk into one buffer, so that a long vector can come in parts.

    Not safe for two threads at once.

    Args:
        add: 32-byte seeds whose keystream, read as little-endian words, is added.
        subtract: 32-byte seeds whose keystream is subtracted.

    Raises:
        ValueError: a seed of another length.
    """

    def __init__(self, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
        chunks = faster_way()
        self._masks = [(np.add, chunks(seed)) for seed in add] + [(np.subtract, chunks(seed)) for seed in subtract]
        self._buffer = zeros(CHUNK_BYTES + _TAG_BYTES, np.uint8).data

    def __repr__(self) -> str:
        return "<Masks>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Masks hold seeds and are never copied or pickled")

    def apply(self, vector: NDArray[Any], first_chunk: int = 0) -> None:
        """`apply_masks` in this thread.

        Chunks are the outer loop and seeds the inner one, so that what is being masked stays in the cache.
        """
        _check_vector(vector)
        words = np.frombuffer(self._buffer[:CHUNK_BYTES], vector.dtype.newbyteorder("<"))
        for index, start in enumerate(range(0, len(vector), len(words)), first_chunk):
            part = vector[start : start + len(words)]
            mask, target, plain = words[: len(part)], self._buffer[: part.nbytes + _TAG_BYTES], _ZEROS[: part.nbytes]
            for operation, write_chunk in self._masks:
                write_chunk(index, plain, target)
                operation(part, mask, part)


def apply_masks(
    vector: NDArray[Any],
    add: Sequence[bytes],
    subtract: Sequence[bytes],
    executor: Executor | None = None,
    first_chunk: int = 0,
) -> None:
    """Adds and subtracts the masks of many seeds, in place, modulo 2^32 or 2^64.

    Args:
        vector: (d,) uint32 or uint64, contiguous; the protocol reads the low b bits of the result.
        add: 32-byte seeds whose keystream, read as little-endian words, is added.
        subtract: 32-byte seeds whose keystream is subtracted.
        executor: where given, takes the vector in disjoint parts of `PART_BYTES`, each through `mask_part`: threads
            mask in place, processes and clusters send copies back. Without one there is nothing in between.
        first_chunk: number of the keystream chunk that the vector starts at.

    Raises:
        ValueError: a vector of another kind, or a seed of another length; the vector is then unchanged.
        Exception: whatever the executor raises. Parts of the vector are then masked and others are not, and threads
            may still write to it: throw it away.
    """
    if executor is None:
        Masks(add, subtract).apply(vector, first_chunk)
    else:
        begin_masks(vector, add, subtract, executor, first_chunk)()


def begin_masks(
    vector: NDArray[Any],
    add: Sequence[bytes],
    subtract: Sequence[bytes],
    executor: Executor,
    first_chunk: int = 0,
) -> Callable[[], None]:
    """`apply_masks` in two steps: the executor begins, and what is returned waits until the masks are applied.

    The vector is the executor's until then. Call it once, or never and throw the vector away.
    """
    _check_vector(vector)
    for seed in (*add, *subtract):
        _check_seed(seed)
    step = PART_BYTES // vector.itemsize
    parts = [vector[start : start + step] for start in range(0, len(vector), step)]
    chunks = range(first_chunk, first_chunk + len(parts) * (PART_BYTES // CHUNK_BYTES), PART_BYTES // CHUNK_BYTES)
    done = executor.map(mask_part, parts, repeat(tuple(add)), repeat(tuple(subtract)), chunks)

    def finish() -> None:
        """Copy back what was masked elsewhere."""
        for part, masked in zip(parts, done, strict=True):
            if masked is not part:
                part[:] = masked

    return finish


def mask_part(part: NDArray[Any], add: Sequence[bytes], subtract: Sequence[bytes], first_chunk: int) -> NDArray[Any]:
    """Mask one part of a vector: the task that `apply_masks` gives to an executor.

    Args:
        part: unsigned integers; masked in place where it is writeable, else in a copy.
        add: 32-byte seeds whose masks are added.
        subtract: 32-byte seeds whose masks are subtracted.
        first_chunk: number of the keystream chunk at which the part begins.

    Returns:
        The masked part, which is `part` itself unless it had to be copied.
    """
    if not part.flags.writeable:  # as some clusters hand out what they deserialised
        part = part.copy()
    Masks(add, subtract).apply(part, first_chunk)
    return part


def zeros(length: int, dtype: DTypeLike) -> NDArray[Any]:
    """(length,) zeros that start on a cache line, where numpy adds a sixth faster than where its own arrays start."""
    size = np.dtype(dtype).itemsize * length
    octets = np.zeros(size + _LINE_BYTES, np.uint8)
    start = -octets.ctypes.data % _LINE_BYTES
    return octets[start : start + size].view(dtype)


def keystream(seed: bytes, start: int, length: int) -> bytes:
    """A piece of a seed's keystream, by plain AES-256-CTR.

    Args:
        seed: 32 bytes.
        start: position of the first byte.
        length: how many bytes.

    Raises:
        ValueError: a seed that is not 32 bytes, or a negative position or length.
    """
    if start < 0 or length < 0:
        raise ValueError("a keystream has no negative positions")
    pieces = []
    while length > 0:
        index, offset = divmod(start, CHUNK_BYTES)
        block, skip = divmod(offset, BLOCK_BYTES)
        size = min(length, CHUNK_BYTES - offset)
        context = Cipher(AES256(seed), CTR(_counter(index, block))).encryptor()
        pieces.append(context.update(bytes(skip + size))[skip:])
        start, length = start + size, length - size
    return b"".join(pieces)


class Stream:
    """Randomness for sampling, noise and stochastic rounding: the keystream of a key, read once from its start.

    Keyed from the operating system unless a key is given. A seeded stream is reproducible and protects nobody.
    Not safe for two threads at once.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """Takes 32 bytes, or draws them. ValueError for another length."""
        self._key = AES256(secrets.token_bytes(KEY_BYTES) if key is None else key)
        self._position = 0

    @classmethod
    def seeded(cls, seed: int, *labels: str | int) -> "Stream":
        """The stream of H(seed, labels): same seed and labels (purpose, site, round, step), same numbers.

        Raises:
            ValueError: a seed or integer label outside 0..2^64-1, or text outside ASCII.
        """
        return cls(digest("stream", seed, *labels))

    def __repr__(self) -> str:
        return "<Stream>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream is never copied or pickled")

    def words(self, n: int) -> NDArray[np.uint32]:
        """(n,) uniform uint32."""
        return self._read(n, np.dtype(np.uint32))

    def words64(self, n: int) -> NDArray[np.uint64]:
        """(n,) uniform uint64."""
        return self._read(n, np.dtype(np.uint64))

    def uniform(self, n: int) -> NDArray[np.float64]:
        """(n,) uniform in the open interval (0, 1): odd multiples of 2^-53, symmetric about 1/2."""
        values = (self.words64(n) >> np.uint64(12)).astype(np.float64)
        values += 0.5
        values *= 2.0**-52
        return values

    def integers(self, n: int, below: int) -> NDArray[np.int64]:
        """(n,) uniform in 0..below-1, without bias. ValueError unless 1 <= below <= 2^63."""
        if not 1 <= below <= 2**63:
            raise ValueError("below must be 1 to 2^63")
        last = np.uint64(2**64 - 2**64 % below - 1)  # words above it would make small remainders more likely
        kept: NDArray[np.uint64] = np.empty(0, np.uint64)
        while len(kept) < n:
            fresh = self.words64(n - len(kept))
            kept = np.concatenate([kept, fresh[fresh <= last]])
        return (kept % np.uint64(below)).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """(n,) uniform random order of 0..n-1: the order of n distinct random keys."""
        while True:  # again only where two keys are equal, which would prefer one order
            keys = self.words64(n)
            order = np.argsort(keys)
            if (np.diff(keys[order]) != 0).all():
                return order.astype(np.int64)

    def bernoulli(self, n: int, probability: float) -> NDArray[np.bool_]:
        """(n,) independent, True with this probability (to 2^-53). ValueError outside 0..1."""
        if not 0 <= probability <= 1:
            raise ValueError("a probability is 0 to 1")
        return self.uniform(n) < probability

    def _read(self, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        out = np.empty(n * dtype.itemsize, np.uint8)
        rest = out.data
        while rest:
            index, offset = divmod(self._position, CHUNK_BYTES)
            if offset == 0:
                mode = CTR(_counter(index)) if faster_way() is by_ctr else GCM(index.to_bytes(_NONCE_BYTES, "big"))
                self._context = Cipher(self._key, mode).encryptor()
            size = min(len(rest), CHUNK_BYTES - offset)
            self._context.update_into(_ZEROS[:size], rest[:size])
            self._position += size
            rest = rest[size:]
        return out.view(dtype.newbyteorder("<")).astype(dtype, copy=False)


def _counter(index: int, block: int = 0) -> bytes:
    """The counter block at which a block of a chunk begins."""
    return index.to_bytes(_NONCE_BYTES, "big") + (_FIRST_BLOCK + block).to_bytes(4, "big")


def _check_vector(vector: NDArray[Any]) -> None:
    if vector.dtype not in (np.uint32, np.uint64) or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("masks go on a contiguous one-dimensional array of uint32 or uint64")


def _check_seed(seed: bytes) -> None:
    if len(seed) != KEY_BYTES:
        raise ValueError("a seed has 32 bytes")
