"""What a data set must not forget: the one state machine between the rounds, over a few durable entries.

A data set has one store on one site, whatever run, project, policy, coordinator or process asks for it. `Marks` is
the whole machine, written once over a mapping of texts; a `Store` gives it such a mapping inside a transaction, and
nothing that it marked is lost once the transaction is left. Must never: hold a key, share, vector or patient id, or
let two attempts be live at once. Specification: docs/spec.md, section "Between the rounds".
"""

import json
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from secagg.encoding import HASH_BYTES, digest
from secagg.errors import ConfigError, ExposureError, UnexpectedMessageError
from secagg.messages import Receipt, ReleaseClaim
from secagg.state import ADVERTISE_KEYS, GENESIS, MASKED_INPUT_COLLECTION, UNMASKING, Slot

NEVER = bytes(HASH_BYTES)
"""The round that a data set released last in a session in which it never released anything."""


@dataclass(frozen=True)
class OpenRelease:
    """The one round whose unmasking shares this data set sent and which is neither replayed nor superseded.

    Attributes:
        round_id: 32 bytes.
        name: of the round, for people.
        claim: what proves it to others; None where it was marked by version 1 of the protocol.
    """

    round_id: bytes
    name: str
    claim: ReleaseClaim | None


class Marks:
    """The marks of one data set within one transaction.

    Args:
        entries: the durable entries, text to text. Whoever made them commits what this class changed, or none of it.
    """

    def __init__(self, entries: MutableMapping[str, str]) -> None:
        self._entries = entries

    # --- What an attempt marks, in the order of a round ---------------------------------------------------------------

    def join(self, slot: Slot, private: bool) -> None:
        """Mark an attempt before AdvertiseKeys is sent; it becomes the live one, and every other is dead from here.

        Raises:
            UnexpectedMessageError: C-03, (round number, attempt) is not above the last one of this session and run.
            ExposureError: C-05, see `refuse_exposure`.
        """
        last = self.joined(slot.session, slot.training_run)
        if (slot.round_number, slot.attempt) <= last:
            raise UnexpectedMessageError(
                "C-03",
                f"{slot} does not come after round {last[0]}, attempt {last[1]}, which this data set joined; "
                "wait for a later round or attempt",
            )
        if not private:
            self.refuse_exposure(ADVERTISE_KEYS)
        self._put(_key("joined", slot.session, slot.training_run), [slot.round_number, slot.attempt])
        self._put("live", _slot_fields(slot))

    def contribute(self, slot: Slot, event_id: str, claims: Collection[ReleaseClaim], private: bool) -> None:
        """Mark the one contribution to a round number, with its ledger event, before the vector is masked.

        Uses up the acceptances that it needs: each counts for one contribution.

        Args:
            slot: the attempt.
            event_id: of the ledger.
            claims: rounds that members of U1 released shares of and did not replay.
            private: whether the update is differentially private on its own and charged.

        Raises:
            UnexpectedMessageError: C-24, another attempt was joined meanwhile; C-14, this round number or a later one
                already has its contribution.
            ExposureError: C-05 or C-26, a round that was neither replayed nor accepted by name.
        """
        self._require_live(slot, MASKED_INPUT_COLLECTION)
        highest = _key("contributed", slot.session, slot.training_run)
        last = self._get(highest, 0)
        if slot.round_number <= last:
            raise UnexpectedMessageError(
                "C-14",
                f"this data set already contributed to round {last} of run {slot.training_run} and gives nothing more "
                f"to round {slot.round_number}; it joins again in round {last + 1}",
            )
        if not private:
            self.refuse_exposure(MASKED_INPUT_COLLECTION)
            self.refuse_claims(claims, MASKED_INPUT_COLLECTION)
            for round_id in self._exposing(claims):
                key = f"accepted/{round_id.hex()}"
                self._put(key, {**self._get(key, {}), "used_by": slot.hash.hex()})
        self._put(highest, slot.round_number)
        self._put(f"{highest}/{slot.round_number}", {"attempt": slot.attempt, "event": event_id})
        self._put("contribution", slot.hash.hex())

    def release(self, slot: Slot, claim: ReleaseClaim, private: bool) -> None:
        """Mark that unmasking shares of this round are about to be sent, once.

        A release that is not private stays open until the transcript of this very round is replayed, or a later release
        supersedes it under an acceptance.

        Raises:
            UnexpectedMessageError: C-24, another attempt was joined meanwhile, or this one did not contribute, or
                released before.
            ExposureError: C-05, an earlier round is open and this contribution used no acceptance of it.
        """
        self._require_live(slot, UNMASKING)
        if self._get("contribution", "") != slot.hash.hex():
            raise UnexpectedMessageError("C-24", f"{slot} is not what this data set contributed to last")
        self._entries.pop("contribution")  # released once
        earlier = self.open_release
        if not private and earlier is not None:
            used = self._get(f"accepted/{earlier.round_id.hex()}", {}).get("used_by")
            if used != slot.hash.hex():
                raise _exposed("C-05", UNMASKING, [(earlier.round_id, earlier.name)])
        self._put(_key("released", slot.session), claim.round_id.hex())
        if not private:
            opened = {"round_id": claim.round_id.hex(), "name": str(slot), "claim": _claim_fields(claim)}
            self._put("open", opened)

    def finish(self, session: bytes, training_run: str, receipts: Sequence[Receipt]) -> None:
        """Append finished rounds to the hash-chained log of a run: all of them, or none.

        A round that the log holds with the same head changes nothing: a result may come after the receipts of its own
        and of later rounds.

        Raises:
            UnexpectedMessageError: C-22, a receipt that does not follow the last one of this session and run.
        """
        number, head = self.head(session, training_run)
        fresh: list[Receipt] = []
        for receipt in receipts:
            logged = self.receipt(session, training_run, receipt.round_number)
            if logged is not None and logged.head == receipt.head:
                continue
            if (receipt.training_run, receipt.previous_head) != (training_run, head) or receipt.round_number <= number:
                raise UnexpectedMessageError(
                    "C-22",
                    f"the head offered for round {receipt.round_number} of {training_run} does not follow round "
                    f"{number}, the last one in this log; compare the heads with another site first",
                )
            number, head = receipt.round_number, receipt.head
            fresh.append(receipt)
        for receipt in fresh:
            self._log(session, receipt)

    # --- What clears a release ----------------------------------------------------------------------------------------

    def replay(self, round_id: bytes) -> None:
        """Mark that the transcript of this very round was replayed and holds; see `secagg.transcript.accept`."""
        self._put(f"replayed/{round_id.hex()}", True)
        if (release := self.open_release) is not None and release.round_id == round_id:
            self._entries.pop("open")

    def replayed(self, round_id: bytes) -> bool:
        """Whether the transcript of this round was replayed here."""
        return f"replayed/{round_id.hex()}" in self._entries

    def accept_exposure(self, round_id: bytes, signature: bytes) -> None:
        """Keep an operator's acceptance of one round; see `secagg.accept_exposure`, which signs it."""
        self._put(f"accepted/{round_id.hex()}", {"signature": signature.hex(), "used_by": ""})

    def accepted(self, round_id: bytes) -> bool:
        """Whether an operator accepted the exposure of this round, and the acceptance was not used yet."""
        return bool(self._get(f"accepted/{round_id.hex()}", {"used_by": "-"})["used_by"] == "")

    def refuse_exposure(self, step: str) -> None:
        """C-05: nothing goes into another sum while an own release is open, unless its operator accepted it by name.

        Raises:
            ExposureError: C-05, with the round.
        """
        release = self.open_release
        if release is not None and not self.accepted(release.round_id):
            raise _exposed("C-05", step, [(release.round_id, release.name)])

    def refuse_claims(self, claims: Collection[ReleaseClaim], step: str) -> None:
        """C-26: the same for releases of others in the cohort.

        Raises:
            ExposureError: C-26, with the rounds.
        """
        unknown = {c.round_id: str(c.slot) for c in claims if not self.replayed(c.round_id)}
        if refused := [(round_id, name) for round_id, name in unknown.items() if not self.accepted(round_id)]:
            raise _exposed("C-26", step, refused)

    def _exposing(self, claims: Collection[ReleaseClaim]) -> set[bytes]:
        own = {release.round_id for release in [self.open_release] if release is not None}
        return own | {claim.round_id for claim in claims if not self.replayed(claim.round_id)}

    # --- What is known ------------------------------------------------------------------------------------------------

    @property
    def open_release(self) -> OpenRelease | None:
        """The round that must be replayed, or accepted by name, before anything that is not private is contributed."""
        if not (kept := self._get("open", None)):
            return None
        claim = _claim_of(kept["claim"]) if kept["claim"] else None
        return OpenRelease(bytes.fromhex(kept["round_id"]), kept["name"], claim)

    def released(self, session: bytes) -> bytes:
        """The last round of a session whose shares were sent: 32 bytes, `NEVER` where there is none."""
        return bytes.fromhex(self._get(_key("released", session), NEVER.hex()))

    @property
    def runs(self) -> list[tuple[bytes, str]]:
        """(session, training run) of every run that was joined or of which a round was logged, sorted."""
        named = [key.split("/", 2) for key in self._entries if key.startswith(("joined/", "head/"))]
        return sorted({(bytes.fromhex(session), json.loads(run)) for _, session, run in named})

    @property
    def acceptances(self) -> dict[bytes, bool]:
        """Rounds whose exposure an operator accepted, 32 bytes each, to whether that was not used yet."""
        named = [bytes.fromhex(key.removeprefix("accepted/")) for key in self._entries if key.startswith("accepted/")]
        return {round_id: self.accepted(round_id) for round_id in sorted(named)}

    def joined(self, session: bytes, training_run: str) -> tuple[int, int]:
        """The last (round number, attempt) of a run that was joined; (0, 0) at the start."""
        number, attempt = self._get(_key("joined", session, training_run), (0, 0))
        return number, attempt

    def head(self, session: bytes, training_run: str) -> tuple[int, bytes]:
        """Round number and head (32 bytes) of the last finished round of a run; (0, GENESIS) at the start."""
        number, head = self._get(_key("head", session, training_run), (0, GENESIS.hex()))
        return number, bytes.fromhex(head)

    def receipt(self, session: bytes, training_run: str, round_number: int) -> Receipt | None:
        """The receipt of a finished round; None where the log holds none."""
        entry = self._get(_key("round", session, training_run, round_number), None)
        return None if entry is None else _receipt_of(self._get(_entry(entry), None)["receipt"])

    def verify(self) -> None:
        """Recompute the hash chain of the log of heads.

        Raises:
            ConfigError: an entry is missing or was changed, with its number.
        """
        link, newest = GENESIS, self._get("log", [0, ""])[0]
        for number in range(1, newest + 1):
            entry = self._get(_entry(number), None)
            if entry is not None:
                link = _link(link, bytes.fromhex(entry["session"]), _receipt_of(entry["receipt"]))
            if entry is None or entry["link"] != link.hex():
                raise ConfigError(
                    f"entry {number} of the log of heads was changed or removed; keep the file, compare its heads with "
                    "another site's and start a new training run"
                )

    # --- Entries ------------------------------------------------------------------------------------------------------

    def _require_live(self, slot: Slot, step: str) -> None:
        live = self._get("live", None)
        if live != _slot_fields(slot):
            raise UnexpectedMessageError(
                "C-24", f"this data set joined another attempt after {slot}, which is over here ({step})"
            )

    def _log(self, session: bytes, receipt: Receipt) -> None:
        newest, previous = self._get("log", [0, GENESIS.hex()])
        link = _link(bytes.fromhex(previous), session, receipt).hex()
        entry = {"session": session.hex(), "receipt": _receipt_fields(receipt), "link": link}
        run, number = receipt.training_run, receipt.round_number
        self._put(_entry(newest + 1), entry)
        self._put("log", [newest + 1, link])
        self._put(_key("round", session, run, number), newest + 1)
        self._put(_key("head", session, run), [number, receipt.head.hex()])

    def _get(self, key: str, default: Any) -> Any:
        value = self._entries.get(key)
        return default if value is None else json.loads(value)

    def _put(self, key: str, value: object) -> None:
        self._entries[key] = json.dumps(value)


class Store(Protocol):
    """Durable marks of one data set; `secagg.sqlite.SqliteStore` is the one to use.

    One store serves one data set on one site, whatever project, run, attempt or hash a server claims: claims 3 and 4 of
    the threat model rest on it.
    """

    def transaction(self) -> AbstractContextManager[Marks]:
        """The marks, alone: no other transaction of this data set runs meanwhile, in any process.

        What was marked would survive a power cut once the block is left, and nothing was where it raises.
        """


class MemoryStore:
    """A `Store` for tests and simulations in one process: its marks do not survive the process."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    @contextmanager
    def transaction(self) -> Iterator[Marks]:
        """See `Store.transaction`."""
        draft = dict(self._entries)
        yield Marks(draft)
        self._entries = draft


def _exposed(check: str, step: str, rounds: Sequence[tuple[bytes, str]]) -> ExposureError:
    who = "this site" if check == "C-05" else "another site of this cohort"
    named = "; ".join(f"{name} ({round_id.hex()[:16]})" for round_id, name in rounds)
    return ExposureError(
        check,
        step,
        f"{who} sent unmasking shares for {named} and its transcript was not replayed here: the server may have that "
        "sum, and a rerun without one site would show what that site sent; replay the transcript of that round, or, "
        "where there is none, let the operator accept the exposure of that round by name",
        [round_id for round_id, _ in rounds],
    )


def _key(table: str, session: bytes, *names: str | int) -> str:
    return "/".join([table, session.hex(), *(json.dumps(name) for name in names)])


def _entry(number: int) -> str:
    return f"log/{number:012d}"


def _link(previous: bytes, session: bytes, receipt: Receipt) -> bytes:
    return digest("head-log", previous, session, receipt.statement(), receipt.signature)


def _slot_fields(slot: Slot) -> dict[str, Any]:
    return {name: _hex(value) for name, value in asdict(slot).items()}


def _claim_fields(claim: ReleaseClaim) -> dict[str, Any]:
    plain = {field.name: _hex(getattr(claim, field.name)) for field in fields(claim) if field.name != "attestations"}
    return {**plain, "attestations": {who: signature.hex() for who, signature in claim.attestations.items()}}


def _claim_of(kept: dict[str, Any]) -> ReleaseClaim:
    attestations = {who: bytes.fromhex(signature) for who, signature in kept["attestations"].items()}
    return ReleaseClaim(**_revived(ReleaseClaim, {**kept, "attestations": attestations}))


def _receipt_fields(receipt: Receipt) -> dict[str, Any]:
    return {field.name: _hex(getattr(receipt, field.name)) for field in fields(receipt)}


def _receipt_of(kept: dict[str, Any]) -> Receipt:
    return Receipt(**_revived(Receipt, kept))


def _revived(kind: type[ReleaseClaim] | type[Receipt], kept: dict[str, Any]) -> dict[str, Any]:
    return {f.name: bytes.fromhex(kept[f.name]) if f.type is bytes else kept[f.name] for f in fields(kind)}


def _hex(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
