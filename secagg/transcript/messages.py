"""The messages of a transcript, filed by step and sender, as far as the reader's roster names the sender.

Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Confirmation,
    Header,
    Receipt,
    ShareReport,
    UnmaskingShares,
)
from secagg.roster import PinnedRoster
from secagg.transcript.record import Block, Closing, OpenedPair, Opening, PublishedShares, Record, place, sender_of
from secagg.transcript.violation import ViolationError


@dataclass
class Messages:
    """Each kind of message by its sender.

    Attributes:
        pinned: the reader's roster.
        headers: of a burned round, which has nothing else.
        advertisements, shares, reports, inputs, attestations, releases: of U1, the dealers, U2, U3, U4 and U5.
        confirmations: of those who confirmed the result.
        pairs: (dealer, dropped) to what the server opened.
        receipt, closing: the server's; None where they did not come.
        numbers: place of a record to its number in the file.
    """

    pinned: PinnedRoster
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
    numbers: dict[tuple[int, str, str], int] = field(default_factory=dict)

    def take(self, number: int, record: Record) -> None:
        """File a record under its sender. ViolationError T-04 where your roster does not list everybody in it."""
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
            case Attestation():
                self.attestations[record.client_id] = record
            case UnmaskingShares():
                self.releases[record.client_id] = record
            case OpenedPair():
                self.pairs[record.client_id, record.dropped] = record
            case Receipt():
                self.receipt = record
            case Confirmation():
                self.confirmations[record.client_id] = record
            case Closing():
                self.closing = record
            case Opening() | Block():
                pass

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
        """A violation that names a record of this transcript, for the check to raise.

        Args:
            check: id of the row, such as ``T-12``.
            record: which one is wrong.
            sentence: what is wrong with it.
        """
        return ViolationError(check, sentence, self.numbers.get(place(record)), sender_of(record))

    @property
    def burned(self) -> bool:
        """Whether the round has no sum: the transcript then holds headers and nothing else."""
        return self.receipt is None

    @property
    def complete(self) -> bool:
        """Whether these are the messages of a finished round, or the headers of a burned one and nothing else."""
        steps: list[Mapping[Any, Any]] = [self.advertisements, self.shares, self.reports, self.inputs]
        steps += [self.attestations, self.releases]
        if self.burned:
            return bool(self.headers) and not any([*steps, self.pairs, self.confirmations])
        return not self.headers and all(steps)

    @property
    def result(self) -> Receipt:
        """The receipt of a finished round. ViolationError T-20 where the round is burned."""
        if self.receipt is None:
            raise ViolationError("T-20", "the transcript of a burned round has no result")
        return self.receipt
