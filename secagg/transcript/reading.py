"""Reads a transcript in one pass: its messages by sender, its vectors added up as they go by.

What the verifier computes from a file is computed here once; what it means is for `checks`. Policy and roster are the
reader's own. Must never: hold more than one vector and one block, or let a file choose how much memory is taken.
Specification: docs/spec.md, section "Transcripts".
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from secagg.context import RoundContext, next_head
from secagg.encoding import VERSION, digest
from secagg.errors import ConfigError, SecAggError
from secagg.keys import MaskKey
from secagg.masking import Vector
from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Confirmation,
    Header,
    IncludedSet,
    Receipt,
    Roster,
    ShareReport,
    UnmaskingShares,
    headers_hash,
)
from secagg.packing import BLOCK, dtype_for, packed_size, unpack, without_padding
from secagg.policy import PinnedRoster, Policy, Suite, session_id
from secagg.prg import zeros
from secagg.shamir import combine
from secagg.transcript.record import (
    CHAIN_START,
    FORMAT,
    LARGEST_VECTOR,
    Block,
    Closing,
    OpenedPair,
    Opening,
    PublishedBundle,
    PublishedShares,
    Record,
    decode_record,
    encode_record,
    name_of,
    next_link,
    place,
    records,
    sender_of,
    vector_hash,
)


class ViolationError(SecAggError):
    """A transcript that does not hold.

    Attributes:
        check: id of the row in the specification's table, such as ``T-12``.
        sentence: what is wrong.
        record: number of the record, the opening being 0; None where it is no single one.
        sender: whose message it is; empty for the server's, or nobody's in particular.
        path: the file, once `verify` has said so.
    """

    def __init__(self, check: str, sentence: str, record: int | None = None, sender: str = "") -> None:
        super().__init__(check, sentence, record, sender)
        self.check, self.sentence, self.record, self.sender = check, sentence, record, sender
        self.path: Path | None = None

    def __str__(self) -> str:
        where = "" if self.record is None else f"record {self.record}"
        where += f" of {self.sender}" if self.sender else ""
        told = [str(self.path) if self.path else "", where.strip(), self.sentence]
        return f"[{self.check}] " + ": ".join(part for part in told if part)


@dataclass(frozen=True)
class _Secrets:
    """What the released shares open: b_u of the included, s_w of the dropped, r of the pairs between."""

    self_seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, MaskKey]
    pair_secrets: Mapping[tuple[str, str], bytes]


@dataclass
class Past:
    """What the files before this one leave.

    Attributes:
        last: training run to the round of its last file, and the head after it.
        seen: what must not recur, to where it was seen: a few hashes a client and round.
    """

    last: dict[str, tuple[RoundContext, bytes]] = field(default_factory=dict)
    seen: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """What whoever verifies brings along, and never takes from a file."""

    policy: Policy
    pinned: PinnedRoster

    @cached_property
    def session(self) -> bytes:
        """The session that policy and roster make: 32 bytes. ConfigError where they do not fit together."""
        return session_id(self.policy, self.pinned)


@dataclass
class Round:
    """One file: its messages by sender, and what was computed from its vectors while they went by."""

    reader: Reader
    opening: Opening
    context: RoundContext
    past: Past
    headers: dict[str, Header] = field(default_factory=dict)
    advertisements: dict[str, AdvertiseKeys] = field(default_factory=dict)
    shares: dict[str, PublishedShares] = field(default_factory=dict)
    reports: dict[str, ShareReport] = field(default_factory=dict)
    inputs: dict[str, AcceptedInput] = field(default_factory=dict)
    attestations: dict[str, Attestation] = field(default_factory=dict)
    releases: dict[str, UnmaskingShares] = field(default_factory=dict)
    pairs: dict[tuple[str, str], OpenedPair] = field(default_factory=dict)
    receipt: Receipt | None = None
    confirmations: dict[str, Confirmation] = field(default_factory=dict)
    closing: Closing | None = None
    link: bytes = CHAIN_START
    numbers: dict[tuple[int, str, str], int] = field(default_factory=dict)
    blocks: int = 0
    vector_hashes: dict[str, bytes] = field(default_factory=dict)  # the sum under the empty name
    remainder: Vector | None = None  # masked inputs minus the sum: the masks that did not cancel
    slots: list[int] = field(default_factory=list)
    lowest: int = 0
    highest: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        """The reader's."""
        return self.reader.policy

    @property
    def pinned(self) -> PinnedRoster:
        """The reader's."""
        return self.reader.pinned

    def take(self, number: int, record: Record) -> "_VectorInBlocks | None":
        """File a record under its sender, and say which vector comes next, if one does."""
        self._refuse_strangers(number, record)
        self.numbers[place(record)] = number
        match record:
            case Header():
                self.headers[record.client_id] = record
            case AdvertiseKeys():
                self.advertisements[record.client_id] = record
            case PublishedShares():
                self.shares[record.client_id] = record
            case ShareReport():
                self.reports[record.client_id] = record
            case AcceptedInput():
                self.inputs[record.client_id] = record
                return _VectorInBlocks(self, record) if self.opening.vectors else None
            case Attestation():
                self.attestations[record.client_id] = record
            case UnmaskingShares():
                self.releases[record.client_id] = record
            case OpenedPair():
                self.pairs[record.client_id, record.dropped] = record
            case Receipt():
                self.receipt = record
                return _VectorInBlocks(self, record)
            case Confirmation():
                self.confirmations[record.client_id] = record
            case Closing():
                self.closing = record
            case Opening() | Block():
                pass
        return None

    def _refuse_strangers(self, number: int, record: Record) -> None:
        """T-04 for who is in no roster: a file could name as many clients as it likes, and all would be kept."""
        named = [sender_of(record), getattr(record, "dropped", "")]
        for stranger in [name for name in named if name and name not in self.pinned]:
            raise ViolationError("T-04", f"{stranger!r} is not in your roster", number)
        lists: list[Collection[object]] = []
        if isinstance(record, PublishedShares):
            lists = [record.bundles]
        elif isinstance(record, UnmaskingShares):
            lists = [record.self_seed_shares, record.mask_key_shares, record.pair_secrets]
        if max(map(len, lists), default=0) > len(self.pinned):
            raise ViolationError("T-04", "a message is for more clients than your roster lists", number)

    def wrong(self, check: str, record: Record, sentence: str) -> ViolationError:
        """A violation that names a record of this file."""
        return ViolationError(check, sentence, self.numbers.get(place(record)), sender_of(record))

    @property
    def burned(self) -> bool:
        """Whether the file holds headers and nothing else."""
        return self.receipt is None

    @cached_property
    def result(self) -> Receipt:
        """The receipt of a finished round."""
        if self.receipt is None:
            raise ViolationError("T-20", "the transcript of a burned round has no result")
        return self.receipt

    @cached_property
    def signed_headers(self) -> list[Header]:
        """The headers of a burned round or those of the shares, sorted."""
        headers = self.headers if self.burned else {dealer: sent.header for dealer, sent in self.shares.items()}
        return [headers[dealer] for dealer in sorted(headers)]

    @cached_property
    def roster(self) -> Roster:
        """U1."""
        return Roster(tuple(self.advertisements[client_id] for client_id in sorted(self.advertisements)))

    @cached_property
    def slot(self) -> bytes:
        """The slot that the sites signed."""
        return self.signed_headers[0].slot

    @cached_property
    def roster1(self) -> bytes:
        """H(U1's advertisements), recomputed; of a burned round what the sites signed."""
        return self.signed_headers[0].roster1 if self.burned else self.roster.hash

    @cached_property
    def roster2(self) -> bytes:
        """H(headers), recomputed."""
        return headers_hash(self.signed_headers)

    @cached_property
    def sharers_hash(self) -> bytes:
        """H(U2), recomputed."""
        return digest("sharers", sorted(self.reports))

    @cached_property
    def included(self) -> IncludedSet:
        """U3."""
        return IncludedSet(tuple(self.inputs[client_id] for client_id in sorted(self.inputs)))

    @cached_property
    def attested(self) -> bytes:
        """The statement on the one U3, recomputed."""
        return self.included.attested

    @cached_property
    def round_id(self) -> bytes:
        """The round that the included clients signed."""
        return self.included.inputs[0].round_id

    @cached_property
    def head(self) -> bytes:
        """The head, recomputed."""
        total = self.vector_hashes[""]
        return next_head(self.context.previous_head, self.round_id, self.attested, total)

    @cached_property
    def dropped(self) -> list[str]:
        """U2 minus U3."""
        return sorted(self.reports.keys() - self.inputs.keys())

    @cached_property
    def hybrid(self) -> bool:
        """Whether pairs have secrets."""
        return self.policy.suite is Suite.MLKEM768_X25519

    @cached_property
    def bundles(self) -> Mapping[str, Mapping[str, PublishedBundle]]:
        """What each dealer sent to each holder."""
        return {u: dict(zip(self.roster.others(u), sent.bundles, strict=True)) for u, sent in self.shares.items()}

    @cached_property
    def pairs_to_open(self) -> list[tuple[str, str]]:
        """(dealer, dropped) of the pair secrets that only an envelope held once their dealer fell silent."""
        silent = sorted(self.inputs.keys() - self.releases.keys()) if self.hybrid else []
        return [(u, w) for u in silent for w in self.dropped if self.roster.dealer_of_pair(u, w) == u]

    @cached_property
    def secrets(self) -> _Secrets:
        """What the released shares open. ViolationError T-12 where they open nothing."""
        self_seeds = {
            u: self.releases[u].self_seed if u in self.releases else self._combined(u, "self_seed_shares")
            for u in sorted(self.inputs)
        }
        keys = {w: MaskKey(self.policy.suite, self._combined(w, "mask_key_shares")) for w in self.dropped}
        pairs = {(w, u): self._pair_secret(keys[w], w, u) for w in keys for u in sorted(self.inputs)}
        return _Secrets(self_seeds, keys, pairs)

    def _combined(self, dealer: str, kind: str) -> bytes:
        positions = self.roster.positions
        held = {
            positions[holder]: getattr(message, kind)[dealer]
            for holder, message in self.releases.items()
            if dealer in getattr(message, kind)
        }
        try:
            return combine(held, self.policy.threshold)
        except ValueError as error:
            raise self.wrong("T-12", self.shares[dealer], f"the released shares do not open it: {error}") from None

    def _pair_secret(self, key: MaskKey, dropped: str, survivor: str) -> bytes:
        if survivor in self.releases:
            return self.releases[survivor].pair_secrets.get(dropped, b"")
        if self.hybrid and self.roster.dealer_of_pair(dropped, survivor) == survivor:
            return self.pairs[survivor, dropped].secret
        return key.pair_secret(survivor)


class _VectorInBlocks:
    """A vector that goes by: hashed, unpacked and added block by block."""

    def __init__(self, round: Round, announced: AcceptedInput | Receipt) -> None:
        policy = round.policy
        self.round, self.announced = round, announced
        self.purpose = "total" if isinstance(announced, Receipt) else "masked-vector"
        self.length, self.start = policy.length + policy.slots, 0
        self.hash = vector_hash(self.purpose, packed_size(self.length, policy.bits))

    def take(self, number: int, block: Block) -> None:
        """The next block, which is record `number` of the file. ViolationError T-18 unless it holds what is due."""
        policy, count = self.round.policy, min(self.length - self.start, BLOCK)
        if not count or len(block.data) != packed_size(count, policy.bits):
            raise ViolationError("T-18", f"a block does not hold {count} values", number, sender_of(self.announced))
        plain = without_padding(block.data, count, policy.bits)
        t18_packing(number, sender_of(self.announced), block, plain)
        self.hash.update(block.data)
        values = unpack(plain, count, policy.bits)
        if self.purpose == "total":
            self._look_at(values)
        remainder = self.round.remainder
        if remainder is not None:
            part = remainder[self.start : self.start + count]
            (np.subtract if self.purpose == "total" else np.add)(part, values, out=part)
        self.start += count
        self.round.blocks += 1

    def _look_at(self, values: Vector) -> None:
        """Keep the constant slots and the range of the sum, read as signed."""
        round, policy, body = self.round, self.round.policy, max(self.round.policy.length - self.start, 0)
        round.slots += values[body:].tolist()
        spare = 8 * values.itemsize - policy.bits
        signed = (values[:body] << values.dtype.type(spare)).view(f"i{values.itemsize}") >> spare
        if len(signed):
            round.lowest = min(round.lowest, int(signed.min()))
            round.highest = max(round.highest, int(signed.max()))

    def finish(self) -> None:
        """All blocks were taken: its hash is known. ViolationError T-18 where values are missing."""
        if self.start < self.length:
            sentence = f"its vector has {self.start} of {self.length} values"
            raise self.round.wrong("T-18", self.announced, sentence)
        self.round.vector_hashes[sender_of(self.announced)] = self.hash.digest()


def t03_opening(opening: Opening, own: Opening) -> None:
    """T-03: the transcript is of your policy and roster, field by field; everything else is read under these."""
    if opening.roster_hash != own.roster_hash:
        raise ViolationError("T-03", "the transcript is of another roster than yours", 0)
    if opening.project != own.project:
        sentence = f"the transcript is of project {opening.project!r} and yours is {own.project!r}"
        raise ViolationError("T-03", sentence, 0)
    if differing := [field.name for field in fields(own) if getattr(opening, field.name) != getattr(own, field.name)]:
        raise ViolationError("T-03", f"the transcript is of another policy than yours: {', '.join(differing)}", 0)


def t18_packing(number: int, sender: str, block: Block, plain: bytes) -> None:
    """T-18: vectors are quantised and packed as the policy says: so many values of b bits, and zeros to fill up."""
    if plain != block.data:
        raise ViolationError("T-18", "a block has padding bits that are not zero", number, sender)


def t19_order(number: int, before: Record, record: Record) -> None:
    """T-19: records are sorted by kind and sender, each once, and every round continues the file before."""
    if place(before) >= place(record):
        sentence = f"a record of kind {name_of(record)} stands in the wrong place or twice"
        raise ViolationError("T-19", sentence, number, sender_of(record))


def t20_schema(number: int, data: bytes, record: Record) -> None:
    """T-20: every record has its one encoding: no unknown field, no second spelling, nothing behind the end."""
    if encode_record(record) != data:
        raise ViolationError("T-20", "a record is not spelt in the one way that it can be", number, sender_of(record))


def read_round(path: Path, reader: Reader, past: Past, progress: Callable[[int], object] | None = None) -> Round:
    """Read a file in one pass, adding up vectors as they go by.

    Raises:
        ViolationError: T-03, T-04, T-18, T-19 or T-20.
        ConfigError: it is no transcript of this version.
        OSError: it cannot be read.
    """
    pieces = enumerate(_read_records(path, progress))
    round = _opened(pieces, reader, past, path)
    before: Record = round.opening
    vector: _VectorInBlocks | None = None
    for number, data in pieces:
        record = _decoded(number, data)
        if isinstance(record, Opening) or round.closing is not None:
            raise ViolationError("T-20", "a transcript opens once, and ends with its closing record", number)
        if isinstance(record, Block):
            if vector is None:
                raise ViolationError("T-18", "a block belongs to no vector", number)
            vector.take(number, record)
        else:
            if vector is not None:
                vector.finish()
            t19_order(number, before, record)
            before, vector = record, round.take(number, record)
        if round.closing is None:
            round.link = next_link(round.link, data)
    if round.closing is None:
        raise ViolationError("T-20", "the file ends without a closing record: it is cut off")
    _check_complete(round)
    return round


def _decoded(number: int, data: bytes) -> Record:
    try:
        record = decode_record(data)
    except ValueError as error:
        raise ViolationError("T-20", f"this is no record of a transcript: {error}", number) from None
    t20_schema(number, data, record)
    return record


def _read_records(path: Path, progress: Callable[[int], object] | None) -> Iterator[bytes]:
    number = 0
    with open(path, "rb") as file:
        try:
            for data in records(file):
                number += 1
                if progress is not None:
                    progress(4 + len(data))
                yield data
        except ValueError as error:
            raise ViolationError("T-20", f"the file does not go on with a whole record: {error}", number) from None


def _opened(pieces: Iterator[tuple[int, bytes]], reader: Reader, past: Past, path: Path) -> Round:
    """The round that the first record opens. ConfigError where there is none: then nothing was claimed either."""
    try:
        number, data = next(pieces)
        opening = decode_record(data)
    except (StopIteration, ValueError, ViolationError):
        opening = None
    if not isinstance(opening, Opening) or opening.format != FORMAT:
        raise ConfigError(
            f"{path} is no transcript of protocol version {VERSION}; give the file that the server published"
        )
    t20_schema(number, data, opening)
    try:
        context = opening.context
    except ConfigError as error:
        raise ViolationError("T-03", f"no such round can be agreed upon: {error}", 0) from None
    if opening.vectors > 1:
        raise ViolationError("T-20", "the opening is not spelt in the one way that it can be", 0)
    policy = reader.policy
    t03_opening(opening, Opening.of(policy, reader.pinned.hash(), context, bool(opening.vectors)))
    size = packed_size(policy.length + policy.slots, policy.bits)
    round = Round(reader, opening, context, past, link=next_link(CHAIN_START, data))
    if size > LARGEST_VECTOR:
        raise ViolationError("T-18", "a transcript holds vectors of less than 4 GiB", 0)
    if opening.vectors and os.path.getsize(path) > size:  # otherwise headers only, or cut off: nothing to add up
        round.remainder = zeros(policy.length + policy.slots, dtype_for(policy.bits))
    return round


def _check_complete(round: Round) -> None:
    steps: list[Mapping[Any, Any]] = [round.advertisements, round.shares, round.reports, round.inputs]
    steps += [round.attestations, round.releases]
    if round.burned:
        complete = bool(round.headers) and not any([*steps, round.pairs, round.confirmations])
    else:
        complete = not round.headers and all(steps)
    if not complete:
        raise ViolationError("T-20", "the file holds neither a finished round nor the headers of a burned one")
