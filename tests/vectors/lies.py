"""The bad cases of tests/vectors: one lie, one file, one check that has to fire. Run by generate.py.

What a corrupt client says carries its own signature, what it says in another's name does not: nobody forges Ed25519.
Specification: docs/spec.md, section "Checks".
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
from playing import RUN, SENDS, SERVER, Files, Json, Run, drawn, randomness, signing_key, start_message

import secagg.client
from secagg import Suite, wire
from secagg.client import LARGEST_STEP
from secagg.context import next_head
from secagg.errors import MalformedMessageError
from secagg.keys import ChannelKey, MaskKey
from secagg.masking import envelope_info, share_commitment
from secagg.merkle import root_of, tree
from secagg.messages import (
    Abort,
    AdvertiseKeys,
    Attestation,
    Attestations,
    Bundle,
    EncryptedShares,
    IncludedSet,
    ReleaseClaim,
    Reports,
    Roster,
    ShareInbox,
    UnmaskingShares,
)
from secagg.packing import pack, unpack
from secagg.shamir import PRIME, SHARE_BYTES, split

BASE, HYBRID, SIX = "round_n5_silent_mask_input", "round_n3_hybrid", "round_n6_hybrid"
"""What lies are told in: site-e drops out of the first and the last."""
VICTIM, LIAR, OUTSIDER = "site-a", "site-d", "site-x"
OTHER = drawn("another hash", 32)
LISTS = {
    Roster: "advertisements",
    ShareInbox: "headers",
    Reports: "reports",
    IncludedSet: "inputs",
    Attestations: "attestations",
}
HASHES = (
    *("slot", "roster1", "roster2", "round_id", "attested", "sharers_hash", "y_hash", "total_hash", "head"),
    *("previous_head", "model_hash", "task_hash", "self_commitment", "mask_key_commitment", "self_seed_commitment"),
    *("pair_commitment", "self_seed", "released", "session", "inputs_hash", "bundles_root"),
)
SHAPES: dict[str, Any] = dict.fromkeys(HASHES, bytes(31)) | {
    "nonce": bytes(15),
    "client_id": "",
    "training_run": "",
    "complaint": "x" * 65,
    "self_seed_shares": {"": bytes(33)},
    "mask_key_shares": {"": bytes(33)},
    "pair_secrets": {VICTIM: bytes(31)},
    "attestations": {VICTIM: bytes(63)},
    "masks": {VICTIM: bytes(8), "site-b": bytes(9)},
    "round_number": 0,
    "reason": "two\nlines",
}
"""Fields of a fixed shape, and what they are not."""
Lie = Callable[[Any], Any]


# --- what a liar says ----------------------------------------------------------------------------------------------


def same(message: Any) -> Any:
    return message


def flip(value: bytes) -> bytes:
    """The last bit changed."""
    return bytes(value[:-1]) + bytes([value[-1] ^ 1])


def unsigned(**changes: Any) -> Lie:
    return lambda message: replace(message, **changes)


def signed(**changes: Any) -> Lie:
    """Changed, and signed by whom it then names."""
    return lambda message: by_itself(replace(message, **changes))


def by_itself(message: Any) -> Any:
    return message.sign(signing_key(message.client_id))


def unchecked(message: Any, **changes: Any) -> Any:
    """A copy that could not be built: a lie does not check its own shape before it is sent."""
    copy = object.__new__(type(message))
    for item in fields(message):
        object.__setattr__(copy, item.name, changes.get(item.name, getattr(message, item.name)))
    return copy


def misshapen(**changes: Any) -> Lie:
    return lambda message: unchecked(message, **changes)


def entry(message: Any, client_id: str) -> Any:
    return next(item for item in getattr(message, LISTS[type(message)]) if item.client_id == client_id)


def listed(message: Any, *new: Any, without: str = "") -> Any:
    """The list with these entries in the place of their clients' old ones."""
    name = LISTS[type(message)]
    gone = {without, *(item.client_id for item in new)}
    kept = [item for item in getattr(message, name) if item.client_id not in gone]
    return replace(message, **{name: tuple(sorted([*kept, *new], key=lambda item: item.client_id))})


def forged(who: str = "site-b", **changes: Any) -> Lie:
    """An honest client's entry, changed after it was signed."""
    return lambda message: listed(message, replace(entry(message, who), **changes))


def impostor(message: Roster) -> Roster:
    return listed(message, entry(message, "site-b").sign(signing_key(LIAR)))


def colluding(who: str = LIAR, **changes: Any) -> Lie:
    """The liar's entry changed, and signed."""
    return lambda message: listed(message, by_itself(replace(entry(message, who), **changes)))


def cut(name: str, length: int) -> Lie:
    return lambda message: replace(message, **{name: getattr(message, name)[:length]})


def dealt(message: EncryptedShares, bundles: Iterable[Bundle]) -> EncryptedShares:
    """Other bundles under a header that commits to them."""
    ordered = tuple(bundles)
    root, _ = tree([bundle.digest() for bundle in ordered])
    return EncryptedShares(by_itself(replace(message.header, bundles_root=root)), ordered)


def headed(**changes: Any) -> Lie:
    return lambda message: replace(message, header=by_itself(replace(message.header, **changes)))


def first_bundle(**changes: Any) -> Lie:
    return lambda message: dealt(message, [replace(message.bundles[0], **changes), *message.bundles[1:]])


def swapped(message: Any) -> Any:
    first, second, *rest = message.bundles
    return replace(message, bundles=(second, first, *rest))


def inbox_with(bundle: Callable[[Bundle], Bundle], dealer: str = LIAR) -> Lie:
    """One bundle changed, under a header that commits to it."""

    def lie(message: ShareInbox) -> ShareInbox:
        place = [header.client_id for header in message.headers if header.client_id != VICTIM].index(dealer)
        changed, header = bundle(message.bundles[place]), entry(message, dealer)
        bundles = (*message.bundles[:place], changed, *message.bundles[place + 1 :])
        path = message.paths[place]  # nobody comes before the victim
        root = root_of(changed.digest(), 0, len(message.headers) - 1, path)
        return replace(listed(message, by_itself(replace(header, bundles_root=root))), bundles=bundles)

    return lie


def inbox_flipped(name: str, dealer: str = LIAR) -> Lie:
    return inbox_with(lambda bundle: replace(bundle, **{name: flip(getattr(bundle, name))}), dealer)


def provoking(message: ShareInbox) -> ShareInbox:
    """An honest dealer's envelope flipped, under a header that carries its signature on another one."""
    lie = inbox_flipped("shares", "site-b")(message)
    return listed(lie, replace(entry(lie, "site-b"), signature=entry(message, "site-b").signature))


def receipt(**changes: Any) -> Lie:
    """A result whose receipt the server signed all the same."""
    return lambda message: replace(message, receipt=replace(message.receipt, **changes).sign(SERVER))


def edited(name: str, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Lie:
    return lambda message: signed(**{name: change(dict(getattr(message, name)))})(message)


def flipped(values: dict[str, bytes]) -> dict[str, bytes]:
    """The first one changed."""
    (client_id, value), *rest = values.items()
    return {client_id: flip(value), **dict(rest)}


def both_kinds(message: UnmaskingShares) -> UnmaskingShares:
    both = dict(sorted({**message.self_seed_shares, **message.mask_key_shares}.items()))
    return unchecked(message, self_seed_shares=both, mask_key_shares=both)  # type: ignore[no-any-return]


# --- who tells it, and what it is written into -----------------------------------------------------------------------


class Liars:
    """Writes one file per lie, named after the check and the comment, and insists that this check fires."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def name(self, check: str, comment: str) -> str:
        words = re.sub(r"[^a-z0-9 ]", "", comment.lower()).split()
        return "_".join(["bad", check.lower().replace("-", ""), *words[words[0] in ("a", "an", "the") :]])

    def branch(self, check: str, comment: str, base: Run, run: Run, replayed: int, resumes: bool = False) -> None:
        """A file that goes on from some operation of a good round."""
        self.files.branch(self.fired(check, comment, run), base, run, replayed, comment, resumes)

    def whole(self, check: str, comment: str, run: Run) -> None:
        """A file of its own, where the lie changes everything after it."""
        assert run.name == self.fired(check, comment, run)
        self.files.write(run, comment, False)

    def fired(self, check: str, comment: str, run: Run) -> str:
        assert run.operations[-1].get("check") == check, (check, comment, run.operations[-1])
        return self.name(check, comment)

    def to_client(
        self, check: str, comment: str, operation: str, lie: Lie | bytes, base: str = BASE, before: str = ""
    ) -> None:
        """The server tells the victim a lie.

        Args:
            check: that fires.
            comment: what is wrong.
            operation: whose input is the lie.
            lie: what becomes of the honest message, or all of its bytes.
            base: the round that is replayed up to this point.
            before: operation that is due, if another.
        """
        run = self.files.runs[base]
        replayed = run.index(before or operation, VICTIM)
        told = lie
        if callable(lie):
            told = lie(wire.decode_from_server(run.input_of(run.index(operation, VICTIM))))
        again = run.branch(replayed)
        again.do(operation, VICTIM, data=told if isinstance(told, bytes) else wire.encode(told), name="lie")
        self.branch(check, comment, run, again, replayed)

    def to_server(
        self,
        check: str,
        comment: str,
        due: str,
        lie: Lie,
        base: str = BASE,
        sender: str = "",
        kind: str = "",
        on: int = 0,
    ) -> None:
        """A client tells the server a lie; the round then ends as if nothing had been.

        Args:
            check: that fires.
            comment: what is wrong.
            due: kind of message that is due from the liar.
            lie: what becomes of its honest message.
            base: the round that is replayed up to this point.
            sender: as the transport authenticated it; the liar itself where empty.
            kind: of the honest message, if another is said than the one that is due.
            on: operations to replay beyond this point.
        """
        run = self.files.runs[base]
        liar = min(LIAR, run.setting.ids[-1])
        told = lie(wire.decode_from_client(run.messages[f"{kind or due}.{liar}"]))
        replayed = run.index("server_receive", liar, due) + on
        again = run.branch(replayed)
        data = told if isinstance(told, bytes) else wire.encode(told)
        again.do("server_receive", sender or liar, data=data, name="lie")
        self.branch(check, comment, run, again, replayed, resumes=True)


# --- a server that lies ----------------------------------------------------------------------------------------------


def lying_starts(liars: Liars) -> None:
    """RoundStart, and marks that do not increase."""
    base = liars.files.runs[BASE]
    start, done = wire.decode_from_server(start_message()), base.views[0]["Result"].receipt
    later = replace(done, round_number=2, previous_head=done.head).sign(SERVER)
    far = replace(done, round_number=LARGEST_STEP + 1).sign(SERVER)
    for check, comment, lie in [
        ("C-01", "Another model, after the start was signed", wire.encode(replace(start, model_hash=OTHER))),
        ("C-01", "A round start that a client signed", wire.encode(start.sign(signing_key(LIAR)))),
        ("C-01", "A receipt of another sum", start_message(2, done.head, (replace(done, total_hash=OTHER),))),
        ("C-02", "Another run", start_message(run=f"not {RUN}")),
        ("C-04", "A previous head that is not in the log", start_message(head=OTHER)),
        ("C-04", "A round number that is not above the log", start_message(1, done.head, (done,))),
        ("C-04", "A round number too far ahead", start_message(LARGEST_STEP + 1)),
        ("C-04", "A receipt too far ahead", start_message(2 * LARGEST_STEP, far.head, (far,))),
        ("C-23", "Another model than the client's own", start_message(model=OTHER)),
        ("C-23", "Another task than the client's own", start_message(task=OTHER)),
        ("C-04", "A head without the receipt that leads to it", start_message(2, done.head)),
        ("C-04", "A receipt that does not continue the log", start_message(3, later.head, (later,))),
        ("C-04", "A head that does not follow", start_message(2, OTHER, (replace(done, head=OTHER).sign(SERVER),))),
    ]:
        liars.to_client(check, comment, "open_round", lie, before="advertise_keys")
    burned, not_replayed = start_message(2), start_message(2, done.head, (done,))
    liars.to_client("C-05", "An opened round is called burned", "open_round", burned, before="conclude")
    liars.to_client("C-05", "A transcript was not replayed", "open_round", not_replayed, before="conclude")
    replayed = base.index("conclude", VICTIM)
    run = base.branch(replayed)
    run.do("accept_exposure", VICTIM, round=OTHER.hex())
    run.do("open_round", VICTIM, data=not_replayed, name="start")
    liars.branch("C-05", "Another round was accepted", base, run, replayed)

    replayed = base.index("advertise_keys", VICTIM)
    run = base.branch(replayed)
    run.do("open_round", VICTIM, data=start_message(2, OTHER, (done,)), name="refused start")
    run.do("open_round", VICTIM, data=start_message(2, done.head), name="start")
    liars.branch("C-04", "The receipt of a start that was refused is not kept", base, run, replayed)

    replayed = base.index("share_keys", VICTIM)
    run = base.branch(replayed)
    run.do("advertise_keys", VICTIM)
    liars.branch("C-03", "The same attempt a second time", base, run, replayed)

    comment = "A later attempt at a round number contributed to"
    run = liars.files.run(liars.name("C-14", comment))
    for attempt in (0, 1):
        run.open(attempt=attempt)
        run.play(attempt, until="mask_input")
    liars.whole("C-14", comment, run)

    base = liars.files.runs["round_n3_b32"]
    replayed, done = base.index("conclude", VICTIM), base.views[0]["Result"].receipt
    other = bytes([9]) * 32
    head = next_head(done.previous_head, done.round_id, done.attested, other)
    done = replace(done, total_hash=other, head=head).sign(SERVER)
    run = base.branch(replayed)
    run.do("mark_replayed", VICTIM, round=base.views[0]["Result"].receipt.round_id.hex())
    run.do("open_round", VICTIM, data=start_message(2, done.head, (done,)), name="start")
    run.do("conclude", VICTIM, data=base.input_of(replayed))
    liars.branch("C-22", "A result after a receipt of another sum", base, run, replayed)


def between_rounds(liars: Liars) -> None:
    """Another attempt of the same data set, and rounds that others released shares in."""
    for comment, operation, heard in [
        ("A contribution to an attempt that is over", "mask_input", "Reports"),
        ("A release in an attempt that is over", "unmask", "Attestations"),
    ]:
        run = liars.files.run(liars.name("C-24", comment))
        run.open()
        run.open(attempt=1)
        run.play(silent={VICTIM: operation}, until=operation)
        run.do("advertise_keys", VICTIM, 1)
        run.do(operation, VICTIM, data=run.messages[heard])
        liars.whole("C-24", comment, run)

    for check, comment, clear, lie in [
        ("C-26", "A round that others released and nobody accounts for", "", same),
        ("C-26", "Its transcript comes after the attempt was joined", "mark_replayed", same),
        ("C-06", "A claim in an advertisement changed after it was signed", "", forged(nonce=bytes(16))),
        ("C-06", "A claim in an advertisement that somebody else signed", "", impostor),
    ]:
        run = liars.files.run(liars.name(check, comment), n=4)
        run.open()
        run.play(silent={VICTIM: "advertise_keys"})
        round_id = run.views[0]["Result"].receipt.round_id.hex()
        run.open(2, head=run.views[0]["Result"].receipt.head)
        for party in run.setting.ids[1:]:
            run.do("accept_exposure", party, round=round_id)
        run.play(1, silent={VICTIM: "share_keys"}, until="share_keys")
        if clear:
            run.do(clear, VICTIM, round=round_id)
        told = lie(wire.decode_from_server(run.messages["Roster@1"]))
        run.do("share_keys", VICTIM, 1, data=wire.encode(told), name="lie")
        liars.whole(check, comment, run)

    run = liars.files.runs[BASE]
    claim = invented(run, run.session)
    liars.to_client("C-25", "A claim that no quorum attested", "share_keys", colluding(exposing=(claim,)))
    liars.to_server("S-22", "A claim that no quorum attested", "AdvertiseKeys", signed(exposing=(claim,)))


def invented(run: Run, session: bytes) -> ReleaseClaim:
    """A claim about a round that never was, attested by the liar alone."""
    context = run.contexts[0]
    hashes = (context.model_hash, context.task_hash, context.previous_head)
    claim = ReleaseClaim(session, RUN, 1, 0, *hashes, OTHER, OTHER, OTHER, {LIAR: bytes(64)})
    attestation = by_itself(Attestation(claim.attested, LIAR))
    return replace(claim, attestations={LIAR: attestation.signature})


def lying_rosters(liars: Liars) -> None:
    def copied(message: Roster) -> Roster:
        return colluding(mask_dh_pk=entry(message, "site-b").mask_dh_pk)(message)

    def doubled(message: Roster) -> Roster:
        return colluding(mask_dh_pk=entry(message, LIAR).channel_pk)(message)

    def earlier(message: Roster) -> Roster:
        with randomness("keys that site-a lost", []):
            channel, mask = ChannelKey(Suite.X25519), MaskKey(Suite.X25519)
        return colluding(VICTIM, channel_pk=channel.public, mask_dh_pk=mask.dh_public)(message)

    def no_nonce(message: Roster) -> Roster:
        first, *rest = message.advertisements
        return unchecked(message, advertisements=(unchecked(first, nonce=b""), *rest))

    order_eight = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
    at_the_prime = b"\xed" + b"\xff" * 30 + b"\x7f"
    for check, comment, lie in [
        ("C-06", "An id that nobody pinned", colluding(client_id=OUTSIDER)),
        ("C-06", "An advertisement for another slot", colluding(slot=OTHER)),
        ("C-07", "A mask key of zero", colluding(mask_dh_pk=bytes(32))),
        ("C-07", "A channel key of order eight", colluding(channel_pk=order_eight)),
        ("C-07", "A channel key at the prime", colluding(channel_pk=at_the_prime)),
        ("C-07", "A channel key above the prime", colluding(channel_pk=b"\xf6" + at_the_prime[1:])),
        ("C-07", "A channel key with the unused bit set", colluding(channel_pk=b"\x09" + bytes(30) + b"\x80")),
        ("C-07", "A key of the other suite", colluding(mask_kem_pk=bytes(1216))),
        ("C-07", "Another client's key", copied),
        ("C-07", "One key for two purposes", doubled),
        ("C-08", "A roster without its reader", lambda m: listed(m, without=VICTIM)),
        ("C-08", "The reader's keys from before its store was lost", earlier),
        ("C-21", "Too few in U1", cut("advertisements", 3)),
        ("M-01", "Ids in another order", lambda m: unchecked(m, advertisements=m.advertisements[::-1])),
        ("M-01", "An id twice", lambda m: unchecked(m, advertisements=m.advertisements * 2)),
        ("M-01", "No nonce", no_nonce),
        ("W-01", "The last byte of a roster is missing", lambda m: wire.encode(m)[:-1]),
        ("W-01", "A client's message as the server's", lambda m: wire.encode(m.advertisements[0])),
        ("W-01", "A field that no message has", lambda m: wire.encode(m) + b"\xa2\x06\x01x"),
        ("W-01", "An empty roster whose length takes two bytes", b"\x4a\x80\x00"),
    ]:
        liars.to_client(check, comment, "share_keys", lie)

    def unreduced(message: Roster) -> Roster:
        key = b"\xff\xff\xff" + entry(message, "site-c").mask_kem_pk[3:]
        return colluding("site-c", mask_kem_pk=key)(message)

    liars.to_client("C-07", "An MLKEM key with a coefficient of 4095", "share_keys", unreduced, HYBRID)
    second = forged(nonce=bytes(16))
    liars.to_client("C-20", "A second and different roster", "share_keys", second, before="report")


def lying_inboxes(liars: Liars) -> None:
    base = liars.files.runs[BASE]
    view = base.views[0]["Roster"]
    slot, public = view.by_id[VICTIM].slot, view.by_id[VICTIM].channel_pk
    info = envelope_info("shares", slot, view.hash, LIAR, VICTIM)

    def sealed(check: str, comment: str, change: Callable[[bytes], bytes]) -> tuple[str, str, Lie]:
        """The liar seals something else to the victim, and commits to that."""

        def bundle(old: Bundle) -> Bundle:
            run = base.branch(0)
            run.openers, run.envelopes = base.openers, liars.files.envelopes(liars.name(check, comment))
            plaintext = change(base.openers[public](info, old.shares))
            s, b = plaintext[:SHARE_BYTES], plaintext[SHARE_BYTES:]
            commit = lambda kind, share: share_commitment(slot, view.hash, LIAR, VICTIM, kind, share)  # noqa: E731
            shares = run.seal(Suite.X25519, public, info, plaintext)
            return replace(old, shares=shares, mask_key_commitment=commit("s", s), self_seed_commitment=commit("b", b))

        return check, comment, inbox_with(bundle)

    def longer(message: ShareInbox) -> ShareInbox:
        return replace(message, paths=(message.paths[0] + OTHER, *message.paths[1:]))

    def resent(message: ShareInbox) -> ShareInbox:
        return inbox_with(lambda bundle: replace(bundle, shares=message.bundles[0].shares))(message)

    def altered(message: ShareInbox) -> ShareInbox:
        first, *rest = message.bundles
        return replace(message, bundles=(replace(first, shares=flip(first.shares)), *rest))

    def uneven(message: ShareInbox) -> ShareInbox:
        return unchecked(message, paths=(*message.paths[1:], bytes(33)))

    for check, comment, lie in [
        ("C-09", "A header for another roster", colluding(roster1=OTHER)),
        ("C-09", "A header for another slot", colluding(slot=OTHER)),
        ("C-09", "A complaint provoked by a header that its dealer did not sign", provoking),
        ("C-10", "A header of an outsider", colluding(client_id=OUTSIDER)),
        ("C-10", "The reader's own header is missing", lambda m: listed(m, without=VICTIM)),
        ("C-10", "Another header of the reader's own", colluding(VICTIM, self_commitment=OTHER)),
        ("C-10", "A bundle too few", cut("bundles", 3)),
        ("C-10", "A path too few", cut("paths", 3)),
        ("C-11", "Two bundles in each other's place", swapped),
        ("C-11", "An envelope that the server changed", altered),
        ("C-11", "A path that goes on above the root", longer),
        ("C-12", "An envelope that does not open", inbox_flipped("shares")),
        ("C-12", "Another dealer's envelope", resent),
        ("C-12", "A share of s that misses its commitment", inbox_flipped("mask_key_commitment")),
        ("C-12", "A share of b that misses its commitment", inbox_flipped("self_seed_commitment")),
        sealed("C-12", "A share that equals the prime", lambda p: PRIME.to_bytes(33, "big") + p[33:]),
        sealed("C-12", "A share of 34 bytes", lambda p: p + b"\0"),
        ("C-21", "Too few dealers", lambda m: ShareInbox(m.headers[:3], m.bundles[:2], m.paths[:2])),
        ("M-01", "A path that is not of hashes of 32 bytes", uneven),
    ]:
        liars.to_client(check, comment, "report", lie)
    # Of positions 1 and 3 the larger id deals, which is site-c.
    pair, commitment = inbox_flipped("pair", "site-c"), inbox_flipped("pair_commitment", "site-c")
    liars.to_client("C-12", "A pair secret that does not open", "report", pair, HYBRID)
    liars.to_client("C-12", "A pair secret that misses its commitment", "report", commitment, HYBRID)


def lying_lists(liars: Liars) -> None:
    """Reports, inputs, attestations, results."""

    def late(message: Any) -> Any:
        """An entry of site-e, who was not there."""
        return colluding(client_id="site-e")(message)

    unsigned_receipt = lambda m: replace(m, receipt=replace(m.receipt, signature=bytes(64)))  # noqa: E731
    by_client = lambda m: replace(m, receipt=m.receipt.sign(signing_key(LIAR)))  # noqa: E731
    for check, comment, operation, lie in [
        ("C-13", "A report of an outsider", "mask_input", colluding(client_id=OUTSIDER)),
        ("C-13", "A report on other headers", "mask_input", colluding(roster2=OTHER)),
        ("C-13", "A report for another slot", "mask_input", colluding(slot=OTHER)),
        ("C-13", "A complaint sold as a report", "mask_input", colluding(complaint="site-b")),
        ("C-13", "A report without its signature", "mask_input", forged(signature=bytes(64))),
        ("C-13", "The reader's own report changed", "mask_input", forged(VICTIM, signature=bytes(64))),
        ("C-21", "Too few sharers", "mask_input", cut("reports", 3)),
        ("C-15", "An input for another round or model", "attest", colluding(round_id=OTHER)),
        ("C-15", "An input for other sharers", "attest", colluding(sharers_hash=OTHER)),
        ("C-15", "An input for other headers", "attest", colluding(roster2=OTHER)),
        ("C-15", "An input whose hash the server changed", "attest", forged(y_hash=OTHER)),
        ("C-16", "An input of an outsider", "attest", colluding(client_id=OUTSIDER)),
        ("C-16", "Another input of the reader's own", "attest", colluding(VICTIM, y_hash=OTHER)),
        ("C-21", "Too few inputs", "attest", cut("inputs", 3)),
        ("M-01", "No inputs at all", "attest", misshapen(inputs=())),
        ("C-17", "One attestation short of a quorum", "unmask", cut("attestations", 3)),
        ("C-17", "An attestation of another set", "unmask", colluding(attested=OTHER)),
        ("C-17", "An attestation without its signature", "unmask", forged(signature=bytes(64))),
        ("C-17", "An attestation of a client that dropped out", "unmask", late),
        ("C-18", "A receipt without its signature", "conclude", unsigned_receipt),
        ("C-18", "A receipt that a client signed", "conclude", by_client),
        ("C-19", "A sum that is not the receipt's", "conclude", lambda m: replace(m, total=flip(m.total))),
        ("C-19", "A head that does not follow", "conclude", receipt(head=OTHER)),
        ("C-19", "A receipt for another set", "conclude", receipt(attested=OTHER)),
        ("C-19", "A receipt for another round number", "conclude", receipt(round_number=2)),
    ]:
        liars.to_client(check, comment, operation, lie)
    liars.to_client("C-13", "A report without a header", "mask_input", late, "round_n5_silent_share_keys")
    liars.to_client("C-16", "An input without a report", "attest", late, "round_n5_silent_report")
    liars.to_client("C-20", "Inputs before reports", "attest", same, before="mask_input")
    for operation in ("report", "unmask"):
        ended = lambda m: Abort(OTHER, "the server goes off")  # noqa: E731
        liars.to_client("C-28", f"An end of another attempt where {operation} is due", operation, ended)


# --- clients that lie ------------------------------------------------------------------------------------------------


def lying_clients(liars: Liars) -> None:
    base = liars.files.runs[BASE]

    def of_another(message: Any) -> bytes:
        return base.messages[f"{type(message).__name__}.site-b"]

    def copied(message: AdvertiseKeys) -> AdvertiseKeys:
        theirs: Any = wire.decode_from_client(of_another(message))
        return signed(mask_dh_pk=theirs.mask_dh_pk)(message)  # type: ignore[no-any-return]

    def without_commitment(message: EncryptedShares) -> EncryptedShares:
        first, *rest = message.bundles
        return unchecked(message, bundles=(unchecked(first, mask_key_commitment=b""), *rest))  # type: ignore[no-any-return]

    def of_the_dropped(message: UnmaskingShares) -> UnmaskingShares:
        every = {**message.self_seed_shares, **message.mask_key_shares}
        return signed(self_seed_shares=every, mask_key_shares={})(message)  # type: ignore[no-any-return]

    def backwards(message: UnmaskingShares) -> UnmaskingShares:
        return unchecked(message, self_seed_shares=dict(reversed(message.self_seed_shares.items())))  # type: ignore[no-any-return]

    keys, shares, report, masked = "AdvertiseKeys", "EncryptedShares", "ShareReport", "MaskedInput"
    attest, unmask, confirm = "Attestation", "UnmaskingShares", "Confirmation"
    at_the_prime = {"site-e": PRIME.to_bytes(33, "big")}
    too_long = lambda m: first_bundle(shares=m.bundles[0].shares + b"x")(m)  # noqa: E731
    other_header = lambda m: replace(m, header=replace(m.header, self_commitment=OTHER))  # noqa: E731
    for check, comment, due, lie in [
        ("S-03", "Another client's advertisement", keys, of_another),
        ("S-03", "Another client's bundles", shares, of_another),
        ("S-03", "Another client's report", report, of_another),
        ("S-03", "Another client's masked input", masked, of_another),
        ("S-03", "Another client's attestation", attest, of_another),
        ("S-03", "Another client's shares", unmask, of_another),
        ("S-03", "Another client's confirmation", confirm, of_another),
        ("S-04", "An advertisement for another slot", keys, signed(slot=OTHER)),
        ("S-04", "An advertisement changed after it was signed", keys, unsigned(nonce=bytes(16))),
        ("S-05", "A mask key of zero", keys, signed(mask_dh_pk=bytes(32))),
        ("S-05", "A channel key above the prime", keys, signed(channel_pk=b"\xff" * 32)),
        ("S-05", "No channel key", keys, signed(channel_pk=b"")),
        ("S-05", "Another client's key", keys, copied),
        ("S-05", "One key for two purposes", keys, lambda m: signed(mask_dh_pk=m.channel_pk)(m)),
        ("S-06", "A header for another roster", shares, headed(roster1=OTHER)),
        ("S-06", "A header for another slot", shares, headed(slot=OTHER)),
        ("S-06", "A header changed after it was signed", shares, other_header),
        ("S-07", "Bundles in another order than in the tree", shares, swapped),
        ("S-08", "A bundle too few", shares, lambda m: dealt(m, m.bundles[:-1])),
        ("S-08", "A bundle too many", shares, lambda m: dealt(m, [*m.bundles, m.bundles[0]])),
        ("S-08", "An envelope of another length", shares, too_long),
        ("S-08", "A pair commitment in the X25519 suite", shares, first_bundle(pair_commitment=OTHER)),
        ("S-09", "A report on other headers", report, signed(roster2=OTHER)),
        ("S-09", "A complaint about an outsider", report, signed(complaint=OUTSIDER)),
        ("S-09", "A complaint about oneself", report, signed(complaint=LIAR)),
        ("S-09", "A complaint without a signature over it", report, unsigned(complaint="site-b")),
        ("S-10", "An input for another round or model", masked, signed(round_id=OTHER)),
        ("S-10", "An input for other sharers", masked, signed(sharers_hash=OTHER)),
        ("S-10", "An input changed after it was signed", masked, lambda m: replace(m, y=flip(m.y))),
        ("S-11", "A word too many", masked, lambda m: signed(y=bytes(m.y) + bytes(4))(m)),
        ("S-11", "A byte too few", masked, lambda m: signed(y=m.y[:-1])(m)),
        ("S-12", "An attestation of another set", attest, signed(attested=OTHER)),
        ("S-12", "An attestation without its signature", attest, unsigned(signature=bytes(64))),
        ("S-13", "Shares for another round", unmask, signed(round_id=OTHER)),
        ("S-13", "Shares for another set", unmask, signed(attested=OTHER)),
        ("S-13", "Shares changed after they were signed", unmask, unsigned(self_seed=OTHER)),
        ("S-14", "A share of b too few", unmask, edited("self_seed_shares", lambda d: dict(list(d.items())[1:]))),
        ("S-14", "No share of s of the dropped", unmask, edited("mask_key_shares", lambda d: {})),
        ("S-14", "A share of b of the dropped", unmask, of_the_dropped),
        ("S-15", "Another b than committed to", unmask, signed(self_seed=OTHER)),
        ("S-16", "A wrong share of b", unmask, edited("self_seed_shares", flipped)),
        ("S-16", "A wrong share of s", unmask, edited("mask_key_shares", flipped)),
        ("S-21", "A confirmation of another head", confirm, signed(head=OTHER)),
        ("S-21", "A confirmation without its signature", confirm, unsigned(signature=bytes(64))),
        ("M-01", "A slot of 31 bytes", keys, misshapen(slot=bytes(31))),
        ("M-01", "No commitment", shares, without_commitment),
        ("M-01", "Shares of both kinds for one client", unmask, both_kinds),
        ("M-01", "A released share that equals the prime", unmask, misshapen(mask_key_shares=at_the_prime)),
        ("M-01", "A pair secret of an included client", unmask, misshapen(pair_secrets={"site-b": OTHER})),
        ("M-01", "Shares in another order", unmask, backwards),
        ("M-01", "A message without fields", attest, lambda m: b"\x2a\x00"),
        ("W-01", "The last byte is missing", keys, lambda m: wire.encode(m)[:-1]),
        ("W-01", "A byte too many", report, lambda m: wire.encode(m) + b"\0"),
        ("W-01", "A message twice", attest, lambda m: wire.encode(m) * 2),
        ("W-01", "A length in more bytes than it takes", confirm, lambda m: b"\x3a\xec\x00" + wire.encode(m)[2:]),
        ("W-01", "The server's message as a client's", keys, lambda m: base.messages["Roster"]),
        ("W-01", "A masked input without its vector", masked, lambda m: wire.encode(m)[: -3 - len(m.y)]),
        ("W-01", "A vector where none belongs", attest, lambda m: wire.encode(m) + b"\x92\x01\x01x"),
    ]:
        liars.to_server(check, comment, due, lie)

    late = signed(client_id="site-e")
    liars.to_server("S-01", "A client that is not in the roster", keys, same, sender=OUTSIDER)
    liars.to_server("S-01", "Keys where a report is due", report, same, kind=keys)
    liars.to_server("S-01", "A masked input after U3 was fixed", attest, late, sender="site-e", kind=masked)
    liars.to_server("S-01", "Shares of a client that dropped out", unmask, late, sender="site-e")
    second = "A second and different "
    liars.to_server("S-02", second + "advertisement", keys, signed(nonce=bytes(16)), on=1)
    liars.to_server("S-02", second + "report", report, signed(complaint="site-b"), on=1)
    liars.to_server("S-02", second + "input", masked, lambda m: signed(y=flip(m.y))(m), on=1)
    liars.to_server("S-02", second + "release", unmask, signed(self_seed=OTHER), on=1)

    padded = lambda m: signed(y=bytes(m.y[:-1]) + bytes([m.y[-1] | 0x80]))(m)  # noqa: E731
    liars.to_server("S-11", "A bit set in the padding", masked, padded, "round_n3_b23")

    def not_due(message: EncryptedShares) -> EncryptedShares:
        """At position 3, site-c deals the pair with 1 (the larger id, for the difference is even), not that with 2."""
        due, other = message.bundles
        return dealt(message, [due, replace(other, pair=due.pair, pair_commitment=OTHER)])

    missing = first_bundle(pair=b"", pair_commitment=b"")
    liars.to_server("S-08", "No pair secret where one is due", shares, missing, HYBRID)
    liars.to_server("S-08", "A pair secret that the peer deals", shares, not_due, HYBRID)
    liars.to_server("S-14", "No pair secret with the dropped", unmask, edited("pair_secrets", lambda d: {}), SIX)
    liars.to_server("S-17", "A wrong pair secret", unmask, edited("pair_secrets", flipped), SIX)


# --- lies that only show when everything is opened -------------------------------------------------------------------


def dealing(secret: int, shares: Callable[[int], int]) -> Any:
    """While it lasts, site-d shares something else, consistently: instead of s (secret = 0) or b (1)."""
    calls: list[None] = []

    def crooked(honest: bytes, threshold: int, positions: list[int]) -> list[bytes]:
        if 4 not in positions:
            calls.append(None)
            if len(calls) == secret + 1:
                return [shares(x).to_bytes(SHARE_BYTES, "big") for x in positions]
        return split(honest, threshold, positions)

    return mock.patch.object(secagg.client, "split", crooked)


def crooked_dealers(liars: Liars) -> None:
    for comment, secret, shares, silent in [
        ("Shares of another s than the keys follow from", 0, lambda x: 12345 + x, "mask_input"),
        ("Shares of another b than committed to", 1, lambda x: 12345 + x, "unmask"),
        ("Shares of no 32-byte secret", 0, lambda x: 2**256 + x, "mask_input"),
    ]:
        run = liars.files.run(liars.name("S-18", comment), n=4)
        run.open()
        with dealing(secret, shares):
            run.play(corrupt=LIAR, silent={LIAR: silent})
        liars.whole("S-18", comment, run)

    poisoned_slots(liars)

    comment = "Two disjoint complaints and one corrupt client"
    run = liars.files.run(liars.name("S-20", comment), n=5)
    run.do("leave_out", pairs=[["site-a", "site-b"], ["site-c", "site-d"]])
    liars.whole("S-20", comment, run)


def poisoned_slots(liars: Liars) -> None:
    """Blame: who has slots that are not the constants, and what may not be said there."""
    for comment, silent in [
        ("A constant slot that is one too large", {}),
        ("A poisoner beside a dropped client", {"site-e": "mask_input"}),
        ("A poisoner that does not answer", {LIAR: "conclude"}),
    ]:
        run = liars.files.run(liars.name("S-19", comment), n=5)
        run.open()
        run.play(corrupt=LIAR, silent=silent, lie=poisoner(run))
        liars.whole("S-19", comment, run)

    base = liars.name("S-19", "A constant slot that is one too large")
    ask, due = "show_slot_masks", "SlotMasks"
    liars.to_client("C-27", "Slot masks of another round", ask, unsigned(round_id=OTHER), base)
    liars.to_client("C-27", "Slot masks of another set", ask, unsigned(attested=OTHER), base)
    liars.to_client("C-20", "Slot masks before shares were released", ask, same, base, before="unmask")
    shorter = lambda m: signed(masks={peer: mask[1:] for peer, mask in m.masks.items()})(m)  # noqa: E731
    for check, comment, lie in [
        ("S-23", "A slot mask too few", edited("masks", lambda d: dict(list(d.items())[1:]))),
        ("S-23", "Slot masks of another length", shorter),
        ("S-23", "Slot masks of another round", signed(round_id=OTHER)),
        ("S-23", "Slot masks changed after they were signed", lambda m: replace(m, masks=flipped(dict(m.masks)))),
        ("S-03", "Another client's slot masks", lambda m: liars.files.runs[base].messages["SlotMasks.site-b"]),
    ]:
        liars.to_server(check, comment, due, lie, base)


def poisoner(run: Run) -> Callable[[str, str, Any], Any]:
    policy = run.setting.policy

    def lie(operation: str, party: str, message: Any) -> Any:
        if (operation, party) != ("mask_input", LIAR):
            return message
        y = unpack(message.y, policy.length + policy.slots, policy.bits)
        y[-1] += np.uint32(1)
        said = signed(y=pack(y, policy.bits))(message)
        run.sessions[0, party]._state.mine = said.acceptance()  # type: ignore[attr-defined]
        return said

    return lie


# --- shapes ----------------------------------------------------------------------------------------------------------


def misshapen_messages(message: Any, seen: set[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    """Every field of a fixed shape out of shape, once for each class of message; of a list the first entry."""
    for item in fields(message):
        value, place = getattr(message, item.name), (type(message).__name__, item.name)
        if isinstance(value, tuple):
            for what, wrong in misshapen_messages(value[0], seen) if value and is_dataclass(value[0]) else ():
                yield what, unchecked(message, **{item.name: (wrong,)})
        elif is_dataclass(value):
            for what, wrong in misshapen_messages(value, seen):
                yield what, unchecked(message, **{item.name: wrong})
        elif item.name in SHAPES and place not in seen:
            seen.add(place)
            yield ".".join(place), unchecked(message, **{item.name: SHAPES[item.name]})


def shapes(files: Files) -> Iterator[Json]:
    """M-01 of every class of message, on the smallest messages that there are."""
    base, seen, seen_lists = files.runs[BASE], set[tuple[str, str]](), set[str]()
    done = base.views[0]["Result"].receipt
    said = {f"RoundStart.{VICTIM}": start_message(2, done.head, (done,)), **base.messages}
    said["AdvertiseKeys.exposing"] = files.runs["round_n4_exposed"].messages["AdvertiseKeys.site-b@1"]
    blamed = files.runs["bad_s19_constant_slot_that_is_one_too_large"].messages
    said |= {name: blamed[name] for name in ("SlotsFailed", f"SlotMasks.{VICTIM}")}
    said["Abort"] = wire.encode(Abort(OTHER, "the server goes off"))
    for name, data in said.items():
        decode = wire.decode_from_client if name.split(".")[0] in SENDS.values() else wire.decode_from_server
        message: Any = decode(data)
        lists = LISTS.get(type(message), "")
        pair = getattr(message, lists, ())[:2]
        disordered = [(f"{lists}, backwards", pair[::-1]), (f"{lists}, one twice", (pair * 2)[::2])] if pair else []
        every = [
            (what, unchecked(message, **{lists: entries})) for what, entries in disordered if lists not in seen_lists
        ]
        seen_lists.add(lists)
        for what, wrong in [*every, *misshapen_messages(message, seen)]:
            if hasattr(wrong, "bundles") and not what.startswith("Bundle"):
                wrong = unchecked(wrong, bundles=())  # nothing looks at them, and they are long
            encoded = wire.encode(wrong)
            with suppress(MalformedMessageError):
                decode(encoded)
                raise AssertionError(what)
            side = "client" if decode is wire.decode_from_client else "server"
            yield {"operation": "decode", "from": side, "what": what, "input": encoded.hex(), "check": "M-01"}


def tell(files: Files) -> None:
    """Write every bad file; the good rounds are there already."""
    liars = Liars(files)
    for lies in (
        lying_starts,
        between_rounds,
        lying_rosters,
        lying_inboxes,
        lying_lists,
        lying_clients,
        crooked_dealers,
    ):
        lies(liars)
    files.written["primitive_shapes"] = {"operations": list(shapes(files))}
