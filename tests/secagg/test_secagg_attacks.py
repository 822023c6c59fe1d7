"""Every attack that the protocol's design names: stopped with the defence in, and it works with the defence taken out.

"Works" is exact: the attacker reads a site's quantised update bit by bit, two sums where one is allowed, a wrong sum
that nobody notices, or an honest site that is blamed. The table follows docs/spec.md.

| spec section | attack | defence (check) | what is taken out |
|---|---|---|---|
| Parameters | a cohort is split into two sums | n is pinned (C-21) | t follows the number present |
| Parameters | two corrupt clients make two quorums | q counts the corrupt (C-17) | q = a majority |
| Parameters | two left of three learn each other's vector | min_survivors (ConfigError) | the limits |
| Parameters | a sum that wraps | the bit budget (ConfigError) | the limits |
| Identifiers | every site gets another model | model hash in the round (C-15, S-10) | model hash |
| Identifiers | another U1, headers or U2 for one | the hashes, signed (S-06, S-09, S-10) | each |
| Identifiers | a sum for one site only | previous head in the round start (C-04) | the sum in the head |
| Keys and seeds | one mask for two vectors | fresh keys; seeds bound to the round | both (either does) |
| Keys and seeds | recorded traffic and a quantum computer | sealed r_uv | X25519 suite |
| Keys and seeds | a point of low order stops everybody | contributory keys (C-07, S-05) | the check |
| Commitments | another's envelope re-sent as one's own | sender in info and commitments (C-12) | both (either does) |
| Commitments | framing an honest dealer | three commitments (S-15 to S-17) | each |
| Commitments | an unusable secret stops the server | combine refuses >= 2^256 (S-18) | the refusal |
| Rounds, ShareReport | bad shares show at the end | envelopes are opened early (C-12) | the early look |
| Rounds, ShareReport | a liar complains until nobody is left | smallest set (S-20) | everybody accused goes |
| Rounds, MaskedInputCollection | a late y after s_w is public | self mask | self mask |
| Rounds, MaskedInputCollection | a second, different y | one message a sender (S-02) | the check |
| Rounds, ConsistencyCheck | another U3 for each | signed U3 (C-17); states once; no two kinds | each |
| Rounds, ConsistencyCheck | one attestation, q times | distinct signers (M-01, C-17) | distinctness |
| Rounds, Unmasking | exactly t live cannot finish | everybody sends its own b_u | own b_u |
| Rounds, Unmasking | secrets or keystreams that differ by accident | constant slots (S-19) | the slots |
| Rounds, Blame | a poisoned slot | what masked it is shown (S-19) | test_secagg_blame |
| Between the rounds | second attempt | mark (C-14) | the mark |
| Between the rounds | other run, claimed burn | run pinned (C-02), C-05 | each; all else: test_secagg_between_rounds |
| Parameters | sybils | identities pinned (C-06) | the server's roster |

Defences that no small patch takes out, or that stop nothing on their own:
- The position of a share is in no message, so there is nothing to lie about: it follows from the authenticated holder.
- A complaint cannot reveal a key or a share: `ShareReport` has no field for one.
- A signer outside U3 (C-17) adds nobody to a quorum: an honest client outside U3 signs nothing, and a corrupt one
  is counted in q already. The check keeps the sets nested; test_secagg_hostile fires it.
- The mark of attempts joined (C-03) guards rounds 0 and 1, which carry no data; with it gone C-14 still holds.
- Labels of signatures, hashes and infos: no two statements of this version coincide without them. test_secagg_wire
  covers that no message of one side is one of the other's.
- The channel key is apart from the mask key: with opened mask keys of the dropped the server would hold fewer than t
  shares of any other secret, because n - t + c < t. It is depth, not the last line.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import secagg.ahead
import secagg.client
import secagg.masking
import secagg.server
import secagg.session
import secagg.shamir
import secagg.store
import tests.support.hostile
from secagg import (
    AuthenticationError,
    ClientSession,
    ComplaintError,
    ConfigError,
    ExposureError,
    IllegalTransitionError,
    InconsistentViewError,
    MalformedMessageError,
    MemoryStore,
    OpenRound,
    PinnedRoster,
    Policy,
    ProtocolError,
    RoundContext,
    ShareError,
    SigningKey,
    Suite,
    TooFewClientsError,
    accept_exposure,
    dequantize,
    open_round,
    unchecked_round,
    wire,
)
from secagg.client import Attested, Reported, Shared
from secagg.complaints import leave_out as meet
from secagg.context import Slot
from secagg.encoding import digest
from secagg.keys import MaskKey
from secagg.masking import envelope_info, pair_mask_seed, self_mask_seed, share_commitment
from secagg.messages import (
    Attestations,
    IncludedSet,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    UnmaskingShares,
)
from secagg.prg import Masks, keystream
from secagg.roster import session_id
from secagg.server import Collecting, Unmasking
from secagg.shamir import PRIME, combine
from secagg.steps import State
from secagg.store import Marks
from tests.support.cohort import RUN, SERVER_KEY, Cohort, Play, alone
from tests.support.hostile import (
    ATTEST,
    COLLUDER,
    INBOX,
    INCLUDED,
    KEYS,
    MASKED,
    OTHER_HASH,
    REPORT,
    REPORTS,
    RESULT,
    ROSTER,
    SHARES,
    UNMASK,
    VICTIM,
    altered,
    believe_own_lie,
    deal_otherwise,
    dealt,
    flip,
    flipped,
    lying,
    pair_material,
    poisoned,
    rebundled,
    remove_masks,
    resigned,
    swapped,
    without,
    wrong_list,
)


class Anything:
    """Equal to whatever it is held against."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Taped(Play):
    """A play that keeps what everybody said (`said`) and was told (`heard`), by step and client."""

    def __post_init__(self) -> None:
        self.said, self.heard = {}, {}
        super().__post_init__()

    def collect(self) -> None:
        self.said |= {(self.server.step, who): message for who, message in self.out.items()}
        super().collect()

    def answer(self, replies) -> None:
        self.heard |= {(self.server.step, who): message for who, message in replies.items()}
        super().answer(replies)

    @property
    def roster(self) -> Roster:
        return self.heard[ROSTER, VICTIM]


def difference(cohort: Cohort, total: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (total - others) & total.dtype.type((1 << cohort.bits) - 1)


def mute(step: str) -> Callable:
    """The server keeps what it would say in a step to itself."""
    return lambda at, who, message: None if at == step else message


def read_with_shares(play: Taped, victim: str, self_seed: bytes | None, shares: dict[str, bytes]) -> np.ndarray:
    """The victim's update, from its y, its self seed and t shares of its mask key (X25519 suite)."""
    said, roster = play.said[MASKED, victim], play.heard[ROSTER, victim]
    held = {roster.positions[holder]: share for holder, share in shares.items()}
    key = MaskKey(play.cohort.suite, combine(held, play.cohort.policy.threshold))
    pairs = pair_material(key, roster, victim, play.heard[REPORTS, victim].by_id)
    return remove_masks(play.cohort, roster, said.round_id, victim, said.y, self_seed, pairs)


# --- Parameters --------------------------------------------------------------------------------------------------


def two_sums() -> list[np.ndarray]:
    """Ten clients, two of them corrupt; each half of the honest ones is told that the other half never came."""
    cohort, sums = Cohort(10, c=2), []
    *honest, eighth, ninth = cohort.ids
    for half in (honest[:4], honest[4:]):
        cohort.stores |= {liar: MemoryStore() for liar in (eighth, ninth)}
        play = cohort.play(leave_out=tuple(set(honest) - set(half)))
        if play.failure or play.errors:
            raise play.failure or play.errors[half[0]]
        sums.append(difference(cohort, play.server.result, cohort.plain_sum([eighth, ninth])))
        assert np.array_equal(sums[-1], cohort.plain_sum(half))
    return sums


def test_a_split_cohort_is_refused_by_its_clients_even_where_the_server_counts_nothing(monkeypatch):
    with pytest.raises(TooFewClientsError):
        two_sums()
    monkeypatch.setattr(Collecting, "_enough", lambda *_: None)
    cohort = Cohort(10, c=2)
    play = Play(cohort, leave_out=tuple(cohort.ids[:4])).until(SHARES)
    assert {error.check for error in play.errors.values()} == {"C-21"}
    assert len(play.errors) == 6


def test_with_a_threshold_that_follows_the_number_present_it_gives_two_sums(monkeypatch):
    monkeypatch.setattr(Policy, "threshold", property(lambda policy: (6 + policy.max_corrupt) // 2 + 1))
    assert len(two_sums()) == 2


def steal_with_two_quorums(play: Taped, hears_all: tuple[str, ...]) -> np.ndarray:
    """Some hear that the victim is included, some that it dropped out; corrupt clients attest both."""
    cohort = play.cohort
    play.down = mute(INCLUDED)
    play.until(ATTEST)
    everybody = play.heard[INCLUDED, VICTIM]
    dropped = IncludedSet(without(everybody.inputs, VICTIM))
    corrupt = play.clients[COLLUDER]._state.held
    said = {
        who: client.receive(everybody if who in hears_all else dropped)
        for who, client in play.clients.items()
        if who != COLLUDER
    }
    lie = replace(next(iter(said.values())), client_id=COLLUDER)

    def quorum(attested: bytes) -> Attestations:
        signed = [message for message in said.values() if message.attested == attested]
        return Attestations(swapped(signed, replace(lie, attested=attested).sign(cohort.keys[COLLUDER])))

    released = {who: play.clients[who].receive(quorum(message.attested)) for who, message in said.items()}
    shares = {who: m.mask_key_shares[VICTIM] for who, m in released.items() if VICTIM in m.mask_key_shares}
    shares[COLLUDER] = corrupt.mask_key_shares[VICTIM]
    return read_with_shares(play, VICTIM, released[VICTIM].self_seed, shares)


def test_two_quorums_need_more_corrupt_clients_than_there_are():
    with pytest.raises(InconsistentViewError, match="C-17"):
        steal_with_two_quorums(Taped(Cohort(5)).until(MASKED), hears_all=(VICTIM, "site-b"))


def test_a_mere_majority_makes_two_quorums_with_one_corrupt_client(monkeypatch):
    monkeypatch.setattr(Policy, "threshold", property(lambda policy: policy.clients // 2 + 1))
    play = Taped(Cohort(5)).until(MASKED)
    stolen = steal_with_two_quorums(play, hears_all=(VICTIM, "site-b"))
    assert np.array_equal(stolen, play.cohort.plain_sum([VICTIM]))


def test_two_of_three_are_no_sum(monkeypatch):
    for limits in ({"c": 0}, {"c": 0, "min_survivors": 2}, {"min_survivors": 2}):
        with pytest.raises(ConfigError):
            Cohort(3, **limits)
    monkeypatch.setattr(Policy, "_problems", lambda _: ())
    cohort = Cohort(3, c=0, min_survivors=2)
    play = cohort.play(silent={"site-c": MASKED})
    others = difference(cohort, play.server.result, cohort.plain_sum(["site-b"]))
    assert np.array_equal(others, cohort.plain_sum([VICTIM]))


def test_a_sum_that_could_wrap_cannot_be_configured(monkeypatch):
    with pytest.raises(ConfigError, match="overflow"):
        Cohort(4, bits=16)
    monkeypatch.setattr(Policy, "_problems", lambda _: ())
    cohort = Cohort(4, bits=16)
    cohort.updates = {client_id: np.ones(cohort.length) for client_id in cohort.ids}
    play = cohort.play()
    assert play.failure is None
    assert (dequantize(play.server.result, cohort.policy) == 0).all()


# --- Identifiers -------------------------------------------------------------------------------------------------


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


def two_rosters(cohort: Cohort) -> Play:
    """The corrupt client advertised two sets of keys; one site is shown the second."""
    second = cohort.client(COLLUDER)
    cohort.stores[COLLUDER] = MemoryStore()
    other = second.start()
    return cohort.play(
        up=alone(REPORT, COLLUDER, lambda m: resigned(complaint="")(cohort, m)),
        down=alone(ROSTER, VICTIM, lambda m: Roster(swapped(m.advertisements, other))),
    )


def other_sharers(cohort: Cohort) -> Play:
    """One site is told that another never reported."""
    return cohort.play(down=alone(REPORTS, VICTIM, lambda m: Reports(without(m.reports, "site-f"))))


def other_headers(cohort: Cohort) -> Play:
    """The corrupt client signed two headers; one site gets the second."""
    lie = lambda m: replace(  # noqa: E731
        m,
        headers=tuple(
            replace(h, self_commitment=OTHER_HASH).sign(cohort.keys[COLLUDER]) if h.client_id == COLLUDER else h
            for h in m.headers
        ),
    )
    return cohort.play(down=alone(INBOX, VICTIM, lie))


EQUIVOCATIONS = {"two rosters": (two_rosters, "S-06"), "other headers": (other_headers, "S-09")}
EQUIVOCATIONS["other sharers"] = (other_sharers, "S-10")


@pytest.mark.parametrize(("attack", "check"), EQUIVOCATIONS.values(), ids=EQUIVOCATIONS)
def test_who_was_told_something_else_is_noticed_and_the_others_go_on(attack, check):
    play = attack(Cohort(6))
    assert {who: error.check for who, error in play.refusals.items()} == {VICTIM: check}
    assert VICTIM not in play.server.included
    assert play.exact


def test_without_roster1_the_masks_do_not_cancel_and_an_honest_site_is_convicted(monkeypatch):
    monkeypatch.setattr(Roster, "hash", OTHER_HASH)
    play = two_rosters(Cohort(6))
    assert (play.failure.check, play.failure.culprits) == ("S-19", (VICTIM,))


def test_without_the_sharers_in_the_round_the_masks_do_not_cancel(monkeypatch):
    monkeypatch.setattr(Reports, "sharers_hash", OTHER_HASH)
    play = other_sharers(Cohort(6))
    assert (play.failure.check, play.failure.culprits) == ("S-19", ())


def test_without_roster2_two_headers_of_one_dealer_go_unnoticed(monkeypatch):
    monkeypatch.setattr(ShareInbox, "roster2", OTHER_HASH)
    monkeypatch.setattr(secagg.server, "headers_hash", lambda _: OTHER_HASH)
    play = other_headers(Cohort(6))
    assert not play.refusals
    assert VICTIM in play.server.included


def opened(cohort: Cohort, start: RoundStart, who: str, pinned_run: str = RUN) -> OpenRound:
    """The site's own model and task are what the cohort's contexts say."""
    own = {"model_hash": bytes(32), "task_hash": bytes(32)}
    return open_round(
        cohort.policy, cohort.roster, pinned_run, start, cohort.stores[who], **own, private=cohort.private
    )


def tell_one_site_another_sum(cohort: Cohort) -> tuple[Play, RoundContext]:
    """A well-formed result, signed by the server, with a sum of its own choice; then the next round opens."""

    def other_sum(message: Result) -> Result:
        total = bytes(len(message.total))
        receipt = message.receipt
        head = secagg.client.next_head(receipt.previous_head, receipt.round_id, receipt.attested, Result.hash_of(total))
        return Result(total, replace(receipt, total_hash=Result.hash_of(total), head=head).sign(SERVER_KEY))

    play = cohort.play(down=alone(RESULT, VICTIM, other_sum))
    assert not play.errors
    start = RoundStart(RUN, 2, 0, bytes(32), bytes(32), play.server.head, (play.server.receipt,)).sign(SERVER_KEY)
    return play, opened(cohort, start, VICTIM)


def test_a_sum_for_one_site_only_shows_in_the_next_head():
    with pytest.raises(InconsistentViewError, match="C-04"):
        tell_one_site_another_sum(Cohort(4, private=True))


def test_without_the_sum_in_the_head_it_never_shows(monkeypatch):
    monkeypatch.setattr(secagg.client, "next_head", lambda previous, round_id, attested, _: attested)
    monkeypatch.setattr(secagg.server, "next_head", lambda previous, round_id, attested, _: attested)
    _, following = tell_one_site_another_sum(Cohort(4, private=True))
    assert following.context.round_number == 2


# --- Keys and seeds ----------------------------------------------------------------------------------------------


def same_keys_every_round(monkeypatch, cohort: Cohort) -> None:
    drawn = []

    def mask_key(suite: Suite) -> MaskKey:
        drawn.append(None)
        return MaskKey(suite, bytes([len(drawn) % cohort.n + 1]) * 32)

    monkeypatch.setattr(secagg.ahead, "MaskKey", mask_key)
    monkeypatch.setattr(
        secagg.client, "secrets", SimpleNamespace(token_bytes=lambda n: bytes([len(drawn) % cohort.n]) * n)
    )


def seeds_bound_to_nothing(monkeypatch) -> None:
    for module in (secagg.client, secagg.server):
        monkeypatch.setattr(module, "pair_mask_seed", lambda _, __, *rest: pair_mask_seed(bytes(32), bytes(32), *rest))
        monkeypatch.setattr(module, "self_mask_seed", lambda _, __, *rest: self_mask_seed(bytes(32), bytes(32), *rest))


def two_rounds(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """The victim's y of two rounds subtracted, and the difference of its updates."""
    seen, updates = [], []
    for number in (1, 2):
        cohort.updates[VICTIM] = np.full(cohort.length, number / 8)
        play = Taped(cohort, context=cohort.context(number)).to_the_end()
        assert play.exact
        seen.append(remove_masks(cohort, play.roster, bytes(32), VICTIM, play.said[MASKED, VICTIM].y, None, {}))
        updates.append(cohort.plain_sum([VICTIM]))
    return difference(cohort, *seen), difference(cohort, *updates)


@pytest.mark.parametrize(("reuse", "unbind"), [(False, False), (True, False), (False, True), (True, True)])
def test_one_mask_for_two_vectors_needs_both_old_keys_and_unbound_seeds(monkeypatch, reuse, unbind):
    cohort = Cohort(4, private=True)
    if reuse:
        same_keys_every_round(monkeypatch, cohort)
    if unbind:
        seeds_bound_to_nothing(monkeypatch)
    seen, truth = two_rounds(cohort)
    assert np.array_equal(seen, truth) == (reuse and unbind)


def break_x25519_later(suite: Suite) -> tuple[np.ndarray, np.ndarray]:
    """Everything public or released is recorded; a quantum computer then computes every X25519 secret of the victim."""
    cohort = Cohort(4, suite=suite)
    exchanged: dict[str, bytes] = {}
    play = Taped(cohort).until(REPORT)
    key = play.clients[VICTIM]._state.held.mask_key
    exchanged = pair_material(key, play.roster, VICTIM, cohort.ids)
    play.to_the_end()
    said = play.said[MASKED, VICTIM]
    self_seed = play.said[UNMASK, VICTIM].self_seed
    read = remove_masks(cohort, play.roster, said.round_id, VICTIM, said.y, self_seed, exchanged)
    return read, cohort.plain_sum([VICTIM])


def test_recorded_traffic_stays_hidden_from_a_quantum_computer_where_pair_secrets_are_sealed():
    read, truth = break_x25519_later(Suite.MLKEM768_X25519)
    assert not np.array_equal(read, truth)


def test_without_them_recorded_traffic_is_read():
    read, truth = break_x25519_later(Suite.X25519)
    assert np.array_equal(read, truth)


def low_order(cohort: Cohort) -> Play:
    return lying(Play(cohort), KEYS, COLLUDER, resigned(mask_dh_pk=bytes(32))).to_the_end()


def test_a_point_of_low_order_takes_nobody_down():
    play = low_order(Cohort(5))
    assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == ("S-05", (COLLUDER,))
    assert play.exact


def test_without_the_check_one_client_takes_every_session_down(monkeypatch):
    for module in (secagg.client, secagg.server):
        monkeypatch.setattr(module, "check_public", lambda *_: True)
    cohort = Cohort(5)
    with pytest.raises(ValueError, match=r"."):
        low_order(cohort)
    spent = cohort.context().at(session_id(cohort.policy, cohort.roster))
    with cohort.stores[VICTIM].transaction() as marks, pytest.raises(ProtocolError, match="C-14"):
        marks.contribute(spent, "spent for nothing", (), False)


# --- Commitments -------------------------------------------------------------------------------------------------


def resend_envelopes(cohort: Cohort) -> np.ndarray:
    """The corrupt client deals the victim's ciphertexts as its own and drops out: opening "its" mask key opens the
    victim's. The server passes on what it has seen before (S-08)."""
    stolen = {}

    def up(step, who, message):
        if (step, who) == (SHARES, VICTIM):
            stolen.update(zip(play.roster.others(VICTIM), message.bundles, strict=True))
        if (step, who) == (SHARES, COLLUDER):
            own = zip(play.roster.others(COLLUDER), message.bundles, strict=True)
            message = dealt(cohort, message, [stolen.get(peer, bundle) for peer, bundle in own])
            believe_own_lie(play.clients[COLLUDER], message)
        return message

    play = Taped(cohort, up=up, silent={COLLUDER: MASKED})
    with mock.patch.object(secagg.server, "_repeats", return_value=False):
        play.until(MASKED)
    if play.failure:
        raise play.failure
    held = play.clients[COLLUDER]._state.held.mask_key_shares[VICTIM]
    play.to_the_end()
    released = {who: m for (step, who), m in play.said.items() if step == UNMASK}
    shares = {who: m.mask_key_shares[COLLUDER] for who, m in released.items() if who != VICTIM}
    return read_with_shares(play, VICTIM, released[VICTIM].self_seed, {**shares, COLLUDER: held})


def anonymous_envelopes(monkeypatch) -> None:
    anonymous = lambda purpose, slot, roster1, _, recipient: envelope_info(purpose, slot, roster1, "", recipient)  # noqa: E731
    monkeypatch.setattr(secagg.client, "envelope_info", anonymous)


def anonymous_commitments(monkeypatch) -> None:
    anonymous = lambda slot, roster1, _, *rest: share_commitment(slot, roster1, "", *rest)  # noqa: E731
    monkeypatch.setattr(secagg.client, "share_commitment", anonymous)
    of_many = lambda slot, roster1, holder, kind, shares: {  # noqa: E731
        dealer: anonymous(slot, roster1, dealer, holder, kind, share) for dealer, share in shares.items()
    }
    monkeypatch.setattr(secagg.server, "share_commitments", of_many)


@pytest.mark.parametrize("taken_out", [(), (anonymous_envelopes,), (anonymous_commitments,)])
def test_an_envelope_or_commitment_that_names_its_sender_is_worth_nothing_to_another(monkeypatch, taken_out):
    for remove in taken_out:
        remove(monkeypatch)
    with pytest.raises(ComplaintError) as caught:
        resend_envelopes(Cohort(4))
    assert {dealer for _, dealer in caught.value.complaints} == {COLLUDER}


def test_without_the_sender_in_both_the_victims_shares_are_released_as_the_liars(monkeypatch):
    anonymous_envelopes(monkeypatch)
    anonymous_commitments(monkeypatch)
    cohort = Cohort(4)
    assert np.array_equal(resend_envelopes(cohort), cohort.plain_sum([VICTIM]))


FRAMINGS = {
    "share_commitments": ("S-16", wrong_list("mask_key_shares", flipped), Suite.X25519, ("S-18", ("site-e",))),
    "pair_commitment": ("S-17", wrong_list("pair_secrets", flipped), Suite.MLKEM768_X25519, ("S-19", (COLLUDER,))),
    "self_commitment": ("S-15", resigned(self_seed=OTHER_HASH), Suite.X25519, ("S-19", (COLLUDER,))),
}


@pytest.mark.parametrize("commitment", FRAMINGS)
def test_who_releases_something_wrong_is_named_and_the_sum_is_exact(commitment):
    check, lie, suite, _ = FRAMINGS[commitment]
    cohort = Cohort(6, suite=suite)
    play = cohort.play(silent={"site-e": MASKED}, up=alone(UNMASK, COLLUDER, lambda m: lie(cohort, m)))
    assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == (check, (COLLUDER,))
    assert play.exact


@pytest.mark.parametrize("commitment", FRAMINGS)
def test_without_the_commitment_the_round_burns_and_an_honest_dealer_may_be_convicted(monkeypatch, commitment):
    _, lie, suite, blamed = FRAMINGS[commitment]
    anything = {"share_commitments": lambda *given: dict.fromkeys(given[-1], Anything())}
    monkeypatch.setattr(secagg.server, commitment, anything.get(commitment, lambda *_: Anything()))
    cohort = Cohort(6, suite=suite)
    play = cohort.play(silent={"site-e": MASKED}, up=alone(UNMASK, COLLUDER, lambda m: lie(cohort, m)))
    assert (play.failure.check, play.failure.culprits) == blamed
    assert play.server.result is None


def deal_no_secret(cohort: Cohort) -> Play:
    """The dealer's polynomial hides a field element above every 32-byte secret."""
    play = Play(cohort, silent={COLLUDER: MASKED})
    deal_otherwise(play.clients[COLLUDER], 0, PRIME - 1)
    return play.to_the_end()


def test_a_dealer_of_no_secret_is_convicted():
    play = deal_no_secret(Cohort(5))
    assert (play.failure.check, play.failure.culprits) == ("S-18", (COLLUDER,))


def test_where_combine_does_not_refuse_it_the_server_falls_over(monkeypatch):
    def trust(held, threshold):
        with monkeypatch.context() as patch:
            patch.setattr(secagg.shamir, "SECRET_BYTES", 33)
            return combine(held, threshold)

    monkeypatch.setattr(secagg.server, "combine", trust)
    with pytest.raises(ValueError, match="32 bytes"):
        deal_no_secret(Cohort(5))


# --- ShareReport -------------------------------------------------------------------------------------------------


def deal_one_bad_share(cohort: Cohort) -> Play:
    """The dealer seals rubbish for one honest client and drops out."""
    lie = rebundled(altered(0, shares=lambda sealed: flip(sealed)))
    return lying(Play(cohort, silent={COLLUDER: MASKED}), SHARES, COLLUDER, lie).to_the_end()


def test_a_bad_share_is_noticed_before_anything_was_masked():
    play = deal_one_bad_share(Cohort(5))
    assert isinstance(play.failure, ComplaintError)
    assert play.failure.complaints == ((VICTIM, COLLUDER),)
    assert not play.server.burned


def test_a_bad_share_noticed_late_burns_the_round_and_frames_its_holder(monkeypatch):
    look = Shared._open

    def trust(self, dealer, bundle, held) -> None:
        try:
            look(self, dealer, bundle, held)
        except ShareError:
            held.mask_key_shares[dealer] = held.self_seed_shares[dealer] = bytes(33)

    monkeypatch.setattr(Shared, "_open", trust)
    play = deal_one_bad_share(Cohort(5))
    assert (play.refusals[VICTIM].check, play.refusals[VICTIM].culprits) == ("S-16", (VICTIM,))
    assert isinstance(play.failure, TooFewClientsError)
    assert play.server.burned


def complain_until_nobody_is_left(cohort: Cohort, leave_out: Callable) -> tuple[Play, int]:
    """In every attempt the corrupt client accuses another honest dealer."""
    accused, attempt = [], 0
    while True:
        gone = leave_out(accused)
        left = [i for i in cohort.ids if i not in gone and i != COLLUDER]
        lie = resigned(complaint=left[0])
        play = cohort.play(
            context=cohort.context(attempt=attempt),
            leave_out=tuple(gone),
            up=alone(REPORT, COLLUDER, lambda m, lie=lie: lie(cohort, m)),
        )
        if not isinstance(play.failure, ComplaintError):
            return play, attempt
        accused += play.failure.complaints
        attempt += 1


def test_a_liar_that_complains_again_and_again_is_left_out_itself():
    cohort = Cohort(7)
    play, attempts = complain_until_nobody_is_left(cohort, lambda pairs: meet(pairs, 1, lambda _: 0).clients)
    assert attempts == 2
    assert play.server.included == without_ids(cohort, COLLUDER)
    assert play.exact


def test_where_everybody_accused_is_left_out_a_liar_ends_the_study():
    play, attempts = complain_until_nobody_is_left(Cohort(7), lambda pairs: {dealer for _, dealer in pairs})
    assert isinstance(play.failure, TooFewClientsError)
    assert attempts == 3


def without_ids(cohort: Cohort, *gone: str) -> tuple[str, ...]:
    return tuple(i for i in cohort.ids if i not in gone)


# --- MaskedInputCollection ---------------------------------------------------------------------------------------


def read_a_late_input(cohort: Cohort) -> np.ndarray:
    """The victim's y is held back until everybody has released shares of its mask key."""
    play = Taped(cohort, silent={VICTIM: MASKED}).to_the_end()
    assert play.exact
    released = {who: m for (step, who), m in play.said.items() if step == UNMASK}
    return read_with_shares(play, VICTIM, bytes(32), {who: m.mask_key_shares[VICTIM] for who, m in released.items()})


def test_a_late_input_stays_under_its_self_mask():
    cohort = Cohort(5)
    assert not np.array_equal(read_a_late_input(cohort), cohort.plain_sum([VICTIM]))


def test_without_self_masks_a_late_input_is_read(monkeypatch):
    for module in (secagg.client, secagg.server, tests.support.hostile):
        monkeypatch.setattr(module, "self_mask_seed", lambda *_: OTHER_HASH)
    cohort = Cohort(5)
    assert np.array_equal(read_a_late_input(cohort), cohort.plain_sum([VICTIM]))


def mask_twice(cohort: Cohort, forgetful: bool) -> Play:
    """The corrupt client sends a second, different y, signed."""
    play = Play(cohort).until(MASKED)
    if forgetful:
        play.server._state.received = Forgetful(play.server._state.received)
    play.collect()
    play.out = {COLLUDER: poisoned(cohort.policy, 0, 1)(cohort, play.out[COLLUDER])}
    return play.to_the_end()


class Forgetful(dict):
    """Does not remember who was heard."""

    def __contains__(self, _: object) -> bool:
        return False


def test_a_second_input_changes_nothing():
    play = mask_twice(Cohort(5), forgetful=False)
    assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == ("S-02", (COLLUDER,))
    assert play.exact


def test_a_server_that_forgets_whom_it_heard_adds_it_twice():
    play = mask_twice(Cohort(5), forgetful=True)
    assert (play.failure.check, play.failure.culprits) == ("S-19", ())


# --- ConsistencyCheck --------------------------------------------------------------------------------------------


def steal_one_input(play: Taped, quorum_for_the_victim: Callable = lambda mine: (mine,)) -> np.ndarray:
    """Everybody but the victim hears that the victim dropped out; the victim hears that nobody did."""
    others = lambda m: IncludedSet(without(m.inputs, VICTIM))  # noqa: E731
    play.down = lambda step, who, m: others(m) if step == INCLUDED and who != VICTIM else m
    play.until(ATTEST)
    mine, theirs = play.out[VICTIM], without((play.out[i] for i in sorted(play.out)), VICTIM)
    told = {who: Attestations(theirs) for who in play.out} | {VICTIM: Attestations(quorum_for_the_victim(mine))}
    released = {who: play.clients[who].receive(message) for who, message in told.items()}
    assert set(released["site-b"].mask_key_shares) == {VICTIM}
    shares = {who: message.mask_key_shares[VICTIM] for who, message in released.items() if who != VICTIM}
    return read_with_shares(play, VICTIM, released[VICTIM].self_seed, shares)


def test_the_signed_included_set_stops_a_server_from_opening_one_input():
    with pytest.raises(InconsistentViewError, match="C-17"):
        steal_one_input(Taped(Cohort(4)).until(MASKED))


def test_without_it_the_server_reads_one_site_exactly(monkeypatch):
    signed = lambda _, shown: {who: entry.signature for who, entry in shown.by_id.items()}  # noqa: E731
    monkeypatch.setattr(Attested, "_verify_attestations", signed)
    play = Taped(Cohort(4)).until(MASKED)
    assert np.array_equal(steal_one_input(play), play.cohort.plain_sum([VICTIM]))


def thrice(mine):
    return (mine, mine, mine)


def test_one_attestation_sent_q_times_is_one_attestation():
    with pytest.raises(MalformedMessageError, match="M-01"):
        steal_one_input(Taped(Cohort(4)).until(MASKED), thrice)


def test_where_attestations_are_counted_and_not_their_signers_one_is_a_quorum(monkeypatch):
    def count(self, attestations: Attestations) -> dict[str, bytes]:
        for entry in attestations.attestations:
            entry.verify(self.own.pinned[entry.client_id], "C-17")
            assert entry.attested == self.attestation.attested
        if len(attestations.attestations) < self.own.policy.threshold:
            raise InconsistentViewError("C-17", "too few")
        return {who: entry.signature for who, entry in attestations.by_id.items()}

    monkeypatch.setattr(Attested, "_verify_attestations", count)
    monkeypatch.setattr(Attestations, "__post_init__", lambda _: None)
    play = Taped(Cohort(4)).until(MASKED)
    assert np.array_equal(steal_one_input(play, thrice), play.cohort.plain_sum([VICTIM]))


def attest_twice(play: Taped) -> tuple[bytes, dict[str, bytes]]:
    """The same one-shot states are asked to attest a second set, so that both sets find a quorum."""
    play.down = mute(INCLUDED)
    play.until(ATTEST)
    everybody = play.heard[INCLUDED, VICTIM]
    others = IncludedSet(without(everybody.inputs, VICTIM))
    states = {who: client._state for who, client in play.clients.items()}
    first = {who: state.attest(everybody) for who, state in states.items()}
    second = {who: state.attest(others) for who, state in states.items() if who != VICTIM}
    mine = first[VICTIM][0].unmask(Attestations(tuple(message for _, message in first.values())))[1]
    quorum = Attestations(tuple(message for _, message in second.values()))
    shares = {who: state.unmask(quorum)[1].mask_key_shares[VICTIM] for who, (state, _) in second.items()}
    return mine.self_seed, shares


def test_a_state_attests_once():
    with pytest.raises(IllegalTransitionError):
        attest_twice(Taped(Cohort(4)).until(MASKED))


def test_without_one_shot_states_the_server_gets_both_kinds_of_share(monkeypatch):
    monkeypatch.setattr(State, "_leave", lambda self: None)
    play = Taped(Cohort(4)).until(MASKED)
    stolen = read_with_shares(play, VICTIM, *attest_twice(play))
    assert np.array_equal(stolen, play.cohort.plain_sum([VICTIM]))


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


# --- Unmasking ---------------------------------------------------------------------------------------------------


def exactly_the_threshold(cohort: Cohort) -> Play:
    return cohort.play(silent={VICTIM: UNMASK})


def test_exactly_t_clients_finish_a_round():
    cohort = Cohort(5)
    assert cohort.policy.threshold == 4
    assert exactly_the_threshold(cohort).exact


def test_without_their_own_self_seeds_exactly_t_clients_cannot(monkeypatch):
    honest = Unmasking._self_seed

    def shares_only(self, client_id: str) -> bytes:
        own = self.received.pop(client_id, None)
        try:
            return honest(self, client_id)
        finally:
            if own is not None:
                self.received[client_id] = own

    monkeypatch.setattr(Unmasking, "_self_seed", shares_only)
    play = exactly_the_threshold(Cohort(5))
    assert play.failure.check == "S-18"
    assert set(play.failure.culprits) <= set(play.cohort.ids)


def one_mask_too_few(monkeypatch) -> None:
    """Two honest clients disagree about what is derived from the secrets of their pair."""
    seen = []

    def wrong_once(roster1, round_id, ids, *secrets):
        seen.append(sorted(ids))
        slips = sorted(ids) == [VICTIM, "site-b"] and seen.count(sorted(ids)) == 1
        return OTHER_HASH if slips else pair_mask_seed(roster1, round_id, ids, *secrets)

    monkeypatch.setattr(secagg.client, "pair_mask_seed", wrong_once)


def one_wrong_machine(monkeypatch, everywhere: bool = False) -> None:
    """An honest client's machine takes keystreams for others: where it masks, or also where it says what masked."""
    mask_input = Reported.mask_input
    other = lambda seeds: [digest("another", seed) for seed in seeds]  # noqa: E731

    def slip(self, *arguments):
        with monkeypatch.context() as machine:
            if self.own.me == VICTIM:
                machine.setattr(secagg.masking, "Masks", lambda *seeds: Masks(*map(other, seeds)))
                if everywhere:
                    machine.setattr(secagg.masking, "keystream", lambda seed, *at: keystream(*other([seed]), *at))
            return mask_input(self, *arguments)

    monkeypatch.setattr(Reported, "mask_input", slip)


def test_a_mask_that_was_forgotten_shows_in_the_constant_slots_and_the_pair_is_named(monkeypatch):
    one_mask_too_few(monkeypatch)
    play = Cohort(5).play()
    assert isinstance(play.failure, ComplaintError)
    assert play.failure.complaints == ((VICTIM, "site-b"),)
    assert play.server.result is None
    assert play.server.burned


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_machine_that_expands_a_keystream_wrongly_shows_in_the_constant_slots_and_its_owner_is_named(
    monkeypatch, everywhere
):
    """Every secret is the right one: the slots lie in the keystreams of the values, so that they see this too."""
    one_wrong_machine(monkeypatch, everywhere)
    play = Cohort(5).play()
    assert isinstance(play.failure, ShareError)
    assert (play.failure.check, play.failure.culprits) == ("S-19", (VICTIM,))
    assert play.server.result is None
    assert play.server.burned


@pytest.mark.parametrize("slip", [one_mask_too_few, one_wrong_machine])
def test_without_the_slots_it_is_a_wrong_sum(monkeypatch, slip):
    slip(monkeypatch)
    monkeypatch.setattr(Policy, "slots", 0)
    play = Cohort(5).play()
    assert play.failure is None
    assert not play.exact


# --- Between the rounds ------------------------------------------------------------------------------------------


def one_without_the_victim(cohort: Cohort, again: Cohort, context: RoundContext) -> np.ndarray:
    """Everybody contributes; the same data is summed once more without the victim, and the server subtracts."""
    everybody = cohort.play(down=mute(RESULT))
    rerun = again.play(context=context, leave_out=(VICTIM,))
    if rerun.failure:
        raise next(iter(rerun.errors.values()), rerun.failure)
    return difference(cohort, everybody.server.result, rerun.server.result)


def test_the_durable_mark_stops_a_second_contribution_to_a_round_number():
    """Private updates ask for no acceptance: this mark is all that keeps a round number to one contribution."""
    cohort = Cohort(5, private=True)
    with pytest.raises(ProtocolError, match="C-14"):
        one_without_the_victim(cohort, cohort, cohort.context(attempt=1))
    play = Play(cohort, context=cohort.context(attempt=2)).to_the_end()
    assert {error.check for error in play.errors.values()} == {"C-14"}
    assert set(play.errors) == set(cohort.ids)


def test_without_the_mark_the_difference_is_one_site(monkeypatch):
    contribute = Marks.contribute

    def forget(marks: Marks, slot: Slot, *rest) -> None:
        marks._entries.pop(secagg.store._key("contributed", slot.session, slot.training_run), None)
        contribute(marks, slot, *rest)

    monkeypatch.setattr(Marks, "contribute", forget)
    cohort = Cohort(5, private=True)
    stolen = one_without_the_victim(cohort, cohort, cohort.context(attempt=1))
    assert np.array_equal(stolen, cohort.plain_sum([VICTIM]))


def rerun(cohort: Cohort, start: RoundStart, pinned_run: str, accept: bool = False) -> np.ndarray:
    """After a round that everybody opened, the server opens `start` to all but the victim, and subtracts."""
    first = cohort.play(down=mute(RESULT))
    left = [i for i in cohort.ids if i != VICTIM]
    for who in left if accept else ():
        accept_exposure(cohort.stores[who], cohort.keys[who], who, first.server.receipt.round_id)
    rounds = [opened(cohort, start, who, pinned_run) for who in left]
    second = cohort.play(context=rounds[0].context, leave_out=(VICTIM,))
    return difference(cohort, first.server.result, second.server.result)


def test_a_site_that_released_its_shares_enters_no_rerun_of_a_round_said_to_be_burned():
    start = RoundStart(RUN, 2, 0, *[bytes(32)] * 3).sign(SERVER_KEY)
    with pytest.raises(ExposureError, match="C-05"):
        rerun(Cohort(5), start, RUN)


def test_where_operators_accept_that_round_by_name_the_rerun_gives_one_site():
    cohort = Cohort(5)
    start = RoundStart(RUN, 2, 0, *[bytes(32)] * 3).sign(SERVER_KEY)
    assert np.array_equal(rerun(cohort, start, RUN, accept=True), cohort.plain_sum([VICTIM]))


def test_a_site_takes_part_in_the_run_that_it_pinned():
    start = RoundStart("another run", 1, 0, *[bytes(32)] * 3).sign(SERVER_KEY)
    with pytest.raises(InconsistentViewError, match="C-02"):
        rerun(Cohort(5), start, RUN)


def test_where_the_server_names_the_run_a_second_one_gives_one_private_update_twice():
    """What is private on its own is summed as often as it is charged: a site pins the run that it pays for."""
    cohort = Cohort(5, private=True)
    start = RoundStart("another run", 1, 0, *[bytes(32)] * 3).sign(SERVER_KEY)
    assert np.array_equal(rerun(cohort, start, start.training_run), cohort.plain_sum([VICTIM]))


# --- identities --------------------------------------------------------------------------------------------------


@pytest.fixture
def sybils(monkeypatch) -> tuple[Cohort, PinnedRoster]:
    """A cohort, and the same ids under keys that the server made, but for the victim's."""
    cohort = Cohort(4)
    made = {client_id: SigningKey.from_bytes(bytes([i]) * 32) for i, client_id in enumerate(cohort.ids, 50)}
    made[VICTIM] = cohort.keys[VICTIM]
    pinned, cohort.keys = cohort.roster, made
    cohort.roster = PinnedRoster({client_id: key.verify_key for client_id, key in made.items()})
    for module in (secagg.client, secagg.session):  # a liar's slot is what it says
        monkeypatch.setattr(module, "session_id", lambda *_: OTHER_HASH)
    return cohort, pinned


def surround(cohort: Cohort, known_to_the_victim: PinnedRoster) -> np.ndarray:
    """The server plays everybody but the victim."""
    play = Play(cohort, late=(VICTIM,))
    cohort.stores[VICTIM], session = MemoryStore(), (cohort.policy, VICTIM, cohort.keys[VICTIM], known_to_the_victim)
    victim = play.clients[VICTIM] = ClientSession(*session, unchecked_round(cohort.context()), cohort.stores[VICTIM])
    play.out[VICTIM] = victim.start()
    cohort.provide(victim, VICTIM)
    play.to_the_end()
    if play.errors:
        raise play.errors[VICTIM]
    return difference(cohort, play.server.result, cohort.plain_sum(without_ids(cohort, VICTIM)))


def test_a_site_talks_to_the_identities_that_it_pinned(sybils):
    cohort, pinned = sybils
    with pytest.raises(AuthenticationError, match="C-13"):  # no report of theirs can be by who is pinned
        surround(cohort, pinned)


def test_a_site_that_takes_the_roster_from_the_server_is_alone_among_sybils(sybils):
    cohort, _ = sybils
    assert np.array_equal(surround(cohort, cohort.roster), cohort.plain_sum([VICTIM]))
