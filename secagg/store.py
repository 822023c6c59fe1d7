"""What a data set must not forget: the one state machine between the rounds, over a few durable entries.

A data set has one store on one site, whatever run, project, policy, coordinator or process asks for it. `Marks` is
the whole machine, written once over a mapping of texts; a `Store` gives it such a mapping inside a transaction, and
nothing that it marked is lost once the transaction is left. Must never: hold a key, share, vector or patient id, or
let two attempts be live at once. Specification: docs/spec.md, section "Between the rounds".
"""

import json
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol

from secagg.context import GENESIS, Slot
from secagg.encoding import HASH_BYTES, digest
from secagg.errors import ConfigError, ExposureError, MalformedMessageError, UnexpectedMessageError
from secagg.messages import LARGEST_CLAIMS, Receipt, ReleaseClaim
from secagg.steps import ADVERTISE_KEYS, MASKED_INPUT_COLLECTION, UNMASKING

NEVER = bytes(HASH_BYTES)
"""The round that a data set released last in a session in which it never released anything."""


@dataclass(frozen=True)
class Release:
    """A round whose unmasking shares this data set sent, with an update that was not private on its own.

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

    A round *exposes* an attempt where the two sums could be of the same updates: shares of the round were sent and its
    transcript was not replayed before the attempt was joined, or it was a round of another run on the same model.

    Args:
        entries: the durable entries, text to text. Whoever made them commits what this class changed, or none of it.
    """

    def __init__(self, entries: MutableMapping[str, str]) -> None:
        self._entries = entries

    # --- What an attempt marks, in the order of a round ---------------------------------------------------------------

    def join(self, slot: Slot, model_hash: bytes, private: bool) -> tuple[ReleaseClaim, ...]:
        """Mark an attempt before AdvertiseKeys is sent; it becomes the live one, and every other is dead from here.

        Returns:
            What the advertisement claims: the own releases that expose this attempt. A private attempt claims them as
            well: another member's update may not be private.

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
        exposing = self._exposing(slot, model_hash)
        if not private:
            self.refuse_exposure(slot, model_hash, ADVERTISE_KEYS)
        joins = self.joins + 1
        self._put("joins", joins)
        self._put(_key("joined", slot.session, slot.training_run), [slot.round_number, slot.attempt])
        own = {r.round_id.hex(): [r.name, r.claim is not None and _same_run(r.claim, slot)] for r in exposing}
        self._put("live", {"slot": slot.hash.hex(), "model": model_hash.hex(), "join": joins, "exposing": own})
        return tuple(release.claim for release in exposing if release.claim is not None)[-LARGEST_CLAIMS:]

    def contribute(self, slot: Slot, event_id: str, claims: Collection[ReleaseClaim], private: bool) -> None:
        """Mark the one contribution to a round number, with its ledger event, before the vector is masked.

        Uses up the acceptances that it needs: each counts for one contribution.

        Args:
            slot: the attempt.
            event_id: of the ledger.
            claims: what other members of U1 claim.
            private: whether the update is differentially private on its own and charged.

        Raises:
            UnexpectedMessageError: C-24, another attempt was joined meanwhile; C-14, this round number or a later one
                already has its contribution.
            ExposureError: C-05 or C-26, a round that exposes this attempt and was not accepted by name.
        """
        live = self._require_live(slot)
        highest = _key("contributed", slot.session, slot.training_run)
        last = self._get(highest, 0)
        if slot.round_number <= last:
            raise UnexpectedMessageError(
                "C-14",
                f"this data set already contributed to round {last} of run {slot.training_run} and gives nothing more "
                f"to round {slot.round_number}; it joins again in round {last + 1}",
            )
        if not private:
            # What exposed this attempt when it was joined still does: a replay since then has not changed its model.
            announced = {bytes.fromhex(round_id): name for round_id, (name, _) in live["exposing"].items()}
            self._refuse("C-05", MASKED_INPUT_COLLECTION, announced)
            self.refuse_claims(slot, claims, MASKED_INPUT_COLLECTION)
            used = {round_id: same for round_id, (_, same) in live["exposing"].items()}
            used |= {claim.round_id.hex(): _same_run(claim, slot) for claim in self._exposed_by(slot, claims)}
            for round_id in used:
                accepted = f"accepted/{round_id}"
                self._put(accepted, {**self._get(accepted, {}), "used_by": slot.hash.hex()})
            self._put(_key("used", slot.hash), used)
        self._put(highest, slot.round_number)
        self._put(f"{highest}/{slot.round_number}", {"attempt": slot.attempt, "event": event_id, "private": private})
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
        self._require_live(slot)
        if self._get("contribution", "") != slot.hash.hex():
            raise UnexpectedMessageError("C-24", f"{slot} is not what this data set contributed to last")
        self._entries.pop("contribution")  # released once
        earlier = self.open_release
        if not private and earlier is not None and earlier.round_id.hex() not in self._used(slot):
            raise _exposed("C-05", UNMASKING, {earlier.round_id: earlier.name})
        self._put(_key("released", slot.session), claim.round_id.hex())
        if not private:
            release = {"round_id": claim.round_id.hex(), "name": str(slot), "claim": _claim_fields(claim)}
            on_model = f"model/{claim.model_hash.hex()}"
            self._put(on_model, [*self._get(on_model, []), release])
            if not self.replayed(claim.round_id):
                waiting = _key("waiting", slot.session, slot.training_run)
                self._put(waiting, {**self._get(waiting, {}), claim.round_id.hex(): release})
                self._put("open", release)
            else:
                self._put("open", None)

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

    # --- A session that lies on a disk ------------------------------------------------------------------------------

    def suspend(self, slot: Slot, digest: bytes) -> None:
        """Mark the one snapshot of the live attempt that may be resumed: every earlier one is dead from here.

        Args:
            slot: the attempt.
            digest: H of the sealed snapshot, 32 bytes.

        Raises:
            UnexpectedMessageError: C-24, another attempt was joined meanwhile.
        """
        self._require_live(slot)
        self._put("suspended", digest.hex())

    def resume(self, slot: Slot, digest: bytes) -> None:
        """Use up the one snapshot that may be resumed. A crash behind this line costs the round.

        Raises:
            ConfigError: it is another one: used already, older, changed, or made with another store.
            UnexpectedMessageError: C-24, another attempt was joined meanwhile.
        """
        if self._get("suspended", "") != digest.hex():
            raise ConfigError(
                f"this snapshot of {slot} is not the one that the store waits for: it was used already, is older than "
                "the last one, or was made with another store; this client joins the next attempt"
            )
        self._entries.pop("suspended")
        self._require_live(slot)

    # --- What clears a release ----------------------------------------------------------------------------------------

    def replay(self, slot: Slot, round_id: bytes) -> None:
        """Mark that the transcript of this very round was replayed and holds; see `secagg.transcript.accept`.

        It counts for attempts that are joined from here on. Rounds of the same run whose acceptance this attempt used
        up are settled: the model has moved on since.
        """
        cleared = [round_id.hex(), *(done for done, same in self._used(slot).items() if same)]
        for done in cleared:  # the first time counts: one that comes again would expose attempts joined in between
            self._entries.setdefault(f"replayed/{done}", json.dumps(self._get("joins", 0)))
        key = _key("waiting", slot.session, slot.training_run)
        waiting = self._get(key, {})
        if waiting.keys() & set(cleared):
            self._put(key, {done: release for done, release in waiting.items() if done not in cleared})
        if (release := self.open_release) is not None and release.round_id.hex() in cleared:
            self._put("open", None)

    def replayed(self, round_id: bytes) -> bool:
        """Whether the transcript of this round was replayed here, or its exposure is settled."""
        return f"replayed/{round_id.hex()}" in self._entries

    def accept_exposure(self, round_id: bytes, signature: bytes) -> None:
        """Keep an operator's acceptance of one round; see `secagg.accept_exposure`, which signs it."""
        self._put(f"accepted/{round_id.hex()}", {"signature": signature.hex(), "used_by": ""})

    def accepted(self, round_id: bytes) -> bool:
        """Whether an operator accepted the exposure of this round, and the acceptance was not used yet."""
        return bool(self._get(f"accepted/{round_id.hex()}", {"used_by": "-"})["used_by"] == "")

    def refuse_exposure(self, slot: Slot, model_hash: bytes, step: str) -> None:
        """C-05: nothing goes into a sum that an own release exposes, unless its operator accepted that round by name.

        Raises:
            ExposureError: C-05, with the rounds.
        """
        self._refuse("C-05", step, {release.round_id: release.name for release in self._exposing(slot, model_hash)})

    def refuse_claims(self, slot: Slot, claims: Collection[ReleaseClaim], step: str) -> None:
        """C-26: the same for releases of others in the cohort of the live attempt.

        Raises:
            UnexpectedMessageError: C-24, another attempt was joined meanwhile.
            ExposureError: C-26, with the rounds.
        """
        self._refuse("C-26", step, {claim.round_id: str(claim.slot) for claim in self._exposed_by(slot, claims)})

    def _refuse(self, check: str, step: str, rounds: Mapping[bytes, str]) -> None:
        refused = {round_id: name for round_id, name in rounds.items() if not self.accepted(round_id)}
        if refused:
            raise _exposed(check, step, refused)

    def _used(self, slot: Slot) -> dict[str, bool]:
        """Rounds whose acceptance an attempt used up, and whether they were of its run."""
        used: dict[str, bool] = self._get(_key("used", slot.hash), {})
        return used

    def _exposed_by(self, slot: Slot, claims: Collection[ReleaseClaim]) -> list[ReleaseClaim]:
        """The claims that expose the live attempt.

        One of another session does so only where this data set added to that round, with an update that was not
        private: who is not in that sum stays in every difference with it, and nobody can stop others with rounds of
        theirs.
        """
        live = self._require_live(slot)
        return [
            claim
            for claim in claims
            if (claim.session == slot.session or self._added_to(claim))
            and (
                self._get(f"replayed/{claim.round_id.hex()}", live["join"]) >= live["join"]
                or (claim.model_hash.hex() == live["model"] and not _same_run(claim, slot))
            )
        ]

    def _added_to(self, claim: ReleaseClaim) -> bool:
        contribution = f"{_key('contributed', claim.session, claim.training_run)}/{claim.round_number}"
        return not self._get(contribution, {"private": True})["private"]

    def _exposing(self, slot: Slot, model_hash: bytes) -> list[Release]:
        """The own releases that expose an attempt, the open one last.

        Of the same run whatever is not accounted for, also on another model: an acceptance for a round of another run
        has settled nothing here. Of other runs what was on this very model.
        """
        waiting = self._get(_key("waiting", slot.session, slot.training_run), {}).values()
        on_model = [_release_of(kept) for kept in self._get(f"model/{model_hash.hex()}", [])]
        elsewhere = [release for release in on_model if release.claim and not _same_run(release.claim, slot)]
        own = [*elsewhere, *map(_release_of, waiting), self.open_release]
        return list({release.round_id: release for release in own if release is not None}.values())

    # --- What is known ------------------------------------------------------------------------------------------------

    @property
    def open_release(self) -> Release | None:
        """The one round whose shares were sent and that is neither replayed nor superseded."""
        kept = self._get("open", None)
        return None if kept is None else _release_of(kept)

    @property
    def releases(self) -> dict[bytes, Release]:
        """Every round whose shares were sent with an update that was not private on its own, by its id, 32 bytes."""
        on_models = [json.loads(self._entries[key]) for key in self._entries if key.startswith("model/")]
        every = [*(_release_of(kept) for of_model in on_models for kept in of_model), self.open_release]
        return {release.round_id: release for release in every if release is not None}

    def released(self, session: bytes) -> bytes:
        """The last round of a session whose shares were sent: 32 bytes, `NEVER` where there is none."""
        return bytes.fromhex(self._get(_key("released", session), NEVER.hex()))

    def summed(self, session: bytes, training_run: str, model_hash: bytes) -> list[bytes]:
        """Rounds of a run on this very model that were released and then replayed, 32 bytes each.

        They expose nothing of the run (a replay says that its model moves on), so who is sent a model looks here before
        it trains the same one again.
        """
        on_model = [_release_of(kept).claim for kept in self._get(f"model/{model_hash.hex()}", [])]
        of_run = [
            claim for claim in on_model if claim and (claim.session, claim.training_run) == (session, training_run)
        ]
        return [claim.round_id for claim in of_run if self.replayed(claim.round_id)]

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

    @property
    def joins(self) -> int:
        """How many attempts were joined, of any session and run."""
        count: int = self._get("joins", 0)
        return count

    def joined(self, session: bytes, training_run: str) -> tuple[int, int]:
        """The last (round number, attempt) of a run that was joined; (0, 0) at the start."""
        number, attempt = self._get(_key("joined", session, training_run), (0, 0))
        return number, attempt

    def head(self, session: bytes, training_run: str) -> tuple[int, bytes]:
        """Round number and head (32 bytes) of the last finished round of a run; (0, GENESIS) at the start."""
        number, head = self._get(_key("head", session, training_run), (0, GENESIS.hex()))
        return number, bytes.fromhex(head)

    def contributed(self, session: bytes, training_run: str) -> dict[int, str]:
        """Of each round to which this data set contributed: the ledger event that was charged for it."""
        prefix = _key("contributed", session, training_run) + "/"
        found = [key for key in self._entries if key.startswith(prefix)]
        return {int(key.removeprefix(prefix)): str(self._get(key, {}).get("event", "")) for key in found}

    def receipt(self, session: bytes, training_run: str, round_number: int) -> Receipt | None:
        """The receipt of a finished round; None where the log holds none."""
        entry = self._get(_key("round", session, training_run, round_number), None)
        return None if entry is None else _receipt_of(self._get(_entry(entry), None)["receipt"])

    def verify(self) -> None:
        """Recompute the hash chain of the log of heads, and what is looked up of it.

        Raises:
            ConfigError: an entry is missing or was changed.
        """
        newest, last = self._get("log", [0, GENESIS.hex()])
        link, index = GENESIS, dict[str, Any]()
        for number in range(1, newest + 1):
            try:
                entry = self._get(_entry(number), {})
                session, receipt = bytes.fromhex(entry["session"]), _receipt_of(entry["receipt"])
            except (KeyError, ValueError, TypeError, MalformedMessageError):
                raise _tampered(f"entry {number} of the log of heads") from None
            link = _link(link, session, receipt)
            index |= _index(session, receipt, number)
            if entry["link"] != link.hex():
                raise _tampered(f"entry {number} of the log of heads")
        kept = {key: self._get(key, None) for key in self._entries if key.startswith(("head/", "round/"))}
        if last != link.hex() or kept != index:
            raise _tampered("the index of the log of heads")

    # --- What an application keeps here -------------------------------------------------------------------------------

    def keep(self, name: str, value: object) -> None:
        """Keep what has to be as durable as the marks, such as how far a ledger has come; the protocol never reads it.

        Args:
            name: the application's own.
            value: what JSON can say.
        """
        self._put(f"kept/{name}", value)

    def kept(self, name: str) -> Any:
        """What was kept under a name; None where nothing was."""
        return self._get(f"kept/{name}", None)

    # --- Entries ------------------------------------------------------------------------------------------------------

    def _require_live(self, slot: Slot) -> dict[str, Any]:
        live: dict[str, Any] = self._get("live", {"slot": ""})
        if live["slot"] != slot.hash.hex():
            raise UnexpectedMessageError("C-24", f"this data set joined another attempt after {slot}, which ends here")
        return live

    def _log(self, session: bytes, receipt: Receipt) -> None:
        newest, previous = self._get("log", [0, GENESIS.hex()])
        link = _link(bytes.fromhex(previous), session, receipt).hex()
        entry = {"session": session.hex(), "receipt": _receipt_fields(receipt), "link": link}
        self._put(_entry(newest + 1), entry)
        self._put("log", [newest + 1, link])
        for key, value in _index(session, receipt, newest + 1).items():
            self._put(key, value)

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


def _exposed(check: str, step: str, rounds: Mapping[bytes, str]) -> ExposureError:
    who = "this site did send" if check == "C-05" else "another site of this cohort says that it sent"
    named = "; ".join(f"{name} ({round_id.hex()})" for round_id, name in rounds.items())
    return ExposureError(
        check,
        step,
        f"{who} unmasking shares for {named}, and this attempt may be about the same updates: the server "
        "could hold that sum, and its difference to another one without some site is what that site sent. Replay the "
        "transcript of that round; where there is none, or it was on this very model, let the operator accept its "
        "exposure by name",
        rounds,
    )


def _same_run(claim: ReleaseClaim, slot: Slot) -> bool:
    return (claim.session, claim.training_run) == (slot.session, slot.training_run)


@lru_cache(maxsize=256)  # an attempt looks the same few up again and again
def _key(table: str, session: bytes, *names: str | int) -> str:
    return "/".join([table, session.hex(), *(json.dumps(name) for name in names)])


def _entry(number: int) -> str:
    return f"log/{number:012d}"


def _index(session: bytes, receipt: Receipt, entry: int) -> dict[str, Any]:
    """What is looked up instead of going through the log: the entry of a round, and the last head of a run."""
    run, number = receipt.training_run, receipt.round_number
    head = [number, receipt.head.hex()]
    return {_key("round", session, run, number): entry, _key("head", session, run): head}


def _tampered(what: str) -> ConfigError:
    return ConfigError(
        f"{what} was changed or removed; keep the file, compare its heads with another site's and start a new training "
        "run"
    )


def _link(previous: bytes, session: bytes, receipt: Receipt) -> bytes:
    return digest("head-log", previous, session, receipt.statement(), receipt.signature)


def _claim_fields(claim: ReleaseClaim) -> dict[str, Any]:
    plain = {field.name: _hex(getattr(claim, field.name)) for field in fields(claim) if field.name != "attestations"}
    return {**plain, "attestations": {who: signature.hex() for who, signature in claim.attestations.items()}}


def _release_of(kept: dict[str, Any]) -> Release:
    claim = _claim_of(kept["claim"]) if kept["claim"] else None
    return Release(bytes.fromhex(kept["round_id"]), kept["name"], claim)


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
