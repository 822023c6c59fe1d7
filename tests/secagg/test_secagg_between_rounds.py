"""What two rounds, runs, projects or sessions together must not show: each attack fails, and works without one defence.

"Works" is exact: the server reads one site's quantised update, value by value, from the difference of two sums. Every
message goes over the wire, every round starts with `open_round`, and stores are files where a process restarts. The
rows are those of issue 7; docs/adr/0005 says why the defences are as they are.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pytest

import secagg.client
from secagg import (
    AuthenticationError,
    ClientSession,
    ConfigError,
    ExposureError,
    InconsistentViewError,
    MalformedMessageError,
    MemoryStore,
    ProtocolError,
    RoundContext,
    SecAggError,
    ServerSession,
    SigningKey,
    Suite,
    TooFewClientsError,
    accept_exposure,
    open_round,
    wire,
)
from secagg.client import LARGEST_STEP
from secagg.context import GENESIS, LARGEST_NUMBER, next_head
from secagg.messages import AdvertiseKeys, Receipt, ReleaseClaim, RoundStart
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.roster import session_id
from secagg.sqlite import SqliteStore
from secagg.store import Marks
from tests.support.cohort import SERVER_KEY, Cohort

MODEL, NEXT_MODEL, TASK = b"m" * 32, b"n" * 32, b"t" * 32
CONSISTENCY, UNMASKING = "ConsistencyCheck", "Unmasking"


@dataclass
class Study:
    """One study of a cohort that is not private: sites with stores, updates and a model, and a server that may lie."""

    n: int = 5
    c: int = 1
    project: str = "liver"
    run: str = "main"
    suite: Suite = Suite.X25519
    server_key: SigningKey = SERVER_KEY
    stores: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        cohort = Cohort(self.n, self.c, self.suite, length=4)
        self.ids, self.keys, self.roster, self.updates = cohort.ids, cohort.keys, cohort.roster, cohort.updates
        self.policy = replace(cohort.policy, project=self.project, server_key=self.server_key.verify_key)
        self.session = session_id(self.policy, self.roster)
        self.stores = self.stores or {who: MemoryStore() for who in self.ids}
        self.private: set[str] = set()

    def start(self, number: int = 1, attempt: int = 0, head: bytes = GENESIS, missed=(), model: bytes = MODEL):
        return RoundStart(self.run, number, attempt, model, TASK, head, tuple(missed)).sign(self.server_key)

    def open(self, who: str, start: RoundStart, model: bytes | None = None):
        start = wire.decode_from_server(wire.encode(start))
        own = {"model_hash": start.model_hash if model is None else model, "task_hash": TASK}
        private = who in self.private
        return open_round(self.policy, self.roster, self.run, start, self.stores[who], **own, private=private)

    def join(self, who: str, start: RoundStart) -> tuple[ClientSession, AdvertiseKeys]:
        opened = self.open(who, start)
        session = ClientSession(self.policy, who, self.keys[who], self.roster, opened, self.stores[who])
        first = session.start()
        session.provide(self.updates[who], "event", Stream.seeded(1, who))
        return session, first

    def play(self, start: RoundStart, who: Collection[str] | None = None, **options) -> "Round":
        return Round(self, start, sorted(who or self.ids), **options)

    def quantised(self, who: Iterable[str]) -> np.ndarray:
        parts = [quantize(self.updates[i], self.policy, i, Stream.seeded(1, i))[0] for i in who]
        return np.sum(parts, axis=0, dtype=np.uint32)

    def opened(self, who: str):
        with self.stores[who].transaction() as marks:
            return marks.open_release

    def replay(self, who: Iterable[str], claim_or_round: "ReleaseClaim | Round") -> None:
        """As `secagg.transcript.accept` does once the transcript of this very round was verified."""
        of = claim_or_round
        slot, round_id = (of.slot, of.round_id) if isinstance(of, ReleaseClaim) else (of.slot_of(self), of.round_id)
        for site in who:
            with self.stores[site].transaction() as marks:
                marks.replay(slot, round_id)

    def accept(self, who: Iterable[str], round_id: bytes) -> None:
        for site in who:
            accept_exposure(self.stores[site], self.keys[site], site, round_id)


def context_of(start: RoundStart) -> RoundContext:
    hashes = (start.model_hash, start.task_hash, start.previous_head)
    return RoundContext(start.training_run, start.round_number, start.attempt, *hashes)


@dataclass
class Round:
    """One attempt over the wire; `until` a step the server collects, and then what the server likes.

    Attributes:
        hold: sites that never hear the attestations, so that they release nothing.
        up: what a corrupt site says instead.
        errors: by site, why it went no further.
    """

    study: Study
    start: RoundStart
    who: list[str]
    until: str = "nowhere"
    hold: Collection[str] = ()
    up: Callable = lambda step, who, message: message

    def __post_init__(self) -> None:
        study = self.study
        self.server = ServerSession(study.policy, study.roster, context_of(self.start), study.server_key)
        self.sessions: dict[str, ClientSession] = {}
        self.errors: dict[str, SecAggError] = {}
        self.refusals: dict[str, ProtocolError] = {}
        self.replies: dict[str, object] = {}
        self.failure: SecAggError | None = None
        self.out: dict[str, object] = {}
        for site in self.who:
            try:
                self.sessions[site], self.out[site] = study.join(site, self.start)
            except SecAggError as error:
                self.errors[site] = error
        self.on(self.until)

    def on(self, until: str = "nowhere", who: Collection[str] | None = None) -> "Round":
        """Go on until the server is about to collect `until`; `who` still says something."""
        while not self.server.finished and self.server.step != until:
            for site, message in self.out.items():
                said = self.up(self.server.step, site, message)
                if said is not None and (who is None or site in who):
                    try:
                        self.server.receive(site, wire.decode_from_client(wire.encode(said)))
                    except ProtocolError as error:
                        self.refusals[site] = error
            step, self.out = self.server.step, {}
            try:
                self.replies = dict(self.server.close_step())
            except SecAggError as error:
                self.failure = error
                return self
            if not (step == until or (until, step) == ("attested", CONSISTENCY)):
                self.answer(self.hold if step == CONSISTENCY else ())
            if (until, step) == ("attested", CONSISTENCY):
                return self
        return self

    def answer(self, hold: Collection[str] = ()) -> None:
        """The sites hear the server's last message, but for those that it keeps it from."""
        for site, message in self.replies.items():
            if site in self.sessions and site not in hold:
                try:
                    reply = self.sessions[site].receive(wire.decode_from_server(wire.encode(message)))
                except SecAggError as error:
                    self.errors[site] = error
                    continue
                if reply is not None:
                    self.out[site] = reply

    def silently(self) -> "Round":
        """The server takes the sum and tells nobody."""
        assert self.server.step == UNMASKING, self.failure
        for site, message in self.out.items():
            self.server.receive(site, wire.decode_from_client(wire.encode(message)))
        self.server.close_step()
        for session in self.sessions.values():
            session.close()
        return self

    @property
    def total(self) -> np.ndarray:
        return self.server.result

    @property
    def round_id(self) -> bytes:
        return self.server.receipt.round_id

    def slot_of(self, study: Study):
        return context_of(self.start).at(study.session)

    @property
    def checks(self) -> dict[str, str]:
        return {who: error.check for who, error in self.errors.items()}


VICTIM = "site-a"


def exact(study: Study, first: Round, second: Round) -> bool:
    """Whether the server reads the victim's update from the two sums."""
    if first.total is None or second.total is None:
        return False
    return np.array_equal(first.total - second.total, study.quantised([VICTIM]))


def burned_but_taken(study: Study, **options) -> Round:
    """The server has the sum of round 1 and says that it was burned."""
    return study.play(study.start(), until=UNMASKING, **options).silently()


def nothing_learned(rerun: Round, check: str) -> None:
    assert rerun.total is None
    assert rerun.errors
    assert set(rerun.checks.values()) == {check}


# --- row 2: two sessions of one data set are alive at once ---------------------------------------------------------


def interleaved(study: Study, second: Study | None = None) -> tuple[Round, Round]:
    """Round 1 waits for its attestations while the next is opened without the victim; then both are unmasked."""
    other = second or study
    one = study.play(study.start(), until="attested")
    two = other.play(other.start(1 if second else 2), [i for i in study.ids if i != VICTIM], until="attested")
    for play in (one, two):
        play.answer()
        for site, message in play.out.items():
            play.server.receive(site, wire.decode_from_client(wire.encode(message)))
        try:
            play.server.close_step()
        except TooFewClientsError as error:
            play.failure = error
    return one, two


@pytest.mark.parametrize("elsewhere", [{}, {"run": "another"}, {"project": "brain"}])
def test_a_later_session_kills_the_earlier_one(elsewhere):
    study = Study()
    second = Study(**elsewhere, stores=study.stores) if elsewhere else None
    one, two = interleaved(study, second)
    assert one.total is None
    assert one.checks == {who: "C-24" for who in study.ids if who != VICTIM}
    assert np.array_equal(two.total, study.quantised(study.ids[1:]))


def test_where_a_dead_session_still_releases_two_sums_differ_by_one_site(monkeypatch):
    live = Marks._require_live
    dead = lambda marks, slot: {**live(marks, slot)} if marks._get("live", None)["slot"] == slot.hash.hex() else {}  # noqa: E731
    monkeypatch.setattr(Marks, "_require_live", dead)
    release = Marks.release

    def whoever(marks, slot, claim, private):
        marks._put("contribution", slot.hash.hex())  # C-24 is also that the last contribution was this attempt's
        marks._put("open", None)  # and without it there are two releases to look at
        release(marks, slot, claim, private)

    monkeypatch.setattr(Marks, "release", whoever)
    study = Study()
    assert exact(study, *interleaved(study))


def test_a_dead_session_contributes_nothing():
    study = Study()
    one = study.play(study.start(), until="MaskedInputCollection")
    study.play(study.start(2), until="ShareKeys")
    late = study.play(study.start(3), until="ShareReport")  # its sites are asked for a masked input after the next join
    study.play(study.start(4), until="ShareKeys")
    late.on("MaskedInputCollection")
    assert late.checks == dict.fromkeys(study.ids, "C-24")
    assert all(session.finished for session in late.sessions.values())
    assert not any(session.finished for session in one.sessions.values())
    one.on("attested")
    one.answer()
    assert one.checks == dict.fromkeys(study.ids, "C-24")


# --- row 3: marks belong to the data set ---------------------------------------------------------------------------

ELSEWHERE = {
    "a new run": {"run": "main-2"},
    "another project": {"project": "brain"},
    "another coordinator": {"server_key": SigningKey.from_bytes(bytes([254]) * 32)},
    "another suite": {"suite": Suite.MLKEM768_X25519},
}


def files(study: Study, folder) -> dict:
    return {who: SqliteStore(folder / f"{who}.sqlite", who) for who in study.ids}


def started_over(folder, elsewhere, model: bytes = NEXT_MODEL) -> tuple[Study, Round, Round]:
    """The coordinator 'was killed' with the sum in hand; every process starts again, elsewhere, the victim is late."""
    study = Study()
    study.stores = files(study, folder)
    first = burned_but_taken(study)
    for store in study.stores.values():
        store.close()
    again = Study(**elsewhere)
    again.stores = files(again, folder)
    second = again.play(again.start(model=model), study.ids[1:])
    for store in again.stores.values():
        store.close()
    return study, first, second


@pytest.mark.parametrize("model", [MODEL, NEXT_MODEL])
@pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_unreplayed_release_stops_the_next_contribution_wherever_it_is_asked_for(tmp_path, elsewhere, model):
    _, _, second = started_over(tmp_path, elsewhere, model)
    nothing_learned(second, "C-05")
    assert len(second.errors) == 4


@pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=ELSEWHERE)
def test_without_c_05_a_new_name_gives_one_site(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(Marks, "_refuse", lambda *_: None)
    assert exact(*started_over(tmp_path, elsewhere))


def completed_and_over(elsewhere) -> tuple[Study, Round, Round]:
    """A round is finished, published and replayed by all; a new run starts on the same model, without the victim."""
    study = Study()
    first = study.play(study.start())
    study.replay(study.ids, first)
    again = Study(**elsewhere, stores=study.stores)
    return study, first, again.play(again.start(), study.ids[1:])


@pytest.mark.parametrize("elsewhere", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_run_that_starts_over_on_the_same_model_is_exposed_by_the_first(elsewhere):
    nothing_learned(completed_and_over(elsewhere)[2], "C-05")


def test_where_only_what_was_not_replayed_counts_a_run_that_starts_over_gives_one_site(monkeypatch):
    exposing = Marks._exposing
    fresh = lambda marks, *of: [release for release in exposing(marks, *of) if not marks.replayed(release.round_id)]  # noqa: E731
    monkeypatch.setattr(Marks, "_exposing", fresh)
    assert exact(*completed_and_over({"run": "main-2"}))


def replay_in_between() -> tuple[Study, Round, Round]:
    """n = 4, c = 1, t = 3. Round 1 was released by a, b and the liar d; c is quiet. One operator, of b, accepts.

    c joins the new run, gets the true transcript of round 1 from the server, and only then sees the claim of b.
    """
    study = Study(4)
    first = study.play(study.start(), hold=["site-c"], until=UNMASKING).silently()
    study.accept(["site-b", "site-d"], first.round_id)
    again = Study(4, run="main-2", stores=study.stores)
    second = Round(again, again.start(model=NEXT_MODEL), again.ids[1:], until="AdvertiseKeys")
    again.replay(["site-c"], study.opened("site-b").claim)
    return study, first, second.on()


def test_a_replay_after_the_join_does_not_count_for_it():
    _, _, second = replay_in_between()
    nothing_learned(second, "C-26")
    assert set(second.errors) == {"site-c"}


def test_where_a_replay_counts_at_once_one_operator_is_enough_to_expose_a_site(monkeypatch):
    exposed_by = Marks._exposed_by
    known = lambda marks, slot, claims: exposed_by(marks, slot, [c for c in claims if not marks.replayed(c.round_id)])  # noqa: E731
    monkeypatch.setattr(Marks, "_exposed_by", known)
    assert exact(*replay_in_between())


# --- row 4: acceptance of one round by name, by everybody whose help is needed ---------------------------------------


def others_accept(study: Study, acceptors: Collection[str]) -> tuple[Round, Round]:
    """`acceptors` accept round 1 by name; quiet sites never released in it; then it is run again without the victim.

    Liars keep no marks and accept whatever there is.
    """
    n, c, t = study.n, study.c, study.policy.threshold
    liars = study.ids[n - c :]
    first = burned_but_taken(study, hold=study.ids[t - c : n - c])
    for liar in liars:
        study.stores[liar] = MemoryStore()
    study.accept([*acceptors, *liars], first.round_id)
    return first, study.play(study.start(2), [i for i in study.ids if i != VICTIM])


SIZES = [(4, 1), (5, 1), (9, 2), (10, 2)]


@pytest.mark.parametrize(("n", "c"), SIZES)
def test_fewer_than_t_minus_c_operators_expose_nobody(n, c):
    honest, enough = Study(n, c).ids[1 : n - c], Study(n, c).policy.threshold - c
    for acceptors in combinations(honest, enough - 1) if n < 6 else [honest[: enough - 1], honest[1 - enough :]]:
        first, second = others_accept(Study(n, c), acceptors)
        assert first.total is not None
        assert second.total is None
        assert set(second.checks.values()) <= {"C-05", "C-26"}


def test_t_minus_c_operators_expose_the_victim_and_each_has_signed_for_it():
    study = Study()
    first, second = others_accept(study, study.ids[1:4])
    assert exact(study, first, second)
    for who in study.ids[1:4]:
        with study.stores[who].transaction() as marks:
            assert not marks.accepted(first.round_id)
            assert f"accepted/{first.round_id.hex()}" in marks._entries


@pytest.mark.parametrize(("n", "c"), SIZES)
def test_where_claims_are_not_looked_at_2t_minus_n_minus_c_operators_are_enough(monkeypatch, n, c):
    monkeypatch.setattr(Marks, "refuse_claims", lambda *_: None)
    study = Study(n, c)
    few = 2 * study.policy.threshold - n - c
    assert few < study.policy.threshold - c
    first, second = others_accept(study, study.ids[1 : 1 + few])
    missing = [i for i in study.ids if i not in second.server.included]
    assert VICTIM in missing
    assert np.array_equal(first.total - second.total, study.quantised(missing))
    assert (missing == [VICTIM]) == (n < 6)  # with more sites it takes another round, and another acceptance


def test_the_error_says_that_shares_were_sent_and_for_which_round():
    study = Study()
    first = burned_but_taken(study)
    with pytest.raises(ExposureError, match=r"\[C-05\] this site did send unmasking shares for round 1") as caught:
        study.open("site-b", study.start(2))
    assert caught.value.round_ids == (first.round_id,)
    assert first.round_id.hex() in str(caught.value)


def test_an_acceptance_names_one_round_and_counts_once():
    study = Study()
    first = burned_but_taken(study)
    study.accept(study.ids, b"x" * 32)
    nothing_learned(study.play(study.start(2)), "C-05")
    study.accept(study.ids, first.round_id)
    second = study.play(study.start(3), until=CONSISTENCY)  # contributed, and burned before anybody released
    assert not second.errors
    nothing_learned(study.play(study.start(4)), "C-05")
    study.accept(study.ids, first.round_id)
    assert study.play(study.start(5), until=UNMASKING).silently().total is not None
    nothing_learned(study.play(study.start(6)), "C-05")


@pytest.mark.parametrize("lost", [2])
def test_a_federation_that_is_stuck_gets_out_by_one_acceptance_of_each_site(lost):
    """An honest server loses two sites after they attested: shares are out, there is no sum, and no transcript."""
    study = Study()
    first = study.play(study.start(), until=UNMASKING)
    first.on(who=study.ids[: study.n - lost])
    assert isinstance(first.failure, TooFewClientsError)
    for number in (2, 3):
        nothing_learned(study.play(study.start(number)), "C-05")
    (round_id,) = {study.opened(who).round_id for who in study.ids}
    study.accept(study.ids, round_id)
    fourth = study.play(study.start(4))
    assert np.array_equal(fourth.total, study.quantised(study.ids))
    study.replay(study.ids, fourth)
    fifth = study.play(study.start(5, head=fourth.server.head, missed=[fourth.server.receipt], model=NEXT_MODEL))
    assert fifth.total is not None
    assert not fifth.errors


def test_one_site_that_does_not_accept_leaves_the_others_free():
    """It stays out; t of the others that accepted are enough to go on."""
    study = Study()
    first = burned_but_taken(study)
    study.accept(study.ids[:4], first.round_id)
    second = study.play(study.start(2))
    assert second.checks == {"site-e": "C-05"}
    assert second.server.included == tuple(study.ids[:4])


# --- C-25, S-22: what a liar says about an earlier round ------------------------------------------------------------


def invented(study: Study, **changes) -> ReleaseClaim:
    """A claim that only the liar (the last site) attested."""
    made = ReleaseClaim(study.session, study.run, 1, 0, MODEL, TASK, *[b"h" * 32] * 4, {"site-a": bytes(64)})
    made = replace(made, **changes)
    liar = study.ids[-1]
    own = secagg.messages.Attestation(made.attested, liar).sign(study.keys[liar])
    forged = dict.fromkeys(study.ids[: study.policy.threshold], own.signature)
    return replace(made, attestations={**forged, liar: own.signature})


def lying(study: Study, start: RoundStart, *claims: ReleaseClaim) -> Round:
    """The last site announces `claims`, and goes on from what it said."""
    play = Round(study, start, study.ids, until="AdvertiseKeys")
    liar = study.ids[-1]
    play.out[liar] = replace(play.out[liar], exposing=claims).sign(study.keys[liar])
    if liar in play.sessions:
        play.sessions[liar]._state.advertisement = play.out[liar]
    return play.on()


def test_an_invented_claim_of_this_session_names_its_liar_and_stops_nobody():
    study = Study()
    play = lying(study, study.start(), invented(study))
    assert (play.refusals["site-e"].check, play.refusals["site-e"].culprits) == ("S-22", ("site-e",))
    assert play.server.included == tuple(study.ids[:4])
    assert np.array_equal(play.total, study.quantised(study.ids[:4]))


def test_a_server_that_lets_an_invented_claim_pass_is_caught(monkeypatch):
    monkeypatch.setattr(ReleaseClaim, "endorsers", lambda *_: frozenset("abcde"))
    study = Study()
    play = Round(study, study.start(), study.ids, until="AdvertiseKeys")
    play.out["site-e"] = replace(play.out["site-e"], exposing=(invented(study),)).sign(study.keys["site-e"])
    play.sessions["site-e"]._state.advertisement = play.out["site-e"]
    for site, message in play.out.items():
        play.server.receive(site, wire.decode_from_client(wire.encode(message)))
    monkeypatch.undo()
    play.replies = play.server.close_step()
    play.out = {}
    play.answer()
    assert {who: check for who, check in play.checks.items() if who != "site-e"} == dict.fromkeys(study.ids[:4], "C-25")
    assert all(isinstance(error, AuthenticationError) for who, error in play.errors.items() if who != "site-e")


def test_without_the_proof_one_liar_stops_everybody(monkeypatch):
    monkeypatch.setattr(ReleaseClaim, "endorsers", lambda *_: frozenset("abcde"))
    study = Study()
    play = lying(study, study.start(), invented(study))
    nothing_learned(play, "C-26")


@pytest.mark.parametrize(("endorsers", "added", "private"), [(1, 1, 0), (2, 0, 0), (2, 1, 1), (2, 1, 0)])
def test_a_claim_of_another_session_stops_who_added_to_that_round_where_more_than_c_attested(endorsers, added, private):
    """Who is not in that sum, or was charged for it, has nothing to fear of it: it is asked for no acceptance."""
    study = Study()
    other = Study(project="brain", stores=study.stores)
    other.private = set(study.ids) if private else set()
    if added:
        other.play(other.start(), study.ids[1:], until=CONSISTENCY)  # contributed, and nobody released
    claim = invented(study, session=other.session)
    signed = {
        who: secagg.messages.Attestation(claim.attested, who).sign(study.keys[who]).signature
        for who in study.ids[-endorsers:]
    }
    play = lying(study, study.start(), replace(claim, attestations={**claim.attestations, **signed}))
    if endorsers > study.c and added and not private:
        assert play.checks == dict.fromkeys(study.ids[1:4], "C-26")
        assert play.total is None
        for error in play.errors.values():
            assert error.round_ids == (claim.round_id,)
            assert "claimed by site-e: another site of this cohort says that it sent" in str(error)
    else:
        assert not play.errors
        assert np.array_equal(play.total, study.quantised(study.ids))


def liar_of_two_projects(monkeypatch) -> tuple[Study, Round]:
    """A private project of the same sites goes on honestly; one of them shows its true quorums in the other one."""
    claims, release = {}, Marks.release

    def kept(marks, slot, claim, private):
        claims[claim.round_id] = claim
        release(marks, slot, claim, private)

    monkeypatch.setattr(Marks, "release", kept)
    study = Study()
    charged = Study(project="charged", stores=dict(study.stores))
    charged.private = set(study.ids)
    head, missed = GENESIS, []
    for number in (1, 2):
        done = charged.play(charged.start(number, head=head, missed=missed, model=bytes([number]) * 32))
        head, missed = done.server.head, [*missed, done.server.receipt]
    assert len(claims) == 2
    assert all(len(claim.attestations) >= study.policy.threshold for claim in claims.values())
    study.stores["site-e"] = MemoryStore()
    return study, lying(study, study.start(), *claims.values())


def test_a_liar_with_true_quorums_of_a_private_project_stops_nobody(monkeypatch):
    study, play = liar_of_two_projects(monkeypatch)
    assert not play.errors
    assert np.array_equal(play.total, study.quantised(study.ids))


def test_where_every_claim_of_another_session_binds_that_liar_stops_everybody(monkeypatch):
    monkeypatch.setattr(Marks, "_added_to", lambda *_: True)
    nothing_learned(liar_of_two_projects(monkeypatch)[1], "C-26")


def completed_once() -> tuple[Study, Round, ReleaseClaim]:
    """Round 1 is finished and replayed by all but the site that was late; its claim is kept by the liar."""
    study = Study(6)
    first = study.play(study.start(), study.ids[1:])
    claim = study.opened("site-f").claim
    study.replay(study.ids[1:], first)
    return study, first, claim


def second_after(study: Study, first: Round, *claims: ReleaseClaim) -> Round:
    start = study.start(2, head=first.server.head, missed=[first.server.receipt], model=NEXT_MODEL)
    return lying(study, start, *claims)


def test_an_old_claim_of_a_round_that_everybody_replayed_stops_nobody():
    study, first, claim = completed_once()
    study.replay(study.ids[:1], first)
    second = second_after(study, first, claim)
    assert not second.errors
    assert np.array_equal(second.total, study.quantised(study.ids))


def test_a_late_joiner_that_never_saw_that_round_waits_for_its_transcript_and_the_others_go_on():
    study, first, claim = completed_once()
    assert not second_after(study, first).errors
    study, first, claim = completed_once()
    second = second_after(study, first, claim)
    assert second.checks == {VICTIM: "C-26"}
    assert second.errors[VICTIM].round_ids == (claim.round_id,)
    assert second.server.included == tuple(study.ids[1:])


def test_a_liar_that_shows_a_burned_round_again_asks_for_one_acceptance_only():
    study = Study(6)
    first = burned_but_taken(study)
    claim = study.opened("site-f").claim
    study.accept(study.ids, first.round_id)
    second = study.play(study.start(2))
    study.replay(study.ids, second)
    third = study.start(3, head=second.server.head, missed=[second.server.receipt], model=NEXT_MODEL)
    play = lying(study, third, claim)
    assert not play.errors
    assert play.total is not None


def test_a_claim_is_about_the_round_that_it_says():
    """Whatever field a liar changes, the attestations no longer fit."""
    study = Study()
    burned_but_taken(study)
    claim = study.opened("site-b").claim
    assert claim.endorsers(study.roster) == set(claim.attestations)
    assert len(claim.attestations) == study.policy.threshold
    for changes in (
        {"session": b"o" * 32},
        {"training_run": "other"},
        {"round_number": 2},
        {"attempt": 1},
        {"model_hash": NEXT_MODEL},
        {"task_hash": MODEL},
        {"previous_head": MODEL},
        {"roster2": MODEL},
        {"sharers_hash": MODEL},
        {"inputs_hash": MODEL},
    ):
        assert not replace(claim, **changes).endorsers(study.roster)


def test_what_a_site_released_goes_along_in_its_next_advertisement_and_over_the_wire():
    study = Study()
    first = burned_but_taken(study)
    study.accept(study.ids, first.round_id)
    play = Round(study, study.start(2), study.ids, until="AdvertiseKeys")
    for message in play.out.values():
        assert wire.decode_from_client(wire.encode(message)) == message
        assert (message.released, [claim.round_id for claim in message.exposing]) == (first.round_id, [first.round_id])
    fresh = Study()
    for message in Round(fresh, fresh.start(), fresh.ids, until="AdvertiseKeys").out.values():
        assert (message.released, message.exposing) == (bytes(32), ())


def test_a_site_that_hid_its_claim_is_the_victim_of_its_own_store_only():
    """The quiet site contributes where nobody claims anything: that is why every honest releaser claims."""
    study = Study(4)
    first = study.play(study.start(), hold=["site-c"], until=UNMASKING).silently()
    study.accept(["site-b"], first.round_id)
    study.stores["site-d"] = MemoryStore()
    second = study.play(study.start(2), study.ids[1:])
    nothing_learned(second, "C-26")


def test_private_rounds_need_no_acceptance():
    study = Study()
    study.private = set(study.ids)
    first = burned_but_taken(study)
    second = study.play(study.start(2))
    assert first.total is not None
    assert second.total is not None
    assert all(study.opened(who) is None for who in study.ids)


# --- row 8: own model and task ---------------------------------------------------------------------------------------


def two_models(study: Study, own: Callable) -> Round:
    """The server signs one hash, and sends everybody but the victim a model on which the update is zero."""
    dead = {who: MODEL if who == VICTIM else NEXT_MODEL for who in study.ids}
    study.updates |= {who: np.zeros(4) for who in study.ids if who != VICTIM}
    honest = study.open
    study.open = lambda who, start: honest(who, start, own(start, dead[who]))
    return study.play(study.start())


def test_open_round_demands_the_own_model_and_task():
    study = Study()
    play = two_models(study, lambda start, computed: computed)
    assert play.checks == {who: "C-23" for who in study.ids if who != VICTIM}
    assert play.total is None
    start, store = study.start(), study.stores[VICTIM]
    with pytest.raises(TypeError, match="model_hash"):
        open_round(study.policy, study.roster, "main", start, store)  # type: ignore[call-arg]
    with pytest.raises(InconsistentViewError, match=r"C-23.*task"):
        open_round(study.policy, study.roster, "main", start, store, model_hash=MODEL, task_hash=MODEL)
    with pytest.raises(ConfigError, match="server_key"):
        open_round(
            replace(study.policy, server_key=b""), study.roster, "main", start, store, model_hash=MODEL, task_hash=TASK
        )


def test_where_the_hash_is_copied_from_the_server_the_sum_is_one_site():
    study = Study()
    assert np.array_equal(two_models(study, lambda start, _: start.model_hash).total, study.quantised([VICTIM]))


# --- row 11: a start is taken whole, or leaves nothing ----------------------------------------------------------------


def receipt(study: Study, number: int, previous: bytes = GENESIS) -> Receipt:
    hashes = (b"r" * 32, b"a" * 32, b"s" * 32)
    head = next_head(previous, *hashes)
    return Receipt(study.run, number, *hashes, previous, head).sign(study.server_key)


def entries(store: MemoryStore) -> dict:
    with store.transaction() as marks:
        return dict(marks._entries)


def chain(study: Study, *numbers: int) -> list[Receipt]:
    made: list[Receipt] = []
    for number in numbers:
        made.append(receipt(study, number, made[-1].head if made else GENESIS))
    return made


def refused_starts(study: Study) -> dict[str, tuple[RoundStart, str, str]]:
    one, two = chain(study, 1, 2)
    far = chain(study, 1, LARGEST_STEP + 2)
    forged = replace(two, signature=bytes(64))
    return {
        "a receipt that does not follow": (study.start(3, head=two.head, missed=[two]), "C-04", ""),
        "a head that is not the last one's": (study.start(3, head=one.head, missed=[one, two]), "C-04", ""),
        "a forged receipt after a true one": (study.start(3, head=two.head, missed=[one, forged]), "C-01", ""),
        "a number that is not above the last": (study.start(2, head=two.head, missed=[one, two]), "C-04", ""),
        "the largest number in a receipt": (
            study.start(LARGEST_NUMBER, head=chain(study, LARGEST_NUMBER)[0].head, missed=chain(study, LARGEST_NUMBER)),
            "C-04",
            "",
        ),
        "a receipt too far ahead": (study.start(LARGEST_STEP + 3, head=far[1].head, missed=far), "C-04", ""),
        "the largest number": (study.start(LARGEST_NUMBER), "C-04", "too far"),
        "a number too far ahead": (study.start(LARGEST_STEP + 1), "C-04", "too far"),
        "another model": (study.start(2, head=one.head, missed=[one], model=NEXT_MODEL), "C-23", ""),
        "an unsigned start": (replace(study.start(2, head=one.head, missed=[one]), signature=bytes(64)), "C-01", ""),
    }


@pytest.mark.parametrize("which", list(refused_starts(Study())))
def test_a_refused_start_leaves_nothing(which):
    study = Study()
    start, check, words = refused_starts(study)[which]
    before = entries(study.stores[VICTIM])
    with pytest.raises(ProtocolError, match=rf"\[{check}\].*{words}"):
        study.open(VICTIM, start, MODEL)
    assert entries(study.stores[VICTIM]) == before
    study.open(VICTIM, study.start())


def test_a_start_refused_for_an_exposure_leaves_nothing_either():
    study = Study()
    burned_but_taken(study)
    before = entries(study.stores[VICTIM])
    (one,) = chain(study, 1)
    with pytest.raises(ExposureError, match="C-05"):
        study.open(VICTIM, study.start(2, head=one.head, missed=[one]))
    assert entries(study.stores[VICTIM]) == before


def test_round_numbers_advance_by_bounded_steps_past_what_is_known():
    study, number = Study(), 0
    for _ in range(3):
        number += LARGEST_STEP
        study.join(VICTIM, study.start(number))
        with pytest.raises(InconsistentViewError, match="C-04"):
            study.open(VICTIM, study.start(number + LARGEST_STEP + 1))
    made = chain(study, 5, 5 + LARGEST_STEP, 5 + 2 * LARGEST_STEP)
    late = study.ids[1]
    study.open(late, study.start(made[-1].round_number + LARGEST_STEP, head=made[-1].head, missed=made))
    with study.stores[late].transaction() as marks:
        assert marks.head(study.session, study.run) == (made[-1].round_number, made[-1].head)


@pytest.mark.parametrize(("number", "attempt"), [(0, 0), (2**63, 0), (1, 2**63), (2**64 - 1, 0), (1, 2**64 - 1)])
def test_a_number_out_of_range_is_a_malformed_message(monkeypatch, number, attempt):
    study = Study()
    monkeypatch.setattr("secagg.messages._require", lambda *_: None)
    start = wire.encode(study.start(number, attempt))
    late = wire.encode(study.start(2, head=MODEL, missed=[receipt(study, number)])) if not attempt else start
    monkeypatch.undo()
    for data in (start, late):
        with pytest.raises(MalformedMessageError, match=r"\[M-01\].*out of range"):
            wire.decode_from_server(data)


@pytest.mark.parametrize("run", ["x\x1b[2J", "", "a" * 257, "new\nline"])
def test_a_run_whose_name_moves_a_cursor_is_a_malformed_message(monkeypatch, run):
    study = Study()
    study.run = run
    monkeypatch.setattr("secagg.messages._require", lambda *_: None)
    data = wire.encode(study.start())
    monkeypatch.undo()
    with pytest.raises(MalformedMessageError, match=r"\[M-01\].*printable"):
        wire.decode_from_server(data)


# --- row 1: only the transcript of that very round --------------------------------------------------------------------


def other_projects_transcript(replay_of: Callable) -> tuple[Study, Round, Round]:
    """Two projects, one roster and one run name, own data sets; the honest transcript of one is shown to the other."""
    liver, brain = Study(), Study(project="brain", server_key=SigningKey.from_bytes(bytes([254]) * 32))
    honest = brain.play(brain.start())
    first = burned_but_taken(liver)
    brain_slot = honest.slot_of(brain)
    for who in liver.ids[1:]:
        with liver.stores[who].transaction() as marks:
            replay_of(marks, brain_slot, honest.round_id)
    return liver, first, liver.play(liver.start(2), liver.ids[1:])


def test_the_replay_of_another_round_clears_nothing():
    _, _, second = other_projects_transcript(Marks.replay)
    nothing_learned(second, "C-05")


def test_where_any_replay_clears_another_projects_transcript_gives_one_site(monkeypatch):
    def any_round(marks, slot, round_id):
        opened = marks.open_release
        Marks.replay(
            marks, slot if opened is None else opened.claim.slot, round_id if opened is None else opened.round_id
        )

    assert exact(*other_projects_transcript(any_round))


def elsewhere_and_back(model: bytes) -> tuple[Study, Round, Round]:
    """Round 1 is taken and 'burned'; its acceptance serves a round of another run; then the first run goes on."""
    study = Study()
    other = Study(run="other", stores=study.stores)
    first = burned_but_taken(study)
    study.accept(study.ids, first.round_id)
    between = other.play(other.start(model=b"o" * 32))
    assert between.total is not None
    other.replay(study.ids, between)
    return study, first, study.play(study.start(2, model=model), study.ids[1:])


@pytest.mark.parametrize("model", [MODEL, NEXT_MODEL])
def test_an_acceptance_that_served_another_run_does_not_serve_the_own_one_too(model):
    nothing_learned(elsewhere_and_back(model)[2], "C-05")
