"""Lies, one at a time: the named check fires and names the culprit. Where one check is all that stands between a
server and a site's data, the attack is also run with that check removed, and then it succeeds."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_cohort import RUN, SENDING, SERVER_KEY, Cohort, Play, alone

import secagg.client
import secagg.server
from secagg import (
    ClientSession,
    ComplaintError,
    ConfigError,
    IllegalTransitionError,
    InconsistentViewError,
    MalformedMessageError,
    MemoryStore,
    PinnedRoster,
    ProtocolError,
    RoundContext,
    ShareError,
    SigningKey,
    Suite,
    TooFewClientsError,
    open_round,
    wire,
)
from secagg.client import Attested
from secagg.keys import MaskKey
from secagg.masking import pair_mask_seed, self_mask_seed
from secagg.messages import (
    Attestations,
    EncryptedShares,
    IncludedSet,
    Reports,
    Roster,
    RoundStart,
    ShareInbox,
    UnmaskingShares,
)
from secagg.prg import apply_masks
from secagg.quantize import unpack
from secagg.shamir import combine, split
from secagg.state import State

VICTIM, COLLUDER = "site-a", "site-d"
ROSTER, INBOX, REPORTS, INCLUDED, ATTESTED, RESULT = (*SENDING[1:], "Result")
OTHER_HASH = bytes([7]) * 32


def entry_of(entries, client_id: str):
    return next(entry for entry in entries if entry.client_id == client_id)


def without(entries, *gone: str):
    return tuple(entry for entry in entries if entry.client_id not in gone)


def swapped(entries, new):
    """`entries` with the one of `new.client_id` replaced, in order of the ids."""
    return tuple(sorted([*without(entries, new.client_id), new], key=lambda entry: entry.client_id))


# --- a server that lies to a client ------------------------------------------------------------------------------

_KEYS = Cohort(5).keys


def forged(field: str, client_id: str = "site-b", **changes):
    """An entry of an honest client changed after it was signed."""

    def change(message):
        entries = getattr(message, field)
        return replace(message, **{field: swapped(entries, replace(entry_of(entries, client_id), **changes))})

    return change


def colluding(field: str, **changes):
    """An entry that the colluding client signed, but not an honest one."""

    def change(message):
        entries = getattr(message, field)
        entry = replace(entry_of(entries, COLLUDER), **changes).sign(_KEYS[COLLUDER])
        return replace(message, **{field: swapped(entries, entry)})

    return change


def copied_keys(message: Roster) -> Roster:
    copied = entry_of(message.advertisements, "site-b").mask_dh_pk
    return colluding("advertisements", mask_dh_pk=copied)(message)


def same_key_twice(message: Roster) -> Roster:
    return colluding("advertisements", mask_dh_pk=entry_of(message.advertisements, COLLUDER).channel_pk)(message)


def earlier_self(message: Roster) -> Roster:
    """An advertisement that this client signed for the same slot before its store was lost."""
    cohort = Cohort(5)
    return Roster(swapped(message.advertisements, cohort.client(VICTIM).start()))


def fewer_digests(message: ShareInbox) -> ShareInbox:
    header = entry_of(message.headers, COLLUDER)
    return colluding("headers", digests=header.digests[:-1])(message)


def swapped_bundles(message: ShareInbox) -> ShareInbox:
    first, second, *rest = message.bundles
    return replace(message, bundles=(second, first, *rest))


def own_input_changed(message: IncludedSet) -> IncludedSet:
    own = replace(entry_of(message.inputs, VICTIM), y_hash=OTHER_HASH).sign(_KEYS[VICTIM])
    return IncludedSet(swapped(message.inputs, own))


SERVER_LIES = [
    ("an id that nobody pinned", ROSTER, colluding("advertisements", client_id="stranger"), "C-06"),
    ("an advertisement for another slot", ROSTER, colluding("advertisements", slot=OTHER_HASH), "C-06"),
    ("a forged advertisement", ROSTER, forged("advertisements", nonce=bytes(16)), "C-06"),
    ("a key of low order", ROSTER, colluding("advertisements", mask_dh_pk=bytes(32)), "C-07"),
    ("a key encoded otherwise", ROSTER, colluding("advertisements", channel_pk=b"\xff" * 32), "C-07"),
    ("a key of another suite", ROSTER, colluding("advertisements", mask_kem_pk=bytes(1216)), "C-07"),
    ("another client's key", ROSTER, copied_keys, "C-07"),
    ("one key for two purposes", ROSTER, same_key_twice, "C-07"),
    ("a roster without the reader", ROSTER, lambda m: Roster(without(m.advertisements, VICTIM)), "C-08"),
    ("the reader's earlier keys", ROSTER, earlier_self, "C-08"),
    ("too small a roster", ROSTER, lambda m: Roster(m.advertisements[:3]), "C-21"),
    ("a header for another roster", INBOX, colluding("headers", roster1=OTHER_HASH), "C-09"),
    ("a header for another slot", INBOX, colluding("headers", slot=OTHER_HASH), "C-09"),
    ("a forged header", INBOX, forged("headers", self_commitment=OTHER_HASH), "C-09"),
    ("a header of an outsider", INBOX, colluding("headers", client_id="stranger"), "C-10"),
    ("a header with too few digests", INBOX, fewer_digests, "C-10"),
    ("no own header", INBOX, lambda m: ShareInbox(without(m.headers, VICTIM), m.bundles[1:]), "C-10"),
    ("a bundle too few", INBOX, lambda m: replace(m, bundles=m.bundles[1:]), "C-10"),
    ("bundles in another order", INBOX, swapped_bundles, "C-11"),
    ("too few dealers", INBOX, lambda m: ShareInbox(m.headers[:3], m.bundles[:2]), "C-21"),
    ("a report of an outsider", REPORTS, colluding("reports", client_id="stranger"), "C-13"),
    ("a report on other headers", REPORTS, colluding("reports", roster2=OTHER_HASH), "C-13"),
    ("a complaint sold as a report", REPORTS, colluding("reports", complaint="site-b"), "C-13"),
    ("a forged report", REPORTS, forged("reports", signature=bytes(64)), "C-13"),
    ("a changed own report", REPORTS, forged("reports", VICTIM, signature=bytes(64)), "C-13"),
    ("too few sharers", REPORTS, lambda m: Reports(m.reports[:3]), "C-21"),
    ("an input for another model", INCLUDED, colluding("inputs", round_id=OTHER_HASH), "C-15"),
    ("an input for other sharers", INCLUDED, colluding("inputs", sharers_hash=OTHER_HASH), "C-15"),
    ("a forged input", INCLUDED, forged("inputs", y_hash=OTHER_HASH), "C-15"),
    ("an input of an outsider", INCLUDED, colluding("inputs", client_id="stranger"), "C-16"),
    ("another own input", INCLUDED, own_input_changed, "C-16"),
    ("too few inputs", INCLUDED, lambda m: IncludedSet(m.inputs[:3]), "C-21"),
    ("attestations below the quorum", ATTESTED, lambda m: Attestations(m.attestations[:3]), "C-17"),
    ("no attestation at all", ATTESTED, lambda m: Attestations(()), "C-17"),
    ("an attestation of another set", ATTESTED, colluding("attestations", attested=OTHER_HASH), "C-17"),
    ("a forged attestation", ATTESTED, forged("attestations", signature=bytes(64)), "C-17"),
    ("an attestation of an outsider", ATTESTED, colluding("attestations", client_id="stranger"), "C-17"),
    ("a receipt with another key", RESULT, lambda m: replace(m, receipt=m.receipt.sign(_KEYS[COLLUDER])), "C-18"),
    ("another sum", RESULT, lambda m: replace(m, total=bytes(len(m.total))), "C-19"),
    (
        "a head that does not follow",
        RESULT,
        lambda m: replace(m, receipt=replace(m.receipt, head=OTHER_HASH).sign(SERVER_KEY)),
        "C-19",
    ),
    ("a message out of turn", INBOX, lambda m: Attestations(()), "C-20"),
    ("a round start in the middle", ROSTER, lambda m: RoundStart(RUN, 1, 0, *[bytes(32)] * 3), "C-20"),
]


@pytest.mark.parametrize(
    ("step", "lie", "check"), [row[1:] for row in SERVER_LIES], ids=[row[0] for row in SERVER_LIES]
)
def test_a_client_sees_through_the_server(step, lie, check):
    play = Play(Cohort(5), down=alone(step, VICTIM, lie))
    play.until(step if step != RESULT else "nowhere")
    error = play.errors[VICTIM]
    assert isinstance(error, ProtocolError)
    assert (error.check, error.culprits) == (check, ())
    client = play.clients[VICTIM]
    assert client.finished
    assert client._state is None
    assert VICTIM not in play.out
    assert set(play.errors) == {VICTIM}


def test_a_sharer_that_masked_without_reporting_is_not_included():
    cohort = Cohort(5)
    lie = lambda m: IncludedSet(  # noqa: E731
        (*m.inputs, replace(m.inputs[-1], client_id="site-e").sign(cohort.keys["site-e"]))
    )
    play = Play(cohort, silent={"site-e": "ShareReport"}, down=alone(INCLUDED, VICTIM, lie)).until(INCLUDED)
    assert play.errors[VICTIM].check == "C-16"


def test_a_different_header_of_its_own_is_seen_by_the_dealer():
    cohort, kept = Cohort(5), {}
    play = Play(cohort, down=lambda at, who, m: kept.setdefault((at, who), m) and None if at == INBOX else m)
    play.until(INBOX)
    inbox = kept[INBOX, VICTIM]
    own = replace(entry_of(inbox.headers, VICTIM), self_commitment=OTHER_HASH).sign(cohort.keys[VICTIM])
    with pytest.raises(InconsistentViewError, match="C-10"):
        play.clients[VICTIM].receive(replace(inbox, headers=swapped(inbox.headers, own)))


def test_two_rosters_for_two_halves_never_meet():
    cohort = Cohort(5)

    def equivocate(step, who, message):
        return Roster(without(message.advertisements, "site-e")) if (step, who) == (ROSTER, VICTIM) else message

    play = cohort.play(down=equivocate)
    assert {who: error.check for who, error in play.refusals.items()} == {VICTIM: "S-06"}
    assert VICTIM not in play.server.included
    assert play.exact


def test_an_inbox_of_other_headers_shows_before_anybody_masks():
    play = Play(Cohort(5), down=alone(INBOX, VICTIM, lambda m: ShareInbox(m.headers[:4], m.bundles[:3]))).until(REPORTS)
    assert play.refusals[VICTIM].check == "S-09"
    assert play.to_the_end().exact


# --- a server that lies about a round ----------------------------------------------------------------------------


def started(cohort: Cohort, number: int = 1, missed=(), head: bytes = bytes(32), run: str = RUN) -> RoundStart:
    return RoundStart(run, number, 0, bytes(32), bytes(32), head, tuple(missed)).sign(SERVER_KEY)


def refused_start(cohort: Cohort, start: RoundStart, check: str, store=None) -> None:
    with pytest.raises(ProtocolError) as caught:
        open_round(cohort.policy, RUN, start, store or MemoryStore())
    assert (caught.value.check, caught.value.culprits) == (check, ())


def test_a_round_start_is_held_against_what_is_pinned():
    cohort = Cohort(4)
    assert open_round(cohort.policy, RUN, started(cohort), MemoryStore()) == cohort.context()
    refused_start(cohort, replace(started(cohort), model_hash=OTHER_HASH), "C-01")
    refused_start(cohort, started(cohort).sign(cohort.keys[VICTIM]), "C-01")
    refused_start(cohort, started(cohort, run="another run"), "C-02")
    refused_start(cohort, started(cohort, head=OTHER_HASH), "C-04")
    refused_start(cohort, replace(started(cohort), round_number=0).sign(SERVER_KEY), "C-04")
    with pytest.raises(ConfigError, match="server_key"):
        open_round(Cohort(4, signed=False).policy, RUN, started(cohort), MemoryStore())


def test_a_rejoiner_replays_the_heads_that_it_missed():
    cohort, receipts, head = Cohort(4), [], bytes(32)
    for number in (1, 2, 3):
        play = cohort.play(context=cohort.context(number, head=head))
        head = play.server.head
        receipts.append(play.server.receipt)
    store = MemoryStore()
    context = open_round(cohort.policy, RUN, started(cohort, 4, receipts, head), store)
    assert (context.round_number, store.head(RUN)) == (4, (3, head))
    refused_start(cohort, started(cohort, 3, receipts, head), "C-04", store)
    refused_start(cohort, started(cohort, 4, receipts[1:], head), "C-04")
    refused_start(cohort, started(cohort, 4, [replace(receipts[0], head=OTHER_HASH).sign(SERVER_KEY)], head), "C-04")
    refused_start(cohort, started(cohort, 4, [replace(receipts[0], total_hash=OTHER_HASH)], head), "C-01")
    refused_start(cohort, started(cohort, 4, receipts[:2], head), "C-04")


def test_an_opened_round_that_the_server_calls_burned_needs_an_operator():
    cohort = Cohort(4)
    play = cohort.play(down=lambda step, who, m: None if step == RESULT else m)
    store = cohort.stores[VICTIM]
    assert store.released(RUN) == 1
    refused_start(cohort, started(cohort, 2), "C-05", store)
    accepted = open_round(cohort.policy, RUN, started(cohort, 2), store, accept_exposure=True)
    assert accepted.round_number == 2
    completed = started(cohort, 2, [play.server.receipt], play.server.head)
    assert open_round(cohort.policy, RUN, completed, store).previous_head == play.server.head


def test_marks_that_do_not_increase():
    cohort = Cohort(4)
    play = Play(cohort).until("MaskedInputCollection")
    assert play.to_the_end().exact
    for call, check in (
        (lambda: cohort.client(VICTIM).start(), "C-03"),
        (lambda: cohort.stores[VICTIM].contribute(RUN, 1, "again"), "C-14"),
        (lambda: cohort.stores[VICTIM].finish(RUN, 1, OTHER_HASH, b""), "C-22"),
    ):
        with pytest.raises(ProtocolError) as caught:
            call()
        assert (caught.value.check, caught.value.culprits) == (check, ())


def test_a_store_that_fails_ends_the_session_with_nothing_sent():
    cohort = Cohort(4)

    class FullDisk(MemoryStore):
        def contribute(self, *_) -> None:
            raise OSError("no space left")

    cohort.stores[VICTIM] = FullDisk()
    play = Play(cohort)
    with pytest.raises(OSError, match="no space"):
        play.to_the_end()
    assert play.clients[VICTIM].finished
    assert VICTIM not in play.out


# --- clients that lie to the server ------------------------------------------------------------------------------


def resigned(**changes):
    return lambda cohort, message: replace(message, **changes).sign(cohort.keys[COLLUDER])


def unsigned(**changes):
    return lambda cohort, message: replace(message, **changes)


def rebundled(change, resign: bool = True):
    """Other bundles, under a header that commits to them or not."""

    def lie(cohort: Cohort, message: EncryptedShares) -> EncryptedShares:
        bundles = tuple(change(message.bundles))
        header = message.header
        if resign:
            header = replace(header, digests=tuple(b.digest() for b in bundles)).sign(cohort.keys[COLLUDER])
        return EncryptedShares(header, bundles)

    return lie


def headed(**changes):
    def lie(cohort: Cohort, message: EncryptedShares) -> EncryptedShares:
        return EncryptedShares(replace(message.header, **changes).sign(cohort.keys[COLLUDER]), message.bundles)

    return lie


def first_altered(**changes):
    return lambda bundles: (replace(bundles[0], **changes), *bundles[1:])


def flipped(mapping):
    """The first entry changed in its last bit."""
    (client_id, value), *rest = mapping.items()
    return {client_id: value[:-1] + bytes([value[-1] ^ 1]), **dict(rest)}


def wrong_list(name: str, change):
    return lambda cohort, m: replace(m, **{name: change(getattr(m, name))}).sign(cohort.keys[COLLUDER])


def overlong(cohort: Cohort, message):
    return replace(message, y=message.y + b"\0").sign(cohort.keys[COLLUDER])


KEYS, SHARES, REPORT, MASKED, ATTEST, UNMASK = SENDING
CLIENT_LIES = [
    ("another slot", KEYS, resigned(slot=OTHER_HASH), "S-04"),
    ("a forged advertisement", KEYS, unsigned(nonce=bytes(16)), "S-04"),
    ("a key of low order", KEYS, resigned(mask_dh_pk=bytes(32)), "S-05"),
    ("a key too short", KEYS, resigned(channel_pk=b""), "S-05"),
    ("a header for another roster", SHARES, headed(roster1=OTHER_HASH), "S-06"),
    ("a forged header", SHARES, lambda _, m: replace(m, header=replace(m.header, self_commitment=OTHER_HASH)), "S-06"),
    ("bundles outside the header", SHARES, rebundled(lambda b: (b[1], b[0], *b[2:]), resign=False), "S-07"),
    ("a bundle too few", SHARES, rebundled(lambda b: b[:-1]), "S-08"),
    ("an envelope too long", SHARES, rebundled(first_altered(shares=bytes(500))), "S-08"),
    ("a pair secret to an earlier id", SHARES, rebundled(first_altered(pair_commitment=OTHER_HASH)), "S-08"),
    ("a report on other headers", REPORT, resigned(roster2=OTHER_HASH), "S-09"),
    ("a complaint about an outsider", REPORT, resigned(complaint="stranger"), "S-09"),
    ("a complaint about itself", REPORT, resigned(complaint=COLLUDER), "S-09"),
    ("a forged report", REPORT, unsigned(complaint="site-b"), "S-09"),
    ("an input for another model", MASKED, resigned(round_id=OTHER_HASH), "S-10"),
    ("a forged input", MASKED, lambda _, m: replace(m, y=bytes(len(m.y))), "S-10"),
    ("an input too long", MASKED, overlong, "S-11"),
    ("an attestation of another set", ATTEST, resigned(attested=OTHER_HASH), "S-12"),
    ("a forged attestation", ATTEST, unsigned(signature=bytes(64)), "S-12"),
    ("unmasking of another round", UNMASK, resigned(round_id=OTHER_HASH), "S-13"),
    ("forged unmasking", UNMASK, unsigned(self_seed=OTHER_HASH), "S-13"),
    ("a share too few", UNMASK, wrong_list("self_seed_shares", lambda m: dict(list(m.items())[1:])), "S-14"),
    ("no share of the dropped", UNMASK, wrong_list("mask_key_shares", lambda m: {}), "S-14"),
    ("another own self seed", UNMASK, resigned(self_seed=OTHER_HASH), "S-15"),
    ("a wrong share of a self seed", UNMASK, wrong_list("self_seed_shares", flipped), "S-16"),
    ("a wrong share of a mask key", UNMASK, wrong_list("mask_key_shares", flipped), "S-16"),
    ("a wrong pair secret", UNMASK, wrong_list("pair_secrets", flipped), "S-17"),
]


@pytest.mark.parametrize(
    ("step", "lie", "check"), [row[1:] for row in CLIENT_LIES], ids=[row[0] for row in CLIENT_LIES]
)
def test_the_server_drops_a_liar_and_goes_on(step, lie, check):
    suite = Suite.MLKEM768_X25519 if check in ("S-08", "S-17") else Suite.X25519
    cohort = Cohort(6, suite=suite)
    play = cohort.play(silent={"site-f": MASKED}, up=alone(step, COLLUDER, lambda message: lie(cohort, message)))
    assert {who: (error.check, error.culprits) for who, error in play.refusals.items()} == {
        COLLUDER: (check, (COLLUDER,))
    }
    assert play.failure is None
    assert not play.errors
    assert play.exact
    assert (COLLUDER in play.server.included) == (SENDING.index(step) > SENDING.index(MASKED))


@pytest.mark.parametrize("step", SENDING)
def test_nobody_speaks_for_another(step):
    play = Play(Cohort(4)).until(step)
    others, play.out[COLLUDER] = play.out["site-b"], play.out["site-b"]
    play.collect()
    assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == ("S-03", (COLLUDER,))
    for stranger in ("stranger", "site-e"):
        with pytest.raises(ProtocolError, match="S-01"):
            play.server.receive(stranger, others)


def test_copied_keys_blame_the_copier():
    cohort = Cohort(5)
    play = Play(cohort)
    copied = replace(play.out[COLLUDER], mask_dh_pk=play.out["site-b"].mask_dh_pk).sign(cohort.keys[COLLUDER])
    play.out[COLLUDER] = copied
    play.to_the_end()
    assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == ("S-05", (COLLUDER,))
    assert play.exact


def test_another_dealers_envelope_does_not_open_as_ones_own():
    cohort, seen = Cohort(5), {}

    def steal(step, who, message):
        if step != SHARES or who not in ("site-b", COLLUDER):
            return message
        seen[who] = message
        if who == COLLUDER:
            return rebundled(lambda bundles: (seen["site-b"].bundles[0], *bundles[1:]))(cohort, message)
        return message

    play = cohort.play(up=steal)
    assert isinstance(play.failure, ComplaintError)
    assert play.failure.complaints == ((VICTIM, COLLUDER),)


BAD_COMMITMENTS = ("shares", "mask_key_commitment", "self_seed_commitment", "pair", "pair_commitment")


@pytest.mark.parametrize("part", BAD_COMMITMENTS)
def test_a_bundle_that_breaks_its_promise_names_the_dealer(part):
    cohort = Cohort(5, suite=Suite.MLKEM768_X25519)

    def change(bundles):
        last = bundles[-1]
        return (*bundles[:-1], replace(last, **{part: bytes(len(getattr(last, part)))}))

    play = cohort.play(up=alone(SHARES, COLLUDER, lambda m: rebundled(change)(cohort, m)))
    assert isinstance(play.failure, ComplaintError)
    assert play.failure.complaints == (("site-e", COLLUDER),)


def deal_something_else(monkeypatch, cohort: Cohort, dealer: str, which: int) -> None:
    """The dealer shares another mask key (0) or self seed (1) than the one that it uses, consistently."""
    position, calls = cohort.ids.index(dealer) + 1, []

    def crooked(secret, threshold, positions):
        if position not in positions:
            calls.append(secret)
            if len(calls) == which + 1:
                secret = OTHER_HASH
        return split(secret, threshold, positions)

    monkeypatch.setattr(secagg.client, "split", crooked)


@pytest.mark.parametrize(("which", "silent_from"), [(0, MASKED), (1, UNMASK)])
def test_shares_of_something_else_convict_the_dealer(monkeypatch, which, silent_from):
    cohort = Cohort(5)
    deal_something_else(monkeypatch, cohort, COLLUDER, which)
    play = cohort.play(silent={COLLUDER: silent_from})
    assert isinstance(play.failure, ShareError)
    assert (play.failure.check, play.failure.culprits) == ("S-18", (COLLUDER,))
    assert play.server.burned
    assert play.server.result is None


def test_shares_that_combine_to_no_secret_convict_the_dealer(monkeypatch):
    monkeypatch.setattr(secagg.server, "combine", lambda *_: (_ for _ in ()).throw(ValueError()))
    play = Cohort(5).play(silent={COLLUDER: MASKED})
    assert (play.failure.check, play.failure.culprits) == ("S-18", (COLLUDER,))


def lying_pair_secrets(play: Play, dealer: str) -> None:
    """The dealer seals and uses pair secrets that do not follow from its mask key."""
    play.clients[dealer]._state.mask_key.pair_secret = lambda peer: OTHER_HASH


def test_a_dealer_of_false_pair_secrets_cannot_burn_the_round_by_dropping_out():
    play = Play(Cohort(5, suite=Suite.MLKEM768_X25519), silent={VICTIM: MASKED})
    lying_pair_secrets(play, VICTIM)
    play.to_the_end()
    assert play.failure is None
    assert play.server.dropped == (VICTIM,)
    assert play.exact


def test_where_nobody_has_the_pair_secret_its_dealer_is_convicted():
    play = Play(Cohort(6, suite=Suite.MLKEM768_X25519), silent={VICTIM: MASKED, "site-e": UNMASK})
    lying_pair_secrets(play, VICTIM)
    play.to_the_end()
    assert (play.failure.check, play.failure.culprits) == ("S-18", (VICTIM,))


def test_a_pair_secret_is_opened_from_its_envelope_where_both_ends_are_silent():
    cohort = Cohort(6, suite=Suite.MLKEM768_X25519)
    assert cohort.play(silent={"site-e": MASKED, VICTIM: UNMASK}).exact
    assert cohort.play(context=cohort.context(2), silent={VICTIM: MASKED, "site-e": UNMASK}).exact


def test_masks_that_fail_to_cancel_show_in_the_constant_slots(monkeypatch):
    play = Play(Cohort(5)).until(MASKED)
    message = play.out[COLLUDER]
    noise = bytes(len(message.y) - 1) + bytes([message.y[-1] ^ 1])
    play.out[COLLUDER] = replace(message, y=noise).sign(play.cohort.keys[COLLUDER])
    play.clients[COLLUDER]._state.mine = play.out[COLLUDER].acceptance()
    play.to_the_end()
    assert isinstance(play.failure, ShareError)
    assert (play.failure.check, play.failure.culprits) == ("S-19", ())
    assert play.server.result is None


# --- what a single missing check would cost ----------------------------------------------------------------------


class Anything:
    """Equal to whatever it is held against."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def unmask_alone(play: Play, victim: str, y: bytes, self_seed: bytes, mask_key_shares: dict[str, bytes]):
    """One client's quantised update, from its masked input, its self seed and t shares of its mask key."""
    cohort, inputs = play.cohort, play.server._state.inputs
    roster, round_id = inputs.shares.roster, inputs.view[0]
    shares = {roster.positions[holder]: share for holder, share in mask_key_shares.items()}
    key = MaskKey(cohort.suite, combine(shares, cohort.policy.threshold))
    add, subtract = [], [self_mask_seed(roster.hash, round_id, victim, self_seed)]
    for peer in without(roster.advertisements, victim):
        exchanged = key.exchange(peer.mask_dh_pk)
        seed = pair_mask_seed(roster.hash, round_id, (victim, peer.client_id), exchanged, b"")
        (subtract if victim < peer.client_id else add).append(seed)
    vector = unpack(y, cohort.length + cohort.policy.slots, cohort.bits)
    apply_masks(vector, add, subtract)
    return vector[: cohort.length]


def equivocate_on_the_included(play: Play) -> dict[str, Attestations]:
    """Everybody but the victim hears that the victim dropped out; the victim hears that nobody did."""
    honest = play.down
    others = lambda m: IncludedSet(without(m.inputs, VICTIM))  # noqa: E731
    play.down = lambda step, who, m: others(m) if step == INCLUDED and who != VICTIM else honest(step, who, m)
    play.until(ATTEST)
    said = play.out
    mine, theirs = said[VICTIM], tuple(said[i] for i in sorted(said) if i != VICTIM)
    return {who: Attestations((mine,) if who == VICTIM else theirs) for who in said}


def steal_one_input(play: Play, y: bytes) -> np.ndarray:
    told = equivocate_on_the_included(play)
    released = {who: play.clients[who].receive(message) for who, message in told.items()}
    assert set(released["site-b"].mask_key_shares) == {VICTIM}
    shares = {who: message.mask_key_shares[VICTIM] for who, message in released.items() if who != VICTIM}
    return unmask_alone(play, VICTIM, y, released[VICTIM].self_seed, shares)


def masked_and_recorded(cohort: Cohort) -> tuple[Play, bytes]:
    play = Play(cohort).until(MASKED)
    return play, play.out[VICTIM].y


def test_the_signed_included_set_stops_a_server_from_opening_one_input():
    play, y = masked_and_recorded(Cohort(4))
    with pytest.raises(InconsistentViewError, match="C-17"):
        steal_one_input(play, y)


def test_without_it_the_server_reads_one_site_exactly(monkeypatch):
    monkeypatch.setattr(Attested, "_verify_attestations", lambda *_: None)
    play, y = masked_and_recorded(Cohort(4))
    assert np.array_equal(steal_one_input(play, y), play.cohort.plain_sum([VICTIM]))


def attest_twice(play: Play) -> tuple[bytes, dict[str, bytes]]:
    """The same one-shot states are asked to attest a second set, so that both sets find a quorum."""
    play.down = lambda step, who, m: None if step == INCLUDED else m
    play.until(ATTEST)
    everybody = play.server._state.included
    others = IncludedSet(without(everybody.inputs, VICTIM))
    states = {who: client._state for who, client in play.clients.items()}
    first = {who: state.attest(everybody) for who, state in states.items()}
    second = {who: state.attest(others) for who, state in states.items() if who != VICTIM}
    mine = first[VICTIM][0].unmask(Attestations(tuple(message for _, message in first.values())))[1]
    quorum = Attestations(tuple(message for _, message in second.values()))
    shares = {who: state.unmask(quorum)[1].mask_key_shares[VICTIM] for who, (state, _) in second.items()}
    return mine.self_seed, shares


def test_a_state_attests_once():
    play, _ = masked_and_recorded(Cohort(4))
    with pytest.raises(IllegalTransitionError):
        attest_twice(play)


def test_without_one_shot_states_the_server_gets_both_kinds_of_share(monkeypatch):
    monkeypatch.setattr(State, "_leave", lambda self: None)
    play, y = masked_and_recorded(Cohort(4))
    self_seed, shares = attest_twice(play)
    assert np.array_equal(unmask_alone(play, VICTIM, y, self_seed, shares), play.cohort.plain_sum([VICTIM]))


def test_a_message_cannot_hold_both_kinds_of_share(monkeypatch):
    share, hashes = bytes(33), (OTHER_HASH, OTHER_HASH)
    both = (*hashes, "site-b", OTHER_HASH, {VICTIM: share}, {VICTIM: share}, {})
    with pytest.raises(MalformedMessageError, match="both kinds"):
        UnmaskingShares(*both)
    with pytest.raises(MalformedMessageError, match="included"):
        UnmaskingShares(*hashes, "site-b", OTHER_HASH, {VICTIM: share}, {}, {VICTIM: OTHER_HASH})
    monkeypatch.setattr("secagg.messages._require", lambda *_: None)
    data = wire.encode(UnmaskingShares(*both))
    monkeypatch.undo()
    with pytest.raises(MalformedMessageError, match="both kinds"):
        wire.decode_from_client(data)


def contribute_twice(cohort: Cohort) -> np.ndarray:
    """Attempt 0 opens, attempt 1 of the same round number runs without one site, and the server subtracts."""
    everybody = cohort.play(down=lambda step, who, m: None if step == RESULT else m)
    again = cohort.play(context=cohort.context(attempt=1), leave_out=(VICTIM,))
    if again.failure:
        raise again.failure
    return everybody.server.result - again.server.result


def test_the_durable_mark_stops_a_second_contribution_to_a_round_number():
    cohort = Cohort(5)
    with pytest.raises(TooFewClientsError):
        contribute_twice(cohort)
    play = Play(cohort, context=cohort.context(attempt=2)).to_the_end()
    assert {error.check for error in play.errors.values()} == {"C-14"}
    assert set(play.errors) == set(cohort.ids)


def test_without_the_mark_the_difference_is_one_site(monkeypatch):
    monkeypatch.setattr(MemoryStore, "contribute", lambda *_: None)
    cohort = Cohort(5)
    assert np.array_equal(contribute_twice(cohort), cohort.plain_sum([VICTIM]))


class OtherModel(Cohort):
    """Everybody but the victim was sent a model on which their update is zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.updates |= {client_id: np.zeros(self.length) for client_id in self.ids if client_id != VICTIM}

    def client(self, client_id, context=None, policy=None):
        model = bytes(32) if client_id == VICTIM else OTHER_HASH
        return super().client(client_id, self.context(model=model), policy)


def test_the_model_hash_stops_a_server_from_sending_every_site_another_model():
    cohort = OtherModel(4)
    play = cohort.play(context=cohort.context(model=OTHER_HASH))
    assert {who: error.check for who, error in play.refusals.items()} == {VICTIM: "S-10"}
    assert play.server.dropped == (VICTIM,)


def test_a_server_that_skips_its_own_check_is_caught_before_anything_is_opened():
    cohort = OtherModel(4)
    play = Play(cohort, context=cohort.context(model=OTHER_HASH)).until(MASKED)
    inputs = tuple(play.out[i].acceptance() for i in cohort.ids)
    for client in play.clients.values():
        with pytest.raises(InconsistentViewError, match="C-15"):
            client.receive(IncludedSet(inputs))


def test_without_the_model_in_the_round_the_sum_is_one_site(monkeypatch):
    bound = RoundContext.round_id
    monkeypatch.setattr(RoundContext, "round_id", lambda self, *rest: bound(replace(self, model_hash=bytes(32)), *rest))
    cohort = OtherModel(4)
    play = cohort.play(context=cohort.context(model=OTHER_HASH))
    assert np.array_equal(play.server.result, cohort.plain_sum([VICTIM]))


def test_without_share_commitments_an_honest_dealer_is_convicted(monkeypatch):
    monkeypatch.setattr(secagg.server, "share_commitment", lambda *_: Anything())
    cohort = Cohort(5)
    lie = wrong_list("mask_key_shares", flipped)
    play = cohort.play(silent={"site-e": MASKED}, up=alone(UNMASK, COLLUDER, lambda m: lie(cohort, m)))
    assert (play.failure.check, play.failure.culprits) == ("S-18", ("site-e",))


def test_parties_with_different_policies_never_meet():
    cohort, other = Cohort(4), Cohort(4, bits=40)
    with pytest.raises(ProtocolError, match="S-04"):
        cohort.server().receive(VICTIM, other.client(VICTIM).start())
    moved = PinnedRoster({**cohort.roster, "site-d": SigningKey.generate().verify_key})
    client = ClientSession(cohort.policy, VICTIM, cohort.keys[VICTIM], moved, cohort.context(), MemoryStore())
    with pytest.raises(ProtocolError, match="S-04"):
        cohort.server().receive(VICTIM, client.start())


def test_a_result_without_a_pinned_server_key_is_still_bound_to_what_was_attested():
    play = Play(Cohort(4, signed=False), down=alone(RESULT, VICTIM, lambda m: replace(m, total=b"")))
    play.to_the_end()
    assert play.errors[VICTIM].check == "C-19"
    assert play.clients["site-b"].head == play.server.head
