"""The transcript of one round, and what follows from its messages: sets, hashes, and what the released shares open.

Every fact is computed here once, from the messages alone; what a check makes of it is in `checks`. Policy and roster
are the reader's own. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from secagg.context import RoundContext, next_head
from secagg.encoding import digest
from secagg.keys import MaskKey
from secagg.messages import Header, IncludedSet, Roster, headers_hash, result_hash
from secagg.policy import Policy, Suite
from secagg.roster import PinnedRoster, session_id
from secagg.shamir import combine
from secagg.transcript.messages import Messages
from secagg.transcript.record import CHAIN_START, Opening, PublishedBundle
from secagg.transcript.vectors import Vectors


@dataclass
class Past:
    """Memory of a reader from one transcript to the next: rounds must follow, and fresh values must not return.

    Attributes:
        last: training run to the round of its last transcript, and the head after it.
        seen: what must not recur, to where it was seen: a few hashes a client and round.
    """

    last: dict[str, tuple[RoundContext, bytes]] = field(default_factory=dict)
    seen: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """Whoever verifies: his own policy and roster, which he never takes from a file."""

    policy: Policy
    pinned: PinnedRoster

    @cached_property
    def session(self) -> bytes:
        """The session that policy and roster make: 32 bytes. ConfigError where they do not fit together."""
        return session_id(self.policy, self.pinned)


@dataclass(frozen=True)
class Secrets:
    """The secrets that released shares open: b_u of the included, s_w of the dropped, r of the pairs between."""

    self_seeds: Mapping[str, bytes]
    mask_keys: Mapping[str, MaskKey]
    pair_secrets: Mapping[tuple[str, str], bytes]


class Transcript(Messages):
    """One round as its transcript tells it.

    Args:
        file: what whoever read it calls it, such as its path.
        reader: whose policy and roster count.
        opening: the first record.
        past: what the transcripts before this one leave.

    Attributes:
        context: of the round, as the opening says.
        vectors: what stays of the vectors that went by.
        link: the chain over all records before the closing one, 32 bytes.
        notes: sentences for the operator about what is odd and no violation.

    Raises:
        ConfigError: the opening names no round that could be agreed upon.
        ViolationError: T-18, as `Vectors`.
    """

    def __init__(self, file: str, reader: Reader, opening: Opening, past: Past) -> None:
        super().__init__(reader.pinned)
        self.file = file
        self.reader, self.policy, self.opening, self.past = reader, reader.policy, opening, past
        self.context = opening.context
        self.vectors = Vectors(reader.policy)
        self.link = CHAIN_START
        self.notes: list[str] = []

    @cached_property
    def signed_headers(self) -> list[Header]:
        """The headers of a burned round or those of the shares, sorted."""
        headers = self.headers if self.burned else {dealer: sent.header for dealer, sent in self.shares.items()}
        return [headers[dealer] for dealer in sorted(headers)]

    @cached_property
    def roster(self) -> Roster:
        """U1: the clients that advertised keys, in the order of their ids."""
        return Roster(tuple(self.advertisements[client_id] for client_id in sorted(self.advertisements)))

    @cached_property
    def slot(self) -> bytes:
        """The slot that the sites signed: 32 bytes."""
        return self.signed_headers[0].slot

    @cached_property
    def roster1(self) -> bytes:
        """H(U1's advertisements), recomputed; of a burned round what the sites signed."""
        return self.signed_headers[0].roster1 if self.burned else self.roster.hash

    @cached_property
    def roster2(self) -> bytes:
        """The hash of all headers, recomputed: 32 bytes."""
        return headers_hash(self.signed_headers)

    @cached_property
    def sharers_hash(self) -> bytes:
        """H(U2), recomputed from who reported: 32 bytes."""
        return digest("sharers", sorted(self.reports))

    @cached_property
    def included(self) -> IncludedSet:
        """U3: the clients whose masked input was accepted, with their signatures."""
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
    def total_hash(self) -> bytes:
        """Hash of the sum, and of the seeds of excess noise that were disclosed for it: 32 bytes."""
        disclosed = {u: b"".join(seeds) for u in sorted(self.releases) if (seeds := self.releases[u].excess_seeds)}
        return result_hash(self.vectors.hashes[""], disclosed)

    @cached_property
    def head(self) -> bytes:
        """The head after the round, recomputed from messages and sum: 32 bytes."""
        return next_head(self.context.previous_head, self.round_id, self.attested, self.total_hash)

    @cached_property
    def dropped(self) -> list[str]:
        """U2 minus U3: who shared keys and sent no masked input, sorted."""
        return sorted(self.reports.keys() - self.inputs.keys())

    @cached_property
    def hybrid(self) -> bool:
        """Whether the suite is the hybrid one, in which every pair has a secret of its own besides X25519."""
        return self.policy.suite is Suite.MLKEM768_X25519

    @cached_property
    def bundles(self) -> Mapping[str, Mapping[str, PublishedBundle]]:
        """The published bundle from each dealer (first key) to each holder (second key)."""
        return {u: dict(zip(self.roster.others(u), sent.bundles, strict=True)) for u, sent in self.shares.items()}

    @cached_property
    def pairs_to_open(self) -> list[tuple[str, str]]:
        """(dealer, dropped) of the pair secrets that only an envelope held once their dealer fell silent."""
        silent = sorted(self.inputs.keys() - self.releases.keys()) if self.hybrid else []
        return [(u, w) for u in silent for w in self.dropped if self.roster.pair(u, w).dealer == u]

    @cached_property
    def secrets(self) -> Secrets:
        """The secrets that the released shares open. ViolationError T-12 where they open nothing."""
        self_seeds = {
            u: self.releases[u].self_seed if u in self.releases else self._combined(u, "self_seed_shares")
            for u in sorted(self.inputs)
        }
        keys = {w: MaskKey(self.policy.suite, self._combined(w, "mask_key_shares")) for w in self.dropped}
        pairs = {(w, u): self._pair_secret(keys[w], w, u) for w in keys for u in sorted(self.inputs)}
        return Secrets(self_seeds, keys, pairs)

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
        if self.hybrid and self.roster.pair(dropped, survivor).dealer == survivor:
            return self.pairs[survivor, dropped].secret
        return key.pair_secret(survivor)
