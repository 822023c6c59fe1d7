"""Who is in the sum of each round, proved to a site that did not see the round to its end, such as one that was killed.

Of a completed round U2 is the signers of the share reports, and U3 the signers of the accepted inputs. The server's
signed receipt, one link of the chain that every site checks, holds the hash of what U3 attested. So that all parties
give one account of a run, whatever they saw of it themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from secagg import wire
from secagg.context import GENESIS, next_head
from secagg.errors import ProtocolError
from secagg.messages import AcceptedInput, IncludedSet, Receipt, Reports, ShareReport
from secagg.service.errors import DialogueError

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Account:
    """U2 (who shared keys) and U3 (who is in the sum) of one round, with their signatures."""

    kind: ClassVar[str] = "account"

    reports: Reports
    included: IncludedSet

    @classmethod
    def of(cls, reports: bytes, included: bytes) -> Self:
        """Of the two messages, as `secagg.wire` encodes them."""
        return cls.unpacked(len(reports).to_bytes(_LENGTH_BYTES, "big") + reports + included)

    def packed(self) -> bytes:
        """As bytes for the wire."""
        reports = wire.encode(self.reports)
        return len(reports).to_bytes(_LENGTH_BYTES, "big") + reports + wire.encode(self.included)

    @classmethod
    def unpacked(cls, payload: bytes, sender: str = "the coordinator") -> Self:
        """What `packed` gave; nothing is verified yet.

        Raises:
            DialogueError: malformed.
        """
        end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
        try:
            reports, included = (wire.decode_from_server(part) for part in (payload[_LENGTH_BYTES:end], payload[end:]))
        except ProtocolError as error:
            raise DialogueError(f"{sender} sent a malformed account of a round") from error
        if not (isinstance(reports, Reports) and isinstance(included, IncludedSet)):
            raise DialogueError(f"{sender} sent another message in place of an account of a round")
        return cls(reports, included)

    @property
    def dropped(self) -> tuple[str, ...]:
        """U2 without U3, sorted."""
        return tuple(sorted(self.reports.by_id.keys() - self.included.by_id.keys()))

    def proved(self, receipts: Sequence[Receipt], pinned: Mapping[str, bytes]) -> Receipt:
        """The receipt of the round that this is the account of.

        Args:
            receipts: of all completed rounds, as `chained` returns them.
            pinned: verify keys by site.

        Raises:
            DialogueError: there is no such receipt, or a site has not signed what this says.
        """
        receipt = next((found for found in receipts if found.attested == self.included.attested), None)
        signed: list[ShareReport | AcceptedInput] = [*self.reports.reports, *self.included.inputs]
        try:
            if receipt is None or any(entry.client_id not in pinned for entry in signed):
                raise DialogueError("the coordinator's account of a round is not what that round's receipt names")
            for entry in signed:
                entry.verify(pinned[entry.client_id], "C-16", entry.client_id)
        except ProtocolError as error:
            raise DialogueError(f"the coordinator's account of a round is not what sites signed: {error}") from error
        sharers = {(entry.round_id, entry.sharers_hash) for entry in self.included.inputs}
        if sharers != {(receipt.round_id, self.reports.sharers_hash)}:
            raise DialogueError(
                f"the coordinator names other sharers of round {receipt.round_number} than its sites signed"
            )
        return receipt


def chained(receipts: Sequence[Receipt], seen: Mapping[int, bytes]) -> tuple[Receipt, ...]:
    """The receipts of all completed rounds, in order.

    Args:
        receipts: as a signed round start holds them.
        seen: round number to head of the rounds that this site saw to their end.

    Raises:
        DialogueError: one does not follow the other, or they leave out or contradict a round that was seen.
    """
    head = GENESIS
    for receipt in receipts:
        if (receipt.previous_head, receipt.head) != (
            head,
            next_head(head, receipt.round_id, receipt.attested, receipt.total_hash),
        ):
            raise DialogueError(f"the receipt of round {receipt.round_number} does not follow the one before it")
        head = receipt.head
    if not seen.items() <= {receipt.round_number: receipt.head for receipt in receipts}.items():
        raise DialogueError("the coordinator's receipts are not those of the rounds that this site saw; ask others")
    return tuple(receipts)
