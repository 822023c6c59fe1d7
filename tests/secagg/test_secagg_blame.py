"""Constant slots that do not add up: who is convicted, who never is, and that the search for a liar touches no data."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secagg.client
from secagg import ComplaintError, IllegalTransitionError, InconsistentViewError, ProtocolError, ShareError, Suite, wire
from secagg.client import Released
from secagg.masking import pair_mask_seed, self_mask_seed
from secagg.messages import MaskedInput, SlotMasks, SlotsFailed, UnmaskingShares
from secagg.packing import dtype_for, unpack
from secagg.prg import apply_masks, keystream
from secagg.steps import BLAME
from tests.support.cohort import Cohort, Play
from tests.support.hostile import ATTEST, COLLUDER, MASKED, OTHER_HASH, UNMASK, VICTIM, poisoned

SHAPES = [(n, c, suite) for n, c in ((4, 1), (5, 1), (7, 2)) for suite in Suite]


def shapes(function: Callable) -> Callable:
    return pytest.mark.parametrize(("n", "c", "suite"), SHAPES)(function)


def blamed(
    cohort: Cohort, changes: Mapping[str, Mapping[str, Callable]], silent: Mapping[str, str] = MappingProxyType({})
) -> Play:
    """Corrupt clients change what they say in a step (None: nothing), and go on from it where it is their input."""

    def up(step: str, who: str, message):
        change = changes.get(who, {}).get(step)
        said = message if change is None else change(message)
        if step == MASKED and change is not None:
            play.clients[who]._state.mine = said.acceptance()
        return said

    play = Play(cohort, silent=silent)
    play.up = up
    return play.to_the_end()


def poison(cohort: Cohort, place: int = -1, delta: int = 1) -> Callable:
    return lambda message: poisoned(cohort.policy, place, delta)(cohort, message)


def plus(mask: bytes, delta: int) -> bytes:
    """A slot mask whose first word is another."""
    return (int.from_bytes(mask[:4], "little") + delta & 0xFFFFFFFF).to_bytes(4, "little") + mask[4:]


def shows(cohort: Cohort, **masks) -> Callable:
    """An answer with other masks; a function changes what was there."""

    def change(message: SlotMasks) -> SlotMasks:
        named = {f"site-{letter}": value for letter, value in masks.items()}
        new = {peer: value(message.masks[peer]) if callable(value) else value for peer, value in named.items()}
        return replace(message, masks={**message.masks, **new}).sign(cohort.keys[message.client_id])

    return change


def gone(cohort: Cohort) -> dict[str, str]:
    """As many drop out before they mask as may."""
    spare = cohort.n - cohort.policy.min_survivors
    return dict.fromkeys([i for i in cohort.ids if i not in (VICTIM, COLLUDER)][:spare], MASKED)


# --- who is convicted ----------------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("dropouts", [False, True])
@pytest.mark.parametrize("place", [-1, -2])
def test_who_poisons_a_slot_is_convicted_by_name(n, c, suite, dropouts, place):
    cohort = Cohort(n, c, suite, bits=32 if place == -1 else 24)
    play = blamed(cohort, {COLLUDER: {MASKED: poison(cohort, place)}}, gone(cohort) if dropouts else {})
    assert isinstance(play.failure, ShareError)
    assert (play.failure.check, play.failure.culprits) == ("S-19", (COLLUDER,))
    assert play.server.step == BLAME
    assert play.server.burned
    assert play.server.result is None
    assert not play.errors
    assert not play.refusals


@shapes
@pytest.mark.parametrize("dropouts", [False, True])
def test_who_lies_about_a_pair_mask_too_leaves_a_complaint_about_that_pair(n, c, suite, dropouts):
    """Its slots fit its own answer, and the honest end says otherwise: one of the two is corrupt; both are named."""
    cohort = Cohort(n, c, suite)
    # Of the pair the other end has the smaller id, so that its mask is subtracted.
    lie = {MASKED: poison(cohort, -2), BLAME: shows(cohort, a=lambda mask: plus(mask, -1))}
    play = blamed(cohort, {COLLUDER: lie}, gone(cohort) if dropouts else {})
    assert isinstance(play.failure, ComplaintError), play.failure
    assert play.failure.complaints == ((VICTIM, COLLUDER),)


@shapes
@pytest.mark.parametrize("falls_silent", [UNMASK, BLAME])
def test_who_does_not_answer_is_named_and_not_convicted(n, c, suite, falls_silent):
    cohort = Cohort(n, c, suite)
    quiet = {falls_silent: lambda _: None}
    play = blamed(cohort, {COLLUDER: {MASKED: poison(cohort), **quiet}})
    assert (play.failure.check, play.failure.culprits) == ("S-19", ())
    assert f"{COLLUDER} did not show any slot masks" in str(play.failure)
    assert VICTIM not in str(play.failure)


def test_a_mask_with_who_dropped_out_is_held_against_the_opened_key():
    """Not even two colluders can agree about the pair mask of one that is gone: the server has derived it itself."""
    cohort = Cohort(5)
    lie = {MASKED: poison(cohort, -2), BLAME: shows(cohort, b=lambda mask: plus(mask, -1))}
    play = blamed(cohort, {COLLUDER: lie}, {"site-b": MASKED})
    assert play.failure.culprits == (COLLUDER,)


# --- who never is --------------------------------------------------------------------------------------------------

WORDS = st.sampled_from([0, 1, -1, 1 << 31])
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "silent": st.sampled_from([UNMASK, BLAME]),
        "shown": st.dictionaries(st.integers(0, 6), WORDS, max_size=3),
        "poison": WORDS,
        "forged": st.sampled_from(["round", "peer", "signature"]),
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    shape=st.sampled_from(SHAPES),
    liars=st.lists(st.integers(0, 6), min_size=1, max_size=2, unique=True),
    answers=st.lists(ANSWERS, min_size=2, max_size=2),
    agreed=WORDS,
    drop=st.none() | st.integers(0, 6),
)
def test_an_honest_client_is_never_convicted(shape, liars, answers, agreed, drop):
    """Whatever up to c colluders answer, false masks on which two of them agree among them."""
    cohort = Cohort(*shape)
    corrupt = sorted({cohort.ids[i % cohort.n] for i in liars})[: cohort.c]
    silent = {cohort.ids[drop % cohort.n]: MASKED} if drop is not None and shape[0] > 4 else {}
    play = blamed(
        cohort, {w: corrupted(cohort, w, corrupt, a, agreed) for w, a in zip(corrupt, answers, strict=False)}, silent
    )
    honest = set(cohort.ids) - set(corrupt)
    assert not play.errors.keys() & honest
    assert not play.refusals.keys() & honest
    for error in [play.failure, *play.refusals.values()]:
        if isinstance(error, ComplaintError):
            assert all(set(pair) & set(corrupt) for pair in error.complaints)
        elif isinstance(error, ProtocolError):
            assert set(error.culprits) <= set(corrupt)
    if play.failure is None and play.server.result is not None:
        assert play.exact


def corrupted(cohort: Cohort, me: str, corrupt: list[str], answer: Mapping, agreed: int) -> dict[str, Callable]:
    def slots(message: SlotMasks) -> SlotMasks | None:
        if answer.get("silent") == BLAME:
            return None
        deltas = {cohort.ids[i % cohort.n]: delta for i, delta in answer.get("shown", {}).items()}
        deltas |= dict.fromkeys(set(corrupt) - {me}, agreed)
        said = replace(message, masks={peer: plus(m, deltas.get(peer, 0)) for peer, m in message.masks.items()})
        forged = answer.get("forged")
        said = replace(said, round_id=OTHER_HASH) if forged == "round" else said
        said = replace(said, masks=dict(list(said.masks.items())[1:])) if forged == "peer" else said
        return said if forged == "signature" else said.sign(cohort.keys[me])

    changes = {BLAME: slots, MASKED: poison(cohort, -2, answer.get("poison", 0))}
    return changes | ({UNMASK: lambda _: None} if answer.get("silent") == UNMASK else {})


def test_answers_of_another_round_or_about_the_wrong_clients_are_refused():
    cohort, lie = Cohort(5), {"poison": 1, "shown": {0: 1}}
    for forged, culprits in (("round", ()), ("peer", (COLLUDER,)), ("signature", (COLLUDER,))):
        play = blamed(cohort, {COLLUDER: corrupted(cohort, COLLUDER, [COLLUDER], {**lie, "forged": forged}, 1)})
        assert (play.refusals[COLLUDER].check, play.refusals[COLLUDER].culprits) == ("S-23", culprits)
        assert play.failure.culprits == ()
        cohort = Cohort(5)


# --- what a client answers, and when -------------------------------------------------------------------------------


def told_that_slots_failed(play: Play, step: str) -> None:
    """Before its shares are out, and after the sum is there, no client answers."""
    for client in play.clients.values():
        with pytest.raises((ProtocolError, IllegalTransitionError)) as caught:
            client.receive(SlotsFailed(OTHER_HASH, OTHER_HASH))
        assert getattr(caught.value, "check", "C-20") == "C-20", step


@pytest.mark.parametrize("step", ["AdvertiseKeys", "ShareKeys", "ShareReport", MASKED, ATTEST])
def test_an_honest_client_shows_nothing_before_it_released(step):
    told_that_slots_failed(Play(Cohort(4)).until(step), step)


def test_an_honest_client_shows_its_slot_masks_once_and_of_its_own_round_only():
    cohort = Cohort(4)
    play = Play(cohort).until(UNMASK)
    for who, shares in play.out.items():
        client = play.clients[who]
        ask = SlotsFailed(shares.round_id, shares.attested)
        answer = client.receive(wire.decode_from_server(wire.encode(ask)))
        assert client.receive(ask) == answer
        assert client.finished
        with pytest.raises(IllegalTransitionError):
            client.receive(SlotsFailed(shares.round_id, OTHER_HASH))
    for asked in ("round_id", "attested"):
        play = Play(Cohort(4)).until(UNMASK)
        for who, shares in play.out.items():
            ask = replace(SlotsFailed(shares.round_id, shares.attested), **{asked: OTHER_HASH})
            with pytest.raises(InconsistentViewError, match="C-27"):
                play.clients[who].receive(ask)
            assert play.clients[who].finished


def test_a_client_that_concluded_shows_nothing():
    play = Cohort(4).play()
    for client in play.clients.values():
        with pytest.raises(IllegalTransitionError):
            client.receive(SlotsFailed(OTHER_HASH, OTHER_HASH))


# --- it touches no data ----------------------------------------------------------------------------------------------


def asked(cohort: Cohort) -> tuple[Play, MaskedInput, UnmaskingShares, SlotMasks]:
    """A round that a corrupt client burned, up to what the victim shows, and what it said before."""
    said: dict[str, Any] = {}

    def up(step: str, who: str, message):
        if (step, who) == (MASKED, COLLUDER):
            message = poison(cohort)(message)
            play.clients[who]._state.mine = message.acceptance()
        if who == VICTIM:
            said[step] = message
        return message

    play = Play(cohort)
    play.up = up
    play.until(BLAME)
    return play, said[MASKED], said[UNMASK], play.out[VICTIM]


def read_by_slot_masks(cohort: Cohort) -> bool:
    """Whether the server reads the victim's values, from its y, its self seed and the masks that it shows in Blame.

    It takes each mask for the seed of the pair's keystream, and for the start of it.
    """
    _, y, own, shown = asked(cohort)
    bare = unpack(y.y, cohort.length + cohort.policy.slots, cohort.bits)[: cohort.length].copy()
    apply_masks(bare, [], [self_mask_seed(y.roster1, y.round_id, VICTIM, own.self_seed)])
    by_seed, by_words = bare.copy(), bare.copy()
    for peer, mask in shown.masks.items():
        words = np.frombuffer(mask, "<u4")[: cohort.length]
        by_words += -words if peer > VICTIM else words
        if len(mask) == 32:
            apply_masks(by_seed, *(([], [mask]) if peer > VICTIM else ([mask], [])))
    plain = cohort.plain_sum([VICTIM])
    return np.array_equal(by_seed, plain) or np.array_equal(by_words, plain)


@pytest.mark.parametrize("suite", list(Suite))
def test_what_is_shown_opens_no_values(suite):
    assert not read_by_slot_masks(Cohort(4, suite=suite, length=2))


@pytest.mark.parametrize(
    "mutant", [lambda seed, _: seed, lambda seed, policy: keystream(seed, 0, 4 * policy.slots)], ids=["seed", "values"]
)
def test_slot_masks_that_are_words_of_the_values_or_their_seed_open_one_site_exactly(monkeypatch, mutant):
    monkeypatch.setattr(secagg.client, "slot_mask", mutant)
    cohort = Cohort(4, length=2)
    assert cohort.policy.slots == cohort.length
    assert read_by_slot_masks(cohort)


@pytest.mark.parametrize(("suite", "bits"), [(Suite.X25519, 24), (Suite.MLKEM768_X25519, 32), (Suite.X25519, 40)])
def test_what_is_shown_are_the_words_behind_the_values_and_no_word_of_theirs(monkeypatch, suite, bits):
    seeds: dict[str, bytes] = {}

    def noted(roster1, round_id, ids, *secrets):
        seed = pair_mask_seed(roster1, round_id, ids, *secrets)
        if VICTIM in ids:
            seeds.update({peer: seed for peer in ids if peer != VICTIM})
        return seed

    monkeypatch.setattr(secagg.client, "pair_mask_seed", noted)
    cohort = Cohort(5, suite=suite, bits=bits)
    play, _, _, shown = asked(cohort)
    dtype = dtype_for(bits)
    values: set[int] = set()
    for peer, mask in shown.masks.items():
        stream = np.frombuffer(keystream(seeds[peer], 0, dtype.itemsize * (cohort.length + cohort.policy.slots)), dtype)
        assert np.frombuffer(mask, dtype).tolist() == stream[cohort.length :].tolist()
        values |= set(stream[: cohort.length].tolist())
    assert list(shown.masks) == [peer for peer in cohort.ids if peer != VICTIM]
    assert len(values) == cohort.length * (cohort.n - 1)
    assert values.isdisjoint(word for mask in shown.masks.values() for word in np.frombuffer(mask, dtype).tolist())
    assert play.to_the_end().failure.culprits == (COLLUDER,)


def test_nothing_but_slot_masks_is_left_of_a_client_that_released():
    play = Play(Cohort(4)).until(UNMASK)
    for client in play.clients.values():
        state = client._state
        assert isinstance(state, Released)
        assert set(vars(state)) - {"_State__spent"} == {
            "own",
            "round_id",
            "attested",
            "included",
            "slot_masks",
            "disclosed",
        }
        assert not state.slot_masks.signature
        assert not state.disclosed
