"""Whole rounds: exact sums under every pattern of dropouts, repeats, lateness, complaints, and what is never kept."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from secagg import (
    AbortedError,
    ComplaintError,
    ConfigError,
    IllegalTransitionError,
    InconsistentViewError,
    ProtocolError,
    ServerSession,
    Suite,
    TooFewClientsError,
    UnexpectedMessageError,
    dequantize,
    open_round,
    unchecked_round,
    wire,
)
from secagg.client import Joining
from secagg.complaints import leave_out
from secagg.merkle import tree
from secagg.messages import (
    Attestations,
    EncryptedShares,
    IncludedSet,
    MaskedInput,
    Reports,
    Roster,
    RoundStart,
    UnmaskingShares,
)
from secagg.prg import Stream
from secagg.quantize import Quantised
from secagg.roster import session_id
from secagg.steps import RESULT
from secagg.store import NEVER, MemoryStore
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play, alone

SUITES = list(Suite)


def outcome(cohort: Cohort, silent: dict[str, str]) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """What the specification says: the step that fails or None, U3, and U2 without U3."""
    alive = [{i for i in cohort.ids if i not in silent or SENDING.index(silent[i]) > k} for k in range(len(SENDING))]
    policy = cohort.policy
    needs = [policy.min_survivors] * 4 + [policy.threshold] * 2
    failing = next((step for step, who, need in zip(SENDING, alive, needs, strict=True) if len(who) < need), None)
    return failing, tuple(sorted(alive[3])), tuple(sorted(alive[2] - alive[3]))


def check(cohort: Cohort, silent: dict[str, str]) -> None:
    failing, included, dropped = outcome(cohort, silent)
    play = cohort.play(silent=silent)
    if failing is None:
        assert play.failure is None
        assert (play.server.included, play.server.dropped) == (included, dropped)
        assert play.exact
    else:
        assert isinstance(play.failure, TooFewClientsError)
        assert play.failure.step == failing
        assert play.server.result is None
    assert not play.errors
    assert not play.refusals


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("n", range(3, 8))
def test_the_sum_is_exact(n, suite):
    cohort = Cohort(n, suite=suite, bits=(20, 24, 32, 33, 64)[n - 3])
    check(cohort, {})
    spare = n - cohort.policy.min_survivors
    check(Cohort(n, suite=suite), {cohort.ids[i]: "MaskedInputCollection" for i in range(spare)})
    check(Cohort(n, suite=suite), {cohort.ids[-1 - i]: "Unmasking" for i in range(spare)})


@pytest.mark.parametrize("step", SENDING)
@pytest.mark.parametrize("n", [3, 5])
def test_one_client_falls_silent_at_any_step(n, step):
    for client_id in Cohort(n).ids:
        check(Cohort(n), {client_id: step})


@pytest.mark.parametrize("steps", product(SENDING, repeat=2), ids="-".join)
def test_any_two_of_four_fall_silent_at_any_two_steps(steps):
    pairs = list(combinations(Cohort(4).ids, 2))
    check(Cohort(4), dict(zip(pairs[(SENDING.index(steps[0]) + 5 * SENDING.index(steps[1])) % 6], steps, strict=True)))


@pytest.mark.parametrize("steps", product(SENDING[3:], repeat=2), ids="-".join)
def test_two_of_seven_fall_silent_online_in_the_post_quantum_suite(steps):
    check(Cohort(7, suite=Suite.MLKEM768_X25519), dict(zip(("site-a", "site-d"), steps, strict=True)))


def test_killed_before_its_masked_input_a_client_is_out_and_only_its_mask_key_is_opened():
    said: list[UnmaskingShares] = []
    play = Cohort(5, suite=Suite.MLKEM768_X25519).play(
        silent={"site-c": "MaskedInputCollection"},
        up=lambda step, _, message: said.append(message) or message if step == "Unmasking" else message,
    )
    assert play.server.dropped == ("site-c",)
    assert play.exact
    assert all("site-c" in message.mask_key_shares and "site-c" not in message.self_seed_shares for message in said)
    assert all(set(message.pair_secrets) == {"site-c"} for message in said)


def test_killed_after_its_masked_input_a_client_is_in_and_only_its_self_mask_is_opened():
    said: list[UnmaskingShares] = []
    play = Cohort(5).play(
        silent={"site-c": "ConsistencyCheck"},
        up=lambda step, _, message: said.append(message) or message if step == "Unmasking" else message,
    )
    assert play.server.dropped == ()
    assert "site-c" in play.server.included
    assert play.exact
    assert all("site-c" in message.self_seed_shares and not message.mask_key_shares for message in said)


def test_a_late_masked_input_is_dropped_unread():
    play = Play(Cohort(4), silent={"site-a": "MaskedInputCollection"}).until("MaskedInputCollection")
    late = play.out["site-a"]
    play.until("ConsistencyCheck")
    with pytest.raises(UnexpectedMessageError, match="S-01"):
        play.server.receive("site-a", late)
    assert play.to_the_end().exact


def test_a_client_that_fell_silent_after_attesting_still_learns_the_head():
    play = Cohort(4).play(silent={"site-a": "Unmasking"}, down=alone("Unmasking", "site-a", lambda _: None))
    assert play.clients["site-a"].head == play.server.head
    assert play.clients["site-a"].step == "Result"
    with play.cohort.stores["site-a"].transaction() as marks:
        assert marks.open_release is None
        assert marks.released(session_id(play.cohort.policy, play.cohort.roster)) == NEVER


def test_public_weights_scale_the_sum():
    cohort = Cohort(4, weights={"site-a": 3.0, "site-b": 0.5})
    play = cohort.play()
    weighted = sum(cohort.policy.weight(i) * cohort.updates[i] for i in cohort.ids)
    step = cohort.policy.largest_weight / cohort.policy.largest_value
    assert np.abs(dequantize(play.server.result, cohort.policy) - weighted).max() <= 4 * step
    assert play.exact


def test_heads_chain_over_rounds_and_agree():
    cohort, head = Cohort(4), bytes(32)
    for number in (1, 2):
        play = cohort.play(context=cohort.context(number, head=head))
        head = play.server.head
        assert {client.head for client in play.clients.values()} == {head}
        for store in cohort.stores.values():
            with store.transaction() as marks:
                assert marks.head(session_id(cohort.policy, cohort.roster), RUN) == (number, head)
        cohort.replay(play)
    assert play.server.receipt.previous_head != bytes(32)


# --- repeats -----------------------------------------------------------------------------------------------------


def test_a_client_answers_any_repeat_with_the_very_bytes_it_sent():
    heard = []
    cohort = Cohort(4)
    play = Play(cohort, down=lambda step, who, m: heard.append(m) or m if who == "site-a" else m)
    client = play.clients["site-a"]
    while not play.server.finished:
        play.collect()
        before = list(heard)
        play.answer(play.server.close_step())
        sent = play.out.get("site-a")
        assert client.receive(heard[-1]) == sent
        if sent is not None:
            assert wire.encode(client.receive(heard[-1])) == wire.encode(sent)
        for message in before:
            client.receive(message)
    assert play.exact
    assert client.receive(heard[0]) is client.receive(heard[0])


@pytest.mark.parametrize("step", SENDING[1:])
def test_a_different_repeat_ends_a_client_for_good(step):
    kept = {}
    play = Play(Cohort(4), down=lambda at, who, m: kept.setdefault((at, who), m)).until(step)
    message, client = kept[step, "site-a"], play.clients["site-a"]
    (name, entries), *_ = vars(message).items()
    with pytest.raises(ProtocolError, match="C-20"):
        client.receive(replace(message, **{name: entries[1:]}))
    assert client.finished
    with pytest.raises(IllegalTransitionError):
        client.receive(Roster(()))


def test_the_server_takes_a_repeat_once_and_answers_it_from_its_store():
    play = Play(Cohort(4))
    while not play.server.finished:
        sent = dict(play.out)
        play.collect()
        if not play.server.finished:
            play.collect()
        replies = play.server.close_step()
        for client_id, message in sent.items():
            assert play.server.receive(client_id, message) is replies.get(client_id)
        play.answer(replies)
    assert not play.refusals
    assert play.exact


def test_the_server_refuses_a_different_repeat_and_keeps_the_first():
    cohort = Cohort(4)
    play = Play(cohort).until("MaskedInputCollection")
    play.collect()
    changed = play.out["site-b"]
    changed = replace(changed, y=bytes(len(changed.y))).sign(cohort.keys["site-b"])
    with pytest.raises(UnexpectedMessageError) as caught:
        play.server.receive("site-b", changed)
    assert (caught.value.check, caught.value.culprits) == ("S-02", ("site-b",))
    assert play.to_the_end().exact


# --- lateness and order ------------------------------------------------------------------------------------------


def test_an_update_may_come_after_the_reports():
    cohort, waited = Cohort(4), {}
    play = Play(cohort, late=("site-a",), down=lambda at, who, m: waited.setdefault((at, who), m))
    late = play.clients["site-a"]
    play.until("MaskedInputCollection")
    assert "site-a" not in play.out
    assert late.step == "ShareReport"
    play.out["site-a"] = cohort.provide(late, "site-a")
    assert isinstance(play.out["site-a"], MaskedInput)
    assert late.receive(waited["MaskedInputCollection", "site-a"]) == play.out["site-a"], "a repeat is answered again"
    assert late.step == "MaskedInputCollection"
    assert play.to_the_end().exact
    assert late.finished


def test_two_different_reports_while_training_are_an_equivocation():
    cohort, kept = Cohort(4), {}
    play = Play(cohort, late=("site-a",), down=lambda at, who, m: kept.setdefault((at, who), m))
    client = play.until("MaskedInputCollection").clients["site-a"]
    first = kept["MaskedInputCollection", "site-a"]
    assert client.receive(first) is None
    cohort.provide(client, "site-a")
    with pytest.raises(UnexpectedMessageError, match="C-20"):
        client.receive(Reports(first.reports[:3]))


def test_calls_out_of_order_are_our_own_mistake():
    cohort = Cohort(4)
    play = Play(cohort)
    client = play.clients["site-a"]
    with pytest.raises(IllegalTransitionError):
        client.start()
    with pytest.raises(IllegalTransitionError):
        cohort.provide(client, "site-a")
    play.to_the_end()
    for call in (client.start, lambda: cohort.provide(client, "site-a"), lambda: client.receive(Roster(()))):
        with pytest.raises(IllegalTransitionError):
            call()
    with pytest.raises(IllegalTransitionError):
        play.server.close_step()
    assert not play.server.ready
    cohort.replay(play)
    failed = cohort.play(context=cohort.context(2), silent=dict.fromkeys(cohort.ids, SENDING[1])).server
    for call in (failed.close_step, lambda: failed.receive("site-a", play.out["site-a"]), lambda: failed.missing):
        with pytest.raises(IllegalTransitionError):
            call()
    again = cohort.client("site-a")
    with pytest.raises(UnexpectedMessageError, match="C-03"):
        again.start()
    assert again.finished


def test_identities_that_do_not_fit_are_refused_before_anything_is_sent():
    cohort, other = Cohort(4), Cohort(5)
    opened = unchecked_round(cohort.context())
    with pytest.raises(ConfigError, match="roster"):
        Joining(cohort.policy, "nobody", cohort.keys["site-a"], cohort.roster, opened, MemoryStore())
    with pytest.raises(ConfigError, match="signing key"):
        Joining(cohort.policy, "site-a", cohort.keys["site-b"], cohort.roster, opened, MemoryStore())
    with pytest.raises(ConfigError, match="clients = 4"):
        ServerSession(cohort.policy, other.roster, cohort.context(), SERVER_KEY)
    with pytest.raises(ConfigError, match="server_key"):
        ServerSession(cohort.policy, cohort.roster, cohort.context())
    with pytest.raises(ConfigError, match="leave_out"):
        cohort.server(leave_out=["nobody"])


@pytest.mark.parametrize(
    ("step", "call", "spoil"),
    [
        ("ShareKeys", "share_keys", lambda m: Roster(m.advertisements[:2])),
        ("ShareReport", "report", lambda m: replace(m, bundles=m.bundles[:2])),
        ("MaskedInputCollection", "mask_input", lambda m: Reports(m.reports[:2])),
        ("ConsistencyCheck", "attest", lambda m: IncludedSet(m.inputs[:2])),
        ("Unmasking", "unmask", lambda m: Attestations(m.attestations[:2])),
        ("Result", "conclude", lambda m: replace(m, total=bytes(m.total) + b"?")),
    ],
)
def test_a_step_uses_up_its_state_even_when_it_fails(step, call, spoil):
    kept = {}
    play = Play(Cohort(4), down=lambda at, who, m: kept.setdefault((at, who), m) and None if at == step else m)
    play.until(step if step != "Result" else "nowhere")
    state, good = play.clients["site-a"]._state, kept[step, "site-a"]
    update = [Quantised(np.zeros(5), play.cohort.policy, "site-a", Stream())] if call == "mask_input" else []
    with pytest.raises(ProtocolError):
        getattr(state, call)(spoil(good), *update)
    with pytest.raises(IllegalTransitionError):
        getattr(state, call)(good, *update)


@pytest.mark.parametrize("step", SENDING)
def test_the_server_closes_a_round_once(step):
    play = Play(Cohort(4)).until(step)
    play.collect()
    state = play.server._state
    state.close()
    with pytest.raises(IllegalTransitionError):
        state.close()


def test_a_silent_attester_concludes_once():
    kept = {}
    Cohort(4).play(down=lambda at, who, m: kept.setdefault((at, who), m))
    play = Play(Cohort(4), down=lambda at, who, m: None if at == "Unmasking" else m).until("Unmasking")
    state = play.clients["site-a"]._state
    for error in (ProtocolError, IllegalTransitionError):
        with pytest.raises(error):
            state.conclude(kept["Result", "site-a"])


def test_joining_is_used_up_too():
    cohort = Cohort(4)
    store = cohort.stores["site-a"]
    opened = unchecked_round(cohort.context())
    state = Joining(cohort.policy, "site-a", cohort.keys["site-a"], cohort.roster, opened, store)
    state.advertise_keys()
    with pytest.raises(IllegalTransitionError):
        state.advertise_keys()


def contributes(cohort: Cohort) -> bool:
    """Whether site-a still has its contribution to round 1, which this spends."""
    with cohort.stores["site-a"].transaction() as marks:
        try:
            marks.contribute(cohort.context().at(session_id(cohort.policy, cohort.roster)), "again", (), private=False)
        except UnexpectedMessageError as error:
            assert error.check == "C-14"  # noqa: PT017
            return False
    return True


def test_an_update_of_another_policy_is_refused_before_the_contribution_is_marked():
    kept = {}
    for wrong in (Cohort(4, length=6), Cohort(4, bits=40), Cohort(4, weights={"site-b": 2.0})):
        play = Play(Cohort(4), late=("site-a",), down=lambda at, who, m: kept.update({(at, who): m}) or m)
        play.until("MaskedInputCollection")
        state = play.clients["site-a"]._state
        update = Quantised(wrong.updates["site-a"], wrong.policy, "site-a", Stream())
        with pytest.raises(ConfigError, match="another policy"):
            state.mask_input(kept["MaskedInputCollection", "site-a"], update)
        assert contributes(play.cohort)


def test_an_update_that_loses_its_values_after_it_was_provided_is_not_sent():
    play = Play(Cohort(4))
    play.cohort.updates["site-a"][2] = np.nan
    play.to_the_end()
    assert isinstance(play.errors["site-a"], ConfigError)
    assert "1 of 5 values" in str(play.errors["site-a"])
    assert play.clients["site-a"].finished
    assert play.server.included == ("site-b", "site-c", "site-d")
    assert play.exact


# --- absence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "shrink", "contributed"),
    [
        ("MaskedInputCollection", lambda m: Reports(tuple(r for r in m.reports if r.client_id != "site-a")), False),
        ("ConsistencyCheck", lambda m: IncludedSet(tuple(r for r in m.inputs if r.client_id != "site-a")), True),
    ],
)
def test_a_client_absent_from_a_set_wipes_its_secrets_and_may_join_the_next_round(step, shrink, contributed):
    cohort, held = Cohort(4), []

    def leave_out(message):
        own = play.clients["site-a"]._state.held
        held.extend([own, own.mask_key])
        return shrink(message)

    play = Play(cohort, down=alone(step, "site-a", leave_out))
    play.to_the_end()
    client = play.clients["site-a"]
    assert isinstance(play.errors["site-a"], AbortedError)
    assert client.finished
    assert client._state is client._update is None
    assert [vars(secret) for secret in held] == [{}, {}]
    with pytest.raises(IllegalTransitionError):
        client.receive(Roster(()))
    assert contributes(cohort) != contributed
    cohort.client("site-a", cohort.context(number=2)).start()


def test_a_client_wipes_each_secret_after_its_last_use():
    play = Play(Cohort(4)).until("ShareKeys")
    channel_key = play.clients["site-a"]._state.channel_key
    assert vars(channel_key)
    play.until("ShareReport")
    assert not vars(channel_key)
    play.until("ConsistencyCheck")
    held = play.clients["site-a"]._state.held
    assert vars(held)
    play.until("Unmasking")
    assert not vars(held)
    play.to_the_end()
    assert all(client._state is client._update is None for client in play.clients.values())


# --- complaints and burned rounds --------------------------------------------------------------------------------


def bad_bundle(cohort: Cohort, dealer: str, position: int):
    """The dealer seals rubbish for one peer, under a valid header."""

    def change(message: EncryptedShares) -> EncryptedShares:
        bundles = list(message.bundles)
        bundles[position] = replace(bundles[position], shares=bytes(len(bundles[position].shares)))
        header = replace(message.header, bundles_root=tree([bundle.digest() for bundle in bundles])[0])
        return EncryptedShares(header.sign(cohort.keys[dealer]), tuple(bundles))

    return alone("ShareKeys", dealer, change)


@pytest.mark.parametrize("suite", SUITES)
def test_a_complaint_ends_the_attempt_and_the_next_one_leaves_out_an_end_of_it(suite):
    cohort = Cohort(5, suite=suite)
    first = cohort.play(up=bad_bundle(cohort, "site-b", position=0))
    assert isinstance(first.failure, ComplaintError)
    assert first.failure.complaints == (("site-a", "site-b"),)
    assert not first.server.burned
    assert first.server.finished
    left_out = leave_out(first.failure.complaints, at_most=1).clients
    assert left_out <= {"site-a", "site-b"}
    second = cohort.play(context=cohort.context(attempt=1), leave_out=tuple(left_out))
    assert second.exact
    assert second.server.included == tuple(sorted(set(cohort.ids) - left_out))


def test_a_client_that_complained_never_masks():
    cohort = Cohort(5)
    play = Play(cohort, up=bad_bundle(cohort, "site-b", position=0)).until("ShareReport")
    reports = Reports(tuple(play.out.values()))
    assert play.out["site-a"].complaint == "site-b"
    with pytest.raises(ProtocolError, match="C-13"):
        play.clients["site-a"].receive(reports)


def test_a_client_that_complained_is_not_swayed_by_an_ok_in_its_own_name():
    cohort = Cohort(5)
    play = Play(cohort, up=bad_bundle(cohort, "site-b", position=0)).until("ShareReport")
    forged = replace(play.out["site-a"], complaint="").sign(cohort.keys["site-a"])
    with pytest.raises(ProtocolError, match="C-13"):
        play.clients["site-a"].receive(Reports((forged, *list(play.out.values())[1:])))


@pytest.mark.parametrize("step", SENDING)
def test_a_round_number_is_burned_once_the_sharers_are_known(step):
    play = Play(Cohort(4), silent=dict.fromkeys(("site-a", "site-b"), step)).to_the_end()
    assert isinstance(play.failure, TooFewClientsError)
    assert play.server.burned == (SENDING.index(step) > SENDING.index("ShareReport"))
    assert not Cohort(4).play().server.burned


def test_a_late_message_of_an_earlier_attempt_is_refused_and_blames_nobody():
    cohort = Cohort(4)
    late, now = Play(cohort), Play(cohort, context=cohort.context(attempt=1))
    with pytest.raises(InconsistentViewError, match="S-04") as caught:
        now.server.receive("site-a", late.out["site-a"])
    assert caught.value.culprits == ()
    assert now.to_the_end().exact


def test_a_result_that_follows_its_own_receipt_is_confirmed():
    cohort = Cohort(4)
    kept = {}
    play = cohort.play(down=lambda at, who, m: kept.setdefault(who, m) and None if at == RESULT else m)
    start = RoundStart(RUN, 2, 0, bytes(32), bytes(32), play.server.head, (play.server.receipt,)).sign(SERVER_KEY)
    cohort.replay(play)
    hashes = {"model_hash": bytes(32), "task_hash": bytes(32)}
    open_round(cohort.policy, cohort.roster, RUN, start, cohort.stores["site-a"], **hashes)
    assert play.clients["site-a"].receive(kept["site-a"]).head == play.server.head


# --- Confirmations -----------------------------------------------------------------------------------------------


def test_every_included_client_confirms_the_head_after_the_result():
    play = Cohort(5).play(silent={"site-c": SENDING[3]})
    assert play.server.missing == ()
    assert set(play.server.confirmations) == set(play.server.included)
    assert {entry.head for entry in play.server.confirmations.values()} == {play.server.head}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda cohort, message: replace(message, head=bytes(32)).sign(cohort.keys["site-b"]), "S-21"),
        (lambda cohort, message: replace(message, signature=bytes(64)), "S-21"),
        (lambda cohort, message: replace(message, client_id="site-a").sign(cohort.keys["site-b"]), "S-03"),
    ],
)
def test_a_confirmation_of_another_head_is_refused_without_a_trace(change, check):
    cohort = Cohort(4)
    play = cohort.play(up=alone(RESULT, "site-b", lambda message: change(cohort, message)))
    assert play.refusals["site-b"].check == check
    assert sorted(play.server.confirmations) == ["site-a", "site-c", "site-d"]
    assert play.server.missing == ("site-b",)
    assert play.exact


def test_the_record_is_told_every_accepted_message_once_and_the_result():
    told = []
    cohort = Cohort(4)
    play = Play(cohort)
    play.server = ServerSession(cohort.policy, cohort.roster, cohort.context(), SERVER_KEY, record=told.append)
    while not play.server.finished:
        play.collect()
        play.collect()
        play.answer(play.server.close_step())
    play.collect()
    play.collect()
    kinds = [type(message).__name__ for message in told]
    assert kinds == [
        name
        for name, count in (
            ("AdvertiseKeys", 4), ("EncryptedShares", 4), ("ShareReport", 4), ("MaskedInput", 4), ("Attestation", 4),
            ("UnmaskingShares", 4), ("Result", 1), ("Confirmation", 4),
        )
        for _ in range(count)
    ]  # fmt: skip
