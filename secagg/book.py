"""The server's book of rounds: which round and attempt is next, on which head, and without whom.

It outlives rounds and, by `saved` and `restore`, processes; complaints stay in it for the whole run. Specification:
docs/spec.md, section "Steps of a round".
"""

import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from secagg import wire
from secagg.arguments import must_be
from secagg.complaints import Choose, LeaveOut, leave_out
from secagg.context import GENESIS, RoundContext
from secagg.errors import AbortedError, ComplaintError, ConfigError, ProtocolError
from secagg.keys import SigningKey
from secagg.messages import Receipt, RoundStart


@dataclass
class RoundBook:
    """What a server knows between rounds.

    Attributes:
        training_run: name of the run.
        task_hash: hash of the study.
        signing_key: the server's.
        max_corrupt: c of the policy.
        number, attempt: of the next round.
        receipts: of every completed round; a rejoiner replays them.
        convicted: clients left out for good: caught, or with more than c opponents.
        complaints: (round number, accuser, dealer) of the whole run; at least one end of each is corrupt.
        drawn: who else meets the complaints of this round number; drawn where a complaint comes, and then kept.
        choose: what draws.
    """

    training_run: str
    task_hash: bytes
    signing_key: SigningKey
    max_corrupt: int
    number: int = 1
    attempt: int = 0
    receipts: tuple[Receipt, ...] = ()
    convicted: frozenset[str] = frozenset()
    complaints: tuple[tuple[int, str, str], ...] = ()
    drawn: LeaveOut = field(default_factory=LeaveOut)
    choose: Choose = field(default=secrets.randbelow, repr=False)
    _encoded: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        must_be(self.signing_key, SigningKey, "signing_key", "give the server's secagg.SigningKey")
        self.context(GENESIS)  # the run's name and the task's hash are looked at there

    @property
    def head(self) -> bytes:
        """Head of the last completed round, 32 bytes."""
        return self.receipts[-1].head if self.receipts else GENESIS

    @property
    def leave_out(self) -> frozenset[str]:
        """Who is not admitted to the next attempt."""
        return self.convicted | self.drawn.clients

    @property
    def returned(self) -> Mapping[tuple[str, str], tuple[int, ...]]:
        """Pairs of clients between whom a complaint came back, sorted: the round numbers in which they had one.

        One of the two is corrupt, and which is for people to find out.
        """
        rounds: dict[tuple[str, str], set[int]] = {}
        for number, accuser, dealer in self.complaints:
            rounds.setdefault((min(accuser, dealer), max(accuser, dealer)), set()).add(number)
        return {pair: tuple(sorted(numbers)) for pair, numbers in sorted(rounds.items()) if len(numbers) > 1}

    def context(self, model_hash: bytes) -> RoundContext:
        """The next attempt's context."""
        return RoundContext(self.training_run, self.number, self.attempt, model_hash, self.task_hash, self.head)

    def start(self, model_hash: bytes) -> RoundStart:
        """The next attempt's signed announcement."""
        return RoundStart(
            self.training_run, self.number, self.attempt, model_hash, self.task_hash, self.head, self.receipts
        ).sign(self.signing_key)

    def saved(self) -> dict[str, Any]:
        """This book as JSON, without its key; each receipt as `wire.encode_receipt` has it, encoded once."""
        if len(self._encoded) > len(self.receipts):
            self._encoded = []
        self._encoded += [wire.encode_receipt(receipt).hex() for receipt in self.receipts[len(self._encoded) :]]
        return {
            "number": self.number,
            "attempt": self.attempt,
            "receipts": list(self._encoded),
            "convicted": sorted(self.convicted),
            "complaints": self.complaints,
            "drawn": sorted(self.drawn.clients),
            "smallest": self.drawn.smallest,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `saved`, with the next attempt at the round that was open then.

        Raises:
            ConfigError: `saved` is of another kind.
            ShareError: S-20, as `failed` did before.
        """
        try:
            number, attempt = int(saved["number"]), int(saved["attempt"])
            receipts = tuple(wire.decode_receipt(bytes.fromhex(receipt)) for receipt in saved["receipts"])
            if number < 1 or attempt < 0:
                raise ValueError("rounds are counted from 1")
            convicted, drawn = (
                frozenset(saved["convicted"]),
                LeaveOut(frozenset(saved["drawn"]), smallest=saved["smallest"]),
            )
            complaints = tuple((number, accuser, dealer) for number, accuser, dealer in saved["complaints"])
        except (KeyError, TypeError, ValueError, ProtocolError):
            raise ConfigError(
                "this is no saved book of rounds, or it is damaged, or of another version of secagg: give what "
                "`RoundBook.saved` returned, and finish a run with the version that began it"
            ) from None
        self.number, self.attempt, self.receipts, self._encoded = number, attempt + 1, receipts, []
        self.convicted, self.complaints, self.drawn = convicted, complaints, drawn
        if any(self.leave_out.isdisjoint(pair) for pair in self._now()):
            self._draw()

    def completed(self, receipt: Receipt) -> None:
        """Go on to the next round on a new head."""
        self.receipts += (receipt,)
        self._next()

    def failed(self, error: ProtocolError | AbortedError, burned: bool) -> tuple[str, ...]:
        """Go on after a round that ended without a sum: the next attempt, or the next round number where it burned.

        Returns:
            Sentences for the operator: both ends of each complaint that came back, who was left out with more than c
            opponents, and a set of clients that is not known to be smallest.

        Raises:
            ShareError: S-20, more than c clients are corrupt: the run cannot go on. The complaint is in the book.
        """
        if isinstance(error, ProtocolError):
            self.convicted |= set(error.culprits)
        if burned:  # a complaint about slot masks (S-19) ends a round, and somebody stays out of the next one
            self._next()
        else:
            self.attempt += 1
        if not isinstance(error, ComplaintError):
            return ()
        self.complaints += tuple((self.number, *pair) for pair in error.complaints)
        before = self.convicted
        self._draw()
        return tuple(self._sentences(before, error.complaints))

    def _now(self) -> set[tuple[str, str]]:
        return {(accuser, dealer) for number, accuser, dealer in self.complaints if number == self.number}

    def _draw(self) -> None:
        """S-20. All complaints of the run decide who goes, but only those of this round number make anybody go.

        Otherwise one lie in one round would keep an honest client out of half of all later ones.
        """
        pairs = [(one, other) for _, one, other in self.complaints if self.convicted.isdisjoint((one, other))]
        found = leave_out(pairs, self.max_corrupt - len(self.convicted), self.choose)
        self.convicted |= found.proven
        needed = {end for pair in self._now() if self.convicted.isdisjoint(pair) for end in pair}
        self.drawn = LeaveOut(found.clients & needed, smallest=found.smallest)

    def _sentences(self, before: frozenset[str], pairs: Collection[tuple[str, str]]) -> Iterator[str]:
        now = {(min(pair), max(pair)) for pair in pairs}
        for pair, numbers in self.returned.items():
            if pair in now:
                yield (
                    f"{pair[0]} and {pair[1]} had complaints in rounds {', '.join(map(str, numbers))}: one of "
                    "the two is corrupt or broken; find out which, and end its part in the study"
                )
        for client_id in sorted(self.convicted - before):
            yield (
                f"{client_id} had complaints with so many others that the fault is its own (max_corrupt = "
                f"{self.max_corrupt}): it is left out for good"
            )
        if not self.drawn.smallest:
            yield (
                f"after complaints {len(self.drawn.clients)} clients are left out of round {self.number}; whether "
                "fewer would do was not decided in the steps that a server takes for it"
            )

    def _next(self) -> None:
        self.number, self.attempt, self.drawn = self.number + 1, 0, LeaveOut()
