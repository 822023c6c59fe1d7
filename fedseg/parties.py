"""The sites of a simulation: each holds its key, its marks and its session, and takes and gives the protocol's bytes.

A `Party` is one of them. `InProcess` holds all of them in this process; `fedseg.cluster` has one in each actor of a Ray
cluster. `fedseg.aggregate.SecureSum` does not know which.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.update import Update, seeds_of, values_of
from secagg import ClientSession, PinnedRoster, Policy, SigningKey, UnexpectedMessageError, open_round, wire
from secagg.encoding import digest
from secagg.messages import FromClient, FromServer, Reports, RoundStart
from secagg.packing import dtype_for
from secagg.prg import Stream
from secagg.sqlite import SqliteStore
from secagg.transcript import accept
from secagg.transcript.verdict import Verdict
from secagg.transcript_files import verify
from secagg.writing import PRIVATE, PRIVATE_FOLDER, write_new

Train = Callable[[str], Update]
Rounding = Callable[[str, int], Stream]


@dataclass(frozen=True)
class Agreed:
    """What every site of a run agreed to before its first round.

    Attributes:
        policy: with the server's key.
        pinned: every site's verify key.
        training_run: its name.
        task_hash: of the study, 32 bytes.
        private: whether each update is private alone and charged, so that a burned round exposes nothing more.
    """

    policy: Policy
    pinned: PinnedRoster = field(repr=False)
    training_run: str
    task_hash: bytes
    private: bool


class Party:
    """One site's end of the rounds of a simulation.

    Args:
        site: its id.
        agreed: see `Agreed`.
        key: its identity.
        folder: where its durable marks lie.
        rounding: the stream of stochastic rounding by site and round number, the same stream for the same arguments.

    Attributes:
        quantised: (d,) integers modulo 2^b, what the present round's session masked; None before.
    """

    def __init__(self, site: str, agreed: Agreed, key: SigningKey, folder: Path, rounding: Rounding) -> None:
        self.site, self._agreed, self._key, self._rounding = site, agreed, key, rounding
        # After a power cut nobody relies on these marks: all data is a simulation's. The run's checkpoint is synced.
        self._store = SqliteStore(folder / f"{site}.sqlite", site, synced=False)
        self._session: ClientSession | None = None
        self._number = 0
        self.quantised: NDArray[Any] | None = None

    def open(self, start: FromServer, model_hash: bytes) -> FromClient:
        """The first message of an announced round, after the site's own checks.

        Raises:
            ProtocolError, AbortedError: as `secagg.open_round`.
        """
        if not isinstance(start, RoundStart):
            raise UnexpectedMessageError("C-20", "the server opened a round with another message")
        agreed = self._agreed
        opened = open_round(
            agreed.policy,
            agreed.pinned,
            agreed.training_run,
            start,
            self._store,
            model_hash=model_hash,
            task_hash=agreed.task_hash,
            private=agreed.private,
        )
        self._session = ClientSession(agreed.policy, self.site, self._key, agreed.pinned, opened, self._store)
        self._number, self.quantised = start.round_number, None
        return self._session.start()

    def hear(self, message: FromServer, train: Train) -> FromClient | None:
        """What it answers; None for nothing, also where it has no session because its process began anew.

        Raises:
            ProtocolError, AbortedError: as `ClientSession.receive`.
        """
        if self._session is None:
            return None
        if isinstance(message, Reports):
            update = train(self.site)
            self.quantised = np.zeros(self._agreed.policy.length, dtype_for(self._agreed.policy.bits))
            stream = self._rounding(update.site, self._number)
            given = (values_of(update, self._agreed.policy), update.event_id, stream, self.quantised)
            self._session.provide(*given, seeds_of(update))
        return self._session.receive(message)

    @property
    def clip_rate(self) -> float | None:
        """Fraction of the update's floats outside their clip range; None where it has none."""
        session = self._session
        return session.clip_rate if session and self.quantised is not None and session.clip_rates else None

    def accept(self, verdict: Verdict, round_id: bytes) -> None:
        """Take a replayed transcript as what became of the shares that it sent in that round (C-05)."""
        with self._store.transaction() as marks:
            release = marks.open_release
        if release is not None and release.round_id == round_id:
            accept(verdict, self._store)

    def replay(self, transcript: Path, round_id: bytes) -> None:
        """Verify the transcript of a round under its own policy and roster, and accept it; C-05."""
        self.accept(verify([transcript], self._agreed.policy, self._agreed.pinned), round_id)

    def close(self) -> None:
        """Close its marks."""
        self._store.close()


class Sites(Protocol):
    """All sites of a simulation, wherever they are."""

    @property
    def quantised(self) -> Mapping[str, NDArray[Any]] | None:
        """By site, what it masked in this round; None where that does not leave the sites."""

    @property
    def clip_rate(self) -> Mapping[str, float]:
        """By site, the fraction of its floats outside their clip range."""

    def open(self, sites: Collection[str], start: bytes, model_hash: bytes) -> Mapping[str, bytes]:
        """Tell these sites of a round; their first messages, encoded."""

    def hear(self, replies: Mapping[str, bytes], train: Train) -> Mapping[str, bytes]:
        """Give each site the server's reply; what they answer. `train` makes an update where the sites are here."""

    def replay(self, transcript: Path, round_id: bytes) -> None:
        """See `Party.replay`."""

    def close(self) -> None:
        """Close every site's marks."""


class InProcess:
    """All sites in this process: what went to many is decoded and verified once."""

    def __init__(self, agreed: Agreed, keys: Mapping[str, SigningKey], folder: Path, rounding: Rounding) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._agreed = agreed
        self.parties = {site: Party(site, agreed, key, folder, rounding) for site, key in keys.items()}
        self._opened: frozenset[str] = frozenset()

    @property
    def quantised(self) -> Mapping[str, NDArray[Any]]:
        """By site, what it masked in this round."""
        given = {site: self.parties[site].quantised for site in self._opened}
        return {site: values for site, values in given.items() if values is not None}

    @property
    def clip_rate(self) -> Mapping[str, float]:
        """See `Sites`."""
        rates = {site: self.parties[site].clip_rate for site in sorted(self._opened)}
        return {site: rate for site, rate in rates.items() if rate is not None}

    def open(self, sites: Collection[str], start: bytes, model_hash: bytes) -> Mapping[str, bytes]:
        """See `Sites`."""
        self._opened, announced = frozenset(sites), wire.decode_from_server(start)
        return {site: wire.encode(self.parties[site].open(announced, model_hash)) for site in sorted(sites)}

    def hear(self, replies: Mapping[str, bytes], train: Train) -> Mapping[str, bytes]:
        """See `Sites`."""
        answers = {}
        for site, message in wire.decode_each(replies).items():
            answer = self.parties[site].hear(message, train)
            if answer is not None:
                answers[site] = wire.encode(answer)
        return answers

    def replay(self, transcript: Path, round_id: bytes) -> None:
        """See `Party.replay`; verified once, and accepted in the name of each."""
        verdict = verify([transcript], self._agreed.policy, self._agreed.pinned)
        for party in self.parties.values():
            party.accept(verdict, round_id)

    def close(self) -> None:
        """Close every site's marks."""
        for party in self.parties.values():
            party.close()


def identity(folder: Path, name: str) -> SigningKey:
    """The run's own signing key of a simulated party; dropped with the rest when the run is complete."""
    path = folder / "identities" / f"{name}.key"
    if path.is_file():
        return SigningKey.from_bytes(path.read_bytes())
    key = SigningKey.generate()
    path.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    write_new(path, key.export(), PRIVATE)
    return key


def rounding_of(seed: int | None) -> Rounding:
    """Streams of stochastic rounding; the same arguments give the same stream within one run."""
    key = secrets.token_bytes(32)

    def stream(site: str, round_number: int) -> Stream:
        """See `rounding_of`."""
        if seed is not None:
            return Stream.seeded(seed, "rounding", site, round_number)
        return Stream(digest("rounding", key, site, round_number))

    return stream
