"""Writes the public transcript of a round while it runs, and publishes it once nothing in it can hurt.

While the round runs, everything goes into a file without a name, which a crash takes along. A finished round is
published whole, in one rename; of a burned one only the signed headers. Must never: write an envelope anywhere, or
publish a masked input of a round without a sum. Specification: docs/spec.md, section "Transcripts".
"""

import os
import tempfile
from pathlib import Path
from typing import Self

from secagg.context import RoundContext
from secagg.errors import ConfigError, IllegalTransitionError
from secagg.keys import MaskKey, SigningKey
from secagg.masking import envelope_info
from secagg.messages import (
    AdvertiseKeys,
    EncryptedShares,
    FromClient,
    Header,
    MaskedInput,
    Result,
    Roster,
    ShareReport,
    SlotMasks,
    UnmaskingShares,
)
from secagg.packing import packed_size
from secagg.policy import PinnedRoster, Policy, session_id
from secagg.shamir import combine
from secagg.transcript.record import (
    LARGEST_VECTOR,
    Block,
    OpenedPair,
    Opening,
    PublishedBundle,
    PublishedShares,
    Record,
    Writer,
    blocks,
    encode_record,
    place,
    records,
)


class Recorder:
    """What `ServerSession(record=...)` is given; a context manager that publishes at its end.

    Args:
        path: the transcript to write; a file of that name is replaced, but only by a whole transcript.
        policy: the session's.
        pinned: the session's.
        context: the session's.
        vectors: publish masked inputs whole, so that the sum can be recomputed; otherwise only their hashes.
        signing_key: key of `policy.server_key`, which seals the file; None where the policy names none.

    It belongs to one thread. Memory: the messages of the round, which the session holds as well, without vectors.

    Raises:
        ConfigError: roster, policy and key do not fit together, or the vectors are too long for a transcript.
        OSError: nothing can be written beside `path`.
    """

    def __init__(
        self,
        path: str | Path,
        policy: Policy,
        pinned: PinnedRoster,
        context: RoundContext,
        vectors: bool = True,
        signing_key: SigningKey | None = None,
    ) -> None:
        if (signing_key.verify_key if signing_key else b"") != policy.server_key:
            raise ConfigError("the signing key is not the policy's server_key")
        if packed_size(policy.length + policy.slots, policy.bits) > LARGEST_VECTOR:
            raise ConfigError("a transcript holds vectors of less than 4 GiB")
        self.path = Path(path)
        self._policy, self._signing_key, self._vectors = policy, signing_key, vectors
        self._slot = context.slot(session_id(policy, pinned))
        self._opening = Opening.of(policy, pinned.hash(), context, vectors)
        self._spool = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115 - without a name: a crash leaves nothing
        self._places: dict[tuple[int, str, str], tuple[int, int]] = {}
        self._headers: list[Header] = []
        self._advertised: list[AdvertiseKeys] = []
        self._sharers: list[str] = []
        self._included: list[str] = []
        self._pairs: dict[str, list[bytes]] = {}
        self._released: dict[str, UnmaskingShares] = {}
        self._finished = False
        self._failure: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._spool.closed:
            self.publish()

    def __repr__(self) -> str:
        return f"<Recorder of {self.path}>"

    def __call__(self, message: FromClient | Result) -> None:
        """Record an accepted message in its published form; a full disk costs the transcript, not the round.

        Raises:
            IllegalTransitionError: the transcript is published.
        """
        if self._spool.closed:
            raise IllegalTransitionError("this transcript is published")
        if self._failure is None:
            try:
                self._record(message)
            except OSError as error:
                self._failure = error

    def _record(self, message: FromClient | Result) -> None:
        match message:
            case EncryptedShares():
                published = tuple(map(PublishedBundle.of, message.bundles))
                self._headers.append(message.header)
                self._pairs[message.header.client_id] = [bundle.pair for bundle in message.bundles]
                self._keep(PublishedShares(message.header, published))
            case MaskedInput():
                self._included.append(message.client_id)
                self._keep(message.acceptance(), *(blocks(message.y, self._policy) if self._vectors else ()))
            case SlotMasks():
                raise IllegalTransitionError("slot masks are of a round without a sum and enter no transcript")
            case Result():
                for opened in self._opened_pairs():
                    self._keep(opened)
                self._pairs, self._released, self._finished = {}, {}, True
                self._keep(message.receipt, *blocks(message.total, self._policy))
            case _:
                if isinstance(message, AdvertiseKeys):
                    self._advertised.append(message)
                elif isinstance(message, ShareReport):
                    self._sharers.append(message.client_id)
                elif isinstance(message, UnmaskingShares):
                    self._released[message.client_id] = message
                self._keep(message)

    def _keep(self, message: Record, *vector: Block) -> None:
        start = self._spool.seek(0, os.SEEK_END)
        for record in map(encode_record, (message, *vector)):
            self._spool.write(len(record).to_bytes(4, "big") + record)
        self._places[place(message)] = (start, 1 + len(vector))

    def _opened_pairs(self) -> list[OpenedPair]:
        """What the server opened with a dropped client's mask key: without envelopes nobody else can."""
        roster = Roster(tuple(sorted(self._advertised, key=lambda entry: entry.client_id)))
        silent = [client_id for client_id in sorted(self._included) if client_id not in self._released]
        opened = []
        for dropped in sorted(set(self._sharers) - set(self._included)) if silent else []:
            shares = {roster.positions[u]: message.mask_key_shares[dropped] for u, message in self._released.items()}
            key = MaskKey(self._policy.suite, combine(shares, self._policy.threshold))
            for dealer in silent:
                if key.kem_public and roster.dealer_of_pair(dealer, dropped) == dealer:
                    info = envelope_info("pair", self._slot, roster.hash, dealer, dropped)
                    envelope = self._pairs[dealer][roster.others(dealer).index(dropped)]
                    opened.append(OpenedPair(dealer, dropped, key.open_pair(info, envelope)))
        return opened

    def publish(self) -> Path | None:
        """Write the transcript and forget everything else; of a round without a result only headers.

        Returns:
            The path, or None where there is nothing to publish: no sum, and no header either.

        Raises:
            IllegalTransitionError: it is published already.
            OSError: it cannot be written, or something could not be recorded; what was recorded is gone.
        """
        if self._spool.closed:
            raise IllegalTransitionError("this transcript is published")
        with self._spool:
            if self._failure is not None:
                raise self._failure
            if not self._finished and not self._headers:
                return None
            descriptor, draft = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with open(descriptor, "wb") as file:
                    self._write(Writer(file))
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(draft, 0o644)
                os.replace(draft, self.path)
            except BaseException:
                os.unlink(draft)
                raise
        return self.path

    def _write(self, writer: Writer) -> None:
        writer.write(encode_record(self._opening))
        if not self._finished:
            for header in sorted(self._headers, key=lambda header: header.client_id):
                writer.write(encode_record(header))
        else:
            for _, (start, count) in sorted(self._places.items()):
                self._spool.seek(start)
                for _, record in zip(range(count), records(self._spool), strict=False):
                    writer.write(record)
        writer.close(self._signing_key)
