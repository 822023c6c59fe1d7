"""The vectors of a transcript, hashed, unpacked and added up block by block while they go by.

Must never: hold more than one vector and one block, or let a file choose how much memory is taken: the length is that
of the reader's policy, and nothing is set aside before a block of the right size has come. Specification: docs/spec.md,
section "Transcripts".
"""

from dataclasses import dataclass

import numpy as np

from secagg.encoding import VectorHash, vector_hash
from secagg.masking import Vector
from secagg.messages import AcceptedInput, Receipt
from secagg.packing import BLOCK, dtype_for, packed_size, unpack, without_padding
from secagg.policy import Policy
from secagg.prg import zeros
from secagg.transcript.record import LARGEST_VECTOR, Block, sender_of
from secagg.transcript.violation import ViolationError


class Vectors:
    """Everything that is kept of the vectors after they went by.

    Attributes:
        hashes: sender to the hash of its masked vector, 32 bytes; that of the sum under the empty name.
        remainder: masked inputs minus the sum, (d + slots,) unsigned integers: the masks that did not cancel; None
            where the transcript shows masked inputs by their hashes only.
        slots: the constant slots of the sum.
        ranges: for each field of the policy, the lowest and highest value of the sum, read as signed; 0 lies between.
        blocks: how many blocks there were.

    Raises:
        ViolationError: T-18, a vector of this policy is too long for any transcript.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._length = policy, policy.length + policy.slots
        if packed_size(self._length, policy.bits) > LARGEST_VECTOR:
            raise ViolationError("T-18", "a transcript holds vectors of less than 4 GiB", 0)
        self._passing: _Passing | None = None
        self.hashes: dict[str, bytes] = {}
        self.remainder: Vector | None = None
        self.slots: list[int] = []
        self.ranges = [(0, 0)] * len(policy.fields)
        self.blocks = 0

    def announce(self, number: int, record: AcceptedInput | Receipt) -> None:
        """The blocks that come next are the vector of record `number`."""
        purpose = "total" if isinstance(record, Receipt) else "masked-vector"
        size = packed_size(self._length, self._policy.bits)
        self._passing = _Passing(number, sender_of(record), purpose == "total", vector_hash(purpose, size))

    def take(self, number: int, block: Block) -> None:
        """The next block, which is record `number`. ViolationError T-18 unless it holds what is due."""
        passing, bits = self._passing, self._policy.bits
        if passing is None:
            raise ViolationError("T-18", "a block belongs to no vector", number)
        count = min(self._length - passing.start, BLOCK)
        if not count or len(block.data) != packed_size(count, bits):
            raise ViolationError("T-18", f"a block does not hold {count} values", number, passing.sender)
        plain = without_padding(block.data, count, bits)
        t18_packing(number, passing.sender, block, plain)
        passing.hash.update(block.data)
        values = unpack(plain, count, bits)
        if passing.is_sum:
            self._look_at(values, passing.start)
        elif self.remainder is None:
            self.remainder = zeros(self._length, dtype_for(bits))
        if self.remainder is not None:
            part = self.remainder[passing.start : passing.start + count]
            (np.subtract if passing.is_sum else np.add)(part, values, out=part)
        passing.start += count
        self.blocks += 1

    def finish(self) -> None:
        """No more blocks come. ViolationError T-18 where the vector lacks values."""
        passing, self._passing = self._passing, None
        if passing is None:
            return
        if passing.start < self._length:
            sentence = f"its vector has {passing.start} of {self._length} values"
            raise ViolationError("T-18", sentence, passing.number, passing.sender)
        self.hashes[passing.sender] = passing.hash.digest()

    def _look_at(self, values: Vector, start: int) -> None:
        """Keep the constant slots and the range of the sum, read as signed."""
        body = max(self._policy.length - start, 0)
        self.slots += values[body:].tolist()
        spare = 8 * values.itemsize - self._policy.bits
        signed = (values[:body] << values.dtype.type(spare)).view(f"i{values.itemsize}") >> spare
        for place, (_, _, where) in enumerate(self._policy.fields.places()):
            part, (low, high) = signed[max(where.start - start, 0) : max(where.stop - start, 0)], self.ranges[place]
            if len(part):
                self.ranges[place] = min(low, int(part.min())), max(high, int(part.max()))


@dataclass
class _Passing:
    """The vector that goes by: whose it is, its hash so far, and how many of its values were seen."""

    number: int
    sender: str
    is_sum: bool
    hash: VectorHash
    start: int = 0


def t18_packing(number: int, sender: str, block: Block, plain: bytes) -> None:
    """T-18: vectors are quantised and packed as the policy says: so many values of b bits, and zeros to fill up.

    Args:
        number: of the block's record in the file.
        sender: whose vector it is; empty for the sum.
        block: as it is in the file.
        plain: the same bytes with zeros for padding.
    """
    if plain != block.data:
        raise ViolationError("T-18", "a block has padding bits that are not zero", number, sender)
